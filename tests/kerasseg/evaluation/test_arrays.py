"""`kerasseg.evaluate` on arrays: the same figures as by hand, and what does not fit."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

import kerasseg
from evaluated_runs import brightness_network
from factories import blob
from kerasseg.evaluation.predictions import _space as room
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords.errors import KerassegError, UsageError


def slices(count: int = 6, size: int = 24) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    made = [blob(i, size) for i in range(count)]
    images = np.stack([image / image.max() for image, _ in made]).astype(np.float32)[..., None]
    return images, np.stack([mask for _, mask in made])


def test_figures_of_arrays() -> None:
    images, masks = slices()
    result = kerasseg.evaluate(
        brightness_network(24),
        images,
        masks,
        labels=[0, 1] * 3,
        groups=list("aabbcc"),
        classes=("glioma", "pituitary"),
        spacing=(0.5, 0.5),
        rule=0.7,
        baseline=brightness_network(24, at=0.9),
        batch_size=4,
        resamples=100,
    )
    dice = []
    for image, mask in zip(images[..., 0], masks, strict=True):
        found = 1 / (1 + np.exp(-20 * (image - 0.6))) >= 0.7
        dice.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
    assert [row.dice for row in result.rows] == pytest.approx(dice)
    assert result.dice.mean == pytest.approx(np.mean(dice))
    figures = result.figures
    assert (figures.final, figures.classes, result.dice.patients) == ("threshold", ("glioma", "pituitary"), 3)
    assert figures.final_stage().classes["glioma"].measures["dice"].mean == pytest.approx(np.mean(dice[::2]))
    assert figures.gain["threshold"].mean is not None
    assert figures.gain["threshold"].mean > 0
    measures = figures.final_stage().all.measures
    assert measures["hd95_mm"].mean == pytest.approx((measures["hd95"].mean or 0) / 2)


def test_bytes_masks_with_channels_and_a_network_for_colour() -> None:
    images, masks = slices()
    plain = kerasseg.evaluate(brightness_network(24), images, masks, resamples=50)
    grey = np.rint(images[..., 0] * 255).astype(np.uint8)
    other = kerasseg.evaluate(brightness_network(24, channels=3), grey, masks[..., None].astype(float), resamples=50)
    assert [row.dice for row in other.rows] == pytest.approx([row.dice for row in plain.rows], abs=0.02)


def test_a_data_set_is_the_arrays_in_batches() -> None:
    images, masks = slices()
    model = brightness_network(24)
    labels = np.array([0, 1] * 3)
    plain = kerasseg.evaluate(model, images, masks, labels=labels, rule=0.7, resamples=50)
    pairs = [(images[:4], masks[:4]), (images[4:], masks[4:])]
    # What only fills a batch up does not count.
    weighted = [
        (images[[0, 1, 2]], masks[[0, 1, 2]], [1, 1, 1]),
        (images[[3, 4, 5, 5]], masks[[3, 4, 5, 5]], [1, 1, 1, 0]),
    ]
    parts = (slice(0, 3), slice(3, 6))
    named = [{"image": images[part], "mask": masks[part], "label": labels[part]} for part in parts]
    for data in (pairs, weighted, iter(pairs), named):
        found = kerasseg.evaluate(model, data, rule=0.7, resamples=50)
        assert [row.dice for row in found.rows] == [row.dice for row in plain.rows]
    assert found.figures.classes == plain.figures.classes == ("0", "1")
    with pytest.raises(UsageError, match="masks are missing"):
        kerasseg.evaluate(model, images)
    with pytest.raises(UsageError, match="without batches"):
        kerasseg.evaluate(model, [])


def test_a_rule_with_post_processing_has_all_stages() -> None:
    images, masks = slices()
    result = kerasseg.evaluate(brightness_network(24), images, masks, rule=MaskRule(keep_largest=True), resamples=50)
    assert [stage.name for stage in result.figures.model.stages] == ["raw", "threshold", "postprocessing"]


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, masks = slices(2)
    kerasseg.evaluate(brightness_network(24), images, masks, resamples=50)
    assert list(tmp_path.iterdir()) == []


def constant(value: float, size: int = 24, channels: int = 1) -> keras.Model:
    inputs = keras.Input((size, size, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(channels, 1)(inputs))
    model.set_weights([np.zeros((1, 1, 1, channels), np.float32), np.full(channels, value, np.float32)])
    return model


def test_all_zero_predictions_miss_every_tumour() -> None:
    images, masks = slices()
    masks[0] = False
    result = kerasseg.evaluate(constant(0.0), images, masks, resamples=50)
    everything = result.figures.final_stage().all
    assert [row.dice for row in result.rows] == [1.0, *[0.0] * 5]
    assert (everything.missed, everything.with_tumour, everything.empty, everything.false_alarms) == (5, 5, 1, 0)
    assert everything.measures["dice_tumour"].mean == 0
    assert everything.measures["hd95"].mean is None
    assert everything.measures["hd95_with_misses"].mean == pytest.approx(np.hypot(24, 24))


def test_what_does_not_fit() -> None:
    images, masks = slices()
    model = brightness_network(24)
    with pytest.raises(UsageError, match="seems to return logits"):
        kerasseg.evaluate(constant(3.0), images, masks)
    with pytest.raises(KerassegError, match="NaN"):
        kerasseg.evaluate(constant(float("nan")), images, masks)
    with pytest.raises(UsageError, match="one probability per pixel"):
        kerasseg.evaluate(constant(0.5, channels=2), images, masks)
    with pytest.raises(UsageError, match="images do not fit the network"):
        kerasseg.evaluate(brightness_network(32), images, masks)
    with pytest.raises(UsageError, match="probabilities and masks do not fit"):
        kerasseg.evaluate(model, images, masks[:-1])
    with pytest.raises(UsageError, match="probabilities and masks do not fit"):
        kerasseg.evaluate(model, images, masks[:, :-1])
    with pytest.raises(UsageError, match="labels or groups"):
        kerasseg.evaluate(model, images, masks, labels=[0, 1, 2, 3, 4, 9], classes=("a", "b"))
    with pytest.raises(UsageError, match="no slices to evaluate"):
        kerasseg.evaluate(model, images[:0], masks[:0])
    for rule in (0.0, 1.1, float("nan")):
        with pytest.raises(UsageError, match="invalid threshold"):
            kerasseg.evaluate(model, images, masks, rule=rule)


def test_probabilities_on_disk_have_their_room_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that writes to mapped memory for which the disk has no room is killed, and cannot say why."""
    made: list[int] = []
    real = tempfile.TemporaryFile

    def kept(**options: Any) -> Any:
        file = real(**options)
        made.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", kept)
    space = room((3, 64, 64), 0)
    taken = os.fstat(made[0]).st_blocks * 512
    os.close(made[0])
    assert space.shape == (3, 64, 64)
    assert taken >= space.nbytes
