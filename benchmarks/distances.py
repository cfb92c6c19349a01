"""HD95 of 256x256 slices: ours against MONAI's, in turn in one run, after it is shown that the values are the same.

`python -m benchmarks.distances`. MONAI is no dependency: where it and PyTorch cannot be imported, ours is measured against
the same definition written in a few lines of SciPy on whole images. An environment for the comparison:

    python -m venv peers && peers/bin/pip install torch monai numpy scipy opencv-python-headless h5py
    PYTHONPATH=.:tfrecords peers/bin/python -m benchmarks.distances

Two ratios are printed: of wall clocks with the libraries as they come, and of processor time on one thread each. On so few
pixels further threads only wait for one another, in MONAI more than in OpenCV, so that the second ratio is the smaller one.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

from benchmarks.measure import spread
from kerasseg.distances import hd95

SIZE, RADIUS, PAIRS = 256, 20, 20

Pair = tuple[np.ndarray, np.ndarray]


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


def monai() -> tuple[str, Callable[[np.ndarray, np.ndarray], float]] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import monai
            import torch
            from monai.metrics import compute_hausdorff_distance
    except ImportError as missing:
        print(f"distances: without MONAI ({missing})")
        return None

    def theirs(prediction: np.ndarray, reference: np.ndarray) -> float:
        one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
        return float(compute_hausdorff_distance(one, other, include_background=True, percentile=95))

    return f"MONAI {monai.__version__}", theirs


def cost(score: Callable[[np.ndarray, np.ndarray], float], made: list[Pair]) -> tuple[float, float]:
    """Milliseconds and processor milliseconds a pair."""
    start, used = time.perf_counter(), time.process_time()
    for pair in made:
        score(*pair)
    return 1000 * (time.perf_counter() - start) / len(made), 1000 * (time.process_time() - used) / len(made)


def one_thread() -> None:
    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def main(rounds: int = 15) -> None:
    made = pairs()
    peers = [("SciPy on whole images", plain)]
    if (found := monai()) is not None:
        peers.append(found)
    warnings.simplefilter("ignore")  # MONAI warns of its own calls
    for name, theirs in peers:
        for pair in (*made, *specks()):
            # MONAI's distances and ranks between them are single precision.
            assert np.isclose(hd95(*pair), theirs(*pair), rtol=0, atol=1e-4), (name, hd95(*pair), theirs(*pair))
    for kind, way in enumerate(("as they come", "processor time on one thread")):
        if kind:
            one_thread()
        for name, theirs in peers:
            measured = [(cost(theirs, made)[kind], cost(hd95, made)[kind]) for _ in range(rounds)]
            each = [statistics.median(one[side] for one in measured) for side in range(2)]
            print(
                f"distances, HD95 of a {SIZE}x{SIZE} pair, {way}: {name} {each[0]:.2f} ms, ours {each[1]:.3f} ms, the same "
                f"values; {name} over ours {spread([a / b for a, b in measured])}"
            )


if __name__ == "__main__":
    main()
