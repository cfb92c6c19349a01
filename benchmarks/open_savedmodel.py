"""Opening a SavedModel of 31 million parameters, compared with `tf.saved_model.load`: seconds and memory.

`tf.saved_model.load` returns functions; kerasseg returns Keras layers that can be frozen and trained, and compares them
with the original. One process writes the SavedModel and new ones open it, so that memory is that of opening only. Imports
are not measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Cost, child_environment
from benchmarks.result import Result, compared, show, sized
from benchmarks.turns import contenders

PART, PEER = "open_savedmodel", "tf.saved_model.load"
WAYS = {"opened, and compared with the original": True, "opened without comparing": False}
WRITE = "import sys, kerasseg; kerasseg.unet(filters=int(sys.argv[2]), seed=0).export(sys.argv[1], verbose=False)"


def opening(path: str, compare: bool) -> Callable[[], object]:
    """Return our action, after all imports."""
    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401

    from kerasseg.checkpoints.savedmodel.open import open_savedmodel

    return lambda: open_savedmodel(Path(path), compare=compare)


def loading(path: str) -> Callable[[], object]:
    import keras  # noqa: F401
    import tensorflow as tf

    return lambda: tf.saved_model.load(path)


def results(*, quick: bool) -> list[Result]:
    filters, rounds = (16, 1) if quick else (64, 3)
    costs: dict[str, list[Cost]] = {}
    peaks: dict[str, float] = {}
    bases: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as folder:
        path = str(Path(folder) / "unet")
        subprocess.run([sys.executable, "-c", WRITE, path, str(filters)], check=True, env=child_environment())
        makers = {name: (f"benchmarks.{PART}:opening", path, compare) for name, compare in WAYS.items()}
        for _ in range(rounds):
            with contenders({**makers, PEER: (f"benchmarks.{PART}:loading", path)}, warm=False) as running:
                for name, ask in running.items():
                    costs.setdefault(name, []).append(ask())
            for name, one in running.items():
                bases[name] = one.base
                peaks[name] = max(peaks.get(name, 0), one.peak)
    what = f"SavedModel of {'31' if filters == 64 else '1.9'} million parameters"
    lines = [compared(PART, f"{what}, {name}", PEER, costs[name], costs[PEER]) for name in WAYS]
    for name in WAYS:
        remark = f"including {bases[name]:,.0f} MB of TensorFlow and Keras"
        lines.append(sized(PART, f"peak memory, {what}, {name}", PEER, peaks[name], peaks[PEER], remark=remark))
    return lines


if __name__ == "__main__":
    show(results)
