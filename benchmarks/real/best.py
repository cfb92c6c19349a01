"""How far one gets with all slices: the best recipes, more patients, and two annotators' masks.

Each recipe is cross-validated over the heads outside the test split, which the mean of its networks opens once.
The training of `knows` is repeated with a share of its heads, and with both annotators' masks, and judged on the heads that
it has never seen either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.real.figures import Best, Judgement, counts, judged, of_cross_validation
from benchmarks.real.knows import EPOCHS, PRETRAINED, KnowsPlan
from benchmarks.real.plan import Trial, many
from benchmarks.real.unseen import both_annotators, other_heads, vgg16_trunk
from benchmarks.real.workshop import Workshop
from kerasseg.evaluation.schema import SecondReader, read_evaluation
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import read_history
from kerasseg.workflows.cross_validate import read_cross_validation

__all__ = ["BestPlan", "collect_best", "collect_judgements", "train_best", "train_otherwise"]

ANNOTATIONS = "brisc-annotations"


@dataclass(frozen=True, slots=True)
class BestPlan:
    """What is trained.

    Attributes:
        size: Height and width of the slices in pixels.
        large: The same for the training from the checkpoint once more.
        folds: Of the cross-validations.
        epochs: With the trunk, whose network takes several times as long.
        freely: Options of the training from the checkpoint.
        from_trunk: Options of that from the trunk.
        shares: Of the heads, for the learning curve.
    """

    size: int = 128
    large: int = 160
    folds: int = 3
    epochs: int = 10
    freely: tuple[str, ...] = (
        *("--schedule", "cosine", "--ema", "0.999"),
        *("--precision", "mixed_bfloat16", "--epochs", "20"),
    )
    from_trunk: tuple[str, ...] = ("--encoder", "vgg16", "--encoder-rate-factor", "1")
    shares: tuple[float, ...] = (0.1, 0.25, 0.5)

    @property
    def trials(self) -> list[Trial]:
        """The recipes: all from the checkpoint at 1e-3, and two-stage where the VGG16 trunk is installed."""
        found = [Trial(many(size), "aggressive", "1e-3", extra=self.freely) for size in (self.size, self.large)]
        trunk = vgg16_trunk()
        if trunk is not None:
            extra = (*self.from_trunk, "--epochs", str(self.epochs))
            found.append(Trial(many(self.size), "two-stage", extra=extra, trunk=trunk))
        return found

    def others(self, knows: KnowsPlan) -> list[Other]:
        """The training of `knows` with fewer heads, with two annotators' masks, and from the trunk."""
        found = [
            Other(
                f"{knows.others}-{share:.0%}".rstrip("%"), (*PRETRAINED, "--epochs", str(_epochs(share))), share=share
            )
            for share in self.shares
        ]
        found.append(Other(f"{knows.others}-both", (*PRETRAINED, "--epochs", str(EPOCHS // 2 + 1)), both=True))
        for trial in self.trials:
            if trial.trunk is not None:
                words = ("--encoder-weights", trial.trunk, "--strategy", trial.strategy, *trial.extra)
                found.append(Other(f"{knows.others}-vgg16", words))
        return found


@dataclass(frozen=True, slots=True)
class Other:
    """A training on the heads that trained the checkpoint of `knows`.

    Attributes:
        name: Run, and shards if the slices are others.
        options: Of the training.
        share: Of the heads.
        both: Whether each slice occurs twice, with either annotator's mask.
    """

    name: str
    options: tuple[str, ...]
    share: float = 1
    both: bool = False


def train_best(shop: Workshop, plan: BestPlan) -> None:
    """Cross-validate each recipe; evaluate every fold on what it held out, and the ensemble on the test split."""
    for trial in plan.trials:
        root = shop.cross_validate(trial, plan.folds)
        for name, split in (*((f"fold-{n + 1}", "val") for n in range(plan.folds)), ("ensemble", "test")):
            shop.once(
                f"runs/{root.name}/{name}/evaluation/{split}/metrics.json",
                *("evaluate", f"runs/{root.name}/{name}", "--split", "validation" if split == "val" else split),
                *("--threshold", "auto" if split == "test" else "0.5", "--flip-average", "--no-speed", "--quiet"),
                *_second(shop),
            )


def train_otherwise(shop: Workshop, plan: BestPlan, knows: KnowsPlan) -> None:
    """Train on fewer heads, on two annotators' masks and from the trunk; evaluate on the heads that are unseen."""
    source, seen, second = shop.data / "figshare-png", shop.data / "figshare-mat", shop.data / ANNOTATIONS
    for other in plan.others(knows):
        if other.both and not second.exists():
            continue
        shards = _shards(other, knows)
        if shards == other.name:
            inputs = shop.folder / f"{shards}-slices"
            if other.both:
                both_annotators(shop.folder / "other-heads", second, inputs)
            else:
                other_heads(source, seen, inputs, other.share)
            words = ("prepare", inputs.name, "--size", str(knows.size), "--split", "90/10/0", "--out", shards)
            shop.once(f"{shards}/manifest.json", *words)
        shop.train_run(other.name, "--shards", shards, *other.options)
        if not _evaluations(shop, other.name, knows):
            words = ("--shards", knows.shards("same"), "--threshold", "0.5", "--no-speed", "--quiet")
            shop.command("evaluate", f"runs/{other.name}", *words, *_second(shop))


def collect_best(shop: Workshop, plan: BestPlan) -> tuple[Best, ...]:
    """The figures of the recipes whose ensembles have been evaluated."""
    return tuple(found for trial in plan.trials if (found := _best(shop, trial)) is not None)


def _best(shop: Workshop, trial: Trial) -> Best | None:
    root = shop.cross_root(trial)
    test = judged(root / "ensemble", "test")
    if test is None:
        return None
    folds = sorted(root.glob("fold-*"))
    histories = [read_history(RunDirectory(fold).history_file) for fold in folds]
    readers = [read_evaluation(fold / "evaluation" / "val" / "metrics.json").second_reader for fold in folds]
    machine = describe()
    return Best(
        machine=f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU",
        date=read_cross_validation(root).created[:10],
        size=trial.data.size,
        counts=counts(shop.folder / trial.data.name),
        folds=len(folds),
        epochs=max(sum(row.epoch > 0 for row in history) for history in histories),
        minutes=math.fsum(row.seconds for history in histories for row in history) / 60,
        crossed=of_cross_validation(root, trial),
        test=test,
        annotators=_pooled([reader for reader in readers if reader is not None]),
        on_test=read_evaluation(root / "ensemble" / "evaluation" / "test" / "metrics.json").second_reader,
    )


def collect_judgements(shop: Workshop, plan: BestPlan, knows: KnowsPlan) -> tuple[Judgement, ...]:
    """What other trainings of the same network reach on the unseen heads, those that have been evaluated."""
    found = []
    for other in (*plan.others(knows), Other(knows.run, ())):
        evaluations = _evaluations(shop, other.name, knows)
        if not evaluations:
            continue
        evaluation = read_evaluation(evaluations[-1])
        stage = evaluation.model.stages[0]
        trained = counts(shop.folder / _shards(other, knows))["train"]
        history = read_history(RunDirectory(shop.folder / "runs" / other.name).history_file)
        found.append(
            Judgement(
                name=other.name.removeprefix(f"{knows.others}-"),
                slices=sum(slices for slices, _ in trained.values()),
                heads=sum(heads for _, heads in trained.values()),
                epochs=sum(row.epoch > 0 for row in history),
                minutes=math.fsum(row.seconds for row in history) / 60,
                all=stage.all.measures["dice"],
                classes={label: figures.measures["dice"] for label, figures in stage.classes.items()},
                annotators=evaluation.second_reader,
            )
        )
    return tuple(found)


def _epochs(share: float) -> int:
    """More epochs the fewer slices: a tenth of the slices gets a third of the steps."""
    return round(EPOCHS / math.sqrt(share))


def _shards(other: Other, knows: KnowsPlan) -> str:
    return other.name if other.both or other.share < 1 else knows.others


def _second(shop: Workshop) -> list[str]:
    masks = shop.data / ANNOTATIONS
    return ["--reference-2", str(masks)] if masks.exists() else []


def _evaluations(shop: Workshop, name: str, knows: KnowsPlan) -> list[Path]:
    folder = shop.folder / "runs" / name / "evaluation"
    return sorted(folder.glob(f"all-{knows.shards('same')}-*/metrics.json"))


def _pooled(readers: list[SecondReader]) -> dict[str, tuple[float, float, float]]:
    """Class -> (agreement of the annotators, network and first, network and second) over the slices of all folds."""
    found = {}
    for label in readers[0].agreement_classes if readers else ():
        pairs = [
            (r.agreement_classes[label], r.network_classes[label], r.network_second_classes[label]) for r in readers
        ]
        weights = [one.slices for one, _, _ in pairs]
        first, second, third = (
            float(np.average([pair[place].mean or 0.0 for pair in pairs], weights=weights)) for place in range(3)
        )
        found[label] = (first, second, third)
    return found
