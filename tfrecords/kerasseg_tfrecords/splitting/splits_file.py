r"""Read and write `splits.csv`, the frozen split: `prepare` writes it, and `--splits` reuses it.

UTF-8, written by `tables`. A file saved by a spreadsheet is read as well: byte-order mark, `\r\n`, semicolons or tabs,
another column order, additional columns, empty lines at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from kerasseg_tfrecords.errors import BadInputError, DataError, Problem, one_line
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.splitting.split import SPLITS
from kerasseg_tfrecords.storage import local_copy
from kerasseg_tfrecords.tables import format_csv, parse_csv

_SHOWN = 10

LEFT_OUT = "left_out"
"""The split of slices that a balanced subset or an overlap excludes; the file describes all of the data."""


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One row of `splits.csv`.

    Attributes:
        slice_id: Unique over all inputs.
        source: The file that the slice was read from; for information, not compared.
        sha256: Hex digest of the bytes that were read.
        label: Class name; "" without classes.
        patient: Patient id as read; "" if unknown.
        group: All slices of a group are in one split.
        split: One of `split.SPLITS`, or `LEFT_OUT`.
    """

    slice_id: str
    source: str
    sha256: str
    label: str
    patient: str
    group: str
    split: str


COLUMNS = tuple(field.name for field in fields(SplitRow))


def dump(rows: Iterable[SplitRow]) -> str:
    r"""Return the text of the file, in the order of the rows.

    Write it as UTF-8 with `errors="surrogateescape"` and `newline=""`: all names then survive, even file names that are not
    valid UTF-8.

    Example:
        >>> dump([SplitRow("a,b", "b/1.mat", "00", "glioma", "p", "g", "train")])
        'slice_id,source,sha256,label,patient,group,split\n"a,b",b/1.mat,00,glioma,p,g,train\n'
    """
    return format_csv([COLUMNS, *([getattr(row, column) for column in COLUMNS] for row in rows)])


def load(path: str | Path) -> list[SplitRow]:
    """Read the rows of a file, or of one at a URL, in its order.

    Raises:
        DataError: The file cannot be read or is not a `splits.csv`; the message names the line.
    """
    try:
        data = read_file(local_copy(path))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path, expected="a splits.csv") from error
    if b"\0" in data[:4096]:
        raise DataError(
            "this is not a text file",
            path=path,
            expected="a splits.csv",
            remedy="Save the sheet as CSV (UTF-8), not as a workbook.",
        )
    return parse(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), path)


def parse(text: str, path: str | Path = "splits.csv") -> list[SplitRow]:
    """Parse the text of a file, with its line ends unchanged; `path` is for messages."""
    rows: list[SplitRow] = []
    first_line: dict[str, int] = {}
    try:
        lines = parse_csv(text, any_separator=True)
        names = [name.strip() for name in next(lines, (1, []))[1]]
        _check_header(names, path)
        at = [names.index(column) for column in COLUMNS]
        for line, values in lines:
            if not any(values):
                continue
            row = _row(values, names, at, path, line)
            if row.slice_id in first_line:
                raise DataError(
                    f"line {line}: slice {row.slice_id!r} is already in line {first_line[row.slice_id]}",
                    path=path,
                    expected="each slice once",
                )
            first_line[row.slice_id] = line
            rows.append(row)
    except ValueError as error:
        raise DataError(str(error), path=path, expected="comma-separated values") from error
    if not rows:
        raise DataError("holds no slices", path=path)
    return rows


def _check_header(names: Sequence[str], path: str | Path) -> None:
    missing = [column for column in COLUMNS if column not in names]
    twice = [column for column in COLUMNS if names.count(column) > 1]
    if missing or twice:
        problem = f"has no column {', '.join(missing)}" if missing else f"has column {', '.join(twice)} twice"
        found = ", ".join(names[:10])[:200] or "an empty first line"
        raise DataError(f"line 1: {problem}", path=path, found=found, expected=", ".join(COLUMNS))


def _row(values: Sequence[str], names: Sequence[str], at: Sequence[int], path: str | Path, line: int) -> SplitRow:
    if len(values) != len(names):
        raise DataError(f"line {line}: {len(values)} values", path=path, expected=f"{len(names)}, as in the first line")
    row = SplitRow(*(values[index] for index in at))
    if not row.slice_id:
        raise DataError(f"line {line}: slice_id is empty", path=path)
    if row.split not in (*SPLITS, LEFT_OUT):
        raise DataError(f"line {line}: split {row.split!r}", path=path, expected=", ".join((*SPLITS, LEFT_OUT)))
    return row


def apply(
    rows: Sequence[SplitRow], slices: Sequence[SplitRow], *, grouped: bool = True, path: str | Path = "splits.csv"
) -> tuple[str, ...]:
    """Return the split of each slice from a file (one of `SPLITS`, or `LEFT_OUT`), if the data are the same.

    Groups are those of the file, so that a later version that finds other copies does not refuse an old split.

    Args:
        rows: From `load`.
        slices: The data as read now; id, digest and label are compared.
        grouped: Refuse a file with a group in several splits; False for `--split-by id` and `slice`.
        path: The file's name, for messages.

    Raises:
        BadInputError: The data do not fit: a slice is missing, additional, has other bytes or another label, or a group
            is in several splits. The message gives the numbers; `problems` holds the first 10 of each kind.
    """
    of = {row.slice_id: row for row in rows}
    present = {slice_.slice_id for slice_ in slices}
    kinds: dict[str, list[Problem]] = {
        "in the file but not in the data": [
            Problem(
                row.slice_id, "missing-slice", f"is in {Path(path).name}, but not in the data (it was {row.source})"
            )
            for row in rows
            if row.slice_id not in present
        ],
        "in the data but not in the file": [
            Problem(slice_.slice_id, "additional-slice", f"is in the data, but not in {Path(path).name}")
            for slice_ in slices
            if slice_.slice_id not in of
        ],
        "with other bytes": [
            Problem(slice_.slice_id, "changed-bytes", f"sha256 is {_short(slice_.sha256)}, was {_short(old.sha256)}")
            for slice_ in slices
            if (old := of.get(slice_.slice_id)) and old.sha256.lower() != slice_.sha256.lower()
        ],
        "with another label": [
            Problem(slice_.slice_id, "changed-label", f"label is {slice_.label!r}, was {old.label!r}")
            for slice_ in slices
            if (old := of.get(slice_.slice_id)) and old.label != slice_.label
        ],
        "group in several splits": _crossing(rows) if grouped else [],
    }
    wrong = {kind: problems for kind, problems in kinds.items() if problems}
    if wrong:
        counts = "; ".join(
            f"{len(problems)} {kind} ({', '.join(one_line(p.name) for p in problems[:3])}"
            f"{', ...' if len(problems) > 3 else ''})"
            for kind, problems in wrong.items()
        )
        shown = [problem for problems in wrong.values() for problem in problems[:_SHOWN]]
        remedy = "Use the data and options that the split was made with, or make a new split without --splits."
        if len(wrong) == 1 and "group in several splits" in wrong:
            remedy = "Correct the file, or use --split-by slice if the split ignores patients."
        raise BadInputError(shown, f"{path}: the data do not fit this split: {counts}", remedy=remedy)
    return tuple(of[slice_.slice_id].split for slice_ in slices)


def _crossing(rows: Sequence[SplitRow]) -> list[Problem]:
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.split != LEFT_OUT:
            splits[row.group or f"slice:{row.slice_id}"].add(row.split)
    return [
        Problem(group, "group-crosses", f"is in {' and '.join(s for s in SPLITS if s in seen)}")
        for group, seen in splits.items()
        if len(seen) > 1
    ]


def _short(digest: str) -> str:
    return digest[:12] + "..." if len(digest) > 12 else digest or "unknown"
