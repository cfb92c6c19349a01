"""A short slice of `make torture`: a disturbed command, typed again, leaves what an undisturbed one leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from torture import contents, mounts, torture


@pytest.mark.rest
def test_disturbed_commands_end_as_undisturbed_ones(tmp_path: Path) -> None:
    commands = ("predict", "tune-threshold")
    assert list(torture(tmp_path, commands, kill=2, starve=2 * mounts(), race=2)) == []


def test_a_file_too_many_and_another_value_are_seen(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"dice": [0.5, 0.25]}')
    before = contents(tmp_path)
    (tmp_path / "metrics.json").write_text('{"dice": [0.5, 0.75]}')
    assert contents(tmp_path) != before
    (tmp_path / "metrics.json").write_text('{"dice":[0.5,0.25]}')
    assert contents(tmp_path) == before
    (tmp_path / "rest.part").touch()
    assert contents(tmp_path) != before
