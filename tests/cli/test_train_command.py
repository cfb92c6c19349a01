"""`kerasseg train` as typed: runs, resumes after kill -9, stops on Ctrl-C, and says what is wrong."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from factories import write_figshare
from kerasseg.runs import RunDirectory, StateStore
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.manifest import PrepareOptions

Run = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("--strategy", "scratch", "--filters", 2, "--depth", 2, "--precision", "float32", "--batch-size", 4)
TIMES = {"seconds", "slices_per_second", "memory_mb"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 training and 18 validation slices, 32 x 32."""
    folder = tmp_path_factory.mktemp("tiny")
    options = PrepareOptions(size=32, split="60/20/20")
    prepare(write_figshare(folder / "raw", patients=30, slices_each=3, size=48), folder / "shards", options, jobs=1)
    return folder / "shards"


@pytest.fixture
def command(python: str, shards: Path) -> Callable[..., list[str]]:
    def build(*arguments: object) -> list[str]:
        named = [] if "--resume" in arguments else ["--shards", str(shards)]
        return [python, "-m", "kerasseg_cli", "train", *named, *map(str, arguments)]

    return build


@pytest.fixture
def train(command: Callable[..., list[str]], child_environment: dict[str, str], tmp_path: Path) -> Run:
    """Types `kerasseg train --shards SHARDS ...` in `tmp_path`."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            env={**child_environment, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

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
    assert best_weights(one) == best_weights(other)


def best_weights(run: Path) -> list[bytes]:
    import kerasseg

    return [w.tobytes() for w in kerasseg.open_checkpoint(run / "model.keras").get_weights()]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, python: str, child_environment: dict[str, str], shards: Path
) -> Path:
    """A run of four epochs that nobody disturbs; deterministic."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = [*TINY, "--deterministic", "--epochs", 4, "--save-every", 3, "--stages", "1:1e-4", "--out", "run"]
    command = [python, "-m", "kerasseg_cli", "train", "--shards", str(shards), *map(str, arguments)]
    subprocess.run(command, env=child_environment, cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "run"


@pytest.mark.slow
def test_a_run_leaves_what_the_design_says(undisturbed: Path) -> None:
    names = {p.name for p in undisturbed.iterdir()}
    files = {"config.json", "model.keras", "baseline.keras", "history.csv", "log.jsonl", "training.png", "state"}
    assert files <= names
    assert (undisturbed.parent / "runs" / "latest").read_text().strip() == "../run"
    rows = history(undisturbed)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["settings"]["deterministic"] is True
    assert config["resolved"]["slices"]["val"] == {"meningioma": 6, "glioma": 6, "pituitary": 6}
    best = max(rows, key=lambda row: float(row["val_dice"]))
    assert len([p for p in (undisturbed / "state").iterdir() if p.name.startswith("state-")]) == 2
    with (undisturbed / "validation.csv").open() as stream:
        entries = list(csv.DictReader(stream))
    assert len(entries) == 18
    mean = np.mean([float(entry["dice_best"]) for entry in entries])
    assert mean == pytest.approx(float(best["val_dice"]), abs=1e-6)
    assert np.mean([float(e["dice_epoch_0"]) for e in entries]) == pytest.approx(float(rows[0]["val_dice"]), abs=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(train: Run, undisturbed: Path, tmp_path: Path) -> None:
    """Replayed from its configuration, without another option."""
    done = train("--config", undisturbed / "config.json", "--out", "again", "--json")
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, tmp_path / "again")
    document = json.loads(done.stdout)
    assert document["epoch_0"]["val_dice"] == pytest.approx(float(history(undisturbed)[0]["val_dice"]))
    assert document["gain"]["patients"] == 6
    assert Path(tmp_path / document["model"]).is_file()


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_happened(
    command: Callable[..., list[str]],
    train: Run,
    child_environment: dict[str, str],
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    """`kill -9` at random moments, some of them while states and networks are written, then `--resume` to the end."""
    seed = random.randrange(1 << 30)
    print("seed", seed)  # noqa: T201 - pytest shows it where the test fails
    rng = random.Random(seed)
    for number in range(int(os.environ.get("KERASSEG_TORTURE", "3"))):
        run = tmp_path / f"run-{number}"
        arguments = ["--config", str(undisturbed / "config.json"), "--out", str(run)]
        while True:
            child = subprocess.Popen(
                command(*arguments), env=child_environment, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
            )
            kill_somewhere(child, run, rng)
            if (run / "config.json").exists():
                break
        # Several kills in a row, too.
        if rng.random() < 0.5:
            child = subprocess.Popen(
                command("--resume", "--out", str(run)),
                env=child_environment,
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            kill_somewhere(child, run, rng)
        done = train("--resume", "--out", run)
        if "is over" in done.stderr:  # killed after its last word
            assert done.returncode == 2
        else:
            assert done.returncode == 0, done.stderr
        assert_same_run(undisturbed, run)
        assert not list(run.rglob(".tmp-*"))


def kill_somewhere(child: subprocess.Popen[bytes], run: Path, rng: random.Random) -> None:
    """Kills a training once it writes, at once or up to 0.6 s later."""
    states = len(list(run.glob("state/*")))
    wanted = rng.randint(0, 3)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        written = run.exists() and any(p.name.startswith(".tmp") for p in run.rglob("*"))
        if (written and rng.random() < 0.3) or len(list(run.glob("state/*"))) > states + wanted:
            break
        time.sleep(0.005)
    time.sleep(rng.choice([0.0, rng.uniform(0, 0.6)]))
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stderr is not None
    child.stderr.close()


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    command: Callable[..., list[str]], train: Run, child_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["--config", str(undisturbed / "config.json"), "--out", str(run)]
    child = subprocess.Popen(
        command(*arguments),
        env=child_environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stderr is not None
    said = ""
    for line in child.stderr:
        said += line
        if line.lstrip().startswith("1 "):  # the line of epoch 1
            os.killpg(child.pid, signal.SIGINT)
            break
    _out, rest = child.communicate(timeout=120)
    assert child.returncode == 130, said + rest
    assert "finishing this step" in rest
    assert f"kerasseg train --resume --out {run}" in rest
    assert "Traceback" not in rest
    done = train("--resume", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "Going on after epoch" in done.stderr
    assert_same_run(undisturbed, run)


@pytest.mark.slow
def test_a_second_process_is_refused(undisturbed: Path, train: Run) -> None:
    run = RunDirectory.open(undisturbed)
    with run.locked():
        assert run.is_running()
        done = train("--resume", "--out", undisturbed)
    assert done.returncode == 1
    assert "another process is training in this run" in done.stderr
    assert not run.is_running()


@pytest.mark.slow
def test_a_damaged_state_falls_back_to_the_one_before(undisturbed: Path, train: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    newest = sorted((run / "state").glob("state-*.npz"))[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    done = train("--resume", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert_same_run(undisturbed, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--strategy", "conservativ"), 2, "strategy cannot be used .*Did you mean 'conservative'"),
        (("--learning-rate", 0), 2, "learning_rate cannot be used .*> 0"),
        (("--augment", "rotation"), 2, "rotation' is refused: heads lie"),
        (("--checkpoint", "nothing.keras"), 1, "nothing.keras: no such file"),
        (("--resume",), 3, "there is no run yet"),
        (("--resume", "--epochs", 3), 2, "a run goes on as it was begun .*--epochs"),
        (("--devices", "GPU:7"), 2, "no such device .*GPU:7"),
        (("--stages", "five"), 2, "--stages cannot be 'five'"),
        ((*TINY, "--freeze", "encoder_1"), 2, "decides itself what is frozen"),
        (("--memory-budget", "much"), 2, "--memory-budget cannot be 'much'"),
        (("--class-weight", "glioma"), 2, "--class-weight cannot be"),
        ((*TINY, "--class-weight", "gliom=2"), 2, "weight of an unknown class"),
        (("--shards", "nowhere"), 3, "nowhere: not a shard directory"),
        ((*TINY, "--batch-size", 60), 2, "a batch is larger than the training split"),
    ],
)
def test_what_cannot_be_meant_is_said(train: Run, arguments: tuple[object, ...], code: int, message: str) -> None:
    import re

    done = train(*arguments)
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr.replace("\n", " ")), done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_the_default_checkpoint_that_cannot_be_fetched_names_what_to_give(train: Run) -> None:
    done = train(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME="empty")
    assert done.returncode == 1
    assert "hf://bombshelll/unet-brain-tumor-segmentation" in done.stderr
    assert "--checkpoint FILE" in done.stderr


@pytest.mark.slow
def test_a_broken_network_stops_and_names_the_slices(train: Run, tmp_path: Path) -> None:
    done = train(*TINY, "--learning-rate", 1e30, "--epochs", 2, "--out", "run")
    assert done.returncode == 1, done.stderr
    assert "NaN" in done.stderr
    assert ".mat" in done.stderr or "puts out no numbers" in done.stderr
    assert (tmp_path / "run" / "model.keras").exists()
    assert all(np.isfinite(np.frombuffer(w, "float32")).all() for w in best_weights(tmp_path / "run"))
