"""Read index tables: CSV files with the image, mask, label and patient of each slice."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.roles import Named, split_name, without_suffix
from kerasseg_tfrecords.sources.tree import read_bytes
from kerasseg_tfrecords.tables import parse_csv

_LIMIT = 1 << 28
_COLUMNS = {
    "image": "image img image_path img_path image_file image_filename image_name file_path filepath file_name filename "
    "file path input slice scan",
    "mask": "mask mask_path mask_file mask_filename mask_name msk segmentation segmentation_path seg seg_path annotation "
    "annotation_path ground_truth ground_truth_path gt label_path label_file",
    "label": "label class class_name classname category diagnosis tumor_type tumour_type tumor tumour type",
    "patient": "patient patient_id patientid pid subject subject_id case case_id",
    "volume": "volume volume_id series series_id study study_id",
    "slice_index": "slice_index",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One slice of an index.

    Attributes:
        image, mask: The files; the mask is None if the table has none.
        label: As in the table; None without such a column.
        patient, volume: As in the table; "" if unknown.
        slice_index: Index in the volume, from 0; -1 if unknown.
        where: Table and line, for messages.
    """

    image: Location
    mask: Location | None
    label: str | None
    patient: str
    volume: str
    slice_index: int
    where: str


@dataclass(frozen=True, slots=True)
class Index:
    """Content of an index table."""

    rows: tuple[Row, ...]
    names_masks: bool
    problems: tuple[Problem, ...]


def _key(name: str) -> str:
    folders, base = split_name(name)
    return unicodedata.normalize("NFC", "/".join((*folders, base)))


class _Files:
    """The files that rows may refer to, found by path or by the last parts of a path."""

    def __init__(self, files: Iterable[Named]) -> None:
        self._by_path = {_key(file.location.name): file for file in files}
        self._by_end: defaultdict[str, list[str]] = defaultdict(list)
        for path in self._by_path:
            base = path.rsplit("/", 1)[-1]
            for end in {base, without_suffix(base)}:
                self._by_end[end].append(path)

    def find(self, written: str, folders: tuple[str, ...], role: str) -> Location | None:
        """Find the file that a cell refers to: relative to the table or the input, or by a unique end of its path.

        Args:
            written: The cell.
            folders: Folder of the table.
            role: "image" or "mask"; files of the other role are not found by the end of their path.
        """
        parts = [part for part in re.split(r"[\\/]+", unicodedata.normalize("NFC", written)) if part not in {"", "."}]
        for start in (folders, ()):
            path = _join(start, parts)
            if path is not None and path in self._by_path:
                return self._by_path[path].location
        if not parts or ".." in parts:
            return None
        # Tables often hold paths of another machine, or only names or stems.
        other = "mask" if role == "image" else "image"
        paths = [path for path in self._by_end.get(parts[-1], []) if self._by_path[path].role != other]
        for length in range(2, len(parts) + 1):
            if len(paths) < 2:
                break
            tail = "/" + "/".join(parts[-length:])
            paths = [path for path in paths if f"/{path}".endswith(tail) or f"/{without_suffix(path)}".endswith(tail)]
        return self._by_path[paths[0]].location if len(paths) == 1 else None


def _join(start: tuple[str, ...], parts: list[str]) -> str | None:
    path = list(start)
    for part in parts:
        if part != "..":
            path.append(part)
        elif path:
            path.pop()
        else:
            return None
    return "/".join(path)


def read_index(table: Location, pictures: Iterable[Named]) -> Index | None:
    """Read a table (comma, semicolon or tab; UTF-8 or Latin-1) if it is an index.

    Columns are recognised by many names (`image_path`, `filename`, `class`, `patient_id`, ...); others are ignored. Paths
    are relative to the folder of the table or to the input; paths of another machine are found by a unique end.

    Returns:
        The index; None if the table has no column for images, or refers to none of the files.
    """
    try:
        data = read_bytes(table, limit=_LIMIT)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        return _index(table, parse_csv(text, any_separator=True, strict=False), pictures)
    except DataError as error:
        return Index((), False, (Problem.of(error, table.name),))
    except ValueError as error:
        message = f"the table cannot be read ({error}). Check it for a quote that is not closed"
        return Index((), False, (Problem(table.name, "unreadable", message),))


def _index(table: Location, lines: Iterator[tuple[int, list[str]]], pictures: Iterable[Named]) -> Index | None:
    _, header = next(lines, (1, []))
    columns = _columns(header)
    if "image" not in columns:
        return None
    files = _Files(pictures)
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        values = {name: cells[place].strip() if place < len(cells) else "" for name, place in columns.items()}
        found = _row(values, f"{table.name} line {number}", split_name(table.name)[0], files)
        if isinstance(found, Row):
            rows.append(found)
        else:
            problems.append(Problem(table.name, "missing-file", f"line {number}: {found}"))
    if not rows and problems and "mask" not in columns:
        return None  # another kind of table with a column called `file`
    return Index(tuple(rows), "mask" in columns, tuple(problems))


def _columns(header: list[str]) -> dict[str, int]:
    """Return the index of the column for each meaning; of several fitting names, the first in `_COLUMNS` counts."""
    names = [re.sub(r"[^a-z0-9]+", "_", unicodedata.normalize("NFKC", cell).casefold()).strip("_") for cell in header]
    found = {}
    for meaning, spellings in _COLUMNS.items():
        place = next((names.index(spelling) for spelling in spellings.split() if spelling in names), None)
        if place is not None:
            found[meaning] = place
    return found


def _row(values: Mapping[str, str], where: str, folders: tuple[str, ...], files: _Files) -> Row | str:
    written = values["image"]
    image = files.find(written, folders, "image")
    if image is None:
        return f"the image {written!r} does not exist" if written else "the image is missing"
    mask = None
    if values.get("mask"):
        mask = files.find(values["mask"], folders, "mask")
        if mask is None:
            return f"the mask {values['mask']!r} of {image.name} does not exist"
        if mask == image:
            return f"{image.name} is given as its own mask"
    place = values.get("slice_index", "")
    return Row(
        image,
        mask,
        values.get("label"),
        values.get("patient", ""),
        values.get("volume", ""),
        int(place) if place.isascii() and place.isdigit() else -1,
        where,
    )
