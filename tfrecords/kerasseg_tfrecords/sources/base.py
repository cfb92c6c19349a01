"""The contract between `prepare` and the readers: a tree of files goes in, items come out, an item is read to slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.formats.location import Location

if TYPE_CHECKING:
    from kerasseg_tfrecords.slices import Reading
    from kerasseg_tfrecords.sources.tree import Tree

__all__ = ["Item", "LeftOut", "Listing", "NotASlice", "Source", "SourceOptions", "file_limit"]


class NotASlice(DataError):  # noqa: N818 - it is news, not a fault
    """Raised by `Source.read` for a readable file that holds no slice and need not (`cvind.mat`).

    Only reading tells, and opening every file while listing would cost as much as converting it; `prepare` and
    `integrity.check_data` therefore turn this into a `LeftOut` whose reason is `what`, and go on.
    """


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the user may say about reading.

    Attributes:
        classes: Class names in label order; None for the built-in tumour classes and their spellings (`classes` module).
        masks: False when only images are wanted (prediction): no mask and no class is needed then, none that is bad is a
            problem, and readers leave `Slice.mask` None where they have none.
        plane: Axis of a volume: "axial", "coronal" or "sagittal".
        foreground: Label values that count as tumour in a segmentation or mask; None for every value but 0.
        channel: Channel to read of a volume with several: its number from 0, or its name in `dataset.json`. None for the
            T1 with contrast where names are known.
        sequence: Sequence to read where a case has several files ("t1ce", "flair"); None for the T1 with contrast.
        empty_share: Slices of a volume without tumour to keep, as a share of those with tumour (0.2: one for five).
        patient_pattern: Regular expression whose group 1 (or whole match) in the item's name is its patient id; None for
            what the format itself says.
        max_pixels: Larger images are refused before they are decoded.
        seed: For the choice of empty slices; each choice is derived from (seed, item name).

    Example:
        >>> options = SourceOptions(plane="coronal", foreground=(1, 4))
        >>> options.empty_share, options.masks
        (0.2, True)
    """

    classes: tuple[str, ...] | None = None
    masks: bool = True
    plane: str = "axial"
    foreground: tuple[int, ...] | None = None
    channel: str | None = None
    sequence: str | None = None
    empty_share: float = 0.2
    patient_pattern: str | None = None
    max_pixels: int = 64_000_000
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to read: a .mat file, an image with its mask, a volume with its segmentation. Holds no pixels, pickles.

    Attributes:
        format: Name of the source that reads it.
        name: As shown to users; unique within its input.
        files: What is read: the image first, then its masks where they are files of their own; several are united.
        label, patient, volume, slice_index: What the listing already knows (folder, file name, index CSV); "" and -1
            where only reading will tell.
        slice_id: Id of its slice (`104` for `104.mat`), unique within the input; "" where the source makes it while
            reading.
        channel: Channel of a volume that has several; -1 where it has one, or where it is not known yet.
        page: Frame of a file of several; -1 for a file of one.
        grey_regions: Whether masks of the data set hold regions in shades of grey; see `masks.binarise`.
    """

    format: str
    name: str
    files: tuple[Location, ...]
    label: str = ""
    patient: str = ""
    volume: str = ""
    slice_index: int = -1
    slice_id: str = ""
    channel: int = -1
    page: int = -1
    grey_regions: bool = False


@dataclass(frozen=True, slots=True, order=True)
class LeftOut:
    """A file that is no slice and need not be one (`cvind.mat`, a licence, a preview); not an error."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source found in a tree.

    Attributes:
        items: In natural order of their names (`2.mat` before `10.mat`).
        left_out: Files that are no slices, each with the reason.
        problems: Bad files found while listing (a mask without image, an unknown class, ...).
        notes: Sentences about the whole listing for the report.
    """

    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A format. Stateless; one instance each in the registry (`sources.__init__`)."""

    name: str

    def recognises(self, tree: Tree) -> float:
        """How sure this source is that the tree is its format: 0 (not at all) to 1. Looks at content, not only names."""
        ...

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """Finds the items without decoding pixels."""
        ...

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Reads one item.

        Raises:
            NotASlice: It is readable, no slice, and need not be one.
            DataError: Anything wrong with it (path = the item's name), and nothing else.
        """
        ...


def file_limit(options: SourceOptions) -> int:
    """Bytes that a file of one slice may have: 8 a pixel, and room for what headers carry."""
    return 8 * options.max_pixels + (1 << 26)
