"""HD95 of 256x256 slices compared with other libraries, in values and in time.

kerasseg, MONAI and Metrics Reloaded share one definition; Metrics Reloaded is on no package index, so its definition is
written with SciPy here. MedPy pools both directions, and surface-distance weighs border elements: their values differ by
definition, and the benchmark reports by how much. DeepMind's surface-distance is written from its formulae with SciPy,
because its released package fails on empty masks and current NumPy. Ratios are with the libraries' default threads, and
with one thread each.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

from benchmarks.measure import costs, rounds_of
from benchmarks.result import Result, compared, show
from kerasseg.evaluation.surface_distances import hd95

SIZE, RADIUS, PAIRS = 256, 20, 20

Pair = tuple[np.ndarray, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], float]


def pairs() -> list[Pair]:
    """Create tumours of radius 20, predicted with an error of a few pixels in place and size."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:SIZE, :SIZE]

    def disk(row: float, column: float, radius: float) -> np.ndarray:
        return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2

    made = []
    for _ in range(PAIRS):
        row, column = rng.uniform(60, 196, 2)
        shift = rng.uniform(-3, 3, 3)
        made.append((disk(row + shift[0], column + shift[1], RADIUS + shift[2]), disk(row, column, RADIUS)))
    return made


def specks() -> list[Pair]:
    """Create random masks of all densities and sizes, some at the image's edge, to compare values."""
    rng = np.random.default_rng(1)
    found = []
    while len(found) < 200:
        shape = rng.integers(1, 40, 2)
        pair = tuple(rng.random(shape) < rng.choice([0.02, 0.3, 0.9]) for _ in range(2))
        if all(mask.any() for mask in pair):
            found.append(pair)
    return found


def plain(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Compute the definition on whole images."""
    a, b = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference))
    there, back = ndimage.distance_transform_edt(~b)[a], ndimage.distance_transform_edt(~a)[b]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


_HALF = np.sqrt(2) / 2
_LENGTHS = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0]) * _HALF
_LENGTHS[[3, 5, 10, 12]] = 1.0
"""Length of the border in a square of 2x2 pixels, by its code of 4 bits, from surface-distance's table."""


def surface_distance(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Compute HD95 as DeepMind does: border elements between pixels, weighted by length."""
    rows, columns = np.nonzero(prediction | reference)
    box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    codes = [
        ndimage.correlate(np.pad(mask[box], (0, 1)).astype(np.uint8), np.array([[8, 4], [2, 1]]), mode="constant")
        for mask in (prediction, reference)
    ]
    borders = [(code != 0) & (code != 15) for code in codes]
    found = []
    for border, other, code in zip(borders, borders[::-1], codes, strict=True):
        distances = ndimage.distance_transform_edt(~other)[border]
        order = np.argsort(distances)
        lengths = np.cumsum(_LENGTHS[code[border][order]])
        place = np.searchsorted(lengths / lengths[-1], 0.95)
        found.append(distances[order][min(place, len(distances) - 1)])
    return float(max(found))


def monai_score() -> tuple[str, Score]:
    import monai
    import torch
    from monai.metrics import compute_hausdorff_distance

    def theirs(prediction: np.ndarray, reference: np.ndarray) -> float:
        one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
        return float(compute_hausdorff_distance(one, other, include_background=True, percentile=95))

    return f"MONAI {monai.__version__}", theirs


def medpy_score() -> tuple[str, Score]:
    from medpy.metric.binary import hd95 as theirs

    return "MedPy", lambda prediction, reference: float(theirs(prediction, reference))


def peers() -> dict[str, Score]:
    found: dict[str, Score] = {
        "the definition (Metrics Reloaded) in SciPy": plain,
        "surface-distance, its formulae": surface_distance,
    }
    for make in (monai_score, medpy_score):
        try:
            name, score = make()
        except ImportError as missing:
            print(f"distances: without {missing.name}")
        else:
            found[name] = score
    return found


def agreement(theirs: Score, made: list[Pair]) -> str:
    """Return as text whether all values are equal, or how much they differ."""
    apart = np.array([abs(hd95(*pair) - theirs(*pair)) for pair in made])
    # MONAI computes distances in single precision.
    same = int((apart < 1e-4).sum())
    if same == len(made):
        return f"the same values on {len(made)} pairs"
    return f"another definition: equal on {same} of {len(made)} pairs, at most {apart.max():.2f} pixels apart"


def results(*, quick: bool) -> list[Result]:
    warnings.simplefilter("ignore")  # MONAI warns about its own calls
    made, rounds = pairs(), 3 if quick else 15
    scores = {"ours": hd95, **peers()}
    said = {name: agreement(score, [*made, *specks()]) for name, score in scores.items()}
    for name in said:
        # MONAI has the same definition, so different values would be a defect.
        assert "MONAI" not in name or said[name].startswith("the same"), said[name]

    def once(score: Score) -> Callable[[], object]:
        return lambda: [score(*pair) for pair in made]

    found = rounds_of({name: lambda s=score: costs(once(s)) for name, score in scores.items()}, rounds)
    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    single = rounds_of({name: lambda s=score: costs(once(s)) for name, score in scores.items()}, rounds)
    lines = []
    for name in list(scores)[1:]:
        for way, measured in (("", found), (", one thread", single)):
            lines.append(
                compared(
                    "distances",
                    f"HD95 of a pair{way}",
                    name,
                    measured["ours"],
                    measured[name],
                    unit="ms",
                    scale=1000 / len(made),
                    goal=1.0,
                    remark="" if way else said[name],
                )
            )
    return lines


if __name__ == "__main__":
    show(results)
