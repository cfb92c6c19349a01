"""Coverage of the confidence intervals over patients, by simulation, compared with a percentile bootstrap.

Simulated patients have 1 to 24 slices, a mean Dice from Beta(8, 2) and a spread of 0.1 between slices; 8 % of the slices
are missed (Dice 0). For differences, a second network with half as many misses scores the same slices. The truth is the
mean over 600,000 patients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.result import Result, Spread, show
from kerasseg.evaluation.bootstrap import bootstrap_interval, paired_interval

PATIENTS = (3, 4, 5, 8, 10, 15, 30, 55)


def draw(rng: np.random.Generator, patients: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the Dice of two networks on the slices of simulated patients, and the patient of each slice."""
    sizes = rng.integers(1, 25, patients)
    people = np.repeat(np.arange(patients), sizes)
    own = rng.beta(8, 2, patients)
    first = np.clip(own[people] + rng.normal(0, 0.1, len(people)), 0, 1)
    first[rng.random(len(people)) < 0.08] = 0
    change = rng.normal(0.02, 0.05, patients)
    second = np.clip(first + change[people] + rng.normal(0, 0.08, len(people)), 0, 1)
    second[rng.random(len(people)) < 0.04] = 0
    return first, second, people


def percentiles(
    values: NDArray[np.float64], people: NDArray[np.int64], rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float]:
    """Return the limits of a percentile bootstrap over patients, the method of earlier versions."""
    sums, counts = np.bincount(people, values), np.bincount(people)
    times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), draws)
    low, high = np.percentile((times @ sums) / (times @ counts), [2.5, 97.5])
    return float(low), float(high)


def results(*, quick: bool) -> list[Result]:
    rng = np.random.default_rng(0)
    tries = 100 if quick else 2000
    many = [draw(rng, 10_000) for _ in range(10 if quick else 60)]
    truth = {
        "mean": float(np.concatenate([first for first, _, _ in many]).mean()),
        "paired difference": float(np.concatenate([second - first for first, second, _ in many]).mean()),
    }
    lines = []
    for kind, true in truth.items():
        for patients in PATIENTS:
            held, widths = np.zeros(2), np.zeros(2)
            for _ in range(tries):
                first, second, people = draw(rng, patients)
                if kind == "mean":
                    found, values = bootstrap_interval(first, people), first
                else:
                    found, values = paired_interval(first, second, people, resamples=1), second - first
                both = (found.low, found.high), percentiles(values, people, rng)
                held += [low <= true <= high for low, high in both]
                widths += [high - low for low, high in both]
            ours, before = 100 * held / tries
            wider = float(widths[0] / widths[1])
            remark = f"the interval is {wider:.2f} times as wide as the bootstrap's, {tries:,} simulations"
            name = f"95 % interval of a {kind} contains the truth, {patients} patients"
            nearer = (abs(95 - before) + 1) / (abs(95 - ours) + 1)
            ratio = Spread(nearer, nearer, nearer)
            peer = "percentile bootstrap"
            lines.append(Result("coverage", name, peer, ours, before, ratio, 1, "%", remark=remark))
    return lines


if __name__ == "__main__":
    show(results)
