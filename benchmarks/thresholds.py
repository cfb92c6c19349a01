"""Thresholds against 99 one by one, the whole search for a rule, and post-processing against SciPy and scikit-image.

210 synthetic slices at 256x256 and 512x512, like those of a confident network: a tumour with a soft, wavy edge, false
alarms, and almost nothing elsewhere. "One by one" is a simple loop (`found = p >= t`, sums); "counted" is the fastest loop
we know (`np.count_nonzero`, slice by slice). "Soft" is a network whose output exceeds 0.001 everywhere, the slowest case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from benchmarks.measure import Cost, costs, own_peak_memory, rounds_of
from benchmarks.result import Result, compared, show
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.postprocessing import MaskRule, postprocess
from kerasseg.tuning.search import tune
from kerasseg.tuning.thresholds import sweep_thresholds

COUNT = 210
SEARCH_GOALS = {COUNT: 1.0, 2000: 10.0}
"""Slices -> seconds that the whole search for a rule may take."""


def slices(size: int, count: int = COUNT, *, soft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (count, size, size) float32, and masks (count, size, size) bool."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size
    probabilities = np.empty((count, size, size), np.float32)
    masks = np.empty((count, size, size), bool)
    for i in range(count):
        y, x, r = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65), rng.uniform(0.03, 0.1)
        wave = cv2.resize(rng.normal(0, 1, (16, 16)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        distance = np.hypot(rows - y, columns - x) - r
        masks[i] = distance < 0
        score = -(distance + 0.01 * wave + rng.normal(0.004, 0.006)) / 0.008
        score = np.clip(score, -6.0 if soft else -9.0, 6)
        for _ in range(rng.integers(0, 4)):  # false alarms
            a, b, s = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.004, 0.015)
            score = np.maximum(score, (s - np.hypot(rows - a, columns - b)) / 0.004 + 1)
        score += 1.5 * wave * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.1)
        probabilities[i] = 1 / (1 + np.exp(-score / (2 if soft else 1)))
    return probabilities, masks


def one_by_one(probabilities: np.ndarray, masks: np.ndarray) -> np.ndarray:
    means = []
    size = masks.sum((1, 2))
    for k in range(1, 100):
        found = probabilities >= k / 100
        both = found.sum((1, 2)) + size
        means.append(np.where(both > 0, 2 * (found & masks).sum((1, 2)) / np.maximum(both, 1), 1).mean())
    return np.array(means)


def counted(probabilities: np.ndarray, masks: np.ndarray) -> np.ndarray:
    dice = np.ones((len(masks), 99))
    for i, (probability, mask) in enumerate(zip(probabilities, masks, strict=True)):
        size = np.count_nonzero(mask)
        for k in range(1, 100):
            found = probability >= np.float32(k / 100)
            both = np.count_nonzero(found) + size
            if both:
                dice[i, k - 1] = 2 * np.count_nonzero(found & mask) / both
    return dice.mean(0)


RULE = MaskRule(min_diameter=0.03, fill_holes=True, keep_largest=True)


def straightforward(masks: np.ndarray) -> list[np.ndarray]:
    """Apply the same three steps with SciPy and scikit-image, on whole slices."""
    from skimage.measure import label
    from skimage.morphology import remove_small_objects

    out = []
    for mask in masks:
        area = np.pi / 4 * (RULE.min_diameter * mask.shape[1]) ** 2
        # It also removes objects as large as the limit.
        tidy = remove_small_objects(mask, max_size=int(np.ceil(area)) - 1, connectivity=2)
        tidy = ndimage.binary_fill_holes(tidy)
        regions = label(tidy, connectivity=2)
        if regions.max() > 1:
            tidy = regions == np.argmax(np.bincount(regions.ravel())[1:]) + 1
        out.append(tidy)
    return out


def postprocessing(rounds: int) -> list[Result]:
    masks = slices(256)[0] >= 0.3
    try:
        theirs = straightforward(masks)
    except ImportError as missing:
        print(f"thresholds: without {missing.name}")
        return []
    same = sum(np.array_equal(a, postprocess(b, RULE)) for a, b in zip(theirs, masks, strict=True))
    found = in_turn(
        ours=lambda: [postprocess(mask, RULE) for mask in masks], peer=lambda: straightforward(masks), rounds=rounds
    )
    what, peer = "small objects, holes, largest object, 256x256", "scikit-image and SciPy"
    remark = f"the same masks on {same} of {len(masks)} slices"
    return [compared("thresholds", what, peer, *found, slices=len(masks), goal=1.0, remark=remark)]


def in_turn(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int) -> tuple[list[Any], list[Any]]:
    found = rounds_of({"ours": lambda: costs(ours), "peer": lambda: costs(peer)}, rounds)
    return found["ours"], found["peer"]


def results(*, quick: bool) -> list[Result]:
    rounds, lines = 1 if quick else 5, []
    for size in (256,) if quick else (256, 512):
        for soft in (False, True):
            probabilities, masks = slices(size, soft=soft)
            swept = sweep_thresholds(probabilities, masks)
            assert np.allclose(swept.mean[9:990:10], one_by_one(probabilities, masks), atol=1e-12)
            for name, loop in (("one by one", one_by_one), ("counted", counted)):
                found = in_turn(
                    ours=lambda p=probabilities, m=masks: sweep_thresholds(p, m),
                    peer=lambda p=probabilities, m=masks, loop=loop: loop(p, m),
                    rounds=rounds,
                )
                what = f"1,000 thresholds, {COUNT} slices of {size}x{size}, {'soft' if soft else 'sure'}"
                lines.append(compared("thresholds", what, f"99 {name}", *found, goal=1.0))
            if not soft:
                predictions = with_patients(probabilities, masks)
                found = in_turn(
                    ours=lambda p=predictions: tune(p),
                    peer=lambda p=probabilities, m=masks: one_by_one(p, m),
                    rounds=rounds,
                )
                what = f"whole search for a rule, post-processing included, {COUNT} slices of {size}x{size}"
                remark = f"peak memory {own_peak_memory():,.0f} MB"
                lines.append(compared("thresholds", what, "99 thresholds one by one alone", *found, remark=remark))
    for count, goal in SEARCH_GOALS.items():
        if count == COUNT or not quick:
            lines.append(whole_search(count, goal, 1 if quick else 3))
    return lines + postprocessing(rounds)


def with_patients(probabilities: np.ndarray, masks: np.ndarray) -> ArrayPredictions:
    numbers = np.arange(len(masks))
    return ArrayPredictions(probabilities, masks, numbers % 3, [str(i // 7) for i in numbers], list("abc"))


def whole_search(count: int, goal: float, rounds: int) -> Result:
    """Measure `tune` against a number of seconds."""
    predictions = with_patients(*slices(256, count))
    found = [costs(lambda: tune(predictions)) for _ in range(rounds)]
    what = f"whole search for a rule, post-processing included, {count:,} slices of 256x256"
    remark = f"{found[0].processor:.2g} s of processor time"
    return compared("thresholds", what, f"goal of {goal:g} s", found, [Cost(goal, 0)] * rounds, goal=1.0, remark=remark)


if __name__ == "__main__":
    show(results)
