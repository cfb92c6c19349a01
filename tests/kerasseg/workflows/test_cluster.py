"""Prediction and cross-validation on the workers of a cluster, some of which are killed."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kerasseg
from factories import write_figshare
from kerasseg.prediction.writers import png
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import TrainSettings
from kerasseg.training.events import Event, Message
from kerasseg.workflows.cross_validate import cross_validate
from kerasseg.workflows.predict import PredictionReport, predict_files
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.cluster import connect
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions

pytest.importorskip("distributed")
pytestmark = pytest.mark.rest


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect("local:2") as client:
        yield client


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "small.keras"
    kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0).save(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures, the last of which is damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(39):
        (folder / f"{number:02}.png").write_bytes(png(rng.integers(0, 255, (48, 40), np.uint8)))
    (folder / "39.png").write_bytes((folder / "00.png").read_bytes()[:-40])
    return folder


def a_worker(client: Any) -> int:
    """Process id of one worker."""
    return min(client.run(os.getpid).values())


def masks(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*_mask.png"))}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def bad(report: PredictionReport) -> list[str]:
    return [problem.name for problem in report.problems]


def test_masks_and_rows_are_those_of_one_machine(client: Any, network: Path, pictures: Path, tmp_path: Path) -> None:
    local = predict_files(network, pictures, tmp_path / "local", threshold=0.5)
    killed, worker = list[bool](), a_worker(client)

    def kill_early(stage: str, done: int, total: int) -> None:
        if done > 4 and not killed:
            killed.append(True)
            os.kill(worker, signal.SIGKILL)

    far = predict_files(network, pictures, tmp_path / "far", threshold=0.5, cluster=client, progress=kill_early)
    assert killed
    assert masks(tmp_path / "far") == masks(tmp_path / "local")
    assert rows(tmp_path / "far") == rows(tmp_path / "local")
    assert (bad(far), far.notes, far.networks) == (bad(local), local.notes, local.networks)
    assert not [path.name for path in (tmp_path / "far").glob(".tmp*")]

    (tmp_path / "far" / "07_mask.png").unlink()
    again = predict_files(network, pictures, tmp_path / "far", threshold=0.5, cluster=client, go_on=True)
    assert (again.earlier, len(again.files), again.total) == (38, 39, 40)
    assert masks(tmp_path / "far") == masks(tmp_path / "local")
    assert rows(tmp_path / "far") == rows(tmp_path / "local")


def test_a_network_in_memory_is_sent_to_the_workers(client: Any, pictures: Path, tmp_path: Path) -> None:
    model = kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0)
    predict_files(model, pictures / "03.png", tmp_path / "local", threshold=0.5)
    predict_files(model, pictures / "03.png", tmp_path / "far", threshold=0.5, cluster=client)
    assert masks(tmp_path / "far") == masks(tmp_path / "local")
    opened = kerasseg.prediction.predictor.open_network(model, threshold=0.5)
    with pytest.raises(UsageError, match="a cluster needs the run or checkpoint itself"):
        predict_files(opened, pictures, tmp_path / "other", cluster=client)


def test_folds_are_trained_at_the_same_time_and_as_on_one_machine(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(write_figshare(tmp_path / "raw", patients=12, slices_each=2, size=48), "shards", PrepareOptions(size=16))
    kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=0).save("start.keras")
    settings = TrainSettings(
        shards="shards",
        checkpoint="start.keras",
        strategy="aggressive",
        epochs=3,
        batch_size=2,
        precision="float32",
        deterministic=True,
    )
    said, killed, worker = list[str](), list[bool](), a_worker(client)

    def observe(event: Event) -> None:
        assert isinstance(event, Message)
        said.append(event.text)
        if "epoch 1," in event.text and not killed:
            killed.append(True)
            os.kill(worker, signal.SIGKILL)

    far, root = cross_validate(settings, 2, "far", [observe], cluster=client)
    assert not Path("runs").exists(), "workers write into the folders of the folds only"
    local, _ = cross_validate(settings, 2, "local")
    assert killed
    assert far.out_of_fold == local.out_of_fold
    assert {text.partition(":")[0] for text in said} >= {"fold-1", "fold-2"}
    assert RunDirectory(root / "ensemble").config_file.is_file()


def test_an_interrupted_cross_validation_is_saved_and_resumed(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(write_figshare(tmp_path / "raw", patients=12, slices_each=2, size=48), "shards", PrepareOptions(size=16))
    kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=0).save("start.keras")
    settings = TrainSettings(
        shards="shards", checkpoint="start.keras", strategy="aggressive", epochs=40, batch_size=2, precision="float32"
    )

    pressed = list[bool]()

    def press(event: Event) -> None:
        # Both folds say this; a second Ctrl-C could come after the command has ended, and would end the test.
        if isinstance(event, Message) and "epoch 2," in event.text and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    found, root = cross_validate(settings, 2, "cv", [press], cluster=client)
    assert found.out_of_fold is None
    saved = [RunDirectory(root / f"fold-{k}") for k in (1, 2)]
    assert not any(run.is_running() for run in saved)
    assert any("stopped" in text for text in (run.log_file.read_text() for run in saved if run.log_file.exists()))
