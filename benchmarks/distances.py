"""HD95 of 256x256 slices against the libraries that one would take, after it is shown how far the values are the same.

Ours, MONAI's and Metrics Reloaded's have one definition; the last is on no package index and stands here as that definition
written down with SciPy. MedPy pools both directions and surface-distance weighs border elements: the values differ by
definition, and it is said by how much. DeepMind's surface-distance is written here from its formulae, with
SciPy: its package index release fails on empty masks and current NumPy. Ratios are those of the libraries as they come; in
processor time on one thread each, MONAI's, which has most to lose from further threads, is smaller.
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
    """Tumours of radius 20, found with an error of a few pixels in place and size."""
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
    """Random masks of all densities and sizes, some of them cut off by the image's edge: for equality, not for time."""
    rng = np.random.default_rng(1)
    found = []
    while len(found) < 200:
        shape = rng.integers(1, 40, 2)
        pair = tuple(rng.random(shape) < rng.choice([0.02, 0.3, 0.9]) for _ in range(2))
        if all(mask.any() for mask in pair):
            found.append(pair)
    return found


def plain(prediction: np.ndarray, reference: np.ndarray) -> float:
    """The definition on whole images, as one would write it down."""
    a, b = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference))
    there, back = ndimage.distance_transform_edt(~b)[a], ndimage.distance_transform_edt(~a)[b]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _lengths() -> np.ndarray:
    """Length of the border in a square of 2x2 pixels, by its code of 4 bits: surface-distance's table."""
    half, straight = np.sqrt(2) / 2, 1.0
    return np.array(
        (
            0,
            half,
            half,
            straight,
            half,
            straight,
            2 * half,
            half,
            half,
            2 * half,
            straight,
            half,
            straight,
            half,
            half,
            0,
        )
    )


_LENGTHS = _lengths()


def surface_distance(prediction: np.ndarray, reference: np.ndarray) -> float:
    """DeepMind's: border elements between pixels, each with its length, and percentiles of length."""
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
    """In words: whether all values are equal, or how far they are apart."""
    apart = np.array([abs(hd95(*pair) - theirs(*pair)) for pair in made])
    # MONAI's distances and ranks between them are single precision.
    same = int((apart < 1e-4).sum())
    if same == len(made):
        return f"the same values on {len(made)} pairs"
    return f"another definition: equal on {same} of {len(made)} pairs, at most {apart.max():.2f} pixels apart"


def results(*, quick: bool) -> list[Result]:
    warnings.simplefilter("ignore")  # MONAI warns of its own calls
    made, rounds = pairs(), 3 if quick else 15
    scores = {"ours": hd95, **peers()}
    said = {name: agreement(score, [*made, *specks()]) for name, score in scores.items()}
    for name in said:
        # A definition that is ours and values that are not would be a defect.
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
