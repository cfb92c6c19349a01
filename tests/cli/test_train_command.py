"""`kerasseg train` as typed: runs, resumes after kill -9, stops on Ctrl-C, and says what is wrong.

What must be a process of its own (kills, signals, bit for bit determinism) is forked by `children`; the rest runs here.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import kerasseg
from children import PATIENCE, Child, Children
from factories import write_figshare
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.state import StateStore
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions

TINY = ("--strategy", "scratch", "--filters", 4, "--depth", 2, "--precision", "float32", "--batch-size", 4)
LEARNS = ("--learning-rate", 1e-2, "--positive-weight", 20, "--seed", 1)
"""With these the best epoch changes from epoch to epoch."""
TIMES = {"seconds", "slices_per_second", "memory_mb"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 training and 18 validation slices, 32 x 32."""
    folder = tmp_path_factory.mktemp("tiny")
    options = PrepareOptions(size=32, split="60/20/20")
    prepare(write_figshare(folder / "raw", patients=30, slices_each=3, size=48), folder / "shards", options, jobs=1)
    return folder / "shards"


@pytest.fixture
def children(tmp_path: Path) -> Children:
    """Types `kerasseg ...` in `tmp_path`, in processes of their own."""
    return Children(tmp_path)


@pytest.fixture
def type_here(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Types `kerasseg train --shards SHARDS ...` in `tmp_path`, in this process."""
    from kerasseg_cli.app import app

    def run(*arguments: object, **environment: str) -> Any:
        monkeypatch.chdir(tmp_path)
        named = [] if "--resume" in arguments else ["--shards", str(shards)]
        typed = ["train", *named, *map(str, arguments)]
        return CliRunner().invoke(app, typed, env={"COLUMNS": "120", "NO_COLOR": "1", **environment})

    return run


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def final_state(run: Path) -> dict[str, np.ndarray]:
    saved = StateStore(run / "state").newest()
    assert saved is not None
    return dict(saved.arrays)


def assert_same_run(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    a, b = final_state(one), final_state(other)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert weights(one) == weights(other)
    assert kerasseg.provenance(one / "model.keras") == kerasseg.provenance(other / "model.keras")


def weights(run: Path, name: str = "model.keras") -> list[bytes]:
    import kerasseg

    return [w.tobytes() for w in kerasseg.open_checkpoint(run / name).get_weights()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run of four epochs that nobody disturbs; deterministic."""
    folder = tmp_path_factory.mktemp("undisturbed")
    options = [*TINY, *LEARNS, "--deterministic", "--epochs", 4, "--save-every", 3, "--ema", 0.9]
    done = Children(folder).run("train", "--shards", shards, *options, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "Next: kerasseg tune-threshold\n" in done.stdout, "the latest run needs no name"
    return folder / "run"


@pytest.mark.rest
@pytest.mark.slow
def test_a_run_leaves_what_the_design_says(undisturbed: Path) -> None:
    names = {p.name for p in undisturbed.iterdir()}
    files = {"config.json", "model.keras", "baseline.keras", "history.csv", "log.jsonl", "training.png", "state"}
    assert files <= names
    assert (undisturbed.parent / "runs" / "latest").read_text().strip() == "../run"
    rows = history(undisturbed)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert sum(int(row["best"]) for row in rows) > 2
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["settings"]["deterministic"] is True
    assert config["resolved"]["slices"]["val"] == {"meningioma": 6, "glioma": 6, "pituitary": 6}
    best = max(rows, key=lambda row: float(row["val_dice"]))
    best_row = rows.index(best)
    assert len([p for p in (undisturbed / "state").iterdir() if p.name.startswith("state-")]) == 2
    with (undisturbed / "validation.csv").open() as stream:
        entries = list(csv.DictReader(stream))
    assert len(entries) == 18
    mean = np.mean([float(entry["dice_best"]) for entry in entries])
    assert mean == pytest.approx(float(best["val_dice"]), abs=1e-6)
    # Scratch follows a cosine; of weights and their moving average the better is kept.
    rates = [float(row["learning_rate"]) for row in rows[1:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-4
    better = [max(float(row["val_dice_raw"]), float(row["val_dice_ema"])) for row in rows[1:]]
    assert [float(row["val_dice"]) for row in rows[1:]] == better
    assert float(rows[best_row]["val_dice_ema"]) != float(rows[best_row]["val_dice_raw"])
    assert np.mean([float(e["dice_epoch_0"]) for e in entries]) == pytest.approx(float(rows[0]["val_dice"]), abs=1e-6)
    assert weights(undisturbed) != weights(undisturbed, "baseline.keras")


@pytest.mark.rest
@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(children: Children, undisturbed: Path, tmp_path: Path) -> None:
    """Replayed from its configuration, without another option."""
    done = children.run("train", "--config", undisturbed / "config.json", "--out", "again", "--json")
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, tmp_path / "again")
    document = json.loads(done.stdout)
    assert document["epoch_0"]["val_dice"] == pytest.approx(float(history(undisturbed)[0]["val_dice"]))
    assert document["gain"]["patients"] == 6
    assert Path(tmp_path / document["model"]).is_file()


@pytest.mark.rest
@pytest.mark.slow
def test_another_seed_gives_another_run(children: Children, undisturbed: Path, tmp_path: Path) -> None:
    """What is typed wins over the replayed file; and the comparison of two runs can fail."""
    done = children.run("train", "--config", undisturbed / "config.json", "--seed", 2, "--epochs", 1, "--out", "other")
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in history(tmp_path / "other")] == ["0", "1"]
    assert weights(tmp_path / "other", "baseline.keras") != weights(undisturbed, "baseline.keras")


@pytest.mark.rest
@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_happened(
    children: Children, undisturbed: Path, tmp_path: Path
) -> None:
    """`kill -9` at random moments, some of them while states and networks are written, then `--resume` to the end."""
    seed = random.randrange(1 << 30)
    print("seed", seed)  # noqa: T201 - pytest shows it where the test fails
    rng = random.Random(seed)
    for number in range(int(os.environ.get("KERASSEG_TORTURE", "3"))):
        run = tmp_path / f"run-{number}"
        for _ in range(50):
            child = children.start("train", "--config", undisturbed / "config.json", "--out", run)
            kill_somewhere(child, run, rng)
            # A run that is killed before it is one is begun anew, in the same folder.
            assert child.returncode in (0, -signal.SIGKILL), child.stderr
            if (run / "config.json").exists():
                break
        # Several kills in a row, too.
        if rng.random() < 0.5:
            kill_somewhere(children.start("train", "--resume", "--out", run), run, rng)
        done = children.run("train", "--resume", "--out", run)
        if "already finished" in done.stderr:  # killed after its last word
            assert done.returncode == 2
        else:
            assert done.returncode == 0, done.stderr
        assert_same_run(undisturbed, run)
        assert not list(run.rglob(".tmp-*")) or "already finished" in done.stderr


def kill_somewhere(child: Child, run: Path, rng: random.Random) -> None:
    """Kills a training after a number of saved states; half of the times while it writes, or up to 0.6 s later."""
    states = newest_state(run)
    wanted, at_a_write = rng.randint(0, 12), rng.random() < 0.5
    deadline = time.monotonic() + PATIENCE
    while child.running and time.monotonic() < deadline:
        written = newest_state(run) - states
        # Looked for only where it counts: who watches takes time from who trains.
        if written > wanted or (at_a_write and written == wanted and writes(run)):
            break
        time.sleep(0.003)
    time.sleep(rng.choice([0.0, rng.uniform(0, 0.6)]))
    child.send(signal.SIGKILL)
    child.wait()


def writes(run: Path) -> bool:
    return run.exists() and any(p.name.startswith(".tmp") for p in run.rglob("*"))


def newest_state(run: Path) -> int:
    return max((int(p.stem.removeprefix("state-")) for p in run.glob("state/state-*.npz")), default=0)


@pytest.mark.rest
@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    children: Children, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    child = children.start("train", "--config", undisturbed / "config.json", "--out", run)
    while child.running and "\n    1 " not in child.stderr:  # the line of epoch 1
        time.sleep(0.01)
    child.send(signal.SIGINT)
    child.wait()
    assert child.returncode == 130, child.stderr
    assert "finishing this step" in child.stderr
    assert child.stdout.rstrip().endswith("Next: kerasseg train --resume"), "it is the latest run"
    assert "Traceback" not in child.stderr
    done = children.run("train", "--resume")
    assert done.returncode == 0, done.stderr
    assert "Resuming after epoch" in done.stderr
    assert_same_run(undisturbed, run)


def test_a_second_process_is_refused(undisturbed: Path, type_here: Callable[..., Any], tmp_path: Path) -> None:
    run = RunDirectory.open(undisturbed)
    with run.locked():
        assert run.is_running()
        done = type_here("--resume", "--out", undisturbed)
    assert done.exit_code == 1
    assert "another process is training in this run" in done.stderr
    assert not run.is_running()


@pytest.mark.slow
def test_shards_that_moved_are_asked_for_and_taken(
    undisturbed: Path, shards: Path, type_here: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(undisturbed, run)
    config = json.loads((run / "config.json").read_text())
    assert Path(config["settings"]["shards"]).is_absolute()  # a run goes on from any folder
    config["settings"]["shards"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    asked = type_here("--resume", "--out", run)
    assert asked.exit_code == 3
    assert "Give their folder with --shards" in asked.stderr
    taken = type_here("--resume", "--out", run, "--shards", shards)
    assert "already finished" in taken.stderr  # past the shards


@pytest.mark.slow
def test_a_folder_that_is_taken_is_refused_before_anything_is_opened(
    undisturbed: Path, type_here: Callable[..., Any]
) -> None:
    done = type_here("--checkpoint", "nothing.keras", "--out", undisturbed)
    assert done.exit_code == 2
    assert "the folder already holds a run" in done.stderr


@pytest.mark.slow
def test_a_damaged_state_falls_back_to_the_one_before(undisturbed: Path, children: Children, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    newest = sorted((run / "state").glob("state-*.npz"))[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    done = children.run("train", "--resume", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert "Next: kerasseg tune-threshold run\n" in done.stdout.replace(str(tmp_path) + "/", ""), "not the latest run"
    assert_same_run(undisturbed, run)


def test_a_run_that_is_over_or_of_a_newer_version_is_not_gone_on_with(
    undisturbed: Path, type_here: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    done = type_here("--resume", "--out", run)
    assert done.exit_code == 2
    assert "already finished" in done.stderr
    assert f"--checkpoint {run / 'model.keras'}" in done.stderr
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format_version": 2, "unheard_of": 1}))
    for arguments in (("--resume", "--out", run), ("--config", run / "config.json")):
        done = type_here(*arguments)
        assert done.exit_code == 1
        assert "written by a newer version of kerasseg (found format version 2, expected at most 1)" in done.stderr


# --- what cannot be used -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--strategy", "timid"), 2, "--strategy cannot be used .*conservative, moderate, aggressive, .* or scratch"),
        (("--learning-rate", 0), 2, "--learning-rate cannot be used .*> 0"),
        (("--learning-rate", -1e-4), 2, "--learning-rate cannot be used .*> 0"),
        (("--learning-rate", "nan"), 2, "--learning-rate cannot be used"),
        (("--augment", "rotation"), 2, "rotation' is refused: heads lie"),
        (("--checkpoint", "nothing.keras"), 1, "nothing.keras: no such file"),
        (("--resume",), 3, "no run found"),
        (("--resume", "--epochs", 3), 2, "a resumed run keeps its options .*--epochs"),
        (("--devices", "GPU:7"), 2, "no such device .*GPU:7"),
        (("--stages", "five"), 2, "--stages cannot be 'five'"),
        (("--stages", "5:1e-5,3:1e-4"), 2, "--stages cannot be '5:1e-5,3:1e-4' .*falling rates"),
        (("--stages", "0:1e-5"), 2, "--stages cannot be '0:1e-5'"),
        ((*TINY, "--freeze", "encoder_1"), 2, "decides itself what is frozen"),
        (("--memory-budget", "much"), 2, "--memory-budget cannot be 'much'"),
        (("--class-weight", "glioma"), 2, "--class-weight cannot be"),
        ((*TINY, "--class-weight", "gliom=2"), 2, "weight of an unknown class"),
        (("--shards", "nowhere"), 3, "nowhere: not a shard directory"),
        ((*TINY, "--batch-size", 60), 2, "a batch is larger than the training split"),
        ((*TINY, "--depth", 9), 2, "cannot be"),
        (("--config", "nothing.json"), 3, "nothing.json: .*missing"),
        (("--out", "Gr\udcf6\udcdfe"), 2, "the path is not valid UTF-8. Rename"),
    ],
)
def test_what_cannot_be_meant_is_said(
    type_here: Callable[..., Any], tmp_path: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    done = type_here(*arguments)
    assert done.exit_code == code, done.stderr
    assert re.search(message, done.stderr.replace("\n", " ")), done.stderr
    assert not done.stdout
    assert not list(tmp_path.rglob("config.json")), "nothing was begun"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net that fits, and a classifier whose output is no mask."""
    import keras

    import kerasseg

    folder = tmp_path_factory.mktemp("checkpoints")
    kerasseg.unet((32, 32, 1), filters=2, depth=2, seed=1).save(folder / "unet.keras")
    image = keras.Input((32, 32, 1))
    small = keras.layers.Conv2D(1, 3, strides=2, padding="same", activation="sigmoid")(image)
    keras.Model(image, small).save(folder / "half.keras")
    return folder


@pytest.mark.rest
@pytest.mark.slow
def test_what_was_trained_knows_its_grey_values(
    type_here: Callable[..., Any], checkpoints: Path, tmp_path: Path
) -> None:
    """So that shards of another intensity rule are refused for it later."""
    options = ("--checkpoint", checkpoints / "unet.keras", "--epochs", 1, "--steps", 1, "--precision", "float32")
    done = type_here(*options, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    records = [kerasseg.provenance(tmp_path / "run" / name) for name in ("model.keras", "baseline.keras")]
    assert [None if record is None else record.intensity for record in records] == ["minmax", None]
    assert {None if record is None else record.path for record in records} == {"unet.keras"}, "the run may be shared"


def test_an_unknown_block_is_said_with_the_known_ones(type_here: Callable[..., Any], checkpoints: Path) -> None:
    done = type_here("--checkpoint", checkpoints / "unet.keras", "--freeze", "encoder_7")
    assert done.exit_code == 2, done.stderr
    assert all(name in done.stderr for name in ("encoder_7", "encoder_1", "bottleneck", "decoder_2"))


def test_a_checkpoint_whose_output_does_not_fit_is_said(type_here: Callable[..., Any], checkpoints: Path) -> None:
    done = type_here("--checkpoint", checkpoints / "half.keras")
    assert done.exit_code == 1, done.stderr
    assert "16" in done.stderr
    assert "32" in done.stderr


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_with_a_flipped_byte_are_refused(
    type_here: Callable[..., Any], shards: Path, tmp_path: Path, split: str
) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    shard = sorted((copy / split).iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = type_here(*TINY, "--shards", copy)
    assert done.exit_code == 3, done.stderr
    assert shard.name in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_validation_split_without_tumours_is_refused(type_here: Callable[..., Any], tmp_path: Path) -> None:
    from factories import blob, write_mat

    for number in range(1, 31):
        image, mask = blob(number, 48)
        write_mat(tmp_path / "raw" / f"{number}.mat", image, mask & False, 1 + number % 3, f"{100 + number}")
    prepare(tmp_path / "raw", tmp_path / "shards", PrepareOptions(size=32, split="60/20/20"), jobs=1)
    done = type_here(*TINY, "--shards", tmp_path / "shards")
    assert done.exit_code == 3, done.stderr
    assert "no slice of the validation split has a tumour" in done.stderr


def test_the_default_checkpoint_that_cannot_be_fetched_names_what_to_give(
    type_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import kerasseg.workflows.train as session
    from kerasseg_tfrecords.errors import CheckpointError

    def no_network(source: str, **_: Any) -> None:
        raise CheckpointError("cannot be fetched", path=source)

    monkeypatch.delenv("KERASSEG_CHECKPOINT", raising=False)
    monkeypatch.setattr(session, "open_checkpoint", no_network)
    done = type_here()
    assert done.exit_code == 1
    assert "hf://bombshelll/unet-brain-tumor-segmentation" in done.stderr
    assert "--checkpoint FILE" in done.stderr


@pytest.mark.rest
@pytest.mark.slow
def test_a_broken_network_stops_and_names_the_slices(
    type_here: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    done = type_here(*TINY, "--learning-rate", 1e30, "--epochs", 2, "--out", "run", "--save-every", 1)
    assert done.exit_code == 1, done.stderr
    assert "NaN" in done.stderr
    named = re.search(r"in a batch of the slices ([^)]+?), expected", done.stderr.replace("\n", " "))
    assert named is not None, done.stderr
    known = {
        row["slice_id"]
        for row in csv.DictReader((shards / "splits.csv").read_text().splitlines())
        if row["split"] == "train"
    }
    assert len(set(named[1].split(", ")) & known) > 1
    run = tmp_path / "run"
    assert all(np.isfinite(np.frombuffer(w, "float32")).all() for w in weights(run))
    assert all(np.isfinite(a).all() for name, a in final_state(run).items() if name.startswith("variables/model/"))


# --- options that came later ---------------------------------------------------------------------------------------------

SHORT = ("--precision", "float32", "--batch-size", 4, "--steps", 3, "--augment", "none")


@pytest.mark.rest
@pytest.mark.slow
def test_a_fresh_head_is_trained_in_two_stages_and_that_is_said(type_here: Callable[..., Any], tmp_path: Path) -> None:
    keras_file = tmp_path / "classes.keras"
    kerasseg.unet((32, 32, 1), classes=3, filters=2, depth=2, seed=1).save(keras_file)
    done = type_here("--checkpoint", keras_file, "--head", "binary", *SHORT, "--epochs", 4, "--out", "two")
    assert done.exit_code == 0, done.stderr
    assert "head has fresh weights" in " ".join(done.stderr.split())
    rows = history(tmp_path / "two")
    assert [row["phase"] for row in rows] == ["decoder", "decoder", "decoder", "conservative", "conservative"]
    rates = [float(row["learning_rate"]) for row in rows[1:]]
    assert rates[:2] == [1e-3, 1e-3]
    assert 1e-4 >= rates[2] > rates[3] > 0
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["settings"]["strategy"] == "two-stage"
    assert config["resolved"]["phases"] == ["decoder", "conservative"]
    assert config["resolved"]["frozen"] == ["encoder_1", "encoder_2", "bottleneck"]
    # The strategy that is typed wins.
    done = type_here("--checkpoint", keras_file, "--head", "binary", *SHORT, "--epochs", 0, "--strategy", "moderate")
    assert "two stages" not in done.stderr


@pytest.mark.rest
@pytest.mark.slow
def test_a_pretrained_encoder_is_named_and_its_decoder_is_trained_first(
    type_here: Callable[..., Any], tmp_path: Path
) -> None:
    import keras

    trunk = keras.applications.MobileNetV2((32, 32, 3), include_top=False, weights=None)
    trunk.save_weights(tmp_path / "trunk.weights.h5")
    encoder = ("--encoder", "mobilenetv2", "--encoder-weights", tmp_path / "trunk.weights.h5")
    done = type_here(*encoder, *SHORT, "--epochs", 2, "--out", "run")
    assert done.exit_code == 0, done.stderr
    assert "decoder has fresh weights" in " ".join(done.stderr.split())
    assert [row["phase"] for row in history(tmp_path / "run")] == ["decoder", "decoder", "conservative"]
    config = (tmp_path / "run" / "config.json").read_text()
    assert "encoder mobilenetv2 with weights trunk.weights.h5, fresh decoder" in config
    done = type_here("--resume", "--out", "run")
    assert "already finished" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoder", "vgg61"), "unknown encoder 'vgg61'"),
        (("--encoder", "vgg16", "--checkpoint", "x.keras"), "a checkpoint and an encoder are given"),
        (("--encoder-weights", "imagenet"), "--encoder-weights need an encoder"),
        (("--schedule", "linear"), "--schedule cannot be used .*plateau or cosine"),
        (("--schedule", "cosine", "--stop-after", 3), "--stop-after has no effect on a cosine schedule"),
        (("--strategy", "two-stage", "--freeze", "encoder_1"), "decides itself what is frozen"),
        (("--ema", 1), "--ema cannot be used"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    type_here: Callable[..., Any], arguments: tuple[object, ...], message: str
) -> None:
    done = type_here(*arguments)
    assert done.exit_code == 2, done.stderr
    assert re.search(message, done.stderr.replace("\n", " ")), done.stderr


@pytest.mark.slow
def test_batchnorm_is_recalibrated_without_an_epoch(
    type_here: Callable[..., Any], checkpoints: Path, tmp_path: Path
) -> None:
    checkpoint = ("--checkpoint", checkpoints / "unet.keras")
    done = type_here(*checkpoint, *SHORT, "--epochs", 0, "--recalibrate-batchnorm", "--out", "run")
    assert done.exit_code == 0, done.stderr
    rows = history(tmp_path / "run")
    assert [(row["phase"], row["epoch"]) for row in rows] == [("conservative", "0"), ("recalibrated", "1")]
    kept = int(rows[1]["best"])
    assert (weights(tmp_path / "run") != weights(tmp_path / "run", "baseline.keras")) == bool(kept)


def test_help_shows_the_common_options_on_60_lines_and_all_on_request(type_here: Callable[..., Any]) -> None:
    from kerasseg_cli.app import app

    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "80", "NO_COLOR": "1"}).stdout
    whole = CliRunner().invoke(app, ["train", "--help-all"], env={"COLUMNS": "80", "NO_COLOR": "1"}).stdout
    assert len(shown.splitlines()) <= 60
    assert max(map(len, whole.splitlines())) <= 80
    assert "--ema" in whole
    assert "--ema" not in shown
    assert "[plateau|cosine]" in shown
