"""List images for prediction, in all formats and without masks.

Unlike the inputs of training, one folder may have files of several formats, and files may be given by patterns.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kerasseg_tfrecords.errors import BadInputError, DataError, Problem
from kerasseg_tfrecords.formats.sniff import DICOM_SUFFIXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources import SOURCES, source_for
from kerasseg_tfrecords.sources.base import Item, LeftOut, SourceOptions
from kerasseg_tfrecords.sources.tree import Tree, has_suffix, input_names, open_tree, suffix_of, surviving

_PICTURES = frozenset(PICTURE_SUFFIXES)
_TABLES = frozenset({".csv", ".tsv"})
_EXPECTED = ".mat files, pictures (PNG, JPEG, TIFF, BMP, GIF, NPY), volumes (NIfTI, MGZ, MHA, NRRD) or DICOM files"
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The images of one input."""

    name: str
    root: Path
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def list_images(
    inputs: Sequence[Path | str], options: SourceOptions, *, format_name: str | None = None, hidden: Sequence[Path] = ()
) -> list[ImageInput]:
    """Find the images to predict.

    Args:
        inputs: Folders, zips, files, or patterns with `*`, `?` and `**`. Files of one folder are one input.
        options: Options of the readers; masks are never read.
        format_name: The only format to read; None for all.
        hidden: Folders to skip (earlier outputs), unless one is itself an input.

    Returns:
        One entry for each input, including those without images.

    Raises:
        DataError: An input does not exist, or no input has images.
        UsageError: The format is unknown.
    """
    formats = tuple(SOURCES) if format_name is None else (source_for(format_name).name,)
    trees = list(_trees(inputs))
    names = input_names([tree.root for tree in trees])
    options = replace(options, masks=False)
    found = []
    for tree, name in zip(trees, names, strict=True):
        entry, crashed = surviving(_list_one, tree.without(hidden), name, options, formats)
        found.append(replace(entry, problems=(*crashed, *entry.problems)))
    if not any(entry.items for entry in found):
        problems = [problem for entry in found for problem in entry.problems]
        if problems:
            raise BadInputError(problems, "no image can be read", remedy="Download or copy the files again.")
        raise _no_images(trees, format_name)
    return found


def _trees(inputs: Sequence[Path | str]) -> Iterator[Tree]:
    """Yield the inputs, with patterns resolved and files of one folder combined."""
    folders: dict[Path, list[Location]] = {}
    order: dict[Path, Tree | None] = {}
    for given in inputs:
        for path in _paths(given):
            if path.is_file() and path.suffix.lower() != ".zip":
                place = Location(path, (), path.name)
                kept = folders.setdefault(path.parent, [])
                order.setdefault(path.parent, None)
                if place not in kept:
                    kept.append(place)
            else:
                order[path] = _open(path)
    for path, tree in order.items():  # a whole folder includes its files that are also given singly
        yield tree if tree is not None else Tree(path, tuple(folders[path]))


def _paths(given: Path | str) -> list[Path]:
    text = str(given)
    if Path(text).exists() or not _MAGIC & set(text):
        return [Path(text)]
    found = sorted(Path(path) for path in glob.glob(text, recursive=True))  # noqa: PTH207 - patterns may be absolute
    if not found:
        raise DataError("no file matches the pattern", path=text, expected=_EXPECTED, kind="missing-file")
    return found


def _open(path: Path) -> Tree:
    try:
        return open_tree(path)
    except BadInputError:
        raise
    except DataError as error:
        if error.kind != "empty":
            raise
        raise DataError("no images", path=path, found=error.what, expected=_EXPECTED, kind="empty") from None


def _no_images(trees: Iterable[Tree], format_name: str | None) -> DataError:
    counts: Counter[str] = Counter()
    roots = []
    for tree in trees:
        counts += tree.suffixes()
        roots.append(str(tree.root))
    seen = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in counts.most_common(5))
    remedy = None if format_name is None else "Choose another --format, or omit it."
    return DataError(
        "no images",
        path=", ".join(roots),
        found=f"files: {seen}" if seen else "no files",
        expected=_EXPECTED,
        remedy=remedy,
        kind="empty",
    )


def _list_one(tree: Tree, name: str, options: SourceOptions, formats: Sequence[str]) -> ImageInput:
    items: list[Item] = []
    problems = list(tree.problems)
    left_out: list[LeftOut] = []
    notes: list[str] = []
    # Scanners write files without a suffix; the reader checks their content.
    dicom = {place for place in tree.locations if suffix_of(place.name) in DICOM_SUFFIXES or not has_suffix(place.name)}
    for format_name in formats:
        places = [place for place in tree.locations if _belongs(place, format_name)]
        if format_name == "dicom":
            places = [place for place in tree.locations if place in dicom]
        if not places or (format_name == "pairs" and not any(suffix_of(p.name) in _PICTURES for p in places)):
            continue
        listing = source_for(format_name).find_items(replace(tree, locations=tuple(places), problems=()), options)
        chosen = [item for item in listing.items if format_name == "dicom" or item.files[0] not in dicom]
        if format_name == "pairs" and "dicom" in formats:
            # The names tell which DICOM files among pictures are images; their series are listed as such.
            images = {item.files[0] for item in listing.items}
            dicom -= {place for place in dicom if _belongs(place, "pairs") and place not in images}
        items += [replace(item, files=item.files[:1]) for item in chosen]
        left_out += [LeftOut(mask.name, "a mask") for item in chosen for mask in item.files[1:]]
        problems += listing.problems
        left_out += listing.left_out
        notes += [note for note in listing.notes if "class" not in note and "slices are" not in note]
    known = {item.files[0] for item in items} | dicom
    seen = {entry.name for entry in left_out} | {problem.name for problem in problems}
    left_out += [
        LeftOut(place.name, "not an image") for place in tree.locations if place not in known and place.name not in seen
    ]
    return ImageInput(name, tree.root, tuple(items), tuple(problems), tuple(left_out), tuple(notes))


def _belongs(place: Location, format_name: str) -> bool:
    suffix = suffix_of(place.name)
    if format_name == "figshare":
        return suffix == ".mat"
    if format_name == "nifti":
        return suffix in VOLUME_SUFFIXES or place.name.endswith("dataset.json")
    return format_name == "pairs" and (suffix in _PICTURES or suffix in _TABLES or suffix in DICOM_SUFFIXES)
