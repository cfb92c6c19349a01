"""Measuring in turn: A, B, A, B, ... in one run, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Cost(NamedTuple):
    """Seconds, and processor seconds of this process: what others do on the machine disturbs the second less."""

    time: float
    processor: float

    def each(self, count: int) -> Cost:
        return Cost(self.time / count, self.processor / count)


def costs(action: Callable[[], object]) -> Cost:
    start, used = time.perf_counter(), time.process_time()
    action()
    return Cost(time.perf_counter() - start, time.process_time() - used)


def children_costs(action: Callable[[], object]) -> Cost:
    """As `costs`, with the processor seconds of the processes that the action starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    time_ = seconds(action)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time_, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


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


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    return [(seconds(first), seconds(second)) for _ in range(rounds)]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (range {min(values):.2f} to {max(values):.2f}, {len(values)} rounds)"


def peak_memory(code: str) -> float:
    """Peak resident memory, MB, of a Python process that runs `code`, its children included (the largest of them)."""
    ending = "\nimport resource; print(max(resource.getrusage(w).ru_maxrss for w in (0, -1)))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout.splitlines()[-1]) / 1024


def own_peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_slices(folder: Path, count: int, distinct: int = 60) -> None:
    """`count` .mat files as the figshare data set stores them (512x512 int16, gzip), `distinct` different ones linked."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:512, :512]
    for number in range(1, count + 1):
        path = folder / f"{number}.mat"
        if path.exists():
            continue
        if number > distinct:
            path.hardlink_to(folder / f"{(number - 1) % distinct + 1}.mat")
            continue
        head = ((rows - 256) / 220) ** 2 + ((columns - 256) / 180) ** 2 < 1
        smooth = np.kron(rng.integers(200, 900, (64, 64)), np.ones((8, 8), int))
        image = np.where(head, smooth + rng.normal(0, 40, (512, 512)), rng.integers(0, 12, (512, 512))).astype(np.int16)
        y, x, r = rng.integers(180, 330), rng.integers(180, 330), rng.integers(15, 50)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < r * r
        image[mask] += 700
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, value in (("image", image), ("tumorMask", mask.astype(np.uint8))):
                file.create_dataset(f"cjdata/{name}", data=value.T, chunks=(512, 64), compression=3)
            file["cjdata/label"] = np.full((1, 1), 1.0 + number % 3)
            file["cjdata/PID"] = np.array([[ord(c)] for c in f"{100_000 + number}"], np.uint16)
