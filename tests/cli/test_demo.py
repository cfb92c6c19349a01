"""`kerasseg demo`: the whole job ends with a gain, and the folder it works in is never somebody else's."""

from __future__ import annotations

import json
import re
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from children import Children
from kerasseg_cli import demo
from kerasseg_cli.app import app
from kerasseg_tfrecords.files import lock

Typed = list[tuple[str, ...]]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["demo", "--fast", *map(str, words)])


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Typed:
    """What is typed up to the first `evaluate`, where the demonstration is stopped as by Ctrl-C; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_FAST", demo._Plan(3, 1, 32, 32, 1, 1, 1))
    seen: Typed = []

    def command(_: object, *words: str) -> None:
        seen.append(words)
        if words[0] == "evaluate":
            raise KeyboardInterrupt

    monkeypatch.setattr(demo._Stage, "command", command)
    return seen


def test_ctrl_c_says_what_is_left(typed: Typed, tmp_path: Path) -> None:
    stopped = run()
    assert stopped.exit_code == 130
    assert "was stopped" in stopped.stderr
    assert "demo-output" in stopped.stderr
    assert [words[0] for words in typed] == ["prepare", "train", "evaluate"]
    assert len(list((tmp_path / "demo-output" / "scanner-B").iterdir())) == 3
    assert Path.cwd() == tmp_path


def test_quiet_is_quiet(typed: Typed) -> None:
    assert "$ cd demo-output" in run().stdout
    assert run("--quiet").stdout == ""
    document = json.loads(run("--json").stdout)
    assert (document["kind"], document["exit_code"]) == ("interrupted", 130)
    assert "demo-output" in document["error"]


def test_an_earlier_demonstration_is_replaced_and_nothing_else(typed: Typed, tmp_path: Path) -> None:
    run("--keep", "here")
    (tmp_path / "here" / "old").write_text("of the demonstration before")
    assert run("--keep", "here").exit_code == 130
    assert not (tmp_path / "here" / "old").exists()

    with lock(tmp_path / "here" / ".kerasseg-demo", "demonstration"):
        second = run("--keep", "here")
    assert second.exit_code == 1
    assert "another demonstration is running" in second.stderr
    assert (tmp_path / "here" / ".kerasseg-demo").exists()

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years")
    refused = run("--keep", "mine")
    assert refused.exit_code == 2
    assert "contains no earlier demonstration" in refused.stderr
    assert "--keep" in refused.stderr
    assert (mine / "thesis.txt").read_text() == "three years"
    blocked = run("--keep", "mine/thesis.txt")
    assert blocked.exit_code == 1
    assert "thesis.txt" in blocked.stderr
    assert "Traceback" not in blocked.stderr


def test_a_full_disk_is_seen_before_anything_is_made(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    refused = run()
    assert refused.exit_code == 1
    assert "too little disk space" in refused.stderr
    assert "1 MB free" in refused.stderr
    assert not typed


def test_a_command_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_write", lambda *_, **__: None)  # there are no slices to prepare
    refused = run()
    assert refused.exit_code == 1
    (line,) = refused.stderr.splitlines()
    assert "`kerasseg prepare` ended with exit code 3" in line
    assert "scanner-A" in line  # what `prepare` itself says
    machine = run("--json")
    assert (machine.exit_code, machine.stderr) == (1, "")
    document = json.loads(machine.stdout)
    assert document["kind"] == "failed"
    assert document["found"] in line
    assert line == f"Error: {document['error']}"


def test_warnings_say_which_training_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    def kerasseg(words: list[str], **_: object) -> int:
        sys.stdout.write("{}")
        sys.stderr.write("Warning: too few patients.\n\nWarning: slow\n")
        return 0

    stage = demo._Stage(kerasseg, silent=False, whole=False)
    stage.label = "fine-tuning on scanner B"
    assert stage.command("train") == {}
    shown = capsys.readouterr().err
    assert shown.splitlines() == [
        "  fine-tuning on scanner B: Warning: too few patients.",
        "",
        "  fine-tuning on scanner B: Warning: slow",
    ]


@pytest.mark.rest
def test_the_whole_job(tmp_path: Path) -> None:
    """As CI and a newcomer type it: every command shows up with its output, and fine-tuning gains."""
    done = Children(tmp_path).start("demo", "--fast", "--keep", "shown").wait(1200)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ kerasseg ")]
    yours = ["prepare", "inspect", "train", "tune-threshold", "evaluate", "predict"]
    assert commands == ["prepare", "train", "evaluate", *yours]
    assert ">>> keras.models.load_model(" in done.stdout
    assert len((done.stdout + done.stderr).splitlines()) <= 60
    assert "parameters; conservative freezes encoder_1" in done.stdout
    # A result below every command but the two whose results are files.
    lines = done.stdout.splitlines()
    assert all(lines[n + 1].startswith("  ") for n, line in enumerate(lines) if line.startswith("$ kerasseg"))
    assert "Report: " in lines[-1]
    assert "Traceback" not in done.stderr
    assert "tf.function retracing" not in done.stderr
    figure = r"{}\s+([+-]?[\d.]+)  ([+-]?[\d.]+) to ([+-]?[\d.]+)"
    own, before, after, gain = (
        re.search(figure.format(re.escape(name)), done.stdout)
        for name in (
            "pretrained network, its own scanner A",
            "pretrained network, scanner B",
            "fine-tuned network, scanner B",
            "gain from fine-tuning",
        )
    )
    assert own and before and after and gain  # noqa: PT018
    assert float(own[1]) > 0.5  # at 0.5: so few patients tune no rule
    assert float(before[1]) < float(own[1]) - 0.2
    assert float(gain[1]) > 0
    assert float(gain[1]) == pytest.approx(float(after[1]) - float(before[1]), abs=0.0016)
    report = Path(re.findall(r"^Report: (.*)$", done.stdout, flags=re.MULTILINE)[-1])
    assert report.is_absolute()
    assert report.is_file()
    # What the table says is what the evaluation says.
    document = json.loads((report.parent / "metrics.json").read_text())
    assert document["gain"][document["final"]]["mean"] == pytest.approx(float(gain[1]), abs=0.0006)
