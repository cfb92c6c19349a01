"""BatchNorm follows the data within an epoch, however few steps that has, and is saved as it came."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import kerasseg
from factories import write_figshare
from kerasseg.runs.settings import TrainSettings
from kerasseg.training.batchnorm import batchnorms, momenta, pace, with_momenta
from kerasseg.workflows.train import train
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions


@pytest.mark.parametrize("steps", [1, 5, 31, 228, 1000])
def test_a_tenth_of_the_statistics_may_be_older_than_an_epoch(steps: int) -> None:
    (quick,) = pace([0.999], steps)
    assert quick**steps <= 0.1 + 1e-9 or quick == 0.999
    assert pace([quick], steps) == (quick,)  # never slower than the network's own
    assert pace([0.5], steps) == (min(0.5, quick),)
    assert pace([0.9, 0.99], steps, 0.7) == (0.7, 0.7)


def test_momenta_are_put_back_after_an_error() -> None:
    model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
    own = momenta(model)
    assert own
    seen = []

    def fails() -> None:
        with with_momenta(model, [0.5] * len(own)):
            seen.append(momenta(model))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert seen == [(0.5,) * len(own)]
    assert momenta(model) == own


@pytest.mark.rest
@pytest.mark.slow
def test_after_an_epoch_validation_runs_with_statistics_of_that_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = write_figshare(tmp_path / "raw", patients=12, slices_each=2, size=32)
    prepare(raw, tmp_path / "shards", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
    for layer in batchnorms(model):
        layer.moving_mean.assign(np.full(layer.moving_mean.shape, 100.0))  # of another scanner, far away
    model.save("other.keras")
    settings = TrainSettings(
        shards="shards", checkpoint="other.keras", strategy="aggressive", epochs=1, batch_size=2, learning_rate=1e-12
    )
    ended, run = train(settings, "run")
    assert run is not None
    from kerasseg.runs.state import StateStore

    saved = StateStore(run.state_folder).newest()
    assert saved is not None
    means = [a for name, a in saved.arrays.items() if "moving_mean" in name]
    assert means
    # 90 % have been replaced; with Keras' 0.99 and these 7 or 8 steps they would still lie above 90.
    assert all(np.abs(m).max() < 12 for m in means)
    assert ended.history[-1].epoch == 1
    opened = keras.saving.load_model(run.model_file, compile=False)
    assert momenta(opened) == momenta(model)
