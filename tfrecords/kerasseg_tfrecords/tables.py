"""Write and read CSV tables, with limits and without cells that a spreadsheet would run as formulas.

Spreadsheets treat cells that start with `=`, `+`, `-` or `@` as formulas, and names of files and patients are untrusted.
The writer therefore puts an apostrophe before such cells, except plain numbers, and the reader removes it again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.text import count

_MAX_CELLS = 30_000_000
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|nan)")
# A spreadsheet may split at other separators than the comma, and may drop white space and invisible characters.
_START = r"((?:\A|[,;\t\r\n|\"])[\s\x00-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*)"
_SIGN = r"(?=[=+\-@\uff1d\uff0b\uff0d\uff20])"
_FORMULA = re.compile(f"{_START}('*){_SIGN}")
_GUARDED = re.compile(f"{_START}'('*){_SIGN}")


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    r"""Return rows as CSV text: comma-separated, quoted as in RFC 4180, with `\n` between lines.

    Args:
        rows: Cells, the header first; anything but text is written with `str`, and None as an empty cell.

    Example:
        >>> format_csv([["name", "mm"], ["=1+1", -2.5], ["a,b", None]])
        'name,mm\n\'=1+1,-2.5\n"a,b",\n'
    """
    return "".join(",".join("" if cell is None else _cell(str(cell)) for cell in row) + "\n" for row in rows)


def _cell(value: str) -> str:
    if not _NUMBER.fullmatch(value):
        value = _FORMULA.sub(r"\1'\2", value)
    # Not the csv module's writer: which characters it quotes differs between Python versions, and splits.csv is hashed.
    if any(c in value for c in ',;\t"\r\n') or value != value.strip():
        return '"' + value.replace('"', '""') + '"'
    return value


def parse_csv(text: str, *, any_separator: bool = False, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    r"""Parse untrusted CSV text.

    Args:
        text: The text, with its line ends unchanged.
        any_separator: Also accept semicolons and tabs; the most frequent separator in the first line is used.
        strict: Refuse misplaced quotes.

    Yields:
        Number of the line in which a row begins, and its cells.

    Raises:
        ValueError: The text is not CSV, a cell is longer than 131,072 characters, or there are too many cells; the message
            names the line.

    Example:
        >>> list(parse_csv("name;mm\n'=1+1;-2.5\n", any_separator=True))
        [(1, ['name', 'mm']), (2, ['=1+1', '-2.5'])]
    """
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count) if any_separator else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    line, count_cells = 1, 0
    try:
        for cells in reader:
            count_cells += len(cells)
            if count_cells > _MAX_CELLS:
                raise ValueError(f"line {line}: more than {_MAX_CELLS:,} cells")
            yield line, [_GUARDED.sub(r"\1\2", cell) if "'" in cell else cell for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}") from None


def read_csv(path: Path, what: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV file with a header.

    Returns:
        One dictionary per row, column -> text; empty lines are skipped.

    Raises:
        DataError: The file is missing, cannot be read, is too large or is not such a table.
    """
    try:
        lines = parse_csv(read_file(path).decode("utf-8-sig"))
        _, header = next(lines, (1, []))
        missing = [name for name in columns if name not in header]
        if missing:
            raise DataError(f"this is not {what}", path=path, found=f"no column {missing[0]}")
        rows = []
        for line, cells in lines:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise ValueError(f"line {line}: {count(len(cells), 'cell')}, not {len(header)} as in the first line")
            rows.append(dict(zip(header, cells, strict=True)))
    except FileNotFoundError:
        raise DataError(f"{what} is missing", path=path) from None
    except OSError as error:
        raise DataError(f"{what} cannot be read", path=path, found=error.strerror or error) from None
    except ValueError as error:
        raise DataError(f"{what} is damaged", path=path, found=error) from None
    return rows
