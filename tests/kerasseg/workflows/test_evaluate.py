"""A run evaluated on its shards and on others: files, looks, warnings, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluated_runs import brightness_network, write_run
from evaluations import Slices
from evaluations import evaluation as an_evaluation
from factories import write_figshare
from kerasseg.catalogue import DEFAULT_CHECKPOINT
from kerasseg.evaluation.compare import evaluated
from kerasseg.evaluation.figures import Resampling, network_figures
from kerasseg.evaluation.inter_rater import open_second
from kerasseg.evaluation.per_slice import read_csv
from kerasseg.evaluation.predictions import predict_split
from kerasseg.evaluation.schema import Evaluation, read_evaluation
from kerasseg.evaluation.targets import Goal
from kerasseg.evaluation.test_use_log import LOOKS, count_looks, record_look
from kerasseg.phantom.slices import write_phantoms
from kerasseg.postprocessing import MaskRule
from kerasseg.report.evaluation import write_report
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.threshold_file import load_threshold
from kerasseg.workflows import evaluate as workflow
from kerasseg.workflows.evaluate import Extras, evaluate_run, evaluation_folder, seen_in_training
from kerasseg_cli.evaluate import summary
from kerasseg_tfrecords import prepare, read_records
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import lock
from kerasseg_tfrecords.records.manifest import PrepareOptions, load_manifest

QUICK = Extras(speed=False, calibration=False)
FEW = Resampling(resamples=200)
Evaluate = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 45 slices, 32 x 32 from 48 x 48; test and validation hold 9 each."""
    folder = tmp_path_factory.mktemp("evaluated")
    options = PrepareOptions(size=32, split="60/20/20")
    prepare(write_figshare(folder / "raw", patients=15, slices_each=3, size=48), folder / "shards", options, jobs=1)
    write_run(folder / "run", folder / "shards")
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Path:
    """A copy: looks and figures are written into it."""
    shutil.copytree(made / "shards", tmp_path / "shards")
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture
def evaluate(desk: Path) -> Evaluate:
    def run(
        split: str | None = "validation", shards: Path | None = None, *args: object, **options: object
    ) -> Evaluation:
        options = {"extras": QUICK, "resampling": FEW, **options}
        return evaluate_run(desk / "run", split, desk / "shards" if shards is None else shards, *args, **options)  # type: ignore[arg-type]

    return run


def test_everything_is_written_and_read_again(evaluate: Evaluate, desk: Path) -> None:
    told: list[str] = []
    found = evaluate("test", progress=lambda *event: told.append(str(event[0])))
    folder = desk / "run" / "evaluation" / "test"
    assert {p.name for p in folder.iterdir()} == {"metrics.json", "per_slice.csv", "report.html"}
    assert read_evaluation(folder / "metrics.json") == found
    assert evaluation_folder(desk / "run", found) == folder
    assert (found.run, found.shards) == ("run", "shards")
    assert (found.threshold, found.final, found.split, found.resolution) == ("auto", "postprocessing", "test", "native")
    rows = read_csv(folder / "per_slice.csv")
    manifest = load_manifest(desk / "shards")
    assert len(rows) == manifest.slices_in("test") == found.final_stage().all.slices
    for stage in found.model.stages:
        mean = np.mean([row.stage(stage.name).dice for row in rows])
        assert stage.all.measures["dice"].mean == pytest.approx(mean)
    before = np.mean([row.postprocessing.baseline_dice for row in rows])
    assert found.baseline is not None
    assert found.baseline.stages[-1].all.measures["dice"].mean == pytest.approx(before)
    # Both with their own rule, as tuned on validation; nothing of it came from the test split.
    tuned = load_threshold(RunDirectory.open(desk / "run"))
    assert found.final_stage().rule == tuned.model.rule
    assert found.baseline.stages[-1].rule == tuned.baseline.rule
    assert found.gain["postprocessing"].mean == pytest.approx(found.final_stage().all.measures["dice"].mean - before)
    assert set(found.gain_classes) == set(found.final_stage().classes)
    assert {"predict", "baseline", "score"} <= set(told)
    assert "<html" in (folder / "report.html").read_text()
    assert found.data.fingerprint == manifest.fingerprint


def test_training_from_fresh_weights_is_not_compared_with_them(evaluate: Evaluate, desk: Path) -> None:
    config = json.loads((desk / "run" / "config.json").read_text())
    config["settings"]["strategy"] = "scratch"
    (desk / "run" / "config.json").write_text(json.dumps(config))
    for threshold in (0.5, "auto"):
        found = evaluate("validation", None, threshold)
        assert (found.baseline, found.gain) == (None, {})
        assert not any("baseline" in warning for warning in found.warnings)
    assert load_threshold(RunDirectory.open(desk / "run")).baseline is None


def test_figures_are_those_of_the_shards_by_hand(evaluate: Evaluate, desk: Path) -> None:
    """Native size: the probabilities of the network, resized, thresholded, and compared slice by slice."""
    found = evaluate("validation", None, 0.7)
    dice = []
    for record in read_records(desk / "shards", "val"):
        probability = 1 / (1 + np.exp(-20 * (record.image[..., 0] / 255 - 0.6)))
        mask = cv2.resize(probability.astype(np.float32), (48, 48), interpolation=cv2.INTER_LINEAR) >= 0.7
        dice.append(2 * (mask & record.mask_native).sum() / (mask.sum() + record.mask_native.sum()))
    assert found.final == "threshold"
    assert found.final_stage().all.measures["dice"].mean == pytest.approx(np.mean(dice), abs=2e-3)
    assert [stage.name for stage in found.model.stages] == ["raw", "threshold"]
    assert found.tuning_gain is not None


def test_half_is_raw_and_nothing_else(evaluate: Evaluate, desk: Path) -> None:
    found = evaluate("validation", None, 0.5, resolution="model")
    assert (found.final, [stage.name for stage in found.model.stages], found.tuning_gain) == ("raw", ["raw"], None)
    assert found.final_stage().all.measures["dice"].mean == pytest.approx(by_model_size(desk / "shards"), abs=1e-9)


def by_model_size(shards: Path) -> float:
    dice = []
    for record in read_records(shards, "val"):
        mask = record.image[..., 0].astype(np.float32) / np.float32(255) >= 0.6
        dice.append(2 * (mask & record.mask).sum() / (mask.sum() + record.mask.sum()))
    return float(np.mean(dice))


# --- looks ----------------------------------------------------------------------------------------------------------------


def looks(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_only_looks_at_the_test_split_count(evaluate: Evaluate, desk: Path) -> None:
    assert evaluate("validation", None, 0.5).test_looks == 0
    assert not (desk / "shards" / LOOKS).exists()
    assert [evaluate("test", None, 0.5).test_looks for _ in range(2)] == [1, 2]
    assert looks(desk / "shards" / LOOKS) == looks(desk / "run" / LOOKS)
    assert len({entry["look"] for entry in looks(desk / "run" / LOOKS)}) == 2
    # Another run's looks at the same shards are looks, too.
    record_look(desk / "shards", None, run_id="other", fingerprint=load_manifest(desk / "shards").fingerprint)
    assert evaluate("test", None, 0.5).test_looks == 4


def test_looks_are_counted_where_the_shards_cannot_be_written(tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    run.mkdir()
    # A folder that is not there refuses whatever the rights of the user who tests.
    assert [record_look(shards, run, run_id="", fingerprint="f") for _ in range(2)] == [1, 2]
    with pytest.raises(KerassegError):
        record_look(shards, None, run_id="", fingerprint="f")


def test_a_damaged_line_is_a_look_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / LOOKS
    record_look(tmp_path, None, run_id="", fingerprint="f")
    record_look(tmp_path, None, run_id="", fingerprint="other data")
    with file.open("a") as stream:
        stream.write('{"look": "torn\n\n' + "[" * 100_000 + "\n")
    assert count_looks([file, tmp_path / "none"], "f") == 3


# --- other data -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(made: Path) -> Path:
    """Another data set: 18 slices of its own, and 6 files that the first one holds as well."""
    raw = made / "other-raw"
    write_figshare(raw, patients=6, slices_each=3, size=48, seed=7)
    held = [row for row in (made / "shards" / "splits.csv").read_text().splitlines() if row.endswith(",train")]
    for line in held[:6]:
        name = line.split(",")[1].rsplit("/", 1)[-1]
        shutil.copy(made / "raw" / name, raw / f"9{name}")
    prepare(raw, made / "other", PrepareOptions(size=32), jobs=1)
    return made / "other"


def test_other_shards_are_evaluated_as_a_whole_with_a_warning(evaluate: Evaluate, other: Path, desk: Path) -> None:
    theirs = desk / "other"
    shutil.copytree(other, theirs)
    config = json.loads((desk / "run" / "config.json").read_text())
    config["settings"]["shards"] = str(desk / "shards")
    (desk / "run" / "config.json").write_text(json.dumps(config))
    found = evaluate(None, theirs, 0.5)
    assert (found.split, found.final_stage().all.slices) == ("all", 24)
    assert found.data.overlap_with_training == 6
    assert any("6 of 24 slices" in warning and "--exclude-overlap" in warning for warning in found.warnings)
    folder = evaluation_folder(desk / "run", found)
    assert folder.name == f"all-other-{load_manifest(theirs).fingerprint[:8]}"
    assert (folder / "report.html").is_file()
    assert len(looks(theirs / LOOKS)) == 1
    assert not (desk / "shards" / LOOKS).exists()
    with pytest.raises(UsageError, match="as a whole"):
        evaluate("test", theirs, 0.5)


def test_overlap_is_found_by_bytes_and_by_look(made: Path, other: Path) -> None:
    found = seen_in_training(made / "shards", other)
    assert len(found) == 6
    assert all(name.rsplit("/", 1)[-1].startswith("9") for name in found)
    everything = seen_in_training(made / "shards", made / "shards")
    assert len(everything) == sum(load_manifest(made / "shards").slices_in(split) for split in ("train", "val"))


def test_moved_shards_are_the_run_s_own(evaluate: Evaluate, desk: Path) -> None:
    (desk / "elsewhere").mkdir()
    shutil.move(desk / "shards", desk / "elsewhere" / "s")
    found = evaluate("validation", desk / "elsewhere" / "s", 0.5)
    assert found.split == "val"
    assert found.data.overlap_with_training is None
    assert not found.warnings


# --- a second annotator ---------------------------------------------------------------------------------------------------


def write_masks(folder: Path, shards: Path, keep: int | None = None, shift: int = 1) -> int:
    """The masks of the validation slices, moved; how many were written."""
    records = list(read_records(shards, "val"))[:keep]
    folder.mkdir()
    for i, record in enumerate(records):
        name = record.slice_id.rsplit("/", 1)[-1] + (".png" if i % 2 else ".tif")
        cv2.imwrite(str(folder / name), np.roll(record.mask_native, shift, 1).astype(np.uint8) * 255)
    return len(records)


def test_a_second_annotator_is_the_ceiling(evaluate: Evaluate, desk: Path) -> None:
    count = write_masks(desk / "second", desk / "shards")
    extras = Extras(speed=False, calibration=False, reference_2=desk / "second")
    found = evaluate("validation", None, 0.5, extras=extras)
    reader = found.second_reader
    assert reader is not None
    assert (reader.slices, reader.without) == (count, 0)
    dice = [
        2 * (np.roll(r.mask_native, 1, 1) & r.mask_native).sum() / (2 * r.mask_native.sum())
        for r in read_records(desk / "shards", "val")
    ]
    assert reader.agreement.mean == pytest.approx(np.mean(dice))
    assert reader.network.mean == pytest.approx(found.final_stage().all.measures["dice"].mean)
    assert reader.network_second.mean != reader.network.mean
    assert reader.difference is not None
    assert reader.difference.mean == pytest.approx(reader.network.mean - reader.agreement.mean)
    of_classes = [reader.network_second_classes[name] for name in reader.agreement_classes]
    pooled = np.average([mean.mean for mean in of_classes], weights=[mean.slices for mean in of_classes])
    assert reader.network_second.mean == pytest.approx(pooled)
    assert set(reader.agreement_classes) == set(found.final_stage().classes)
    assert not found.warnings[:0]


def test_a_second_annotator_of_half_the_slices_is_said(evaluate: Evaluate, desk: Path) -> None:
    write_masks(desk / "second", desk / "shards", keep=4, shift=0)
    extras = Extras(speed=False, calibration=False, reference_2=desk / "second")
    found = evaluate("validation", None, 0.5, resolution="model", extras=extras)
    reader = found.second_reader
    assert reader is not None
    total = found.final_stage().all.slices
    assert (reader.slices, reader.without, reader.agreement.mean) == (4, total - 4, 1.0)
    assert any(f"cover 4 of {total} slices" in warning for warning in found.warnings)


def test_second_masks_from_shards(made: Path) -> None:
    find = open_second(made / "shards")
    for record in read_records(made / "shards", "val"):
        mask = find(record.slice_id)
        assert mask is not None
        assert np.array_equal(mask[0], record.mask_native)
    assert find("nobody") is None


def test_second_masks_that_cannot_be_used(evaluate: Evaluate, desk: Path) -> None:
    def extras() -> Extras:
        return Extras(speed=False, calibration=False, reference_2=desk / "second")

    with pytest.raises(UsageError, match="not a folder"):
        evaluate("validation", None, 0.5, extras=extras())
    (desk / "second").mkdir()
    with pytest.raises(DataError, match="the folder contains no masks"):
        evaluate("validation", None, 0.5, extras=extras())
    cv2.imwrite(str(desk / "second" / "nobody.png"), np.zeros((48, 48), np.uint8))
    with pytest.raises(DataError, match="no slice has a second mask"):
        evaluate("validation", None, 0.5, extras=extras())
    name = next(iter(read_records(desk / "shards", "val"))).slice_id.rsplit("/", 1)[-1]
    cv2.imwrite(str(desk / "second" / f"{name}.png"), np.eye(20, dtype=np.uint8) * 255)
    with pytest.raises(DataError, match="differs in size"):
        evaluate("validation", None, 0.5, extras=extras())
    (desk / "second" / "a").mkdir()
    cv2.imwrite(str(desk / "second" / "a" / f"{name}.png"), np.eye(48, dtype=np.uint8) * 255)
    (desk / "second" / f"{name}.png").rename(desk / "second" / f"{name}.tiff")
    (desk / "second" / "b").mkdir()
    shutil.move(desk / "second" / f"{name}.tiff", desk / "second" / "b")
    with pytest.raises(DataError, match="two masks"):
        evaluate("validation", None, 0.5, extras=extras())


# --- besides --------------------------------------------------------------------------------------------------------------


def test_speed_calibration_and_robustness_are_filled_in(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    from kerasseg.evaluation import robustness as speed
    from kerasseg.workflows import evaluate as run

    monkeypatch.setattr(speed, "_MOST", 5)
    plain = run.measure_robustness
    monkeypatch.setattr(run, "measure_robustness", lambda *a, **k: plain(*a, grades=1, **k))
    found = evaluate("validation", None, 0.5, extras=Extras(robustness=True, seed=4))
    assert found.speed is not None
    assert set(found.speed.slices_per_second) == set(found.speed.baseline_milliseconds_a_slice) == {"1", "8"}
    assert all(value > 0 for value in found.speed.milliseconds_a_slice.values())
    assert found.calibration is not None
    assert found.calibration.error is not None
    assert found.robustness is not None
    assert found.robustness.seed == 4
    assert len(found.robustness.curves) == 8
    assert found.robustness.clean == found.final_stage().all.measures["dice"].mean


# --- bad input ------------------------------------------------------------------------------------------------------------


def replace_model(desk: Path, at: float, steep: float) -> None:
    run = RunDirectory(desk / "run")
    run.save_model(brightness_network(32, at=at, steep=steep), run.model_file)


def test_constant_output_is_said(evaluate: Evaluate, desk: Path) -> None:
    replace_model(desk, at=0.0, steep=0.0)
    found = evaluate("validation", None, 0.6)
    assert found.final_stage().all.measures["dice"].mean == 0
    assert found.final_stage().all.missed == found.final_stage().all.with_tumour
    assert found.final_stage().all.measures["hd95"].mean is None
    assert any("same value for every pixel (0.5)" in warning for warning in found.warnings)
    assert (desk / "run" / "evaluation" / "val" / "report.html").is_file()


def test_an_output_below_the_threshold_is_said(evaluate: Evaluate, desk: Path) -> None:
    replace_model(desk, at=2.0, steep=10.0)
    assert any("No pixel of any slice reaches" in warning for warning in evaluate("validation", None, 0.5).warnings)


def test_logits_are_refused_and_the_test_split_was_not_looked_at(evaluate: Evaluate, desk: Path) -> None:
    import keras

    run = RunDirectory(desk / "run")
    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    model.set_weights([np.full((1, 1, 1, 1), 9, np.float32), np.array([-3], np.float32)])
    run.save_model(model, run.model_file)
    with pytest.raises(UsageError, match="does not return probabilities"):
        evaluate("test", None, 0.5)
    assert not (desk / "shards" / LOOKS).exists()


def test_networks_and_shards_of_other_sizes(evaluate: Evaluate, desk: Path) -> None:
    run = RunDirectory(desk / "run")
    run.save_model(brightness_network(48), run.model_file)
    with pytest.raises(UsageError, match="disagree on the size"):
        evaluate("validation", None, 0.5)


def test_a_run_that_is_being_trained(evaluate: Evaluate, desk: Path) -> None:
    with lock(desk / "run" / ".lock", "run"):
        with pytest.raises(KerassegError, match="still being trained"):
            evaluate("test", None, 0.5)
        assert any("best weights so far" in warning for warning in evaluate("validation", None, 0.5).warnings)


@pytest.mark.parametrize("split", ["tests", "all", ""])
def test_unknown_splits(evaluate: Evaluate, split: str) -> None:
    with pytest.raises(UsageError, match="unknown split"):
        evaluate(split, None, 0.5)


@pytest.mark.parametrize("threshold", [0.0, 1.5, float("nan"), -1.0])
def test_thresholds_that_are_none(evaluate: Evaluate, threshold: float) -> None:
    with pytest.raises(UsageError, match="invalid threshold"):
        evaluate("validation", None, threshold)


def test_runs_and_shards_that_are_not_there(desk: Path) -> None:
    run = RunDirectory(desk / "run")
    with pytest.raises(DataError, match="no such run"):
        evaluate_run(desk / "nothing", "validation")
    run.model_file.unlink()
    with pytest.raises(DataError, match="no network yet"):
        evaluate_run(run, "validation", desk / "shards")
    config = json.loads((desk / "run" / "config.json").read_text())
    config["settings"]["shards"] = str(desk / "gone")
    (desk / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="shards of this run are missing"):
        evaluate_run(run, "validation")


def test_shards_that_were_prepared_anew_are_not_taken_for_the_old_ones(desk: Path) -> None:
    config = json.loads((desk / "run" / "config.json").read_text())
    config["settings"]["shards"] = str(desk / "shards")
    config["resolved"]["fingerprint"] = "0" * 64
    (desk / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="other slices, or another split"):
        evaluate_run(desk / "run", "test", None, 0.5)
    config["resolved"]["intensity"] = "zscore"
    (desk / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="other grey levels"):
        evaluate_run(desk / "run", None, desk / "shards", 0.5)


def test_phantoms_are_not_judged_by_goals_for_patients(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "raw", 9, 1, size=32)
    prepare(tmp_path / "raw", tmp_path / "shards", PrepareOptions(size=16, split="34/33/33"), jobs=1)
    write_run(tmp_path / "run", tmp_path / "shards", model=brightness_network(16))

    def found(goals: list[Goal] | None) -> Evaluation:
        return evaluate_run(tmp_path / "run", "validation", None, 0.5, goals=goals, extras=QUICK, resampling=FEW)

    usual = found(None)
    assert usual.targets == ()
    page = evaluation_folder(tmp_path / "run", usual) / "report.html"
    assert "say nothing about patients" in page.read_text()
    assert '<p class="goals">' not in page.read_text()
    asked = found([Goal(None, 0.3)])
    assert [target.goal for target in asked.targets] == [0.3]
    assert '<p class="goals">' in page.read_text()
    assert any("say nothing about patients" in warning for warning in asked.warnings)


def test_an_evaluation_that_was_asked_otherwise_is_kept(
    evaluate: Evaluate, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate("validation", None, 0.5)
    assert first.earlier is None
    folder = evaluation_folder(desk / "run", first)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = evaluate("validation", None, 0.3)
    assert other.earlier is not None
    kept = folder.parent / other.earlier
    assert kept.parent == desk / "run" / "evaluation" / "earlier"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == written
    assert read_evaluation(folder / "metrics.json") == other
    # It is no further evaluation of the run: comparisons and model cards use the newest.
    assert evaluated(RunDirectory(desk / "run"), "validation").figures == other
    summary(other, folder)
    assert f"with other options, is kept: {kept}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, False),
        ({"warnings": ("The shards were moved.",)}, False),
        ({"threshold": "0.5"}, True),
        ({"resolution": "model"}, True),
        ({"robustness": None}, True),
        ({"speed": None, "second_reader": None}, True),
    ],
)
def test_the_same_question_replaces_its_answer(change: dict[str, object], kept: bool, tmp_path: Path) -> None:
    old = an_evaluation(Slices().rows())
    folder = tmp_path / "evaluation" / "test"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(old.model_dump_json())
    new = old.model_copy(update=change)
    place = workflow._place_for_earlier(folder, new)
    assert (place is not None) == kept
    if place is not None:
        assert place == tmp_path / "evaluation" / "earlier" / "test-20260102-030405"
        place.mkdir(parents=True)
        again = workflow._place_for_earlier(folder, new)
        assert again is not None
        assert again.name == "test-20260102-030405-2"
        # An evaluation with more parts replaces one with fewer.
        (folder / "metrics.json").write_text(old.model_copy(update={"robustness": None}).model_dump_json())
        assert workflow._place_for_earlier(folder, old) is None
    (folder / "metrics.json").write_text("{")  # an unreadable file is replaced
    assert workflow._place_for_earlier(folder, old.model_copy(update={"threshold": "0.1"})) is None


# --- all or nothing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["to_csv", "_write_page", "write_atomically", "record_look"])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_what_fails_leaves_the_earlier_files_and_counts_no_look(
    evaluate: Evaluate, desk: Path, monkeypatch: pytest.MonkeyPatch, failing: str, threshold: float
) -> None:
    first = evaluate("test", None, 0.5)
    folder = evaluation_folder(desk / "run", first)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workflow, failing, full)
    with pytest.raises(KerassegError, match="no space"):
        evaluate("test", None, threshold)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written
    assert [path.name for path in folder.parent.iterdir() if path.name != "earlier"] == ["test"]
    assert len(looks(desk / "run" / LOOKS)) == 1
    monkeypatch.undo()
    again = evaluate("test", None, threshold)
    assert again.test_looks == 2
    assert read_evaluation(folder / "metrics.json") == again


def test_nothing_that_is_shared_names_a_folder_of_this_machine(evaluate: Evaluate, desk: Path) -> None:
    write_masks(desk / "second", desk / "shards")
    found = evaluate("validation", None, 0.3, extras=Extras(reference_2=desk / "second"))
    found = evaluate("validation", None, 0.4, extras=Extras(reference_2=desk / "second"))
    assert found.earlier is not None
    for name in ("metrics.json", "report.html"):
        text = (evaluation_folder(desk / "run", found) / name).read_text()
        assert str(desk) not in text
        assert platform.node() not in text or len(platform.node()) < 6


# --- verdicts -------------------------------------------------------------------------------------------------------------


def test_without_tumours_there_is_no_verdict(desk: Path, tmp_path: Path) -> None:
    raw = write_figshare(tmp_path / "empty", patients=15, slices_each=1, size=48)
    prepare(raw, tmp_path / "other", PrepareOptions(size=32, split="60/20/20"), jobs=1)
    run = write_run(tmp_path / "blank", tmp_path / "other")
    found = evaluate_run(run, "test", None, 0.5, goals=[Goal(None, 0.1)], extras=QUICK)
    assert found.targets
    rows = [
        dataclasses.replace(row, reference_pixels=0)
        for row in read_csv(tmp_path / "blank/evaluation/test/per_slice.csv")
    ]
    none = network_figures(rows, found.classes, {"raw": found.final_stage().rule})
    without = found.model_copy(update={"model": none, "targets": ()})
    page = tmp_path / "page.html"
    write_report(without, rows, None, page)
    assert "no verdict" in page.read_text()


def test_goals_of_the_recipe_are_for_its_own_checkpoint(evaluate: Evaluate, desk: Path) -> None:
    assert evaluate("validation", None, 0.5).targets == ()
    assert evaluate("validation", None, 0.5, goals="recipe").targets
    config = json.loads((desk / "run" / "config.json").read_text())
    config["resolved"]["checkpoint"] = f"{DEFAULT_CHECKPOINT}@0123abc/unet.keras"
    (desk / "run" / "config.json").write_text(json.dumps(config))
    assert [target.goal for target in evaluate("validation", None, 0.5).targets][:3] == [0.8657, 0.92, 0.95]


def test_a_rule_that_is_not_kept_is_said(evaluate: Evaluate, desk: Path) -> None:
    """Three validation patients are too few for a rule."""
    found = evaluate("validation")
    assert found.final_stage().rule == MaskRule()
    assert found.rule_decision.startswith(
        "Threshold 0.5 without post-processing is used: the validation split has 3 patients"
    )
    assert found.rule_decision in (evaluation_folder(desk / "run", found) / "report.html").read_text()


def test_predictions_are_averaged_with_the_mirror_image(evaluate: Evaluate, desk: Path) -> None:
    import keras

    run = RunDirectory(desk / "run")
    inputs = keras.Input((32, 32, 1))
    shifted = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
    model = keras.Model(inputs, shifted(inputs))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 2] = 20  # the neighbour to the right
    shifted.set_weights([kernel, np.array([-12], np.float32)])
    run.save_model(model, run.model_file)
    plain, averaged = (evaluate("validation", None, 0.3, flip_average=flip) for flip in (False, True))
    assert (plain.flip_average, averaged.flip_average) == (False, True)
    assert plain.final_stage().all.measures["dice"].mean != averaged.final_stage().all.measures["dice"].mean
    usual, mirrored = (predict_split(model, desk / "shards", "val", flip_average=flip) for flip in (False, True))
    image = usual.image(0)[None].astype(np.float32) / 255
    both = model.predict_on_batch(image)[0, ..., 0] + model.predict_on_batch(image[:, :, ::-1])[0, :, ::-1, 0]
    np.testing.assert_allclose(mirrored.probability(0, "model"), both / 2, atol=1e-6)
