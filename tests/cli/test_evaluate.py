"""`kerasseg evaluate` as typed: the summary, JSON, exit codes, and a network that was really trained."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from children import Children
from evaluated_runs import write_run
from evaluations import Slices
from evaluations import evaluation as drawn_evaluation
from factories import write_figshare
from kerasseg.evaluation import robustness as speed
from kerasseg.evaluation.predictions import Case, Resolution
from kerasseg_cli.app import app
from kerasseg_cli.evaluate import summary
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions

Type = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    options = PrepareOptions(size=32, split="60/20/20")
    prepare(write_figshare(folder / "raw", patients=15, slices_each=3, size=48), folder / "shards", options, jobs=1)
    write_run(folder / "runs" / "first", folder / "shards")
    (folder / "runs" / "latest").write_text("first\n")
    return folder


@pytest.fixture
def evaluate(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Types `kerasseg evaluate ... --shards shards` in a folder with shards and a run."""
    for name in ("shards", "runs"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(speed, "_MOST", 5)

    def run(*arguments: object, shards: bool = True) -> Result:
        named = ["--shards", "shards"] if shards else []
        return CliRunner().invoke(app, ["evaluate", *named, *map(str, arguments)])

    return run


def test_the_summary_says_the_verdict_first(evaluate: Type, tmp_path: Path) -> None:
    done = evaluate("--split", "validation", "--threshold", "0.7", "--no-speed")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Validation Dice 0.")
    assert "9 slices of 3 patients" in lines[0]
    assert "than before training (3 patients: too few for a conclusion)." in " ".join(lines[1:3])
    assert "Goals" not in done.stdout
    text = done.stdout
    words = "threshold 0.5", "threshold 0.7", "before training", "gain", "glioma", "HD95", "Missed 0 of 9"
    for word in (*words, "thirds of the tumours by diameter"):
        assert word in text
    assert "looked at" not in text
    assert "runs/first/evaluation/val/report.html" in text
    assert (tmp_path / "runs/first/evaluation/val/report.html").is_file()
    assert len(lines) <= 32


def test_looks_at_the_test_split_are_said(evaluate: Type) -> None:
    for times in ("once", "2 times"):
        done = evaluate("first", "--threshold", "0.5", "--no-speed")
        assert done.exit_code == 0, done.output
        assert f"The test split has been evaluated {times}, including now." in done.stdout
    assert "times" not in evaluate("first", "--threshold", "0.5", "--no-speed", "--split", "validation").stdout


def test_auto_tunes_where_nothing_was_tuned(evaluate: Type, tmp_path: Path) -> None:
    done = evaluate("--split", "validation")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs/first/threshold.json").is_file()
    assert "post-processing" in done.stdout
    assert "ms per slice at batch size 8 (before training" in " ".join(done.stdout.split())
    assert "the validation split has 3 patients with tumours" in " ".join(done.stdout.split())
    assert "chosen on these slices" in " ".join(done.stderr.split())


def test_json_is_the_file(evaluate: Type, tmp_path: Path) -> None:
    done = evaluate("--split", "val", "--threshold", "0.5", "--no-speed", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "runs/first/evaluation/val/metrics.json").read_text())


def test_quiet_says_nothing(evaluate: Type) -> None:
    done = evaluate("--split", "val", "--threshold", "0.5", "--no-speed", "-q")
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.parametrize(("least", "code"), [(0.01, 0), (0.999, 4)])
def test_fail_under_sets_the_exit_code(evaluate: Type, least: float, code: int) -> None:
    done = evaluate("--split", "val", "--threshold", "0.5", "--no-speed", "-q", "--fail-under", least)
    assert done.exit_code == code
    assert ("is below 0.999" in done.stderr) == (code == 4)


def test_without_tumours_there_is_no_verdict_and_fail_under_fails(
    evaluate: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty masks that are predicted empty have Dice 1."""
    from kerasseg.evaluation.predictions import SplitPredictions

    whole, shown = SplitPredictions.case, SplitPredictions.probability

    def empty(self: SplitPredictions, number: int, resolution: Resolution = "native") -> Case:
        case = whole(self, number, resolution)
        return dataclasses.replace(case, mask=np.zeros_like(case.mask))

    monkeypatch.setattr(SplitPredictions, "case", empty)
    monkeypatch.setattr(SplitPredictions, "probability", lambda *given: 0 * shown(*given))
    asked = ("--threshold", "0.5", "--no-speed", "--split", "val", "--target", "0.9", "--fail-under", "0.9")
    done = evaluate(*asked)
    assert done.exit_code == 4
    assert "No evaluated slice has a tumour (--fail-under)." in done.stderr
    assert "No evaluated slice has a tumour: no verdict." in done.stdout
    assert "Dice 1.0000" in done.stdout
    assert "met" not in done.stdout
    assert "higher than" not in done.stdout


def test_targets_as_typed(evaluate: Type) -> None:
    done = evaluate("--split", "val", "--threshold", "0.7", "--no-speed", "--target", "0.1", "--target", "glioma=0.999")
    assert done.exit_code == 0
    assert "Goals: open (too few patients): Dice 0.1, glioma 0.999." in done.stdout
    done = evaluate("--split", "val", "--threshold", "0.7", "--no-speed", "--goals", "recipe")
    assert "stated baseline 0.8657" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threshold", "half"], "invalid --threshold 'half'"),
        (["--threshold", "0"], "invalid --threshold '0'"),
        (["--split", "tset"], "--split cannot be 'tset'"),
        (["--resolution", "full"], "--resolution cannot be 'full'"),
        (["--fail-under", "92"], "invalid --fail-under 92"),
        (["--target", "good"], "invalid --target 'good'"),
        (["--target", "gliom=0.9", "--split", "val", "--threshold", "0.5", "--no-speed"], "unknown class in a goal"),
        (["--goals", "mine"], "--goals cannot be 'mine'"),
        (["--goals", "recipe", "--target", "0.9"], "--goals and --target exclude each other"),
        (["--reference-2", "nowhere", "--split", "val"], "--reference-2 is not a folder"),
    ],
)
def test_what_cannot_be_meant(evaluate: Type, arguments: list[str], said: str) -> None:
    done = evaluate(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_a_run_that_is_not_there(evaluate: Type) -> None:
    done = evaluate("frist")
    assert done.exit_code == 3
    assert "Did you mean 'first'?" in done.stderr


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_summary_fits_every_screen(width: int) -> None:
    evaluation = drawn_evaluation(Slices().rows())
    text = io.StringIO()
    summary(evaluation, Path("runs/a/evaluation/test"), Console(file=text, width=width, highlight=False))
    lines = text.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    # Figures are never cut off.
    assert not any("…" in line for line in lines)
    assert len(lines) <= (50 if width == 60 else 40)
    assert "Two annotators agree" in text.getvalue()
    assert "of Dice is kept" in " ".join(text.getvalue().split())


@pytest.mark.rest
@pytest.mark.slow
def test_a_trained_run(made: Path, tmp_path: Path) -> None:
    """train, then evaluate: as a user types them, one after another."""
    shutil.copytree(made / "shards", tmp_path / "shards")
    tiny = ["--strategy", "scratch", "--filters", "2", "--depth", "2", "--epochs", "1", "--precision", "float32"]
    children = Children(tmp_path)
    for command in (["train", *tiny, "--out", "runs/a", "-q"], ["evaluate", "--no-speed"]):
        done = children.run(*command)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Test Dice 0.")
    assert (tmp_path / "runs/a/threshold.json").is_file()
    assert (tmp_path / "shards/test-looks.jsonl").read_text().count("\n") == 1
