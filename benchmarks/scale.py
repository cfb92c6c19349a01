"""The cost of a slice where there are many more: prepare, an epoch of input, predicting and scoring; time and memory.

Each is a process of its own, over 300, 1,000, 3,000 and 10,000 synthetic slices. The peer is the same over
300: what stays flat has a ratio near 1. Start-up, measured over 64 slices, is taken off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Cost, make_slices
from benchmarks.prepare import PREPARE
from benchmarks.result import Result, compared, show, sized

FEW, COUNTS = 64, (300, 1000, 3000, 10_000)

EPOCH = """
import sys
from kerasseg.pipeline import TrainingData
for batch in TrainingData(sys.argv[3], channels=3, cache="none").epoch(0):
    pass
"""
EVALUATE = """
import sys
from pathlib import Path
import kerasseg
from kerasseg.evaluation.scoring import score_slices, stage_rules
from kerasseg.evaluation.slices import predict_splits
from kerasseg.rule import MaskRule
model = kerasseg.unet((256, 256, 3), filters=2, depth=1, seed=0)
found = predict_splits(model, Path(sys.argv[3]), ("train", "val", "test"), memory_budget=32 << 20)
score_slices(found, stage_rules(MaskRule(threshold=0.4, fill_holes=True)))
"""
STAGES = {
    "prepare": PREPARE,
    "an epoch of input, cache none": EPOCH,
    "predict and score, probabilities of 32 MB in memory": EVALUATE,
}


def measured(script: Path, *arguments: object) -> tuple[Cost, float]:
    """Cost, and peak memory in MB of the largest process."""
    code = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "subprocess.run([sys.executable, *sys.argv[1:]], check=True); took = time.perf_counter() - start; "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(took, used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    time, processor, memory = done.stdout.splitlines()[-1].split()
    return Cost(float(time), float(processor)), int(memory) / 1024


def results(*, quick: bool) -> list[Result]:
    counts = COUNTS[:2] if quick else COUNTS
    found: dict[tuple[str, int], tuple[Cost, float]] = {}
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        work = Path(name)
        for number, text in enumerate(STAGES.values()):
            (work / f"{number}.py").write_text(text)
        for count in (FEW, *counts):
            make_slices(work / f"slices{count}", count)
            for number, stage in enumerate(STAGES):
                found[stage, count] = measured(
                    work / f"{number}.py", work / f"slices{count}", 1, work / f"shards{count}"
                )
    lines = []
    for stage in STAGES:
        start, _ = found[stage, FEW]
        each = {}
        for count in counts:
            whole, _ = found[stage, count]
            left = whole.time - start.time, whole.processor - start.processor
            each[count] = Cost(*(max(value, 1e-9) for value in left)).each(count - FEW)
        few = counts[0]
        for count in counts[1:]:
            what = f"{stage}: {count:,} slices"
            pair = [each[count]], [each[few]]
            lines.append(compared("scale", what, f"{few} slices", *pair, unit="ms a slice", scale=1000))
        for count in counts[1:]:
            what = f"peak memory of {stage}: {count:,} slices"
            lines.append(sized("scale", what, f"{few} slices", found[stage, count][1], found[stage, few][1]))
    return lines


if __name__ == "__main__":
    show(results)
