"""Messages stay on one line, and show what is in a name."""

from __future__ import annotations

import unicodedata

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


def test_one_and_two_files() -> None:
    problems = [Problem(f"{k}.mat", "unreadable", "x") for k in range(2)]
    assert str(BadInputError(problems[:1])).startswith("1 bad input file. Repair or remove it,")
    assert str(BadInputError(problems)).startswith("2 bad input files. Repair or remove them,")


def test_a_file_named_later_is_in_the_message_and_the_first_name_is_kept() -> None:
    error = KerassegError("damaged", found="3 bytes")
    error.name_file("a.zip!1.mat")
    error.name_file("other.mat")
    assert str(error) == "a.zip!1.mat: damaged (found 3 bytes)"
