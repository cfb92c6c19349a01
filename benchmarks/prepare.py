"""`prepare` compared with only reading the same .mat files with h5py, and with loading and stacking all of them.

The slices resemble the figshare ones. Each contender is a process that has already run with 64 slices, so that imports are
not measured; the start of worker processes is. Contenders take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import h5py
import numpy as np

from benchmarks.measure import make_slices, rounds_of
from benchmarks.result import Result, compared, show, sized
from benchmarks.turns import contenders

PART, FEW = "prepare", 64
READ, STACK = "only reading", "load all, np.stack, savez"


def read(paths: Sequence[Path]) -> None:
    for path in paths:
        with h5py.File(path) as file:
            file["cjdata/image"][()], file["cjdata/tumorMask"][()]


def only_read(folder: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    paths = sorted(folder.glob("*.mat"))
    if jobs == 1:
        read(paths)
        return
    with ProcessPoolExecutor(jobs) as pool:
        list(pool.map(read, [paths[i : i + 32] for i in range(0, len(paths), 32)]))


def prepare_all(folder: Path, out: Path, jobs: int) -> None:
    from kerasseg_tfrecords import prepare
    from kerasseg_tfrecords.records.manifest import PrepareOptions

    prepare(folder, out, PrepareOptions(split_by="slice"), jobs=jobs, overwrite=True)


def stack_all(folder: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    images, masks = [], []
    for path in sorted(folder.glob("*.mat")):
        with h5py.File(path) as file:
            image, mask = file["cjdata/image"][()].T.astype("float32"), file["cjdata/tumorMask"][()].T
        image = (image - image.min()) / (image.max() - image.min())
        images.append(cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)[..., None])
        masks.append(cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST)[..., None].astype("float32"))
    image, mask = np.stack(images), np.stack(masks)
    order = np.random.default_rng(0).permutation(len(image))
    cut = len(order) * 8 // 10
    for name, rows in (("train", order[:cut]), ("test", order[cut:])):
        np.savez(f"{out}-{name}.npz", image=image[rows], mask=mask[rows])


WAYS: dict[str, Callable[[Path, Path, int], None]] = {READ: only_read, "prepare": prepare_all, STACK: stack_all}


def way(name: str, jobs: int, work: str, count: int) -> Callable[[], object]:
    """Return the action over `count` slices, after a warm-up with few."""
    folder, out = Path(work), Path(work) / f"{list(WAYS).index(name)}-{jobs}"
    WAYS[name](folder / f"slices{FEW}", out, jobs)
    return lambda: WAYS[name](folder / f"slices{count}", out, jobs)


def results(*, quick: bool) -> list[Result]:
    count, rounds = (200, 1) if quick else (1500, 3)
    one, two = "prepare --jobs 1", "prepare --jobs 2"
    kinds = {READ: (READ, 1), one: ("prepare", 1), STACK: (STACK, 1), f"{READ}, 2 jobs": (READ, 2), two: ("prepare", 2)}
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as work:
        for number in (FEW, count):
            make_slices(Path(work) / f"slices{number}", number)
        makers = {name: ("benchmarks.prepare:way", *kind, work, count) for name, kind in kinds.items()}
        with contenders(makers, warm=False) as running:
            found = rounds_of(running, rounds)
    # The goal is for wall-clock time: at most one and a half times that of reading.
    goals = {READ: round(1 / 1.5, 2)}
    pairs = [(one, READ), (two, f"{READ}, 2 jobs"), (one, STACK), (two, STACK), (two, one)]
    lines = [
        compared(PART, ours, peer, found[ours], found[peer], slices=count, goal=goals.get(peer.partition(",")[0]))
        for ours, peer in pairs
    ]
    pair = running[one].peak, running[STACK].peak
    lines.append(sized(PART, f"peak memory, {count:,} slices, --jobs 1", STACK, *pair))
    grown = [max(running[name].peak - running[name].base, 0.1) for name in (one, STACK)]
    lines.append(sized(PART, f"additional memory for {count - FEW:,} more slices", STACK, *grown))
    return lines


if __name__ == "__main__":
    show(results)
