"""The whole job, from raw slices to a report, against a script that does the same work with common means.

308 slices, 256x256, a network of 1.9 million parameters, ten epochs from scratch. kerasseg runs as four commands, which
also check the data for duplicates, hash, save a state to resume from, search for post-processing, and compute intervals.
The script is `benchmarks/peers/job_keras.py`, one process in the same precision.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Cost, child_environment, costs, make_slices
from benchmarks.result import Result, compared, show
from benchmarks.training import precision

COUNT, EPOCHS, FILTERS, SIZE = 308, 10, 16, 256
SCRIPT = "a plain Keras script"
STAGES = ("prepare", "train", "tune-threshold", "evaluate")


def ours(data: Path, work: Path, epochs: int, size: int) -> dict[str, Cost]:
    """Run kerasseg's commands; return the cost of each."""
    commands = {
        "prepare": ["prepare", str(data), "--size", str(size), "--split", "70/15/15"],
        "train": ["train", "--strategy", "scratch", "--filters", str(FILTERS), "--epochs", str(epochs), "--out", "run"],
        "tune-threshold": ["tune-threshold", "run"],
        "evaluate": ["evaluate", "run", "--no-speed"],
    }
    return {
        stage: costs(lambda w=words: _run(["-m", "kerasseg_cli", *w, "--quiet"], work))
        for stage, words in commands.items()
    }


def _run(words: list[str], work: Path) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=work, env=child_environment(), check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}")
    return done.stdout


def results(*, quick: bool) -> list[Result]:
    count, epochs, size = (60, 1, 64) if quick else (COUNT, EPOCHS, SIZE)
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        work = Path(name)
        data = Path(os.environ.get("KERASSEG_REAL_DATA", ROOT.parent / "shared" / "data")) / "figshare-mat"
        if quick or not data.is_dir():
            data = work / "slices"
            make_slices(data, count, distinct=count, patient=3)
        script = ["-m", "benchmarks.peers.job_keras", str(data), name, *map(str, (epochs, FILTERS, size)), precision()]
        told: list[str] = []
        whole = costs(lambda: told.append(_run(script, ROOT)))
        each = ours(data, work, epochs, size)
        theirs = json.loads(told[0].splitlines()[-1])
    what = f"{count} slices of {size}x{size}, {epochs} epochs, {precision()}"
    total = Cost(sum(cost.time for cost in each.values()), sum(cost.processor for cost in each.values()))
    lines = [compared("job", f"the whole job, {what}", SCRIPT, [total], [whole], goal=1.0)]
    for stage in STAGES:
        pair = [Cost(each[stage].time, 0)], [Cost(theirs[stage], 0)]
        lines.append(compared("job", f"of it kerasseg {stage}", f"{SCRIPT}, without imports", *pair, goal=0.0))
    return lines


if __name__ == "__main__":
    show(results)
