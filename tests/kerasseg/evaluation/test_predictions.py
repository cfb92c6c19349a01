"""One batch of slices, with and without the mirror image."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kerasseg
from kerasseg.evaluation.predictions import SplitPredictions, _space, predict_batch


def test_flip_average_is_the_mean_of_both_predictions() -> None:
    network = kerasseg.unet((16, 24, 1), filters=2, depth=2, seed=3)
    images = np.random.default_rng(1).random((3, 16, 24, 1), np.float32)
    plain, mirrored = predict_batch(network, images), predict_batch(network, images[:, :, ::-1])[:, :, ::-1]
    assert not np.allclose(plain, mirrored)
    averaged = predict_batch(network, images, flip_average=True)
    np.testing.assert_allclose(averaged, (plain + mirrored) / 2, atol=1e-6)
    assert averaged.shape == (3, 16, 24)


def of_files() -> int:
    """Resident memory of this process that maps files, in bytes."""
    lines = re.findall(r"^(?:RssFile|RssShmem):\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * sum(map(int, lines))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_probabilities_in_a_file_do_not_stay_in_memory() -> None:
    count, side = 2048, 96
    values = _space((count, side, side), budget=0)
    slices: Any = SimpleNamespace(manifest=SimpleNamespace(classes=("a",)), labels=np.zeros(count, np.int64))
    predictions = SplitPredictions(slices, values)
    before = of_files()
    values[:] = np.arange(count, dtype=np.float32)[:, None, None]
    assert of_files() - before > 0.9 * values.nbytes
    highest = 0
    for number in range(count):
        assert predictions.probability(number, "model")[5, 7] == number
        highest = max(highest, of_files() - before) if number % 100 == 99 else highest
    assert highest < values.nbytes / 4
