"""Index tables: a CSV that names image, mask, label and patient of each slice."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.formats.location import Location
from kerasseg_tfrecords.sources.roles import Named, split_name, without_suffix
from kerasseg_tfrecords.sources.tree import read_bytes

__all__ = ["Index", "Row", "read_index"]

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
        image, mask: The files; no mask where the table names none.
        label: As written; None where the table has no such column.
        patient, volume: As written; "" where unknown.
        slice_index: Place in the volume from 0; -1 where unknown.
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
    """What a table names.

    Attributes:
        rows: In the order of the table.
        names_masks: Whether it has a column for masks; without it, masks are found by name.
        problems: Rows that cannot be used.
    """

    rows: tuple[Row, ...]
    names_masks: bool
    problems: tuple[Problem, ...]


def _key(name: str) -> str:
    folders, base = split_name(name)
    return unicodedata.normalize("NFC", "/".join((*folders, base)))


class _Files:
    """The files that rows may name, found by path or by the last parts of a path."""

    def __init__(self, files: Iterable[Named]) -> None:
        self._by_path = {_key(file.location.name): file for file in files}
        self._by_end: defaultdict[str, list[str]] = defaultdict(list)
        for path in self._by_path:
            base = path.rsplit("/", 1)[-1]
            for end in {base, without_suffix(base)}:
                self._by_end[end].append(path)

    def find(self, written: str, folders: tuple[str, ...], role: str) -> Location | None:
        """The file that a cell means: relative to the table, to the input, or by as much of its path as is unique.

        Args:
            written: The cell.
            folders: Where the table lies.
            role: "image" or "mask"; by its end alone, no file of the other role is found.
        """
        parts = [part for part in re.split(r"[\\/]+", unicodedata.normalize("NFC", written)) if part not in {"", "."}]
        for start in (folders, ()):
            path = _join(start, parts)
            if path is not None and path in self._by_path:
                return self._by_path[path].location
        if not parts or ".." in parts:
            return None
        # Tables hold the paths of the machine that wrote them, or bare names and stems.
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
    """Reads a table if it is an index.

    Separated by comma, semicolon or tab, in UTF-8 or Latin-1. The columns go by many names (`image_path`, `filename`,
    `class`, `patient_id`, ...); further ones are passed over. Paths count from the table's folder; paths of another machine
    are found by their ends if these are unique.

    Args:
        table: A .csv or .tsv file.
        pictures: The files that rows may name.

    Returns:
        None where the table has no column for images, or names none of the files.
    """
    try:
        data = read_bytes(table, limit=_LIMIT)
    except DataError as error:
        return Index((), False, (Problem.of(error, table.name),))
    try:
        return _index(table, _parse(data), pictures)
    except DataError as error:
        return Index((), False, (Problem.of(error, table.name),))


def _index(table: Location, lines: Iterator[list[str]], pictures: Iterable[Named]) -> Index | None:
    header = next(lines, [])
    columns = _columns(header)
    if "image" not in columns:
        return None
    files = _Files(pictures)
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, cells in enumerate(lines, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        values = {name: cells[place].strip() if place < len(cells) else "" for name, place in columns.items()}
        found = _row(values, f"{table.name} line {number}", split_name(table.name)[0], files)
        if isinstance(found, Row):
            rows.append(found)
        else:
            problems.append(Problem(table.name, "missing-file", f"line {number}: {found}"))
    if not rows and problems and "mask" not in columns:
        return None  # a table of something else with a column that is called `file`
    return Index(tuple(rows), "mask" in columns, tuple(problems))


def _parse(data: bytes) -> Iterator[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    return _rows(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


def _rows(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows up to the first that the reader refuses (a field of more than 131,072 characters: an unclosed quote)."""
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            "the table cannot be read", found=error, remedy="Look for a quote that is not closed"
        ) from error


def _columns(header: list[str]) -> dict[str, int]:
    """Which column holds what; the best known of several names is taken."""
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
        return f"the image {written!r} is not there" if written else "no image is named"
    mask = None
    if values.get("mask"):
        mask = files.find(values["mask"], folders, "mask")
        if mask is None:
            return f"the mask {values['mask']!r} of {image.name} is not there"
        if mask == image:
            return f"{image.name} is named as its own mask"
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
