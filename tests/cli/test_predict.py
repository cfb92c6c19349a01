"""`kerasseg predict` as typed: what it says, JSON, exit codes and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from evaluated_runs import brightness_network
from kerasseg.workflows import predict as files
from kerasseg_cli.app import app

Type = Callable[..., Result]
SIZE = 32


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Types `kerasseg predict ...` in a folder with six slices and a checkpoint."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 2, (SIZE, SIZE)).astype(np.uint8) * 200
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), pixels)
    brightness_network(SIZE, at=0.5, steep=60).save(tmp_path / "net.keras")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_what_it_says(predict: Type, tmp_path: Path) -> None:
    done = predict("in", "--model", "net.keras", "--out", "out", "--overlay")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 of 6 inputs, 6 slices: a tumour in 6 of them.")
    assert "net.keras at 32x32 in float32 by Keras, minmax, threshold 0.5, no post-processing" in done.stdout
    assert lines[-1] == "Masks and predictions.csv: out"
    assert "intensity rule of the network is unknown" in done.stderr
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 6
    again = predict("in", "--model", "net.keras", "--out", "out", "--overlay", "--continue", "-q")
    assert (again.exit_code, again.output) == (0, "")


def test_files_that_are_not_images_are_counted(predict: Type, tmp_path: Path) -> None:
    (tmp_path / "in" / "notes.txt").write_text("x")
    done = predict("in", "--model", "net.keras", "--out", "out")
    assert "Skipped 1 file that is not an image: notes.txt (" in done.stdout
    (tmp_path / "in" / "more.txt").write_text("x")
    done = predict("in", "--model", "net.keras", "--out", "out", "--continue")
    assert "Skipped 2 files that are not images, such as more.txt (" in done.stdout


def test_a_bad_file_gives_exit_code_3_and_the_others_are_done(predict: Type, tmp_path: Path) -> None:
    (tmp_path / "in" / "3.png").write_bytes(b"\x89PNG rubbish")
    done = predict("in", "--model", "net.keras", "--out", "out", "-q")
    assert done.exit_code == 3
    assert "  3.png: " in done.stderr
    assert "1 input could not be read" in done.stderr
    assert done.stdout == ""
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 5
    done = predict("in", "--model", "net.keras", "--out", "out", "--continue", "--json")
    assert done.exit_code == 3
    document = json.loads(done.stdout)
    assert (document["done"], document["earlier"], document["total"]) == (5, 5, 6)
    assert document["engines"] == ["native"]
    assert document["problems"][0]["name"] == "3.png"
    assert document["files"][0]["outputs"] == {"mask": ["0_mask.png"]}


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(
    predict: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, times = files._Job.ask, iter(range(10))

    def interrupted(job: files._Job, batch: list[files._Prepared]) -> object:
        if next(times) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(job, batch)

    monkeypatch.setattr(files._Job, "ask", interrupted)
    done = predict("in", "--model", "net.keras", "--out", "out", "--batch-size", "1")
    assert done.exit_code == 130
    assert "finishing the slices" in done.stderr
    assert "Run the same command with --continue" in done.stderr
    masks = len(list((tmp_path / "out").glob("*_mask.png")))
    assert masks < 6
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == masks + 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    done = predict("in", "--model", "net.keras", "--out", "out", "--continue")
    assert done.exit_code == 0
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["in", "--run", "a", "--model", "b"], 2, "--run and --model"),
        (["in", "--model", "gone.keras"], 1, "no such file"),
        (["in", "--model", "net.keras", "--threshold", "2"], 2, "invalid threshold"),
        (["in", "--model", "net.keras", "--augment", "rotation"], 2, "refused"),
        (["in", "--model", "net.keras", "--plane", "oblique"], 2, "unknown plane"),
        (["in", "--model", "net.keras", "--intensity", "log"], 2, "unknown intensity"),
        (["in", "--model", "net.keras", "--precision", "half"], 2, "unknown precision"),
        (["in", "--model", "net.keras", "--engine", "tensorrt"], 2, "unknown engine"),
        (["in", "--model", "net.keras", "--engine", "openvino", "--precision", "mixed_bfloat16"], 2, "float32 only"),
        (["in", "--model", "net.keras", "--format", "bmp"], 2, "unknown format"),
        (["in", "--model", "net.keras", "--continue", "--overwrite"], 2, "contradict"),
        (["in"], 3, "no run found"),
        (["in", "--run", "gone"], 3, "no such run"),
        (["gone", "--model", "net.keras"], 3, "no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant(predict: Type, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    done = predict(*arguments, "--out", "out")
    assert done.exit_code == code, done.output
    assert text in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
