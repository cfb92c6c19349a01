"""What one sees of a training, at the widths of real terminals: no line is longer, none breaks in a word or a path."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fake_training import row
from kerasseg.evaluation.bootstrap import Interval
from kerasseg.runs.directory import RunDirectory
from kerasseg.training.events import Began, Ended, Evaluated, Event, Message, Step
from kerasseg_cli.train_display import Watcher, summary, watching

FACTS = {
    "checkpoint": "hf://bombshelll/unet-brain-tumor-segmentation",
    "frozen": "encoder_1, encoder_2",
    "rate": "0.0001; 5 flat epochs -> 1e-05, 3 flat epochs -> 1e-06",
    "precision": "mixed_bfloat16: this processor multiplies [bfloat16] matrices in hardware, and no Dice is lost",
}
WARNING = Message(
    "warning", "below-epoch-0", "Validation Dice fell to 0.5000, clearly below the untouched checkpoint's."
)
HISTORY = (
    row(0, 0.61, best=True),
    row(1, 0.69, best=True),
    row(2, 0.58, event="rate 1e-05"),
    row(3, 0.7123, best=True),
)
GAIN = Interval(0.1023, 0.0712, 0.1334, slices=210, groups=42)
ALONE = Interval(0.05, math.nan, math.nan, slices=3, groups=1)


def story() -> Iterator[Event]:
    yield Began("conservative, unet", 20, 140, 8, FACTS)
    yield Step("validation", 0, 1, 27, math.nan, 0.6, 1e-4, 8)
    yield Evaluated(HISTORY[0], None, HISTORY[:1])  # type: ignore[arg-type]
    for i in (1, 2, 3):
        yield Step("train", i, 1, 140, 0.9, 0.5, 1e-4, 8)
        yield Step("train", i, 140, 140, 0.8, 0.55, 1e-4, 8)
        yield Step("validation", i, 1, 27, math.nan, 0.6, 1e-4, 8)
        yield Evaluated(HISTORY[i], None, HISTORY[: i + 1])  # type: ignore[arg-type]
    yield WARNING


def test_a_run_that_goes_on_is_still_shown_against_epoch_0() -> None:
    text = io.StringIO()
    watcher = Watcher(Console(file=text, width=100), None)
    watcher(Began("conservative, unet", 20, 140, 8, FACTS, resumed=(2, 0), first=0.61, best=0.69))
    watcher(Evaluated(HISTORY[3], None, HISTORY))  # type: ignore[arg-type]
    assert "+0.1023" in text.getvalue()
    assert "nan" not in text.getvalue()


def ended(reason: Any = "stopped", history: Any = HISTORY, best: int = 3, **gains: Interval) -> Ended:
    text = "no better score for 7 epochs since the last improvement, drop or thaw"
    return Ended(
        reason, text, history, history[0], history[best], GAIN, gains or {"glioma": GAIN, "meningioma": ALONE}, 5400.0
    )


def watched(width: int, *, terminal: bool) -> list[str]:
    text = io.StringIO()
    # As `errors()` makes it.
    console = Console(
        file=text,
        width=width,
        force_terminal=terminal,
        color_system=None,
        highlight=False,
        soft_wrap=True,
        legacy_windows=False,
    )
    watcher = Watcher(console, None)
    for event in story():
        watcher(event)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_on_a_terminal_no_line_is_too_long_and_no_word_is_broken(width: int) -> None:
    lines = watched(width, terminal=True)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for text in (*FACTS.values(), WARNING.text):
        assert set(text.split()) <= set(words)
    table = [line for line in lines if line[:5].strip().isdigit()]
    assert [line.split()[0] for line in table] == ["0", "1", "2", "3"]
    assert [line.split()[-1] for line in table][1:] == ["best", "1e-05", "best"]
    assert "+0.0800" in table[1]
    assert "-0.0300" in table[2]
    assert any(line.startswith("epoch ") and "gain" in line for line in lines)
    assert any("time" in line for line in lines if line.startswith("epoch ")) == (width >= 70)


def test_in_a_pipe_every_fact_and_message_is_one_line() -> None:
    lines = watched(40, terminal=False)
    assert f"precision   {FACTS['precision']}" in lines
    assert f"Warning: {WARNING.text}" in lines
    assert lines == [line.rstrip() for line in lines]


def test_each_fold_has_the_names_of_its_columns() -> None:
    text = io.StringIO()
    watcher = Watcher(Console(file=text, width=200), None)
    for event in [*story(), *story()]:
        watcher(event)
    folds = text.getvalue().split(f"precision   {FACTS['precision']}")[1:]
    assert [any(line.startswith("epoch   rate") for line in fold.splitlines()) for fold in folds] == [True, True]


def test_in_a_pipe_steps_are_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("kerasseg_cli.train_display.time.monotonic", lambda: now[0])
    text = io.StringIO()
    watcher = Watcher(Console(file=text, width=80), None)
    for step in range(1, 141):
        now[0] += 1
        watcher(Step("train", 1, step, 140, 0.5, 0.5, 1e-4, 8))
    assert text.getvalue().splitlines() == [f"epoch 1, step {n} of 140: loss 0.5000" for n in (31, 62, 93, 124)]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_live_line_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(
        file=text, width=width, force_terminal=True, color_system=None, legacy_windows=False, soft_wrap=True
    )
    monkeypatch.setattr("kerasseg_cli.train_display.errors", lambda: console)
    monkeypatch.setattr("rich.progress.Task.speed", property(lambda _: 12.5))
    shown: list[str] = []
    with watching(as_json=False, quiet=False) as watcher:
        for event in story():
            watcher(event)
            if isinstance(event, Step):
                # On a screen of its own: this one also draws the bar.
                beside = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
                beside.print(watcher._bar.get_renderable())  # type: ignore[attr-defined]
                shown += beside.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(shown) == 10, "one line each"
    assert max(map(len, shown)) <= width
    training = next(line for line in shown if "140/140" in line)
    assert training.startswith("epoch 1/20 ")
    assert "loss 0.800 Dice 0.550" in training
    assert ("rate 1e-04" in training) == (width >= 70)
    assert ("best 0.610 (epoch 0: 0.610)" in training) == (width >= 100)
    assert ("100 slices/s" in training) == (width >= 120)
    assert shown[0].startswith("epoch 0 validation")


def test_machines_and_the_quiet_get_warnings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"as_json": True, "quiet": False}, {"as_json": False, "quiet": True}):
        text = io.StringIO()
        monkeypatch.setattr("kerasseg_cli.train_display.errors", lambda text=text: Console(file=text, width=200))
        with watching(**options) as watcher:
            for event in story():
                watcher(event)
        assert text.getvalue().splitlines() == [f"Warning: {WARNING.text}"]


# --- the end -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.chdir(tmp_path)
    found = RunDirectory.create(None, "conservative")
    found.config_file.write_text("{}")
    found.point_latest()
    return found


def end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *arguments: Any) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    summary(*arguments, as_json=False, quiet=False)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_at_the_end_fits(
    width: int, run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = end(capsys, monkeypatch, width, ended(), run)
    assert max(len(line.rstrip()) for line in lines) <= width
    cells = [line.split() for line in lines]
    assert ["all", "slices", "0.6100", "0.7123", "+0.1023", "+0.0712", "to", "+0.1334"] in cells
    assert ["meningioma", "0.6200", "0.7223", "+0.0500", "none"] in cells
    text = "\n".join(lines)
    assert "Validation Dice, epoch 0 and the best (epoch 3)" in text
    assert "No interval with fewer than 5 patients (" in text
    assert "3 epochs in 90 min, peak memory 2.3 GB." in text
    assert "\x1b" not in text
    for file in (run.model_file, run.curves_file, run.history_file):
        assert sum(line.endswith(f" {file}") for line in lines) == 1, "each file on its own line, whole"
    assert lines[-1] == "Next: kerasseg tune-threshold"


def test_with_too_few_patients_no_interval_is_mentioned(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(ended(), gain=Interval(0.1, -0.1, 0.3, slices=9, groups=4))
    text = "\n".join(end(capsys, monkeypatch, 200, few, run))
    assert "Validation has 4 patients: too few for intervals and conclusions, which need 5." in text
    assert "intervals of the gain" not in text
    assert "No interval" not in text


def test_a_run_that_is_not_the_latest_is_named(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunDirectory.create(Path("of mine"), "moderate")
    other.config_file.write_text("{}")
    assert end(capsys, monkeypatch, 80, ended(), other)[-1] == "Next: kerasseg tune-threshold 'of mine'"
    lines = end(capsys, monkeypatch, 80, ended("interrupted"), other)
    assert lines[-1] == "Next: kerasseg train --resume --out 'of mine'"
    assert end(capsys, monkeypatch, 80, ended("interrupted"), run)[-1] == "Next: kerasseg train --resume"


def test_when_epoch_0_wins_that_is_said(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(end(capsys, monkeypatch, 80, ended(best=0), run))
    assert "No epoch beat the untouched network" in text
    assert "(epoch 0)" in text


def test_both_phases_of_auto_are_shown(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = (*HISTORY, row(1, 0.72, phase="moderate", best=True))
    lines = end(capsys, monkeypatch, 80, ended(history=history, best=4), run)
    assert "Validation Dice, epoch 0 and the best (moderate, epoch 1)" in lines
    assert "  conservative: 0.7123" in lines
    assert "  moderate: 0.7200" in lines


def test_machines_get_one_document_without_nan(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    summary(ended(), run, as_json=True, quiet=False)
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["gain"] == {"gain": 0.1023, "low": 0.0712, "high": 0.1334, "slices": 210, "patients": 42}
    assert document["class_gains"]["meningioma"]["low"] is None
    assert document["best"]["epoch"] == 3
    assert document["next"] == "kerasseg tune-threshold"


def test_the_quiet_learn_how_to_go_on(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    summary(ended("interrupted"), run, as_json=False, quiet=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "Stopped and saved. Resume with: kerasseg train --resume\n"
