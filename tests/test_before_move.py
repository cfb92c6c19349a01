"""What version 0.1 wrote before modules moved still opens: a network, serialised objects, shards, a run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasseg
from children import Children
from kerasseg.evaluation.schema import read_evaluation
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import read_history

OLD = Path(__file__).parent / "fixtures" / "before_move"


@pytest.mark.parametrize(
    "opener", [kerasseg.open_checkpoint, lambda path: keras.saving.load_model(path, compile=False)]
)
def test_a_network(opener: object) -> None:
    known = np.load(OLD / "network.npz")
    output = opener(OLD / "network.keras")(known["image"])  # type: ignore[operator]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(output), known["output"], atol=1e-5)


@pytest.mark.rest
def test_objects_under_their_old_modules(python: str, child_environment: dict[str, str]) -> None:
    """In a process that imports the old modules alone: Keras looks for the classes there."""
    code = f"""
import json, keras, kerasseg.augment, kerasseg.schedule
for entry in json.load(open({str(OLD / "objects.json")!r})):
    thing = keras.saving.deserialize_keras_object(entry)
    again = keras.saving.serialize_keras_object(thing)["config"]
    assert {{name: again[name] for name in entry["config"]}} == entry["config"]
    print(entry["module"], type(thing).__name__)
"""
    done = subprocess.run([python, "-c", code], env=child_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["kerasseg.schedule", "PlateauSchedule", "kerasseg.augment", "SafeAugmentation"]


def test_shards() -> None:
    assert kerasseg.verify(OLD / "shards").sound
    records = list(kerasseg.read_records(OLD / "shards", "train"))
    assert [record.image.shape for record in records] == [(16, 16, 1)] * 3


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    """It is read, and evaluates to the same figures as it did then."""
    shutil.copytree(OLD, tmp_path / "old")
    run = RunDirectory.open(tmp_path / "old" / "runs" / "run")
    assert [row.epoch for row in read_history(run.history_file)] == [0, 1, 2]
    before = read_evaluation(run.root / "evaluation" / "test" / "metrics.json")
    command = ("evaluate", "runs/run", "--threshold", "auto", "--shards", "shards")
    done = Children(tmp_path / "old").run(*command)
    assert done.returncode == 0, done.stderr
    after = read_evaluation(run.root / "evaluation" / "test" / "metrics.json")
    for measure, old in before.final_stage().all.measures.items():
        assert after.final_stage().all.measures[measure].mean == pytest.approx(old.mean, abs=1e-4)
