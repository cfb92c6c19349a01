"""Cost per slice with many more slices: prepare, an epoch of input, evaluate; time and memory.

300, 1,000, 3,000 and 10,000 different synthetic slices of 64x64, ten per patient, and a very small network, so that the
code around it is measured. Each number of slices has its own process, which has already run with 64 slices, so that
start-up is not measured; they take turns. The peer is the same over 300 slices: a flat cost has a ratio near 1, and
below 0.8 counts as behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import make_slices, rounds_of
from benchmarks.result import Result, compared, show, sized
from benchmarks.turns import contenders

SIZE, FEW, COUNTS, GOAL = 64, 64, (300, 1000, 3000, 10_000), 0.8

Stage = Callable[[Path, Path], object]


def prepare_all(raw: Path, shards: Path) -> None:
    from kerasseg_tfrecords import prepare
    from kerasseg_tfrecords.records.manifest import PrepareOptions

    prepare(raw, shards, PrepareOptions(size=SIZE), jobs=1, overwrite=True)


def read_epoch(raw: Path, shards: Path) -> None:  # noqa: ARG001
    from kerasseg.data.tf_data import TrainingData

    for _batch in TrainingData(shards, channels=3, cache="none").epoch(0):
        pass


def evaluate_all(raw: Path, shards: Path) -> None:  # noqa: ARG001
    """Evaluate as `kerasseg evaluate` does: predictions, scores of each slice, means with intervals over patients."""
    import kerasseg
    from kerasseg.evaluation.figures import USUAL, network_figures
    from kerasseg.evaluation.joined import predict_splits
    from kerasseg.evaluation.scoring import score_slices, stage_rules
    from kerasseg.postprocessing import MaskRule

    model = kerasseg.unet((SIZE, SIZE, 3), filters=2, depth=1, seed=0)
    rules = stage_rules(MaskRule(threshold=0.4, fill_holes=True))
    found = predict_splits(model, shards, ("train", "val", "test"), memory_budget=8 << 20)
    network_figures(score_slices(found, rules), found.classes, rules, USUAL)


STAGES: dict[str, Stage] = {
    "prepare": prepare_all,
    "an epoch of input, cache none": read_epoch,
    "evaluate, probabilities of 8 MB in memory": evaluate_all,
}


def stage(name: str, work: str, count: int) -> Callable[[], object]:
    """Return a stage over `count` slices, after a warm-up with few."""
    do, folder = STAGES[name], Path(work)

    def over(number: int) -> None:
        do(folder / f"slices{number}", folder / f"shards{number}")

    over(FEW)
    return lambda: over(count)


def results(*, quick: bool) -> list[Result]:
    counts, rounds = (COUNTS[:2], 1) if quick else (COUNTS, 2)
    lines, few = [], counts[0]
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        work = Path(name)
        for count in (FEW, *counts):
            make_slices(work / f"slices{count}", count, distinct=count, size=SIZE, patient=10)
        prepare_all(work / f"slices{FEW}", work / f"shards{FEW}")
        for title in STAGES:
            makers = {str(count): ("benchmarks.scale:stage", title, name, count) for count in counts}
            with contenders(makers, warm=False) as running:
                found = rounds_of(running, rounds)
            each = {count: [cost.each(count) for cost in found[str(count)]] for count in counts}
            peak = {count: running[str(count)].peak for count in counts}
            for count in counts[1:]:
                pair = each[count], each[few]
                what = f"{title}: {count:,} slices"
                shown = {"unit": "ms per slice", "scale": 1000.0, "goal": GOAL}
                lines.append(compared("scale", what, f"{few} slices", *pair, **shown))
            for count in counts[1:]:
                what = f"peak memory of {title}: {count:,} slices"
                remark = f"{(peak[count] - peak[few]) * 1024 / (count - few):.1f} kB per additional slice"
                pair = peak[count], peak[few]
                lines.append(sized("scale", what, f"{few} slices", *pair, remark=remark, goal=GOAL))
    return lines


if __name__ == "__main__":
    show(results)
