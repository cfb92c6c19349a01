"""Measuring in turn: A, B, A, B, ... in one run, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """Seconds, and processor seconds of the processes: what others do on the machine disturbs the second less."""

    time: float
    processor: float

    def each(self, count: int) -> Cost:
        return Cost(self.time / count, self.processor / count)


def costs(action: Callable[[], object]) -> Cost:
    """Of an action in this process and in those that it starts and waits for."""
    start, used = time.perf_counter(), _processor()
    action()
    return Cost(time.perf_counter() - start, _processor() - used)


def _processor() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def rounds_of(
    actions: Mapping[str, Callable[[], Cost]], rounds: int, once: Collection[str] = ()
) -> dict[str, list[Cost]]:
    """What each cost in each round; in every round they take turns.

    Args:
        actions: By name.
        rounds: How many.
        once: Names of those that take part in the first alone: much slower ones, of which nobody doubts it.
    """
    found: dict[str, list[Cost]] = {name: [] for name in actions}
    for number in range(rounds):
        for name, action in actions.items():
            if number == 0 or name not in once:
                found[name].append(action())
    return found


def own_peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    with contextlib.suppress(OSError):
        # Not getrusage's: a process that is started begins with the peak of the one that started it.
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_environment() -> dict[str, str]:
    """For the processes that a benchmark starts: the packages of this tree, no chatter, no GPU."""
    paths = [str(path) for path in (ROOT, ROOT / "cli", ROOT / "tfrecords")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }


def make_slices(folder: Path, count: int, distinct: int = 60, *, size: int = 512, patient: int = 1) -> None:
    """Writes .mat files as the figshare data set stores them (int16, gzip).

    Args:
        folder: Made where it is not there; files that are there stay.
        count: How many.
        distinct: How many different ones; the rest are links to them.
        size: Height and width in pixels: 64 or a multiple.
        patient: How many slices each has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] * (512 / size)
    head = ((rows - 256) / 220) ** 2 + ((columns - 256) / 180) ** 2 < 1
    for number in range(1, count + 1):
        path = folder / f"{number}.mat"
        if path.exists():
            continue
        if number > distinct:
            path.hardlink_to(folder / f"{(number - 1) % distinct + 1}.mat")
            continue
        smooth = np.kron(rng.integers(200, 900, (size // 8, size // 8)), np.ones((8, 8), int))
        noise, outside = rng.normal(0, 40, (size, size)), rng.integers(0, 12, (size, size))
        image = np.where(head, smooth + noise, outside).astype(np.int16)
        y, x, r = rng.integers(180, 330), rng.integers(180, 330), rng.integers(15, 50)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < r * r
        image[mask] += 700
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, value in (("image", image), ("tumorMask", mask.astype(np.uint8))):
                file.create_dataset(f"cjdata/{name}", data=value.T, chunks=(size, 64), compression=3)
            file["cjdata/label"] = np.full((1, 1), 1.0 + number % 3)
            file["cjdata/PID"] = np.array([[ord(c)] for c in f"{100_000 + number // patient}"], np.uint16)
