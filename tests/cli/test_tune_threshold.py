"""`kerasseg tune-threshold` as typed, and what `threshold.json` makes of a run that changed and of a hand that edits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kerasseg
from factories import write_figshare
from kerasseg.runs.config import Resolved, new_config
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import TrainSettings
from kerasseg.tuning.threshold_file import ThresholdFile, TuningStep, load_threshold, network_sha256
from kerasseg.workflows.tune import tune_run
from kerasseg_cli.app import app
from kerasseg_cli.tune_threshold import show
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions, load_manifest
from kerasseg_tfrecords.records.shards import read_records

SIZE = 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 validation slices of 10 patients, 48 x 48, stored at 32 x 32."""
    folder = tmp_path_factory.mktemp("tiny")
    options = PrepareOptions(size=SIZE, split="60/20/20")
    prepare(write_figshare(folder / "raw", patients=50, slices_each=3, size=48), folder / "shards", options, jobs=1)
    return folder / "shards"


def network(scale: float, shift: float, *, size: int = SIZE, activation: str | None = "sigmoid") -> keras.Model:
    """Brightness to probability, pixel by pixel: tumours are the brightest part of these slices."""
    source = keras.Input((size, size, 1))
    layer = keras.layers.Conv2D(1, 1, activation=activation)
    model = keras.Model(source, layer(source))
    layer.set_weights([np.full((1, 1, 1, 1), scale, "float32"), np.full(1, shift, "float32")])
    return model


def write_run(root: Path, shards: Path, model: keras.Model, baseline: keras.Model) -> RunDirectory:
    """A run as training leaves it, as far as tuning looks."""
    manifest = load_manifest(shards)
    run = RunDirectory.create(root, "scratch")
    run.save_model(model, run.model_file)
    run.save_model(baseline, run.baseline_file)
    resolved = Resolved(
        checkpoint=None,
        provenance=None,
        changes=(),
        precision="float32",
        precision_reason="",
        devices="CPU",
        phases=("scratch",),
        rates=(1e-3,),
        frozen=(),
        parameters=2,
        trained=2,
        steps=1,
        fingerprint=manifest.fingerprint,
        intensity=manifest.intensity,
        size=manifest.size,
        channels=1,
        classes=manifest.classes,
        input_channels=1,
        slices={},
    )
    run.write_config(new_config(TrainSettings(shards=str(shards)), resolved))
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> RunDirectory:
    """A run whose network is right at a low threshold, and whose baseline finds nothing at 0.5."""
    return write_run(tmp_path_factory.mktemp("run") / "run", shards, network(20, -13), network(4, -6))


@pytest.fixture(scope="module")
def tuned(finished: RunDirectory) -> RunDirectory:
    tune_run(finished)
    return finished


@pytest.fixture
def copy(tuned: RunDirectory, tmp_path: Path) -> RunDirectory:
    """The tuned run, to spoil."""
    shutil.copytree(tuned.root, tmp_path / "copy")
    return RunDirectory.open(tmp_path / "copy")


def edit(run: RunDirectory, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(run.threshold_file.read_text())
    change(document)
    run.threshold_file.write_text(json.dumps(document))


def edit_config(run: RunDirectory, settings: dict[str, str]) -> None:
    document = json.loads(run.config_file.read_text())
    document["settings"].update(settings)
    run.config_file.write_text(json.dumps(document))


def test_it_is_what_a_plain_computation_finds(tuned: RunDirectory, shards: Path) -> None:
    """The network is run by hand, its output resized, thresholded and scored; no other threshold is better."""
    import cv2

    file = load_threshold(tuned)
    manifest = load_manifest(shards)
    for rule, scale, shift in ((file.model, 20, -13), (file.baseline, 4, -6)):
        dice = []
        for record in read_records(shards, "val"):
            image = record.image[..., 0].astype(np.float32) / np.float32(255)
            probability = 1 / (1 + np.exp(-(scale * image + shift)))
            native = cv2.resize(probability, (48, 48), interpolation=cv2.INTER_LINEAR)
            found = native >= np.arange(1, 1001, dtype=np.float32)[:, None, None] / np.float32(1000)
            both = found.sum((1, 2)) + record.mask_native.sum()
            dice.append(np.where(both > 0, 2 * (found & record.mask_native).sum((1, 2)) / np.maximum(both, 1), 1))
        mean = np.mean(dice, axis=0)
        assert rule.slices == len(dice) == manifest.slices_in("val")
        assert rule.patients == rule.tumour_patients == 10
        # Keras' and NumPy's sigmoid differ in the last bit, which moves single pixels.
        assert np.abs(np.array(rule.curve.dice) - mean).max() < 0.01
        assert rule.raw.mean == pytest.approx(mean[499], abs=0.01)
        assert rule.dice.mean is not None
        assert rule.dice.mean > max(mean[499], mean.max() - 0.02)
    assert file.model.rule != kerasseg.MaskRule()
    assert file.fingerprint == manifest.fingerprint
    assert file.model.sha256 == network_sha256(tuned.model_file) != file.baseline.sha256


@pytest.mark.slow
def test_as_typed(tuned: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The latest run by default; the file is the same again, but for its date."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    tuned.point_latest()
    before = json.loads(tuned.threshold_file.read_text())
    done = CliRunner().invoke(app, ["tune-threshold", "--batch-size", "5"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "Next: kerasseg evaluate --threshold auto"
    after = json.loads(tuned.threshold_file.read_text())
    assert {**after, "created": ""} == {**before, "created": ""}


@pytest.mark.parametrize("start", [{"strategy": "scratch"}, {"encoder": "mobilenetv3small"}])
def test_a_start_that_was_not_pretrained_as_a_whole_is_not_tuned(
    copy: RunDirectory, tuned: RunDirectory, start: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(copy, start)
    copy.baseline_file.unlink()
    found = tune_run(copy)
    assert found == load_threshold(copy)
    assert (found.model, found.baseline) == (load_threshold(tuned).model, None)
    show(found, copy.threshold_file, "next")
    assert "Baseline" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_summary_fits_a_screen(
    tuned: RunDirectory, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(load_threshold(tuned), Path("runs/x/threshold.json"), "kerasseg evaluate x --threshold auto")
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 30
    assert all(len(line) <= width for line in lines)
    assert lines[0].split()[:3] == ["step", "Dice", "change"]
    assert ("glioma" in lines[0]) == (width >= 76)
    assert lines[1].startswith("at 0.5")
    assert "fill holes" in text
    assert re.search(r"Network: validation Dice 0\.\d{4} -> 0\.\d{4}", text)
    assert "Baseline: validation Dice" in text
    assert lines[-1] == "Next: kerasseg evaluate x --threshold auto"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_rule_that_is_not_kept_is_explained(
    tuned: RunDirectory, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = load_threshold(tuned)
    steps = [step.model_copy(update={"kept": step.name == "raw"}) for step in found.model.steps]
    refused = {
        "rule": kerasseg.MaskRule(),
        "steps": tuple(steps),
        "tumour_patients": 6,
        "candidate": found.model.rule,
        "candidate_gain": found.model.gain,
    }
    shown = found.model_copy(update={"model": found.model.model_copy(update=refused)})
    show(shown, Path("runs/x/threshold.json"), "kerasseg evaluate x --threshold auto")
    text = " ".join(capsys.readouterr().out.split())
    assert "Threshold 0.5 without post-processing is used: the validation split has 6 patients with tumours" in text
    assert f"the rule would have been threshold {found.model.rule.threshold:g}" in text
    assert f"({found.model.gain.mean:+.3f} Dice on the validation slices)" in text
    assert re.search(r"Network: validation Dice 0\.\d{4} at 0\.5;", text)  # no gain of 0.0000


@pytest.mark.parametrize(
    ("spacing", "narrow", "wide"),
    [(None, "2.4 px", "2.4 px (5 % of the width)"), (0.5, "1.2 mm", "1.2 mm (2.4 px)")],
)
def test_lengths_have_one_unit_and_the_other_in_brackets(
    tuned: RunDirectory,
    spacing: float | None,
    narrow: str,
    wide: str,
    monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = load_threshold(tuned)
    rule = kerasseg.MaskRule(threshold=0.3, min_diameter=0.05)
    step = TuningStep(name="min_diameter", rule=rule, dice=0.5, gain=0.1, classes={}, kept=False, reason="noise")
    changed = {
        "rule": kerasseg.MaskRule(),
        "steps": (found.model.steps[0], step),
        "spacing": spacing,
        "tumour_patients": 6,
        "candidate": rule,
    }
    assert found.model.width == 48
    shown = found.model_copy(update={"model": found.model.model_copy(update=changed)})
    for columns, length in (("80", narrow), ("120", wide)):
        monkeypatch.setenv("COLUMNS", columns)
        show(shown, Path("x"), "next")
        text = " ".join(capsys.readouterr().out.split())
        assert f"remove < {length} 0.5000" in text
        assert f"remove objects smaller than a disk of diameter {wide}" in text


def test_a_file_of_an_earlier_version_is_read_and_its_digest_holds() -> None:
    old = Path(__file__).parents[1] / "fixtures" / "before_move" / "runs" / "run" / "threshold.json"
    found = ThresholdFile.model_validate_json(old.read_text())
    assert found.digest == found.own_digest()
    assert found.model.decision == ""


def test_force_and_flip_average_are_recorded(copy: RunDirectory) -> None:
    done = CliRunner().invoke(app, ["tune-threshold", str(copy.root), "--force", "--flip-average", "-q"])
    assert (done.exit_code, done.stdout) == (0, "")
    found = load_threshold(copy)
    assert (found.flip_average, found.model.forced, found.baseline.forced) == (True, True, True)


@pytest.mark.slow
def test_for_machines(copy: RunDirectory) -> None:
    done = CliRunner().invoke(app, ["tune-threshold", str(copy.root), "--per-class", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["file"] == str(copy.threshold_file)
    assert document["model"]["steps"][-1]["name"] == "class_thresholds"
    assert set(document["model"]["steps"][-1]["classes"]) == {"glioma", "meningioma", "pituitary"}


def test_the_test_split_cannot_be_named(copy: RunDirectory) -> None:
    done = CliRunner().invoke(app, ["tune-threshold", str(copy.root), "--split", "test"])
    assert done.exit_code == 2
    assert load_threshold(copy).split == "val"
    edit(copy, lambda document: document.update(split="test"))
    with pytest.raises(DataError, match="split 'test', expected val"):
        load_threshold(copy)


# --- a run that is not what it should be ----------------------------------------------------------------------------------


def test_a_run_without_network_or_without_rule(copy: RunDirectory) -> None:
    copy.threshold_file.unlink()
    with pytest.raises(DataError, match=r"the tuned threshold is missing.*kerasseg tune-threshold"):
        load_threshold(copy)
    copy.model_file.unlink()
    with pytest.raises(DataError, match=r"model.keras: the run has no such network.*--resume"):
        tune_run(copy)
    done = CliRunner().invoke(app, ["tune-threshold", "nowhere"])
    assert done.exit_code == 3


def test_a_run_in_training_is_left_alone(copy: RunDirectory) -> None:
    with copy.locked(), pytest.raises(KerassegError, match="still being trained"):
        tune_run(copy)


@pytest.mark.slow
def test_other_shards_are_refused(copy: RunDirectory, shards: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    assert tune_run(copy, shards=moved).shards == str(moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="these are not the shards that the run was trained on"):
        tune_run(copy, shards=moved)
    config = json.loads(copy.config_file.read_text())
    config["settings"]["shards"] = str(tmp_path / "gone")
    copy.config_file.write_text(json.dumps(config))
    with pytest.raises(DataError, match="shards of this run are missing.*--shards"):
        tune_run(copy)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(20, -13, activation=None), "does not return probabilities .*logits"),
        (network(1, 0, size=16), "disagree on the size of slices .*--size 16"),
        (network(float("nan"), 0), "weights are damaged .found NaN in conv2d"),
    ],
    ids=["logits", "another size", "NaN"],
)
def test_networks_that_cannot_be_tuned(copy: RunDirectory, model: keras.Model, message: str) -> None:
    before = copy.threshold_file.read_bytes()
    copy.save_model(model, copy.model_file)
    with pytest.raises((UsageError, KerassegError), match=message):
        tune_run(copy)
    assert copy.threshold_file.read_bytes() == before


@pytest.mark.slow
def test_a_network_that_finds_nothing_keeps_a_half(copy: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    copy.save_model(network(0, -30), copy.model_file)
    done = CliRunner().invoke(app, ["tune-threshold", str(copy.root), "--quiet"])
    assert (done.exit_code, done.stdout) == (0, "")
    found = load_threshold(copy)
    assert found.model.rule == kerasseg.MaskRule()
    show(found, copy.threshold_file, "")
    assert "Note: The network finds no tumour" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
def test_after_more_training_the_rule_is_refused(copy: RunDirectory) -> None:
    copy.save_model(network(20, -12), copy.model_file)
    with pytest.raises(DataError, match="tuned for other weights.*Tune again: kerasseg tune-threshold"):
        load_threshold(copy)
    assert tune_run(copy) == load_threshold(copy)


def test_the_same_rules_found_again_keep_their_time(copy: RunDirectory) -> None:
    long_ago = "2026-01-01T00:00:00+00:00"
    edit(copy, lambda document: document.update(created=long_ago))
    assert tune_run(copy).created == load_threshold(copy).created == long_ago
    assert tune_run(copy, flip_average=True).created > long_ago


# --- a hand that edits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["model"]["rule"].update(threshold=1.5),
            r"model\.rule: invalid threshold .*found 1\.5, expected at most 1",
        ),
        (
            lambda d: d["model"]["rule"].update(threshold="low"),
            r"model\.rule: invalid threshold .*found 'low', expected a number",
        ),
        (lambda d: d["baseline"]["rule"].update(min_size=3), r"baseline\.rule: a rule has no 'min_size'"),
        (lambda d: d["model"].pop("curve"), r"model\.curve is missing"),
        (lambda d: d["model"].update(sha256="abc"), r"model\.sha256"),
        (
            lambda d: d["model"]["rule"].update(threshold=0.77),
            r"model: the rule differs .* edited by hand.*--threshold",
        ),
        (lambda d: d.pop("baseline"), r"baseline is missing"),
    ],
)
def test_a_hand_edited_file_names_the_field(copy: RunDirectory, change: Any, message: str) -> None:
    edit(copy, change)
    with pytest.raises(DataError, match=message) as caught:
        load_threshold(copy)
    assert str(copy.threshold_file) in str(caught.value)


def test_what_is_no_json_and_what_is_newer(copy: RunDirectory) -> None:
    edit(copy, lambda document: document.update(format_version=2, new_field=1))
    with pytest.raises(KerassegError, match="newer version of kerasseg"):
        load_threshold(copy)
    for text in ("{", "[]", "null"):
        copy.threshold_file.write_text(text)
        with pytest.raises(DataError, match=r"threshold\.json: the tuned threshold"):
            load_threshold(copy)
