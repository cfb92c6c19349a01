"""Thresholds: the sweep against 99 thresholds one by one, in turn in one run; and the whole search for a rule.

`python -m benchmarks.thresholds`: 210 synthetic slices at 256x256 and 512x512, as a network that is fairly sure of itself
puts them out: a tumour with a soft and wavy edge, false alarms, and next to nothing elsewhere. "One by one" is the loop
that one writes first (`found = p >= t`, sums); "counted" the fastest loop that was found (`np.count_nonzero`, slice by
slice). "Soft" is a network that puts out more than 0.001 everywhere, which is the slowest case.
"""

from __future__ import annotations

import statistics

import cv2
import numpy as np

from benchmarks.measure import in_turn, own_peak_memory, seconds, spread
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.thresholds import sweep_thresholds
from kerasseg.tuning import tune

COUNT = 210


def slices(size: int, count: int = COUNT, *, soft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (count, size, size) float32, and masks (count, size, size) bool."""
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


def main(rounds: int = 3) -> None:
    for size in (256, 512):
        for soft in (False, True):
            probabilities, masks = slices(size, soft=soft)
            swept = sweep_thresholds(probabilities, masks)
            assert np.allclose(swept.mean[9:990:10], one_by_one(probabilities, masks), atol=1e-12)
            for name, loop in (("one by one", one_by_one), ("counted", counted)):
                found = in_turn(
                    lambda p=probabilities, m=masks, loop=loop: loop(p, m),
                    lambda p=probabilities, m=masks: sweep_thresholds(p, m),
                    rounds,
                )
                ours = statistics.median(b for _, b in found)
                print(
                    f"thresholds, {COUNT} slices of {size}x{size}, {'soft' if soft else 'sure'}: 99 {name} over 1000 at "
                    f"once in time {spread([a / b for a, b in found])}; the sweep takes {ours:.2f} s"
                )
            if not soft:
                predictions = ArrayPredictions(
                    probabilities, masks, np.arange(COUNT) % 3, [str(i // 7) for i in range(COUNT)], list("abc")
                )
                took = [seconds(lambda p=predictions: tune(p)) for _ in range(rounds)]
                print(
                    f"search for a rule, {COUNT} slices of {size}x{size}: seconds {spread(took)}, "
                    f"peak memory {own_peak_memory():,.0f} MB"
                )


if __name__ == "__main__":
    main()
