"""OpenVINO computes a network only where its masks agree with those of Keras; without it nothing changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import kerasseg
from kerasseg.postprocessing import MaskRule
from kerasseg.prediction import openvino
from kerasseg.prediction.predictor import Engine, Network, open_network
from kerasseg_tfrecords.errors import UsageError

SIZE, BATCH = 32, 8


def opened(engine: Engine, precision: str = "auto") -> Network:
    network = kerasseg.unet((SIZE, SIZE, 3), filters=2, depth=1, seed=0)
    return open_network(
        network, threshold=0.5, intensity="minmax", precision=precision, batch_size=BATCH, engine=engine
    )


class Constant:
    """A network with one probability everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def predict_on_batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full_like(images[..., :1], self.value)


def batch(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)


def test_it_computes_the_network_after_it_has_agreed_on_the_first_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    native, other = opened("native"), opened("openvino")
    for seed in (0, 1):
        assert np.array_equal(other.probabilities(batch(seed)), native.probabilities(batch(seed)))
        assert other.engines == {"native"}
    monkeypatch.setattr(other._models[0], "_native", None)
    assert np.allclose(other.probabilities(batch(2)), native.probabilities(batch(2)), atol=1e-5)
    assert (other.engines, native.engines) == ({"openvino"}, {"native"})
    assert np.allclose(other.probabilities(batch(3)[:1]), native.probabilities(batch(3)[:1]), atol=1e-5)
    assert other.notes == native.notes


def test_other_masks_on_the_first_slices_leave_keras_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros_like(images[..., :1])

    monkeypatch.setattr(openvino, "_compiled", lambda *_: None)
    monkeypatch.setattr(openvino.OpenVINONetwork, "_openvino", wrong)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    native, other = opened("native"), opened("openvino")
    for seed in range(3):
        assert np.array_equal(other.probabilities(batch(seed)), native.probabilities(batch(seed)))
    (note,) = set(other.notes) - set(native.notes)
    assert "the network: Keras is used instead of OpenVINO" in note
    assert "mean Dice of OpenVINO's masks and Keras' is 0.0000, below 0.999" in note
    assert other.engines == {"native"}


def test_report_and_journal_name_what_computed_each_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openvino, "_compiled", lambda *_: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    network = opened("openvino")
    monkeypatch.setattr(network._models[0], "_native", Constant(0.9))
    monkeypatch.setattr(network._models[0], "_openvino", Constant(0.9).predict_on_batch)
    (tmp_path / "in").mkdir()
    for number in range(20):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), batch(number)[0])
    for go_on in (False, True):
        report = kerasseg.predict_files(network, tmp_path / "in", tmp_path / "out", go_on=go_on)
        assert Counter(file.engines for file in report.files) == {("native",): 16, ("openvino",): 4}
        assert report.engines == ("native", "openvino")


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_in_16_bits_it_is_not_offered(precision: str) -> None:
    """Agreement on some slices says nothing about the others: rounding moves masks, and differently in both engines."""
    with pytest.raises(UsageError, match=f"computes in float32 only.*precision {precision}"):
        opened("openvino", precision)


def test_empty_masks_are_no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_compiled", lambda *_: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    network = openvino.OpenVINONetwork(Constant(0.1), MaskRule(), "net", set())
    images = np.zeros((BATCH, SIZE, SIZE, 3), np.float32)
    monkeypatch.setattr(network, "_openvino", lambda images: np.full_like(images[..., :1], 0.2))
    for _ in range(3):
        assert np.all(network.predict_on_batch(images) == np.float32(0.1)), "Keras', although no mask differs"
    assert network.note.endswith("comparing them needs 16 slices with a mask, and there were 0")
    monkeypatch.setattr(network, "_native", Constant(0.9))
    for _ in range(2):
        network.predict_on_batch(images)
    assert "is 0.0000" in network.note


def test_a_small_tumour_counts_as_much_as_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen equal masks of the whole slice, and a pixel that OpenVINO misses: pooled Dice 0.99997, mean 0.94."""
    masks = np.ones((16, SIZE, SIZE, 1), np.float32)
    masks[15] = 0
    missed = masks.copy()
    masks[15, 3, 3] = 1
    monkeypatch.setattr(openvino, "_compiled", lambda *_: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    network = openvino.OpenVINONetwork(Constant(0), MaskRule(), "net", set())
    monkeypatch.setattr(network._native, "predict_on_batch", lambda _: masks)
    monkeypatch.setattr(network, "_openvino", lambda _: missed)
    network.predict_on_batch(masks)
    assert "is 0.9375, below 0.999" in network.note


def test_a_network_that_it_cannot_compute_is_computed_by_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(openvino, "_compiled", lambda *_: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    network = openvino.OpenVINONetwork(Constant(0.9), MaskRule(), "net", set())
    monkeypatch.setattr(network, "_openvino", fails)
    assert np.all(network.predict_on_batch(np.zeros((1, SIZE, SIZE, 3), np.float32)) == np.float32(0.9))
    assert "OpenVINO cannot compute it (no such instruction)" in network.note


def test_a_network_that_it_cannot_convert_is_computed_by_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("unsupported operation\nFoldedBlur")

    monkeypatch.setattr(openvino, "_compiled", fails)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    native, other = opened("native"), opened("openvino")
    assert np.array_equal(other.probabilities(batch(0)), native.probabilities(batch(0)))
    (note,) = set(other.notes) - set(native.notes)
    assert "cannot convert it (unsupported operation" in note
    assert "\n" not in note


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r'pip install "kerasseg\[openvino\]"'):
        openvino.OpenVINONetwork(None, MaskRule(), "net", set())
