"""Readers, one a format, and the registry that finds the right one.

    open_tree(path) -> Tree          the files of an input, also those in zips
    detect(tree) -> Source           the format, by content
    source.find_items(tree, options) -> Listing
    read_item(item, options) -> Reading

A format's module is imported when it is first needed: a worker that reads .mat files loads neither OpenCV nor nibabel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import cast

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.formats.location import Location
from kerasseg_tfrecords.formats.sniff import VOLUME_SUFFIXES
from kerasseg_tfrecords.slices import Reading
from kerasseg_tfrecords.sources.base import Item, Listing, NotASlice, Source, SourceOptions
from kerasseg_tfrecords.sources.tree import IMAGE_SUFFIXES, Tree, open_tree, read_bytes
from kerasseg_tfrecords.validation import did_you_mean

__all__ = [
    "SOURCES",
    "Item",
    "Listing",
    "Location",
    "NotASlice",
    "Source",
    "SourceOptions",
    "Tree",
    "detect",
    "find_items",
    "open_tree",
    "read_bytes",
    "read_item",
    "source_for",
]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a format lives and what it looks like.

    Attributes:
        module: Its module, whose `SOURCE` is the source.
        layout: How such a folder looks, for the message when nothing fits.
        suffixes: Endings without which a tree cannot be this format, so that its module need not be imported to ask;
            empty where files have no particular ending.
    """

    module: str
    layout: str
    suffixes: frozenset[str] = frozenset()


_ENTRIES = {
    "figshare": _Entry("figshare", "figshare: .mat files with cjdata, or their zip", frozenset({".mat"})),
    "pairs": _Entry("pairs", "pairs: images/ + masks/, NAME.tif + NAME_mask.tif, or an index CSV"),
    "nifti": _Entry(
        "nifti",
        "nifti: volumes with their segmentation (.nii, .nii.gz, .hdr + .img, .mgz, .mha, .nrrd)",
        frozenset(VOLUME_SUFFIXES),
    ),
    "dicom": _Entry("dicom", "dicom: single-frame MR files"),
}


class _Registry(Mapping[str, Source]):
    """Name -> source, imported when it is asked for."""

    def __getitem__(self, name: str) -> Source:
        return cast(Source, import_module(f"{__name__}.{_ENTRIES[name].module}").SOURCE)

    def __iter__(self) -> Iterator[str]:
        return iter(_ENTRIES)

    def __len__(self) -> int:
        return len(_ENTRIES)


SOURCES: Mapping[str, Source] = _Registry()


def source_for(name: str) -> Source:
    """The source of a format.

    Raises:
        UsageError: There is no such format.

    Example:
        >>> source_for("figshare").name
        'figshare'
    """
    if name not in _ENTRIES:
        near = did_you_mean(name, list(_ENTRIES))
        raise UsageError("unknown format", found=name, expected=", ".join(_ENTRIES), remedy=near)
    return SOURCES[name]


def detect(tree: Tree) -> Source:
    """The source that is surest to know the tree; the earlier one in `SOURCES` where two are equally sure.

    Raises:
        DataError: No source knows it; the message counts what lies there and lists the layouts that are read.

    Example:
        >>> from kerasseg_tfrecords import open_tree
        >>> detect(open_tree("data")).name
        'figshare'
    """
    present = set(tree.suffixes())
    best: tuple[float, Source] | None = None
    for name, entry in _ENTRIES.items():
        if entry.suffixes and not entry.suffixes & present:
            continue
        source = SOURCES[name]
        sure = source.recognises(tree)
        if sure > 0 and (best is None or sure > best[0]):
            best = (sure, source)
        if sure >= 1:  # nobody can be surer: the other modules need not be imported
            break
    if best is not None:
        return best[1]
    counts = sorted(tree.suffixes().items(), key=lambda pair: (-pair[1], pair[0]))
    seen = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in counts[:5])
    seen += ", ..." if len(counts) > 5 else ""
    what = "images without masks" if present & IMAGE_SUFFIXES else "no slices were recognised"
    expected = "; ".join(entry.layout for entry in _ENTRIES.values())
    remedy = "See docs/data.md for the folder layouts, or name the format with --format."
    raise DataError(
        what, path=tree.root, found=f"files: {seen}", expected=expected, remedy=remedy, kind="unknown-format"
    )


def find_items(tree: Tree, options: SourceOptions, format_name: str | None = None) -> Listing:
    """Detects the format (or takes `format_name`) and lists the tree, its own problems among those of the listing.

    Raises:
        DataError: The format is unknown, or there is nothing of it in the tree.
    """
    source = detect(tree) if format_name is None else source_for(format_name)
    listing = source.find_items(tree, options)
    if tree.problems:
        problems = (*tree.problems, *listing.problems)
        listing = Listing(listing.items, listing.left_out, problems, listing.notes)
    listing = replace(listing, notes=(*listing.notes, *_passed_over(tree, source)))
    if not listing.items and not listing.problems:
        found = f"{len(tree.locations)} files, none of them {source.name}"
        remedy = "Name another --format, or none, so that it is detected."
        raise DataError("nothing to read", path=tree.root, found=found, remedy=remedy, kind="empty")
    return listing


_SIGNS = {"figshare": (".mat",), "nifti": VOLUME_SUFFIXES, "dicom": (".dcm",)}
"""Endings that only the named format has; pairs takes .dcm as images too, and its own are previews elsewhere."""


def _passed_over(tree: Tree, source: Source) -> tuple[str, ...]:
    """A folder of folders in several formats is read in one of them: say what was not."""
    counts = tree.suffixes()
    notes = []
    for name, endings in _SIGNS.items():
        count = sum(counts.get(ending, 0) for ending in endings)
        if count and name != source.name and not (name == "dicom" and source.name == "pairs"):
            notes.append(
                f"read as {source.name}; {count} {endings[0]} files look like {name} and were not read: name their folder "
                "as an input of its own"
            )
    return tuple(notes)


def read_item(item: Item, options: SourceOptions) -> Reading:
    """Reads one item with the source that listed it; runs in worker processes.

    Raises:
        NotASlice: It is readable, no slice, and need not be one.
        DataError: Anything wrong with it. Also what a library raised that no reader foresaw: one bad file must not cost
            the others.

    Example:
        >>> from kerasseg_tfrecords import SourceOptions, open_tree
        >>> options, tree = SourceOptions(), open_tree("data")
        >>> for item in find_items(tree, options).items[:2]:
        ...     print([(s.source, s.label, s.patient) for s in read_item(item, options).slices])
        [('1.mat', 'meningioma', '100000')]
        [('2.mat', 'meningioma', '100000')]
    """
    try:
        return SOURCES[item.format].read(item, options)
    except DataError as error:
        if error.path is None:
            error.path = item.name
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError("cannot be read", path=item.name, found=found) from error
