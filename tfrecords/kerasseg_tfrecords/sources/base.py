"""The interface of readers: they list the items of a tree of files, and read an item to slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.slices import Location

if TYPE_CHECKING:
    from kerasseg_tfrecords.slices import Reading
    from kerasseg_tfrecords.sources.tree import Tree


class NotASlice(DataError):  # noqa: N818 - not an error for the user
    """A readable file that is not meant to be a slice, such as `cvind.mat`; callers list it as a `LeftOut`.

    Raised by `Source.read`, because opening every file while listing would take as long as converting it.
    """


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of the readers.

    Attributes:
        classes: Class names in label order; None for the built-in tumour classes and their spellings (`classes` module).
        masks: False reads images only (prediction): missing or bad masks and classes are then not problems, and
            `Slice.mask` may be None.
        plane: Plane in which volumes are cut: "axial", "coronal" or "sagittal".
        foreground: Label values that count as tumour; None for every value but 0.
        channel: Channel of a multi-channel volume: its number from 0, or its name in `dataset.json`. None for the
            contrast-enhanced T1 if the names are known.
        sequence: Sequence to read if a case has several files ("t1ce", "flair"); None for the contrast-enhanced T1.
        empty_share: Slices without tumour to keep per volume, as a share of those with tumour (0.2: one for five).
        patient_pattern: Regular expression whose group 1 (or whole match) in the item's name is the patient id; None for
            the patient that the format states.
        max_pixels: Larger images are refused before they are decoded.
        seed: Seed of the choice of slices without tumour, combined with the item's name.

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
    """Files that are read together: a .mat file, an image with its mask, or a volume with its segmentation.

    Attributes:
        format: Name of the source that reads it.
        name: Display name, unique within its input.
        files: The image, then its separate mask files, of which the union is taken.
        label, patient, volume, slice_index: Known from the listing (folder, file name, index CSV); "" and -1 if unknown.
        slice_id: Id of its slice (`104` for `104.mat`), unique within the input; "" if reading determines it.
        channel: Channel of a multi-channel volume; -1 for a single channel or if unknown.
        page: Frame of a multi-frame file; -1 for a single frame.
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
    """A file that is not meant to be a slice (`cvind.mat`, a licence, a preview); not an error."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The items that a source found in a tree.

    Attributes:
        items: In natural order of their names (`2.mat` before `10.mat`).
        left_out: Files that are not slices, each with the reason.
        problems: Bad files found while listing (a mask without image, an unknown class, ...).
        notes: Sentences about the whole listing.
    """

    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A stateless reader of one format."""

    name: str

    def recognises(self, tree: Tree) -> float:
        """Return the confidence, 0 to 1, that the tree has this format, from names and content."""
        ...

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """Find the items without decoding pixels."""
        ...

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Read one item; raises `NotASlice` or `DataError`, and no other exception."""
        ...


def file_limit(options: SourceOptions) -> int:
    """Return the largest size of a file with one slice in bytes: 8 per pixel, plus room for headers."""
    return 8 * options.max_pixels + (1 << 26)


def partner_error(error: DataError, partner: str, name: str) -> DataError:
    """Return an error of an item's mask as an error of the item `name`; `partner` names the mask."""
    return DataError(
        f"its {partner}: {error.what}",
        path=name,
        found=error.found,
        expected=error.expected,
        remedy=error.remedy,
        kind=error.kind,
    )
