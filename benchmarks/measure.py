"""Measure actions in turn (A, B, A, B, ...) in one run, so that a noisy machine affects all alike."""

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
    """Seconds, and processor seconds, which other load affects less."""

    time: float
    processor: float

    def each(self, count: int) -> Cost:
        return Cost(self.time / count, self.processor / count)


def costs(action: Callable[[], object]) -> Cost:
    """Measure an action in this process and in those that it starts, also where they go on living."""
    used, start = _processor(), time.perf_counter()
    action()
    return Cost(time.perf_counter() - start, _processor() - used)


def _processor() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + _living()


def _living() -> float:
    """Return the processor seconds of processes that this one has started and not waited for, and of theirs."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number], used[number] = int(fields[1]), sum(map(int, fields[11:15]))
    found, ours = [os.getpid()], 0
    while found:
        parent = found.pop()
        children = [number for number, above in parents.items() if above == parent]
        ours += sum(used[child] for child in children)
        found += children
    return ours / os.sysconf("SC_CLK_TCK")


def rounds_of(
    actions: Mapping[str, Callable[[], Cost]], rounds: int, once: Collection[str] = ()
) -> dict[str, list[Cost]]:
    """Measure each action in each round; actions take turns.

    Args:
        actions: Name -> action.
        rounds: Number of rounds.
        once: Names of very slow actions, which run only in the first round.
    """
    found: dict[str, list[Cost]] = {name: [] for name in actions}
    for number in range(rounds):
        for name, action in actions.items():
            if number == 0 or name not in once:
                found[name].append(action())
    return found


def own_peak_memory() -> float:
    """Return the peak resident memory of this process in MB."""
    with contextlib.suppress(OSError):
        # Not getrusage's, which starts from the peak of the parent process.
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_environment() -> dict[str, str]:
    """Return the environment for child processes: the packages of this tree, few log messages, no GPU."""
    paths = [str(path) for path in (ROOT, ROOT / "cli", ROOT / "tfrecords")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }


def make_slices(folder: Path, count: int, distinct: int = 60, *, size: int = 512, patient: int = 1) -> None:
    """Write .mat files like those of the figshare data set (int16, gzip).

    Args:
        folder: Output folder, created if missing; existing files are kept.
        count: Number of files.
        distinct: Number of different files; the rest are links to them.
        size: Height and width in pixels, a multiple of 64.
        patient: Slices per patient.
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
