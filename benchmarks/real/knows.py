"""A checkpoint that knows the task: trained on the other heads of the data set, then fine-tuned on heads it has never seen.

The slices of `figshare-png` whose heads do not occur in `figshare-mat` train a network from fresh weights. Its SavedModel
is what a user starts from: evaluated as it is on `figshare-mat`, then fine-tuned with every strategy in a cross-validation
over heads. Nothing is chosen on the slices that are reported except each fold's best epoch; the last epoch is reported too.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.machine import describe
from benchmarks.real.figures import DiceBySlice, Knows, KnowsRow, StageFigures, Start, counts, difference
from benchmarks.real.plan import DataSet, Trial
from benchmarks.real.unseen import another_scanner, other_heads, vgg16_trunk
from benchmarks.real.workshop import Workshop, finished
from kerasseg.evaluation.bootstrap import bootstrap_interval, paired_interval
from kerasseg.evaluation.figures import as_mean
from kerasseg.evaluation.schema import Mean, read_evaluation
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import read_history

__all__ = ["KnowsPlan", "best_trial", "collect_knows", "finished_folds", "train_knows"]

_Strategy = tuple[str, str | None, tuple[str, ...]]
_Kind = Literal["same", "shifted"]

EPOCHS, FINE_TUNED = 25, 10
PRETRAINED = ("--strategy", "scratch", "--filters", "16", "--ema", "0.999")
KINDS: tuple[_Kind, ...] = ("same", "shifted")


@dataclass(frozen=True, slots=True)
class KnowsPlan:
    """What is trained.

    Attributes:
        size: Height and width of the slices in pixels.
        folds, epochs: Of the cross-validations.
        same: Strategies with their rates and options, tried on heads that the checkpoint has never seen.
        shifted: The same, on these heads as another scanner would show them.
        repeated: Those of `shifted` that `seeds` repeat.
        seeds: Further seeds.
    """

    size: int = 96
    folds: int = 3
    epochs: int = FINE_TUNED
    same: tuple[_Strategy, ...] = (
        ("conservative", None, ()),
        ("aggressive", None, ()),
        ("conservative", "1e-5", ()),
        ("moderate", None, ()),
        ("scratch", None, ("--filters", "16", "--epochs", "40")),
        ("progressive", None, ()),
        ("two-stage", None, ()),
        ("two-stage", None, ("--encoder", "vgg16")),
        ("two-stage", None, ("--encoder", "vgg16", "--encoder-rate-factor", "1")),
        ("scratch", None, ("--encoder", "vgg16")),
    )
    shifted: tuple[_Strategy, ...] = (
        ("conservative", None, ("--recalibrate-batchnorm",)),
        ("conservative", None, ()),
        ("aggressive", None, ()),
        ("aggressive", "1e-4", ()),
        ("scratch", None, ("--filters", "16", "--epochs", "40")),
    )
    repeated: tuple[_Strategy, ...] = (("conservative", None, ()), ("aggressive", "1e-4", ()))
    seeds: tuple[int, ...] = (43, 44)

    @property
    def others(self) -> str:
        """Shards that the checkpoint is trained on."""
        return f"others{self.size}"

    @property
    def run(self) -> str:
        """The run that trains the checkpoint."""
        return f"{self.others}-scratch"

    def shards(self, kind: _Kind) -> str:
        """Shards of the heads that the checkpoint has never seen."""
        return f"{'heads' if kind == 'same' else 'shifted'}{self.size}"

    def trials(self, kind: _Kind) -> list[Trial]:
        """Fine-tunings and scratch, in the order in which they are run; VGG16 only where its weights are installed."""
        data = DataSet(self.shards(kind), ("figshare-mat",), self.size)
        epochs = ("--epochs", str(self.epochs))
        trunk = vgg16_trunk()
        seeded = [(42, one) for one in getattr(self, kind)]
        if kind == "shifted":
            seeded += itertools.product(self.seeds, self.repeated)
        return [
            Trial(
                data,
                name,
                rate,
                seed,
                (*extra, *epochs[2 * ("--epochs" in extra) :]),
                trunk if "--encoder" in extra else None,
            )
            for seed, (name, rate, extra) in seeded
            if trunk is not None or "--encoder" not in extra
        ]

    def shop(self, shop: Workshop) -> Workshop:
        """The same workshop, in which the SavedModel of `run` is the checkpoint."""
        return replace(shop, checkpoint=Path("runs", self.run, "export", "savedmodel"))


def train_knows(shop: Workshop, plan: KnowsPlan) -> None:
    """Train the checkpoint, evaluate it on heads it has never seen, and cross-validate every strategy there."""
    shop.need("figshare-mat", "figshare-png")
    seen = shop.data / "figshare-mat"
    other_heads(shop.data / "figshare-png", seen, shop.folder / "other-heads")
    another_scanner(seen, shop.folder / "another-scanner")
    for name, source, split in (
        (plan.others, "other-heads", "90/10/0"),
        (plan.shards("same"), str(seen), "80/20/0"),
        (plan.shards("shifted"), "another-scanner", "80/20/0"),
    ):
        shop.once(f"{name}/manifest.json", "prepare", source, "--size", str(plan.size), "--split", split, "--out", name)
    export = f"runs/{plan.run}/export/savedmodel"
    # A training that was stopped and exported is not resumed: what was fine-tuned from it would have another start.
    if not (shop.folder / export / "metadata.json").exists():
        shop.train_run(plan.run, "--shards", plan.others, *PRETRAINED, "--epochs", str(EPOCHS))
        shop.command("export", f"runs/{plan.run}", "--format", "savedmodel", "--threshold", "0.5", "--slices", "8")
    annotated = shop.data / "brisc-annotations"
    for kind in KINDS:
        if not _evaluations(shop, plan, kind):
            second = ["--reference-2", str(annotated)] if kind == "same" and annotated.exists() else []
            shop.command("evaluate", f"runs/{plan.run}", "--shards", plan.shards(kind), "--no-speed", *second)
    # In turn, so that an early stop leaves something of both.
    pairs = itertools.zip_longest(plan.trials("same"), plan.trials("shifted"))
    for trial in itertools.chain.from_iterable(pairs):
        if trial is not None:
            plan.shop(shop).cross_validate(trial, plan.folds)


def collect_knows(shop: Workshop, plan: KnowsPlan) -> Knows | None:
    """The figures of what has been trained; None before the untouched checkpoint has been evaluated."""
    starts = {kind: start for kind in KINDS if (start := _start(shop, plan, kind)) is not None}
    if "same" not in starts:
        return None
    history = [row for row in read_history(RunDirectory(shop.folder / "runs" / plan.run).history_file) if row.epoch > 0]
    best = max(history, key=lambda row: row.val_dice)
    machine = describe()
    return Knows(
        machine=f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU",
        date=RunDirectory(shop.folder / "runs" / plan.run).config().created[:10],
        size=plan.size,
        counts=counts(shop.folder / plan.others),
        planned=EPOCHS,
        epochs=len(history),
        best_epoch=best.epoch,
        best=best.val_dice,
        minutes=sum(row.seconds for row in history) / 60,
        folds=plan.folds,
        same=starts["same"],
        shifted=starts.get("shifted"),
    )


def _start(shop: Workshop, plan: KnowsPlan, kind: _Kind) -> Start | None:
    evaluations = _evaluations(shop, plan, kind)
    if not evaluations:
        return None
    untouched = read_evaluation(evaluations[-1])
    trials = plan.trials(kind)
    held = {trial: found for trial in trials if (found := finished_folds(shop, trial))}
    dice = {
        label_of(trial): {s.slice_id: (s.after, s.group) for s in _slices(folds)}
        for trial, folds in held.items()
        if trial.seed == 42
    }
    return Start(
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
        annotators=untouched.second_reader,
        curves={label_of(trial): curve for trial in trials if (curve := _first_fold(shop, trial))},
        rows=tuple(_row(trial, folds) for trial, folds in held.items()),
        against={
            f"{first} minus conservative": difference(
                _common(dice["conservative"], dice[first]), _common(dice[first], dice["conservative"])
            )
            for first in dice
            if "conservative" in dice and first != "conservative"
        },
    )


def finished_folds(shop: Workshop, trial: Trial) -> tuple[Path, ...]:
    """Folds of a cross-validation that have been trained to their end; there may be more to come."""
    folds = sorted(shop.cross_root(trial).glob("fold-*"))
    return tuple(fold for fold in folds if (fold / "validation.csv").exists() and finished(fold))


def label_of(trial: Trial) -> str:
    """A trial as the page calls it: without the options that all have."""
    rate = [] if trial.rate is None else [f"at {trial.rate}"]
    own = trial.extra[2 * ("--filters" in trial.extra) :]
    own = own[:-2] if own[-2:] == ("--epochs", str(FINE_TUNED)) else own
    seed = [] if trial.seed == 42 else [f"seed {trial.seed}"]
    return " ".join([trial.strategy, *rate, *own, *seed])


def _first_fold(shop: Workshop, trial: Trial) -> tuple[float, ...]:
    """Dice of the first fold after each epoch so far, epoch 0 first; empty before it is there."""
    file = RunDirectory(shop.cross_root(trial) / "fold-1").history_file
    return tuple(row.val_dice for row in read_history(file)) if file.exists() else ()


def best_trial(shop: Workshop, plan: KnowsPlan, kind: _Kind = "same") -> Trial | None:
    """The fine-tuning with the highest Dice on held-out slices, of those with the most finished folds."""
    done = {t: folds for t in plan.trials(kind) if t.strategy != "scratch" and (folds := finished_folds(shop, t))}
    return max(done, key=lambda t: (len(done[t]), _row(t, done[t]).after.mean or 0.0), default=None)


@dataclass(frozen=True, slots=True)
class _Slice:
    """A held-out slice, and its Dice before and after training."""

    slice_id: str
    group: str
    label: str
    before: float
    after: float


def _slices(folds: Sequence[Path]) -> list[_Slice]:
    found = []
    for fold in folds:
        with (fold / "validation.csv").open(newline="") as stream:
            found += [
                _Slice(
                    row["slice_id"],
                    row["group"] or row["patient"],
                    row["label"],
                    float(row["dice_epoch_0"]),
                    float(row["dice_best"]),
                )
                for row in csv.DictReader(stream)
            ]
    return found


def _common(one: DiceBySlice, other: DiceBySlice) -> DiceBySlice:
    return {name: value for name, value in one.items() if name in other}


def _evaluations(shop: Workshop, plan: KnowsPlan, kind: _Kind) -> list[Path]:
    return sorted((shop.folder / "runs" / plan.run / "evaluation").glob(f"all-{plan.shards(kind)}-*/metrics.json"))


def _row(trial: Trial, folds: Sequence[Path]) -> KnowsRow:
    slices = _slices(folds)
    histories = [read_history(RunDirectory(fold).history_file) for fold in folds]
    before, after, groups = ([getattr(s, name) for s in slices] for name in ("before", "after", "group"))
    weights = [len(_slices([fold])) for fold in folds]
    recalibrated = [row.val_dice for history in histories for row in history if row.phase == "recalibrated"]
    mean_before, last = float(np.mean(before)), float(np.average([h[-1].val_dice for h in histories], weights=weights))
    return KnowsRow(
        label=label_of(trial),
        folds=len(folds),
        slices=len(slices),
        patients=len(set(groups)),
        epochs=max(sum(r.epoch > 0 and r.phase != "recalibrated" for r in history) for history in histories),
        before=as_mean(bootstrap_interval(before, groups)),
        after=as_mean(bootstrap_interval(after, groups)),
        gain=as_mean(paired_interval(before, after, groups)),
        before_classes=_by_class(slices, "before"),
        after_classes=_by_class(slices, "after"),
        last=last,
        last_gain=last - mean_before,
        recalibrated=float(np.average(recalibrated, weights=weights)) if recalibrated else None,
        minutes=math.fsum(row.seconds for history in histories for row in history) / 60,
    )


def _by_class(slices: Sequence[_Slice], name: str) -> dict[str, Mean]:
    found = {}
    for label in sorted({s.label for s in slices}):
        own = [s for s in slices if s.label == label]
        found[label] = as_mean(bootstrap_interval([getattr(s, name) for s in own], [s.group for s in own]))
    return found
