"""Cross-validation: what each fold leaves, figures out of fold, going on, and the ensemble; tiny networks, in-process."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import kerasseg
from factories import write_figshare
from kerasseg.evaluation.predictions import predict_split
from kerasseg.models.ensemble import ensemble
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import read_history
from kerasseg.runs.settings import LossSettings, TrainSettings
from kerasseg.training.events import Event, Message, Saved
from kerasseg.workflows.cross_validate import CrossValidation, _Entry, _scores, cross_validate, read_cross_validation
from kerasseg.workflows.tune import tune_run
from kerasseg_cli.app import app
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions, load_manifest
from kerasseg_tfrecords.splitting.splits_file import load

pytestmark = [pytest.mark.slow, pytest.mark.rest]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cv")
    raw = write_figshare(folder / "raw", patients=12, slices_each=2, size=48)
    prepare(raw, folder / "shards", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    return folder


@pytest.fixture(scope="module")
def settings(desk: Path) -> TrainSettings:
    # A network that finds nothing at first, and tumour nearly everywhere after a few steps: there is something to gain.
    network = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=0)
    *weights, bias = network.get_weights()
    network.set_weights([*weights, bias - 1])
    network.save(desk / "timid.keras")
    return TrainSettings(
        shards=str(desk / "shards"),
        checkpoint=str(desk / "timid.keras"),
        strategy="aggressive",
        freeze_batchnorm=True,
        loss=LossSettings(positive_weight=100.0),
        epochs=2,
        learning_rate=0.1,
        batch_size=2,
        precision="float32",
    )


@pytest.fixture(scope="module", autouse=True)
def _there(desk: Path) -> object:
    """Runs are below the folder one stands in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        yield


@pytest.fixture(scope="module")
def done(desk: Path, settings: TrainSettings, _there: object) -> tuple[CrossValidation, Path]:
    """Two folds that nobody disturbs; another process starts a run meanwhile, which is the latest."""
    (desk / "runs").mkdir()

    def other(event: Event) -> None:
        if isinstance(event, Saved):
            (desk / "runs" / "latest").write_text("before\n")

    return cross_validate(settings, 2, desk / "runs" / "cv", [other])


def table(root: Path) -> list[dict[str, str]]:
    with (root / "out-of-fold.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_each_fold_is_a_run_with_its_own_frozen_slices(done: tuple[CrossValidation, Path], desk: Path) -> None:
    _, root = done
    held = []
    for k in (1, 2):
        run = RunDirectory.find(f"cv/fold-{k}")
        assert run.model_file.is_file()
        config = run.config()
        assert config.settings.shards == str(root / f"fold-{k}" / "shards")
        rows = load(run.root / "shards" / "splits.csv")
        held += [row.slice_id for row in rows if row.split == "val"]
        assert sum(config.resolved.slices["val"].values()) == sum(row.split == "val" for row in rows)
    source = load(desk / "shards" / "splits.csv")
    assert sorted(held) == sorted(row.slice_id for row in source if row.split != "test")
    assert (desk / "runs" / "latest").read_text() == "before\n"


def test_the_test_split_stays_closed(done: tuple[CrossValidation, Path], desk: Path) -> None:
    _, root = done
    closed = {row.slice_id for row in load(desk / "shards" / "splits.csv") if row.split == "test"}
    assert not closed & {row["slice_id"] for row in table(root)}
    assert load_manifest(root / "fold-1" / "shards").slices_in("test") == 0
    assert not (desk / "shards" / "test-looks.jsonl").exists()


def test_figures_are_those_of_slices_that_each_fold_held_out(done: tuple[CrossValidation, Path]) -> None:
    found, root = done
    figures = found.out_of_fold
    assert figures is not None
    rows = table(root)
    for k in (1, 2):
        # What the run itself wrote about its validation slices.
        with (root / f"fold-{k}" / "validation.csv").open() as stream:
            own = {row["slice_id"]: row for row in csv.DictReader(stream)}
        mine = {row["slice_id"]: row for row in rows if row["fold"] == str(k)}
        assert mine.keys() == own.keys()
        for name, row in mine.items():
            assert (row["dice_epoch_0"], row["dice_best"]) == (own[name]["dice_epoch_0"], own[name]["dice_best"])
    assert figures.all.before.mean == 0
    assert all(fold.best_epoch > 0 for fold in figures.folds)
    after, before = (np.array([float(row[name]) for row in rows]) for name in ("dice_best", "dice_epoch_0"))
    assert figures.all.after.mean == pytest.approx(after.mean())
    assert figures.all.gain.mean == pytest.approx((after - before).mean())
    assert figures.all.gain.slices == len(rows) == sum(fold.slices for fold in figures.folds)
    assert figures.all.gain.patients == len({row["group"] for row in rows})
    for name, scores in figures.classes.items():
        mine = after[[row["label"] == name for row in rows]]
        assert scores.after.mean == pytest.approx(mine.mean())
    last = np.array([float(row["dice_last"]) for row in rows])
    for k, fold in enumerate(figures.folds, 1):
        own = read_history(RunDirectory.find(f"cv/fold-{k}").history_file)[-1].val_dice
        assert fold.last == pytest.approx(last[[row["fold"] == str(k) for row in rows]].mean()) == pytest.approx(own)
    assert figures.all.last_gain.mean == pytest.approx((last - before).mean())
    assert figures.spread == pytest.approx(np.std([fold.after for fold in figures.folds], ddof=1))
    assert read_cross_validation(root) == found


def test_the_ensemble_is_a_run_that_puts_out_the_mean(done: tuple[CrossValidation, Path], desk: Path) -> None:
    _, root = done
    run = RunDirectory.find("cv/ensemble")
    model = kerasseg.open_checkpoint(run.model_file)
    parts = [kerasseg.open_checkpoint(root / f"fold-{k}" / "model.keras") for k in (1, 2)]
    images = np.random.default_rng(0).random((3, 16, 16, 1), np.float32)
    outputs = [part.predict_on_batch(images) for part in parts]
    assert not np.allclose(outputs[0], outputs[1])
    np.testing.assert_allclose(model.predict_on_batch(images), np.mean(outputs, axis=0), atol=1e-6)
    config = run.config()
    assert config.settings.shards == str(desk / "shards")
    assert config.resolved.fingerprint == load_manifest(desk / "shards").fingerprint
    assert config.resolved.changes[-1] == "the mean of the networks of 2 folds"
    assert config.resolved.parameters == model.count_params()


def test_networks_that_do_not_fit_are_no_ensemble() -> None:
    small, large = (kerasseg.unet((size, size, 1), filters=2, depth=1, seed=0) for size in (16, 32))
    with pytest.raises(UsageError, match="must have the same input and output shapes"):
        ensemble([small, large])
    with pytest.raises(UsageError, match="needs networks"):
        ensemble([])
    images = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
    np.testing.assert_array_equal(ensemble([small]).predict_on_batch(images), small.predict_on_batch(images))


def test_the_rule_of_the_ensemble_is_tuned_on_what_each_fold_held_out(done: tuple[CrossValidation, Path]) -> None:
    root = done[1]
    run = RunDirectory.find(root / "ensemble")
    assert [fold.root.name for fold in run.folds] == ["fold-1", "fold-2"]
    found = tune_run(run)
    assert found.folds == 2
    held_out, probabilities, masks = 0, [], []
    for k in (1, 2):
        model = kerasseg.open_checkpoint(root / f"fold-{k}" / "model.keras")
        own = predict_split(model, root / f"fold-{k}" / "shards", "val")
        held_out += len(own)
        probabilities += [own.probability(i) for i in range(len(own))]
        masks += [own.case(i).mask for i in range(len(own))]
    assert found.model.slices == held_out
    plain = [kerasseg.dice(p >= 0.5, m) for p, m in zip(probabilities, masks, strict=True)]
    assert found.model.raw.mean == pytest.approx(float(np.mean(plain)), abs=1e-6)


def test_the_rule_of_a_run_can_be_tuned_on_out_of_fold_predictions(
    done: tuple[CrossValidation, Path], tmp_path: Path
) -> None:
    root = done[1]
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(root / "fold-1", run.root)
    config = json.loads(run.config_file.read_text())
    config["settings"]["shards"] = done[0].settings.shards
    config["resolved"]["fingerprint"] = done[0].fingerprint
    run.config_file.write_text(json.dumps(config))
    found = tune_run(run, cross_validation=root)
    out_of_fold = tune_run(RunDirectory.find(root / "ensemble"))
    assert found.folds == 2
    assert found.model.raw == out_of_fold.model.raw
    assert found.model.rule == out_of_fold.model.rule
    assert found.model.sha256 != out_of_fold.model.sha256
    config["resolved"]["fingerprint"] = "0" * 64
    run.config_file.write_text(json.dumps(config))
    with pytest.raises(DataError, match="not the shards that the run was trained on"):
        tune_run(run, cross_validation=root)


class Killed(BaseException):
    """What no handler catches, as a killed process."""


def test_a_killed_fold_goes_on_and_a_finished_one_is_left_alone(
    done: tuple[CrossValidation, Path], settings: TrainSettings, desk: Path
) -> None:
    root = desk / "runs" / "disturbed"
    fold = 0

    def kill(event: Event) -> None:
        nonlocal fold
        if isinstance(event, Message) and event.kind == "fold":
            fold += 1
        if fold == 2 and isinstance(event, Saved) and event.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        cross_validate(settings, 2, root, [kill])
    assert (desk / "runs" / "latest").read_text() == "before\n"
    assert read_cross_validation(root).out_of_fold is None
    weights = (root / "fold-1" / "model.keras").stat().st_mtime_ns
    (root / "ensemble" / ".tmp-killed").mkdir(parents=True)  # as if it had been killed while it wrote the ensemble
    seen: list[Event] = []
    found, _ = cross_validate(settings, 2, root, [seen.append])
    assert not list(root.rglob(".tmp-*"))
    assert (root / "fold-1" / "model.keras").stat().st_mtime_ns == weights
    began = [event for event in seen if type(event).__name__ == "Began"]
    assert [event.resumed for event in began] == [(1, 0)]
    assert found.out_of_fold is not None
    undisturbed = done[0].out_of_fold
    assert undisturbed is not None
    assert [row["slice_id"] for row in table(root)] == [row["slice_id"] for row in table(done[1])]
    assert found.out_of_fold.all.after.mean == pytest.approx(undisturbed.all.after.mean, abs=1e-3)
    assert found.out_of_fold.folds[0] == undisturbed.folds[0]


def test_another_cross_validation_is_not_written_over(
    done: tuple[CrossValidation, Path], settings: TrainSettings, desk: Path
) -> None:
    _, root = done
    with pytest.raises(UsageError, match=r"another cross-validation .*epochs 2, now 3.*--resume --out"):
        cross_validate(settings.model_copy(update={"epochs": 3}), 2, root)
    with pytest.raises(UsageError, match="folds 2, now 3"):
        cross_validate(settings, 3, root)
    with pytest.raises(UsageError, match=r"must be new or empty \(found 1.mat"):
        cross_validate(settings, 2, desk / "raw")
    with pytest.raises(UsageError, match="cannot be divided into 50 folds"):
        cross_validate(settings, 50, desk / "runs" / "many")
    odd = desk / "Gr\udcf6\udcdfe"
    shutil.copytree(settings.shards, odd / "shards")
    for shards, out in ((settings.shards, odd / "cv"), (str(odd / "shards"), desk / "runs" / "odd")):
        with pytest.raises(UsageError, match="not valid UTF-8"):
            cross_validate(settings.model_copy(update={"shards": shards}), 2, out)
        assert not out.exists()
    with pytest.raises(DataError, match="the cross-validation is missing"):
        read_cross_validation(desk / "raw")


def typed(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["cross-validate", *map(str, arguments)], env={"COLUMNS": "150"})
    return done.exit_code, done.stdout, done.stderr


def test_the_command_has_every_option_of_train() -> None:
    def options(command: str) -> set[str]:
        shown = CliRunner().invoke(app, [command, "--help-all"], env={"COLUMNS": "150", "TERM": "dumb"}).stdout
        return set(re.findall(r"(--[a-z0-9-]+)", re.sub(r"\x1b\[[0-9;]*m", "", shown)))

    assert len(options("train")) > 45
    assert options("cross-validate") >= options("train") - {"--track"} | {"--folds"}


def test_the_command_goes_on_with_what_is_finished(done: tuple[CrossValidation, Path], desk: Path) -> None:
    code, shown, said = typed("--resume", "--out", done[1])
    assert code == 0, said
    assert "all slices" in shown
    assert "The test split was not read." in shown
    # The same by the same options; through the file of another run.
    code, shown, said = typed(
        *("--folds", 2, "--config", done[1] / "fold-1", "--shards", desk / "shards", "--out", done[1], "--json")
    )
    assert code == 0, said
    document = json.loads(shown)
    assert document["out_of_fold"]["all"]["after"]["mean"] == done[0].out_of_fold.all.after.mean  # type: ignore[union-attr]
    code, shown, said = typed("--resume", "--out", done[1], "--epochs", 3)
    assert code == 2
    assert "resumed run keeps its options" in said
    code, shown, said = typed("--folds", 1)
    assert code == 2


def test_training_that_harms_shows_a_negative_gain_of_the_last_epoch() -> None:
    rows = [("a", 0.9, 0.9, 0.5), ("b", 0.8, 0.8, 0.6), ("c", 0.7, 0.75, 0.7), ("d", 0.6, 0.6, 0.5)]
    entries = [
        _Entry(slice_id=p, patient=p, group=p, label="x", fold=1, before=b, after=a, last=z, tumour=True)
        for p, b, a, z in rows
    ]
    scores = _scores(entries)
    assert scores.gain.mean == pytest.approx(0.0125)
    assert scores.last_gain.mean == pytest.approx(-0.175)
    # A fold of an earlier version recorded no last epoch: no figure rather than one over some of the folds.
    without = _scores([*entries[:3], entries[3].model_copy(update={"last": None})])
    assert without.last is None
    assert without.gain == scores.gain


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_figure_is_cut_at_any_width(
    done: tuple[CrossValidation, Path],
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from kerasseg_cli.cross_validate import _show

    monkeypatch.setenv("COLUMNS", str(columns))
    _show(done[0], Path("runs/cv"))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    figures = done[0].out_of_fold
    assert figures is not None
    assert f"over {figures.all.after.slices} slices of {figures.all.after.patients} patients." in " ".join(
        shown.split()
    )
    assert ("tumour slices" in shown) == (figures.tumour != figures.all)
    assert shown.splitlines()[-1] == "Next: kerasseg tune-threshold runs/cv/ensemble"
    both = ("after", "gain"), ("last", "last_gain")
    scored = (figures.all, figures.tumour, *figures.classes.values())
    for scores, (after, name) in itertools.product(scored, both):
        gain = getattr(scores, name)
        limits = "-" if gain.low is None else f"{gain.low:+.4f} to {gain.high:+.4f}"
        cells = f"{scores.before.mean:.4f}", f"{getattr(scores, after).mean:.4f}", f"{gain.mean:+.4f}", limits
        assert re.search(r"\s+".join(map(re.escape, cells)), shown)
