"""Messages stay on one line, and show what is in a name."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import BadInputError, KerassegError, Problem, one_line


@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    shown = one_line(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert "\n" not in str(KerassegError(text, path=text))


@pytest.mark.parametrize("mark", ["\u202e", "\u2067", "\u200f", "\u200b", "\ufeff", "\x1b", "\u2028", "\udc80"])
def test_marks_are_escaped(mark: str) -> None:
    assert one_line(f"a{mark}b") == f"a{mark.encode('unicode_escape').decode()}b"


def test_words_and_letters_stay() -> None:
    assert one_line("Größe 日本 مرحبا") == "Größe 日本 مرحبا"


@pytest.mark.parametrize(
    "text",
    [
        "s3://KEY:S3C/RET@bucket/scans",
        "https://me:S3C?RET@host/x.keras",
        "https://me:S3C#RET@host/x.keras",
        "https://me:S3C RET@host/x.keras",
        "https:///me:S3CRET@host/x.keras",
        "https:\\\\me:S3CRET@host",
        "https://host/it's/x.keras?S3CRET",
        "https://host/x.keras;token=S3C/RET",
        "https://host/x.keras;S3CRET",
        str(Path("https://host/x.keras;token=S3CRET")),
        str(Path("https://host/x.keras?S3CRET")),
        str(Path("s3://bucket/x.keras#S3CRET")),
        "(found https://host/a;v=1/x.keras;sig=S3C;key=RET?x#RET)",
        "(found https://host/x.keras?sig=S3C)RET&key='S3CRET')",
        "Max retries exceeded with url: /x.keras?S3CRET (Caused by ...)",
    ],
)
def test_credentials_of_every_form_are_removed(text: str) -> None:
    shown = str(KerassegError("no", path=text, found=text))
    assert "S3C" not in shown
    assert "RET" not in shown


def test_addresses_without_credentials_stay() -> None:
    for text in (
        "https://host/a; key=b",
        "https://host:8080/a@v1/x",
        "https://[::1]:80/x@y",
        "https://host:443: no answer from a@b",
        "a: b@c",
    ):
        assert KerassegError("no", found=text).found == text
    assert KerassegError("no", found="(see 'https://h/x?q=1', then)").found == "(see 'https://h/x', then)"
    assert KerassegError("`https://h/x?q=1` is none").what == "`https://h/x` is none"


def test_one_and_two_files() -> None:
    problems = [Problem(f"{k}.mat", "unreadable", "x") for k in range(2)]
    assert str(BadInputError(problems[:1])).startswith("1 bad input file. Repair or remove it,")
    assert str(BadInputError(problems)).startswith("2 bad input files. Repair or remove them,")


def test_a_file_named_later_is_in_the_message_and_the_first_name_is_kept() -> None:
    error = KerassegError("damaged", found="3 bytes")
    error.name_file("a.zip!1.mat")
    error.name_file("other.mat")
    assert str(error) == "a.zip!1.mat: damaged (found 3 bytes)"
