"""`kerasseg` alone: where one is on the way, at every place of it, quickly and at every width."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kerasseg.workflows.status import look_around, newest_facts
from kerasseg_cli.app import app

TUNED = {
    "created": "2026-03-01T10:00:00+00:00",
    "model": {
        "network": "model.keras",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "rule": {"threshold": 0.35},
        "raw": {"mean": 0.701},
        "dice": {"mean": 0.7242},
    },
}
FIGURES = {
    "created": "2026-03-02T10:00:00+00:00",
    "threshold": "auto",
    "final": "postprocessing",
    "model": {
        "stages": [
            {"name": "raw", "all": {"measures": {"dice": {"mean": 0.1, "low": None, "high": None}}}},
            {"name": "postprocessing", "all": {"measures": {"dice": {"mean": 0.7312, "low": 0.70, "high": 0.76}}}},
        ]
    },
}


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def prepared(folder: Path) -> None:
    counts = [
        {"split": s, "label": c, "slices": n} for s, n in (("train", 1200), ("val", 3), ("test", 4)) for c in "ab"
    ]
    write(folder / "shards" / "manifest.json", {"counts": counts, "classes": ["a", "b"]})


def trained(folder: Path, *, finished: str = "finished") -> Path:
    run = folder / "runs" / "first"
    write(run / "config.json", {})
    (folder / "runs" / "latest").write_text("first\n")
    (run / "model.keras").write_bytes(b"weights")
    with (run / "history.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["epoch", "val_dice"], [0, 0.612], [1, 0.6], [2, 0.701], [3, 0.69]])
    state = run / "state"
    state.mkdir(exist_ok=True)
    with zipfile.ZipFile(state / "state-00000002.npz", "w") as archive:
        archive.writestr("facts.json", json.dumps({"facts": {"finished": finished}}))
    (state / "state-00000003.npz").write_bytes(b"half a file")
    return run


def tuned(run: Path) -> None:
    write(run / "threshold.json", TUNED)


def evaluated(run: Path) -> None:
    write(run / "evaluation" / "test" / "metrics.json", FIGURES)


def states(folder: Path) -> dict[str, str]:
    return {step.name: step.state for step in look_around(folder).steps if step.state not in ("open", "any time")}


def figures(folder: Path) -> dict[str, str]:
    return {step.name: step.figure for step in look_around(folder).steps if step.figure}


def test_each_place_on_the_way(tmp_path: Path) -> None:
    assert (states(tmp_path), look_around(tmp_path).next) == ({}, "kerasseg fetch figshare")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".fetch.lock").touch()
    (tmp_path / "data" / "1.zip").touch()
    (tmp_path / "data" / "2.zip.part").touch()  # a download that broke off: a part of the data is not the data
    assert look_around(tmp_path).next == "kerasseg fetch figshare"
    (tmp_path / "data" / "2.zip.part").unlink()
    assert look_around(tmp_path).next == "kerasseg prepare data/"
    prepared(tmp_path)
    assert states(tmp_path) == {"prepare": "done"}
    assert figures(tmp_path) == {"prepare": "2,400 + 6 + 8 slices (train, val, test), 2 classes"}
    assert look_around(tmp_path).next == "kerasseg train --checkpoint FILE"
    run = trained(tmp_path, finished="")
    assert states(tmp_path)["train"] == "unfinished"
    assert look_around(tmp_path).next == "kerasseg train --resume"
    trained(tmp_path)
    assert figures(tmp_path)["train"] == "Dice 0.612 -> 0.701 on validation, epoch 2"
    assert look_around(tmp_path).next == "kerasseg tune-threshold"
    tuned(run)
    assert figures(tmp_path)["tune-threshold"] == "threshold 0.35, Dice 0.701 -> 0.724 on validation"
    assert look_around(tmp_path).next == "kerasseg evaluate --threshold auto"
    evaluated(run)
    assert figures(tmp_path)["evaluate"] == "Dice 0.731 on test (0.700 to 0.760)"
    assert look_around(tmp_path).next == "kerasseg predict INPUT --out predictions"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("file\n")
    assert figures(tmp_path)["predict"] == "in out/"
    assert set(states(tmp_path).values()) == {"done"}
    assert look_around(tmp_path).run == "first"


def test_what_was_made_for_an_earlier_network_is_old(tmp_path: Path) -> None:
    prepared(tmp_path)
    run = trained(tmp_path)
    tuned(run)
    evaluated(run)
    later = (run / "threshold.json").stat().st_mtime + 10
    # The same bytes, copied later, are the same network.
    os.utime(run / "model.keras", (later, later))
    assert set(states(tmp_path).values()) == {"done"}
    (run / "model.keras").write_bytes(b"other weights")
    os.utime(run / "model.keras", (later, later))
    assert states(tmp_path) == {"prepare": "done", "train": "done", "tune-threshold": "old", "evaluate": "old"}
    assert look_around(tmp_path).next == "kerasseg tune-threshold"
    (run / "model.keras").write_bytes(b"weights")
    write(run / "threshold.json", TUNED | {"created": "2026-04-01T10:00:00+00:00"})
    assert states(tmp_path)["evaluate"] == "old"


@pytest.mark.parametrize("name", ["shards/manifest.json", "runs/first/threshold.json", "runs/first/config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_damaged_files_are_said_to_be_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    prepared(tmp_path)
    tuned(trained(tmp_path))
    (tmp_path / name).write_bytes(content)
    found = look_around(tmp_path)
    assert "damaged" in {step.state for step in found.steps}
    assert found.next in ("kerasseg verify", "kerasseg doctor")


def test_a_damaged_newest_state_is_passed_over(tmp_path: Path) -> None:
    assert newest_facts(trained(tmp_path, finished="stopped") / "state") == {"finished": "stopped"}
    assert newest_facts(tmp_path) is None


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[]"])
def test_a_state_with_other_facts_is_passed_over(content: str, tmp_path: Path) -> None:
    state = trained(tmp_path, finished="stopped") / "state"
    with zipfile.ZipFile(state / "state-99999999.npz", "w") as archive:
        archive.writestr("facts.json", content)
    assert newest_facts(state) == {"finished": "stopped"}


def test_a_latest_that_is_gone_is_no_run(tmp_path: Path) -> None:
    trained(tmp_path)
    shutil.rmtree(tmp_path / "runs" / "first")
    assert look_around(tmp_path).run is None


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("full", [True, False])
def test_the_screen_fits_and_the_document_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, full: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if full:
        prepared(tmp_path)
        run = trained(tmp_path)
        tuned(run)
        evaluated(run)
    shown = CliRunner().invoke(app, [], env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= columns
    assert f"Next: {look_around().next}" in shown.output
    assert ("Dice 0.612 -> 0.701" in " ".join(shown.output.split())) is full
    machine = json.loads(CliRunner().invoke(app, ["--json"]).output)
    assert [step["name"] for step in machine["steps"]] == [step.name for step in look_around().steps]


ALONE = """
import sys
from kerasseg_cli.app import app
try:
    app([])
except SystemExit as stop:
    assert stop.code == 0
heavy = {"tensorflow", "keras", "numpy", "h5py", "scipy", "cv2"} & set(sys.modules)
assert not heavy, heavy
"""


def test_it_loads_nothing_heavy(python: str, child_environment: dict[str, str], tmp_path: Path) -> None:
    trained(tmp_path)
    subprocess.run([python, "-c", ALONE], env=child_environment, cwd=tmp_path, check=True, capture_output=True)
