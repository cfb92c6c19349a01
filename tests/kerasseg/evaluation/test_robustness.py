"""Corruptions: seeded, graded, within range, and nothing else than they say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from factories import blob
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.evaluation.robustness import (
    CORRUPTIONS,
    GRADES,
    Corruption,
    Transform,
    corrupt,
    mean_dice,
    measure_robustness,
)
from kerasseg.postprocessing import MaskRule

EACH = pytest.mark.parametrize("kind", CORRUPTIONS, ids=[kind.name for kind in CORRUPTIONS])


def head(seed: int = 3, size: int = 64, channels: int = 1) -> NDArray[np.float32]:
    image, _ = blob(seed, size)
    return np.repeat((image / image.max()).astype(np.float32)[..., None], channels, axis=2)


@EACH
def test_the_same_slice_is_corrupted_in_the_same_way(kind: Corruption) -> None:
    image = head()
    before = image.copy()
    first = corrupt(image, kind, 3, seed=1, number=5)
    assert np.array_equal(first, corrupt(image, kind, 3, seed=1, number=5))
    assert np.array_equal(image, before)
    assert first.shape == image.shape
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert not np.array_equal(first, image)


@EACH
def test_seed_grade_and_slice_all_count(kind: Corruption) -> None:
    image = head()
    made = {corrupt(image, kind, 3, seed=s, number=n).tobytes() for s in range(6) for n in range(6)}
    if kind.name in ("gamma", "contrast", "brightness"):
        assert len(made) == 2  # one way or the other
    elif kind.name == "ghosting":
        assert 5 <= len(made) <= 8  # 3 to 6 copies, along either axis
    else:
        assert len(made) == (1 if kind.name == "low_resolution" else 36)
    other = {corrupt(image, kind, grade, seed=0, number=0).tobytes() for grade in range(1, GRADES + 1)}
    assert len(other) == GRADES


@EACH
def test_higher_grades_change_more(kind: Corruption) -> None:
    image = head()
    changes = []
    for grade in range(1, GRADES + 1):
        # The most that happens to one of several slices: direction and place are random.
        made = [corrupt(image, kind, grade, seed=0, number=n) for n in range(24)]
        changes.append(max(float(np.abs(other - image).mean()) for other in made))
    assert changes == sorted(changes)
    assert changes[0] > 0.001
    assert list(kind.strengths) == sorted(kind.strengths)
    assert len(kind.strengths) == GRADES


@EACH
def test_grey_stays_grey_and_colour_is_kept(kind: Corruption) -> None:
    grey = head(channels=3)
    changed = corrupt(grey, kind, 4, seed=0, number=0)
    assert np.array_equal(changed[..., :1], corrupt(grey[..., :1], kind, 4, seed=0, number=0))
    assert all(np.array_equal(changed[..., 0], changed[..., c]) for c in (1, 2))
    colour = grey * np.array([1, 0.5, 0.25], np.float32)
    changed = corrupt(colour, kind, 4, seed=0, number=0)
    for c in range(3):
        assert np.array_equal(changed[..., c : c + 1], corrupt(colour[..., c : c + 1], kind, 4, seed=0, number=0))


@EACH
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 31, 1)])
def test_small_and_black_images_survive(kind: Corruption, shape: tuple[int, int, int]) -> None:
    for grade in (1, 5):
        assert np.isfinite(corrupt(np.zeros(shape, np.float32), kind, grade, seed=0, number=0)).all()


def kind_named(name: str) -> Corruption:
    return next(kind for kind in CORRUPTIONS if kind.name == name)


def test_noise_is_rician() -> None:
    black = corrupt(np.zeros((256, 256, 1), np.float32), kind_named("rician_noise"), 3, seed=0, number=0)
    sigma = kind_named("rician_noise").strengths[2]
    # Without signal: Rayleigh, of mean sigma sqrt(pi / 2).
    assert float(black.mean()) == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)


def test_ghosts_stand_at_a_fraction_of_the_field() -> None:
    image = np.zeros((60, 60, 1), np.float32)
    image[28:32, 28:32] = 0.8
    ghost = corrupt(image, kind_named("ghosting"), 5, seed=0, number=0)[..., 0]
    # Only along one axis, through the object.
    rows, columns = ghost.max(1) > 0.01, ghost.max(0) > 0.01
    assert min(rows.sum(), columns.sum()) == 4
    assert max(rows.sum(), columns.sum()) > 10


def test_robustness_is_mean_dice_at_each_grade() -> None:
    images = np.stack([head(i) for i in range(4)])
    masks = np.stack([blob(i, 64)[1] for i in range(4)])

    def predict(transform: Transform | None) -> ArrayPredictions:
        numbers = np.arange(4)
        changed = images if transform is None else transform(images, numbers)
        return ArrayPredictions(1 / (1 + np.exp(-20 * (changed - 0.7))), masks)

    rule = MaskRule(threshold=0.5)
    clean = mean_dice(predict(None), rule)
    asked: list[tuple[int, int]] = []
    found = measure_robustness(
        predict, rule, clean, seed=3, grades=2, progress=lambda done, total: asked.append((done, total))
    )
    assert asked == [(i + 1, 16) for i in range(16)]
    assert [curve.name for curve in found.curves] == [kind.name for kind in CORRUPTIONS]
    noise = found.curves[0]
    for grade in (1, 2):
        changed = np.stack([corrupt(images[i], CORRUPTIONS[0], grade, seed=3, number=i) for i in range(4)])
        dice = [
            2 * ((c[..., 0] >= 0.7) & m).sum() / ((c[..., 0] >= 0.7).sum() + m.sum())
            for c, m in zip(changed, masks, strict=True)
        ]
        assert noise.dice[grade - 1] == pytest.approx(np.mean(dice), abs=1e-3)
    assert noise.kept == pytest.approx(np.mean([d for d in noise.dice if d is not None]) / clean)
    assert found.kept == pytest.approx(np.mean([c.kept for c in found.curves if c.kept is not None]))


def test_nothing_can_be_kept_of_nothing() -> None:
    masks = np.ones((1, 8, 8), bool)
    found = measure_robustness(lambda _: ArrayPredictions(0.0 * masks, masks), MaskRule(), 0.0, grades=1)
    assert found.kept is None
    assert found.curves[0].kept is None
