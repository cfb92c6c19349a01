"""`kerasseg export` as typed: summary, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from exported_runs import make_run
from kerasseg_cli.app import app

Type = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    make_run(folder, "minmax")
    return folder


@pytest.fixture
def export(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Types `kerasseg export ... --out` a folder of the test's own, where the run lies."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["export", "--out", str(tmp_path / "out"), *map(str, arguments)])

    return run


def test_the_summary_says_what_was_compared_and_what_is_left(export: Type, tmp_path: Path) -> None:
    done = export("--format", "keras", "--slices", 3)
    assert done.exit_code == 0, done.output
    assert (
        "3 validation slices, both in float32: probabilities differ by at most 0 (allowed 0.0001), 100.0000 %"
        in done.stdout
    )
    assert "threshold, min_diameter, fill_holes (the rule is in metadata.json)" in done.stdout
    assert "not evaluated yet: kerasseg evaluate" in done.stdout
    assert (tmp_path / "out" / "model.keras").is_file()
    assert export("--format", "keras", "--overwrite", "--quiet", "--slices", 1).stdout == ""


@pytest.mark.rest
@pytest.mark.slow
def test_eight_bits_are_told_with_their_cost(export: Type) -> None:
    done = export("--format", "litert", "--int8", "--calibration", 6, "--max-loss", 1, "--slices", 2)
    assert done.exit_code == 0, done.output
    assert "MB; validation Dice 0." in done.stdout
    assert "9 slices, 3 patients" in done.stdout


def test_json_is_one_document(export: Type, tmp_path: Path) -> None:
    done = export("first", "--format", "keras", "--slices", 1, "--json")
    document = json.loads(done.stdout)
    assert document["folder"] == str(tmp_path / "out")
    assert document["schema"] == "kerasseg-export"
    assert document["comparison"]["slices"] == 1
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()).items() <= document.items()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "tflite"], 2, "unknown format 'tflite'"),
        (["second"], 3, "no such run"),
        (["--threshold", "often"], 2, "invalid --threshold 'often'"),
        (["--format", "onnx", "--with-postprocessing"], 2, "min_diameter, fill_holes cannot be included in onnx"),
        (["--push", "me/unet"], 2, "not an address on the Hugging Face Hub"),
    ],
)
def test_what_cannot_be_meant_has_its_code(arguments: list[str], code: int, message: str, export: Type) -> None:
    done = export(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
