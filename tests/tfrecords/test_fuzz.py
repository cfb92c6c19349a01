"""A short slice of `make fuzz`: no mutated file ends a reader, hangs, or raises what the user should not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import READERS, fuzz, mutated


@pytest.mark.rest
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    assert list(fuzz(200, tmp_path / "state", batch=100)) == []
    assert list(fuzz(200, tmp_path / "state")) == [], "all were done"


@pytest.mark.parametrize("reader", [name for name, known in READERS.items() if known.share > 0.01])
def test_mutations_are_repeatable_and_originals_are_read(reader: str, tmp_path: Path) -> None:
    found = [mutated(reader, number) for number in range(50)]
    assert found == [mutated(reader, number) for number in range(50)]
    assert len(set(found[:5])) > 2
    known = READERS[reader]
    path = tmp_path / f"1{known.suffix}"
    path.write_bytes(known.pack(known.original()))
    known.read(path)
