"""Train, tune and evaluate on real data with the commands a user would type, and write docs/results.md.

    python -m benchmarks.real [--part PART ...] [--data DIR] [--checkpoint FILE] [--work DIR] [--quick]

`knows`: a checkpoint trained on the other heads of the data set; every strategy on 34 heads that it has never seen.
`best`: the best recipes on 2,271 slices and against two annotators; fewer heads, and both annotators' masks in training.
`few`: 308 slices at 128x128; every strategy; three seeds for the best two, the recipe and scratch; cross-validations.
`many`: 2,271 slices at 128x128; the recipe, scratch and the best of `few`; the scores of a slice-wise split.
`long`: scratch, the recipe and the best of `many` at 256x256: 1 to 8 minutes per epoch on 2 cores.
`page`: test figures, pictures and the page, from the existing runs.
The command can be stopped at any time; run again, it skips finished work. Figures from an earlier work folder are kept
where machine, software, checkpoint and slices are the same. Everything is chosen on validation; the test split is opened
last, once per network.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.machine import describe
from benchmarks.measure import ROOT
from benchmarks.real import figures as read
from benchmarks.real.best import BestPlan, collect_best, collect_judgements, train_best, train_otherwise
from benchmarks.real.keeping import joined, read_earlier, same_ground, with_earlier
from benchmarks.real.knows import KnowsPlan, best_trial, collect_knows, finished_folds, train_knows
from benchmarks.real.page import pictured, write_page
from benchmarks.real.pictures import draw_before_after, draw_curves, draw_examples
from benchmarks.real.plan import Trial, leaking, long, quicker, trials_on_few, trials_on_many
from benchmarks.real.workshop import Workshop
from kerasseg_tfrecords.errors import KerassegError

PARTS = ("knows", "best", "few", "many", "long", "page")
SOFTWARE = ("tensorflow", "keras", "numpy", "opencv-python-headless")


@dataclass(frozen=True, slots=True)
class Effort:
    """Amount of work.

    Attributes:
        small, large: Slice sizes in pixels.
        seeds: The first is used by all trainings; the others by the best two, the recipe and scratch.
        folds: Folds per cross-validation.
        trials: Maximum trainings per data set.
        options: Options of every training.
        knows: What a checkpoint that knows the task is tried with.
        best: The best recipes, and other slices and masks.
    """

    small: int = 128
    large: int = 256
    seeds: tuple[int, ...] = (42, 1, 2)
    folds: int = 5
    trials: int | None = None
    options: tuple[str, ...] = ()
    knows: KnowsPlan = field(default_factory=KnowsPlan)
    best: BestPlan = field(default_factory=BestPlan)


QUICK = Effort(64, 80, (42, 1), 2, 3, ("--epochs", "2", "--steps", "1"), KnowsPlan(folds=2), BestPlan(64, 80, folds=2))


@dataclass(frozen=True, slots=True)
class Job:
    """Planned trainings.

    Attributes:
        shop: Folder in which commands run.
        effort: Amount of work.
        earlier: Figures of the current page.
    """

    shop: Workshop
    effort: Effort
    earlier: read.Figures | None

    def best_tuned(self, trials: Sequence[Trial]) -> list[Trial]:
        """Fine-tunings by validation Dice, best first, from their runs or the page."""
        known = {} if self.earlier is None else {trial.name: trial.best for trial in self.earlier.trials}
        for trial in trials:
            if self.shop.done(trial):
                known[trial.name] = read.of_trial(self.shop.run(trial), trial).best
        tuned = [trial for trial in trials if trial.strategy != "scratch" and trial.name in known]
        return sorted(tuned, key=lambda trial: -known[trial.name])

    def on_many(self) -> list[Trial]:
        """Trainings on the large set."""
        best = self.best_tuned(trials_on_few(self.effort.small))
        if not best:
            sys.exit("The part `few` comes first: what does best there is tried on the large set.")
        return trials_on_many(self.effort.small, best[0])

    def leaking(self) -> list[Trial]:
        """The recipe and the best of the large set, on the slice-wise split."""
        return leaking([trial for trial in self.on_many() if trial.strategy != "scratch"], self.effort.small)

    def at_length(self) -> list[Trial]:
        """Scratch, the recipe and the best of the large set, at the large size."""
        scratch, recipe, *_ = trials = self.on_many()
        chosen = dict.fromkeys((scratch, quicker(recipe), *self.best_tuned(trials)[:1]))
        return [long(trial, self.effort.large) for trial in chosen]

    def planned(self) -> list[Trial]:
        """All trainings of the page, in its order."""
        on_few = [trial.with_seed(seed) for trial in trials_on_few(self.effort.small) for seed in self.effort.seeds]
        return [*on_few, *self.on_many(), *self.leaking(), *self.at_length()]


def train_on_unseen_heads(job: Job) -> None:
    """A checkpoint that knows the task, and every strategy from there."""
    train_knows(job.shop, job.effort.knows)


def train_on_all(job: Job) -> None:
    """The best recipes on all slices, fewer heads, and two annotators."""
    if not (job.shop.folder / job.effort.knows.shards("same") / "manifest.json").exists():
        sys.exit("The part `knows` comes first: its heads judge the trainings of this one.")
    train_best(job.shop, job.effort.best)
    train_otherwise(job.shop, job.effort.best, job.effort.knows)


def train_few(job: Job) -> None:
    """Train all strategies and rates, and further seeds; cross-validate."""
    trials = trials_on_few(job.effort.small)[: job.effort.trials]
    for trial in trials:
        job.shop.train(trial)
    scratch, recipe = trials[0], trials[1]
    best = job.best_tuned(trials)[:2]
    compared = list(dict.fromkeys((scratch, recipe, *best)))
    for trial, seed in itertools.product(compared, job.effort.seeds[1:]):
        job.shop.train(trial.with_seed(seed))
    for trial in compared[:3]:
        job.shop.cross_validate(trial, job.effort.folds)


def train_many(job: Job) -> None:
    """Train the recipe, scratch and the best of `few`, and on the slice-wise split."""
    for trial in (*job.on_many(), *job.leaking()):
        job.shop.train(trial)


def train_long(job: Job) -> None:
    """Train scratch, the recipe and the best of `many` at the large size."""
    if not job.best_tuned(job.on_many()):
        sys.exit("The part `many` comes first: what does best there is trained at the large size.")
    for trial in job.at_length():
        job.shop.train(trial)


def nothing_yet(checkpoint: Path, *, quick: bool) -> read.Figures:
    """A document without figures: machine, software, checkpoint and slices."""
    machine = describe()
    return read.Figures(
        machine=f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU used",
        software={name: importlib.metadata.version(name) for name in SOFTWARE},
        dates=(datetime.datetime.now(datetime.UTC).date().isoformat(),),
        quick=quick,
        checkpoint=checkpoint.name,
    )


def collect(job: Job) -> read.Figures:
    """Collect the figures of all finished trainings; opens the test split."""
    shop = job.shop
    planned = job.planned()
    trials = [trial for trial in planned if shop.done(trial)]
    if not trials:
        if job.earlier is None:
            sys.exit(f"No training has finished in {shop.folder}: nothing to report.")
        return job.earlier
    for trial, split in itertools.product(trials, ("validation", "test")):
        shop.judge(trial, split)
    crossed = [trial for trial in trials_on_few(job.effort.small) if shop.crossed(trial)]
    roots = [shop.cross_validate(trial, job.effort.folds) for trial in crossed]
    compared = [
        _compare("folds", crossed[0], trial, read.out_of_fold(roots[0]), read.out_of_fold(root))
        for trial, root in zip(crossed[1:], roots[1:], strict=True)
    ]
    for group in (job.on_many(), job.at_length()):
        done = [trial for trial in group if shop.done(trial)]
        if done and done[0].strategy == "scratch":
            first = read.on_test(shop.run(done[0]))
            compared += [_compare("test", done[0], t, first, read.on_test(shop.run(t))) for t in done[1:]]
    sets = {trial.data.name: shop.folder / trial.data.name for trial in trials}
    found = nothing_yet(shop.checkpoint, quick=job.effort == QUICK).model_copy(
        update={
            "counts": {name: read.counts(shards) for name, shards in sets.items()},
            "trials": tuple(read.of_trial(shop.run(trial), trial) for trial in trials),
            "crossed": tuple(read.of_cross_validation(root, trial) for trial, root in zip(crossed, roots, strict=True)),
            "compared": tuple(compared),
            "looks": {name: read.looks(shards) for name, shards in sets.items()},
        }
    )
    return found if job.earlier is None else with_earlier(found, job.earlier, [trial.name for trial in planned])


def _compare(
    split: Literal["folds", "test"], first: Trial, second: Trial, one: read.DiceBySlice, other: read.DiceBySlice
) -> read.Paired:
    return read.Paired(
        data=first.data.name,
        split=split,
        first=first.label,
        second=second.label,
        difference=read.difference(one, other),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("KERASSEG_REAL_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--part", choices=PARTS, action="append", help="several times; all")
    parser.add_argument("--data", type=Path, default=data, help="folder with figshare-mat and figshare-png")
    parser.add_argument("--checkpoint", type=Path, help="DATA/checkpoints/unet-lgg-savedmodel")
    parser.add_argument("--work", type=Path, default=ROOT / "results", help="shards and runs")
    parser.add_argument("--quick", action="store_true", help="tries the machinery: two steps of training")
    asked = parser.parse_args()
    checkpoint = asked.checkpoint or asked.data / "checkpoints" / read.CHECKPOINT
    effort = QUICK if asked.quick else Effort()
    work = asked.work.with_name(f"{asked.work.name}-quick") if asked.quick else asked.work
    shop = Workshop(work, asked.data.resolve(), checkpoint.resolve(), effort.options)
    pages, documents = (work, work) if asked.quick else (ROOT / "docs", ROOT / "benchmarks")
    document = documents / "real.json"
    earlier = read_earlier(document)
    if earlier is None and document.exists():
        print(f"{document} has an unknown format: its figures are dropped.", flush=True)
    known = earlier or nothing_yet(shop.checkpoint, quick=asked.quick)
    trained = any(shop.folder.glob("runs/mat*")) or any(shop.folder.glob("runs/both*"))
    if earlier is not None and trained and not same_ground(nothing_yet(shop.checkpoint, quick=asked.quick), earlier):
        print(
            "The page that is there has another machine, software or checkpoint: its figures are not kept.", flush=True
        )
        earlier = None
    job = Job(shop, effort, earlier)
    parts = asked.part or PARTS
    actions = (train_on_unseen_heads, train_on_all, train_few, train_many, train_long)
    for part, action in zip(PARTS, actions, strict=False):
        if part in parts:
            action(job)
    if "page" in parts:
        own = {  # with machines of their own
            "knows": collect_knows(shop, effort.knows) or known.knows,
            "best": joined(known.best, collect_best(shop, effort.best), lambda b: (b.crossed.label, b.size)),
            "judgements": joined(
                known.judgements, collect_judgements(shop, effort.best, effort.knows), lambda j: j.name
            ),
        }
        found = collect(job).model_copy(update=own)
        try:
            # If the run is not in this folder, the old picture stays.
            if (shown := pictured(found)) is not None and (shop.folder / "runs" / shown.name).exists():
                draw_examples(shop, shown, pages / "images")
            if (best := best_trial(shop, effort.knows, "shifted")) is not None:
                draw_before_after(shop.folder / "another-scanner", finished_folds(shop, best), pages / "images")
            draw_curves(found, pages / "images")
            write_page(found, pages / "results.md", document)
        except (KerassegError, OSError) as error:
            sys.exit(f"{error}\nThe runs are kept; `--part page` writes the page from them.")
        print(pages / "results.md")


if __name__ == "__main__":
    main()
