"""CSV tables: values come back unchanged, and no spreadsheet takes one for a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.tables import format_csv, parse_csv, read_csv

TEXT = st.text(st.sampled_from("=+-@'\" ,;\t\n\r|a1.\u202e\uff1d\u00e9"), max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_every_cell_comes_back(rows: list[tuple[str, str]]) -> None:
    text = format_csv([("a", "b"), *rows])
    assert [tuple(cells) for _, cells in parse_csv(text)][1:] == rows


def test_cells_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg_tfrecords.tables._MAX_CELLS", 5)
    assert len(list(parse_csv("a,b\n1,2\n3\n"))) == 3
    with pytest.raises(ValueError, match="line 3: more than 5 cells"):
        list(parse_csv("a,b\n1,2\n3,4\n"))


@given(TEXT)
def test_no_cell_starts_a_formula(value: str) -> None:
    """Neither for a program that splits at commas, nor for one that splits at semicolons or tabs."""
    text = format_csv([["x", value]])
    for delimiter in ",;\t":
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            for cell in cells:
                bare = cell.strip(' \t\r\n"\u202e')
                assert not bare.startswith(("=", "@", "+", "-", "\uff1d")) or not bare.strip("+-.1")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-1", "-1"),
        (-0.25, "-0.25"),
        ("-nan", "-nan"),
        ("-1+cmd", "'-1+cmd"),
        ("'quoted'", "'quoted'"),
        ("'=x", "''=x"),
        (" =x", '" \'=x"'),
        ("a;=x", '"a;\'=x"'),
        ("scan-1.png", "scan-1.png"),
        (None, ""),
    ],
)
def test_cells_as_written(value: object, written: str) -> None:
    assert format_csv([[value]]) == written + "\n"
    (_, cells), *_ = parse_csv(written + ",\n")
    assert cells[0] == ("" if value is None else str(value))


def test_a_table_is_read_and_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(format_csv([["name", "mm"], ["=a", 1], ["b", 2]]))
    assert read_csv(path, "a table", ["mm"]) == [{"name": "=a", "mm": "1"}, {"name": "b", "mm": "2"}]
    for text, words in (
        ("name,mm\n" + "x" * 200_000 + ",1\n", "damaged .*line 2: field larger"),
        ("name,mm\na\n", "damaged .*line 2: 1 cell,"),
        ("name\na\n", "not a table .*no column mm"),
        ('name,mm\n"a"b,1\n', "damaged .*line 2"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_csv(path, "a table", ["mm"])
    with pytest.raises(DataError, match="a table is missing"):
        read_csv(tmp_path / "none.csv", "a table")
