"""Readers of data formats, and the registry that selects one.

    open_tree(path) -> Tree          the files of an input, also those in zips
    detect(tree) -> Source           the format, by content
    source.find_items(tree, options) -> Listing
    read_item(item, options) -> Reading

Files are parsed in child processes (`isolation`), where the module of a format is imported on first use, so that a process
that reads .mat files loads neither OpenCV nor nibabel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import cast

from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.formats.sniff import VOLUME_SUFFIXES
from kerasseg_tfrecords.isolation import isolated, out_of_memory
from kerasseg_tfrecords.slices import Reading
from kerasseg_tfrecords.sources.base import Item, Listing, Source, SourceOptions
from kerasseg_tfrecords.sources.tree import IMAGE_SUFFIXES, Tree, surviving
from kerasseg_tfrecords.text import count
from kerasseg_tfrecords.validation import did_you_mean

_LAYOUTS = {
    "figshare": "figshare: .mat files with cjdata, or their zip",
    "pairs": "pairs: images/ + masks/, NAME.tif + NAME_mask.tif, or an index CSV",
    "nifti": "nifti: volumes with their segmentation (.nii, .nii.gz, .hdr + .img, .mgz, .mha, .nrrd)",
    "dicom": "dicom: single-frame MR files",
}
"""Name of a format, which is also the name of its module, -> its files, for the message if no format is recognised."""
_SUFFIXES = {"figshare": (".mat",), "nifti": VOLUME_SUFFIXES}
"""Suffixes of which a tree of the format has at least one. Saves the import of modules that cannot apply."""


@dataclass(slots=True)
class _Isolated:
    """A source that works in a child process, where its module is imported on first use."""

    name: str

    @isolated
    def recognises(self, tree: Tree) -> float:
        return self._source.recognises(tree)

    @isolated
    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        return self._source.find_items(tree, options)

    @isolated
    def read(self, item: Item, options: SourceOptions) -> Reading:
        return self._source.read(item, options)

    @property
    def _source(self) -> Source:
        return cast(Source, import_module(f"{__name__}.{self.name}").SOURCE)


SOURCES: Mapping[str, Source] = {name: _Isolated(name) for name in _LAYOUTS}


def source_for(name: str) -> Source:
    """Return the source of a format.

    Raises:
        UsageError: There is no such format.

    Example:
        >>> source_for("figshare").name
        'figshare'
    """
    if name not in SOURCES:
        near = did_you_mean(name, list(SOURCES))
        raise UsageError("unknown format", found=name, expected=", ".join(SOURCES), remedy=near)
    return SOURCES[name]


def detect(tree: Tree) -> Source:
    """Return the source that recognises a tree with the highest confidence, the first of equal ones in `SOURCES`.

    Raises:
        DataError: No source recognises it; the message counts the files and lists the supported layouts.

    Example:
        >>> from kerasseg_tfrecords import open_tree
        >>> detect(open_tree("data")).name
        'figshare'
    """
    present = set(tree.suffixes())
    best: tuple[float, Source] | None = None
    for name, source in SOURCES.items():
        if present.isdisjoint(_SUFFIXES.get(name, present)):
            continue
        sure = source.recognises(tree)
        if sure > 0 and (best is None or sure > best[0]):
            best = (sure, source)
        if sure >= 1:  # certain, so the other modules need not be imported
            break
    if best is not None:
        return best[1]
    counts = sorted(tree.suffixes().items(), key=lambda pair: (-pair[1], pair[0]))
    seen = ", ".join(f"{number} {suffix or 'without suffix'}" for suffix, number in counts[:5])
    seen += ", ..." if len(counts) > 5 else ""
    what = "images without masks" if present & IMAGE_SUFFIXES else "no slices were recognised"
    expected = "; ".join(_LAYOUTS.values())
    remedy = "See docs/data.md for the folder layouts, or name the format with --format."
    raise DataError(
        what, path=tree.root, found=f"files: {seen}", expected=expected, remedy=remedy, kind="unknown-format"
    )


def find_items(tree: Tree, options: SourceOptions, format_name: str | None = None) -> Listing:
    """List the items of a tree in the named or detected format; problems of the tree itself are included."""
    listing, crashed = surviving(_find_items, tree, options, format_name)
    return replace(listing, problems=(*crashed, *listing.problems))


def _find_items(tree: Tree, options: SourceOptions, format_name: str | None) -> Listing:
    source = detect(tree) if format_name is None else source_for(format_name)
    listing = source.find_items(tree, options)
    listing = replace(
        listing, problems=(*tree.problems, *listing.problems), notes=(*listing.notes, *_other_formats(tree, source))
    )
    if not listing.items and not listing.problems:
        found = f"{count(len(tree.locations), 'file')}, but no {source.name} data"
        remedy = "Choose another --format, or omit it to detect the format."
        raise DataError("nothing to read", path=tree.root, found=found, remedy=remedy, kind="empty")
    return listing


_SIGNS = {**_SUFFIXES, "dicom": (".dcm",)}
"""Suffixes that identify a format. Pairs is missing: other formats often come with previews in its file types."""


def _other_formats(tree: Tree, source: Source) -> tuple[str, ...]:
    """Return notes about files of other formats, which are not read."""
    counts = tree.suffixes()
    notes = []
    for name, endings in _SIGNS.items():
        others = sum(counts.get(ending, 0) for ending in endings)
        if others and name != source.name and not (name == "dicom" and source.name == "pairs"):
            files = count(others, f"{endings[0]} file")
            notes.append(
                f"read as {source.name}; {files} ({name}) not read: to read them, add their folder as an input"
            )
    return tuple(notes)


@isolated
def read_item(item: Item, options: SourceOptions) -> Reading:
    """Read one item with the source that listed it.

    Raises:
        NotASlice: The file is readable but is not meant to be a slice.
        DataError: The item cannot be read; includes unexpected exceptions of libraries, so that one bad file does not stop
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
        error.name_file(item.name)
        raise
    except KerassegError:  # of the machine, such as a full disk: the file may be good
        raise
    except MemoryError:
        raise out_of_memory(item.name) from None
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError("cannot be read", path=item.name, found=found) from error
