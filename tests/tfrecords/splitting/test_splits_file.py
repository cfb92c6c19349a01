"""The frozen split survives writing, spreadsheets and odd names, and is refused where the data are others."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import BadInputError, DataError
from kerasseg_tfrecords.splitting.splits_file import COLUMNS, SplitRow, apply, dump, load, parse

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",;\n\r\t =ü'), max_size=12)
ROWS = st.lists(
    st.builds(
        SplitRow,
        slice_id=TEXT.filter(bool),
        source=TEXT,
        sha256=st.text("0123456789abcdef", max_size=64),
        label=TEXT,
        patient=TEXT,
        group=TEXT,
        split=st.sampled_from(["train", "val", "test"]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row.slice_id,
)


def row(name: str, split: str = "train", **others: str) -> SplitRow:
    values = {"source": f"{name}.mat", "sha256": "ab" * 32, "label": "glioma", "patient": "p", "group": f"g-{name}"}
    return SplitRow(slice_id=name, split=split, **{**values, **others})


GOOD = [row("1"), row("2", "val"), row("3", "test")]


@given(ROWS)
def test_what_is_written_is_read(rows: list[SplitRow]) -> None:
    assert parse(dump(rows)) == rows


@given(ROWS)
def test_a_plain_csv_reader_reads_the_same(rows: list[SplitRow]) -> None:
    """But for apostrophes before what a spreadsheet would take for a formula."""
    rows = [row for row in rows if not set("=+-@") & set("".join(dataclasses.astuple(row)))]
    plain = list(csv.reader(io.StringIO(dump(rows), newline="")))
    assert plain == [list(COLUMNS), *(list(dataclasses.astuple(row)) for row in rows)]


def test_names_survive_the_file(tmp_path: Path) -> None:
    rows = [row("a\nb"), row("Größe, 1.mat"), row(' "x" '), row("caf\udce9.png"), row("日本\r")]
    path = tmp_path / "splits.csv"
    path.write_text(dump(rows), encoding="utf-8", errors="surrogateescape", newline="")
    assert load(path) == rows


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text + "\n\n",
        lambda text: text + ",,,,,,\n",
        lambda text: text.rstrip("\n"),
        lambda text: "\n".join(",".join([*reversed(line.split(",")), "x"]) for line in text.splitlines()),
        lambda text: "\n".join(",".join(f'"{value}"' for value in line.split(",")) for line in text.splitlines()),
    ],
    ids=["bom", "crlf", "semicolon", "tab", "empty-lines", "empty-cells", "no-end", "columns", "quoted"],
)
def test_what_spreadsheets_do_is_read(change, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(change(dump(GOOD)), encoding="utf-8", newline="")
    assert load(path) == GOOD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: has no column slice_id, source"),
        ("a,b\n1,2\n", "line 1: has no column"),
        (",".join(COLUMNS) + ",label\n", "line 1: has column label twice"),
        (",".join(COLUMNS) + "\n", "holds no slices"),
        (dump(GOOD).replace("val", "valid"), "line 3: split 'valid'"),
        (dump(GOOD) + "4,x\n", "line 5: 2 values"),
        (dump([*GOOD, GOOD[1]]), "line 5: slice '2' is already in line 3"),
        (
            dump([row("a\nb"), GOOD[0]]).replace("train", "Train", 2).replace("Train", "train", 1),
            "line 6: split 'Train'",
        ),
        (dump(GOOD).replace("\n2,", '\n"2"x,'), "line 3: "),
        (dump(GOOD) + '"open', "line 5: unexpected end"),
        (dump(GOOD).replace("\n3,", "\n,"), "line 4: slice_id is empty"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse(text, "frozen.csv")
    assert message in str(error.value)
    assert "frozen.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_workbook_and_an_absent_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    with pytest.raises(DataError, match="cannot be read"):
        load(path)
    path.write_bytes(b"PK\x03\x04\x00\x00")
    with pytest.raises(DataError, match="not a text file"):
        load(path)


def test_the_split_is_given_in_the_order_of_the_slices() -> None:
    assert apply(GOOD, GOOD[::-1]) == ("test", "val", "train")


def test_upper_case_digests_are_the_same() -> None:
    assert apply([dataclasses.replace(r, sha256=r.sha256.upper()) for r in GOOD], GOOD)


@pytest.mark.parametrize(
    ("slices", "kind", "words"),
    [
        (GOOD[:2], "missing-slice", "1 in the file but not in the data (3)"),
        ([*GOOD, row("4")], "additional-slice", "1 in the data but not in the file (4)"),
        ([*GOOD[:2], row("3", sha256="cd" * 32)], "changed-bytes", "1 with other bytes (3)"),
        ([*GOOD[:2], row("3", label="pituitary")], "changed-label", "1 with another label (3)"),
    ],
)
def test_data_that_do_not_fit_are_refused(slices: list[SplitRow], kind: str, words: str) -> None:
    with pytest.raises(BadInputError) as error:
        apply(GOOD, slices)
    assert [problem.kind for problem in error.value.problems] == [kind]
    assert words in str(error.value)


def test_all_kinds_are_counted_and_ten_of_each_are_listed() -> None:
    frozen = [row(f"{k:03}") for k in range(40)]
    now = [row(f"{k:03}", label="other") for k in range(20, 60)]
    with pytest.raises(BadInputError) as error:
        apply(frozen, now)
    for words in ("20 in the file but not", "20 in the data but not", "20 with another label"):
        assert words in str(error.value)
    assert len(error.value.problems) == 30


def test_a_group_in_two_splits_is_refused_unless_slices_were_split() -> None:
    rows = [row("1", group="g"), row("2", "test", group="g")]
    with pytest.raises(BadInputError, match="1 group in several splits") as error:
        apply(rows, rows)
    assert "--split-by slice" in str(error.value)
    assert "train and test" in error.value.problems[0].message
    assert apply(rows, rows, grouped=False) == ("train", "test")


def test_rows_without_group_do_not_form_one() -> None:
    rows = [row("1", group=""), row("2", "test", group="")]
    assert apply(rows, rows) == ("train", "test")
