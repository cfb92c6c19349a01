"""A checkpoint that knows the task: trained on the other heads of the data set, then fine-tuned on heads it has never seen.

The slices of `figshare-png` whose heads do not occur in `figshare-mat` train a network from fresh weights. Its SavedModel
is what a user starts from: evaluated as it is on `figshare-mat`, then fine-tuned with every strategy in a cross-validation
over heads. Nothing is chosen on the slices that are reported except each fold's best epoch; the last epoch is reported too.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.real.figures import (
    Knows,
    KnowsRow,
    StageFigures,
    counts,
    difference,
    of_cross_validation,
    out_of_fold,
)
from benchmarks.real.plan import DataSet, Trial
from benchmarks.real.unseen import other_heads
from benchmarks.real.workshop import Workshop
from kerasseg.evaluation.schema import read_evaluation
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import read_history
from kerasseg.tuning.threshold_file import load_threshold
from kerasseg.workflows.cross_validate import read_cross_validation

__all__ = ["KnowsPlan", "collect_knows", "train_knows"]

PRETRAINED = ("--strategy", "scratch", "--filters", "16", "--epochs", "20", "--ema", "0.999")


@dataclass(frozen=True, slots=True)
class KnowsPlan:
    """What is trained.

    Attributes:
        size: Height and width of the slices in pixels.
        folds: Of the cross-validations.
        strategies: Their options; scratch comes second, so that an early stop leaves a comparison.
    """

    size: int = 64
    folds: int = 5
    strategies: tuple[tuple[str, ...], ...] = (
        ("conservative", "--epochs", "6"),
        ("scratch", "--filters", "16", "--epochs", "12"),
        ("aggressive", "--epochs", "6"),
        ("moderate", "--epochs", "6"),
        ("progressive", "--epochs", "6"),
        ("two-stage", "--epochs", "6"),
    )

    @property
    def others(self) -> str:
        """Shards that the checkpoint is trained on."""
        return f"others{self.size}"

    @property
    def heads(self) -> str:
        """Shards of the heads that it has never seen."""
        return f"heads{self.size}"

    @property
    def run(self) -> str:
        """The run that trains the checkpoint."""
        return f"{self.others}-scratch"

    def trials(self) -> list[Trial]:
        """Fine-tunings and scratch, in the order in which they are run."""
        data = DataSet(self.heads, ("figshare-mat",), self.size)
        return [Trial(data, name, extra=tuple(extra)) for name, *extra in self.strategies]

    def shop(self, shop: Workshop) -> Workshop:
        """The same workshop, in which the SavedModel of `run` is the checkpoint."""
        return replace(shop, checkpoint=Path("runs", self.run, "export", "savedmodel"))

    def shown(self, shop: Workshop) -> Path | None:
        """The cross-validation whose slices are drawn: the fine-tuning with the highest Dice."""
        tasked = self.shop(shop)
        done = [t for t in self.trials() if t.strategy != "scratch" and tasked.crossed(t)]
        roots = [tasked.cross_root(trial) for trial in done]
        return max(roots, key=_after, default=None)


def train_knows(shop: Workshop, plan: KnowsPlan) -> None:
    """Train the checkpoint, evaluate it on heads it has never seen, and cross-validate every strategy there."""
    shop.need("figshare-mat", "figshare-png")
    other_heads(shop.data / "figshare-png", shop.data / "figshare-mat", shop.folder / "other-heads")
    size = ("--size", str(plan.size))
    for name, source, split in (
        (plan.others, "other-heads", "90/10/0"),
        (plan.heads, str(shop.data / "figshare-mat"), "80/20/0"),
    ):
        shop.once(f"{name}/manifest.json", "prepare", source, *size, "--split", split, "--out", name)
    shop.train_run(plan.run, "--shards", plan.others, *PRETRAINED)
    export = f"runs/{plan.run}/export/savedmodel"
    shop.once(f"{export}/saved_model.pb", "export", f"runs/{plan.run}", "--format", "savedmodel", "--quiet")
    if not _evaluations(shop, plan):
        shop.once("", "evaluate", f"runs/{plan.run}", "--shards", plan.heads, "--no-speed", "--quiet")
    for trial in plan.trials():
        root = plan.shop(shop).cross_validate(trial, plan.folds)
        tuned = ("tune-threshold", f"runs/{root.name}/ensemble", "--from", f"runs/{root.name}", "--quiet")
        shop.once(f"runs/{root.name}/ensemble/threshold.json", *tuned)


def collect_knows(shop: Workshop, plan: KnowsPlan) -> Knows | None:
    """The figures of what has been trained; None before the untouched checkpoint has been evaluated."""
    evaluations = _evaluations(shop, plan)
    if not evaluations:
        return None
    untouched = read_evaluation(evaluations[-1])
    history = [row for row in read_history(RunDirectory(shop.folder / "runs" / plan.run).history_file) if row.epoch > 0]
    best = max(history, key=lambda row: row.best)
    tasked = plan.shop(shop)
    crossed = [trial for trial in plan.trials() if tasked.crossed(trial)]
    rows = [_row(tasked.cross_root(trial), trial) for trial in crossed]
    dice = {trial.strategy: out_of_fold(tasked.cross_root(trial)) for trial in crossed}
    machine = describe()
    return Knows(
        machine=f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        counts={name: counts(shop.folder / name) for name in (plan.others, plan.heads)},
        epochs=len(history),
        best_epoch=best.epoch,
        best=best.best,
        minutes=sum(row.seconds for row in history) / 60,
        untouched=tuple(
            StageFigures(
                name=stage.name,
                all=stage.all.measures["dice"],
                classes={name: figures.measures["dice"] for name, figures in stage.classes.items()},
                missed=stage.all.missed,
            )
            for stage in untouched.model.stages
        ),
        rule_decision=untouched.rule_decision,
        rows=tuple(rows),
        against={
            f"{first} minus {second}": difference(dice[second], dice[first])
            for first in dice
            for second in ("scratch", "conservative")
            if second in dice and first != second
        },
    )


def _evaluations(shop: Workshop, plan: KnowsPlan) -> list[Path]:
    return sorted((shop.folder / "runs" / plan.run / "evaluation").glob(f"all-{plan.heads}-*/metrics.json"))


def _after(root: Path) -> float:
    found = read_cross_validation(root).out_of_fold
    return 0.0 if found is None or found.all.after.mean is None else found.all.after.mean


def _row(root: Path, trial: Trial) -> KnowsRow:
    found = of_cross_validation(root, trial).figures
    histories = [read_history(RunDirectory(root / fold.name).history_file) for fold in found.folds]
    weights = [fold.slices for fold in found.folds]
    tuned_file = RunDirectory(root / "ensemble")
    tuned = load_threshold(tuned_file).model if (root / "ensemble" / "threshold.json").exists() else None
    seconds = math.fsum(row.seconds for history in histories for row in history)
    return KnowsRow(
        label=trial.strategy,
        epochs=max(fold.epochs for fold in found.folds),
        figures=found,
        last=float(np.average([history[-1].val_dice for history in histories], weights=weights)),
        native=None if tuned is None else tuned.raw,
        ruled=None if tuned is None else tuned.dice,
        rule="" if tuned is None else tuned.decision,
        minutes=seconds / 60,
    )
