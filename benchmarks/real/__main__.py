"""The job on real data, typed as a user would: trains, tunes, evaluates, and writes docs/results.md.

    python -m benchmarks.real [--part few|many|long|page ...] [--data DIR] [--checkpoint FILE] [--work DIR] [--quick]

`few`: 308 slices at 128x128; every strategy; three seeds of the best two, the recipe and scratch; cross-validations.
`many`: 2,271 slices at 128x128; the recipe, scratch and the best of `few`; what a slice-wise split would have claimed.
`long`: the best of `many` at 256x256, 5 to 8 minutes an epoch on 2 cores.
`page`: the figures on the test split, the pictures and the page, from the runs that are there.
What is done is not done again: the command can be stopped at any time and typed again. Everything is chosen on validation;
the test split is opened last, once for each network.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.machine import describe
from benchmarks.measure import ROOT
from benchmarks.real import figures as read
from benchmarks.real.page import pictured, write_page
from benchmarks.real.pictures import draw_examples
from benchmarks.real.plan import Trial, leaking, long, trials_on_few, trials_on_many
from benchmarks.real.workshop import Workshop

PARTS = ("few", "many", "long", "page")
SOFTWARE = ("tensorflow", "keras", "numpy", "opencv-python-headless")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done.

    Attributes:
        small, large: Pixels.
        seeds: The first is everybody's, the others are for the best two, the recipe and scratch.
        folds: Of the cross-validations.
        trials: Of those on each data set, so many.
        options: Of every training.
    """

    small: int = 128
    large: int = 256
    seeds: tuple[int, ...] = (42, 1, 2)
    folds: int = 5
    trials: int | None = None
    options: tuple[str, ...] = ()


QUICK = Effort(64, 80, (42, 1), 2, 3, ("--epochs", "2", "--steps", "1"))


def train_few(shop: Workshop, effort: Effort) -> None:
    """All strategies and rates; seeds of the best two, the recipe and scratch; the better of the two is crossed as well."""
    trials = trials_on_few(effort.small)[: effort.trials]
    for trial in trials:
        shop.train(trial)
    scratch, recipe = trials[0], trials[1]
    best = best_tuned(shop, trials)[:2]
    compared = list(dict.fromkeys((scratch, recipe, *best)))
    for trial, seed in itertools.product(compared, effort.seeds[1:]):
        shop.train(trial.with_seed(seed))
    for trial in compared[:3]:
        shop.cross_validate(trial, effort.folds)


def train_many(shop: Workshop, effort: Effort) -> None:
    """The recipe, scratch and the best of `few`; and the leak."""
    for trial in (*_on_many(shop, effort), leaking(effort.small)):
        shop.train(trial)


def train_long(shop: Workshop, effort: Effort) -> None:
    """The best of `many`, large."""
    shop.train(long(best_tuned(shop, _on_many(shop, effort))[0], effort.large))


def _on_many(shop: Workshop, effort: Effort) -> list[Trial]:
    best = best_tuned(shop, trials_on_few(effort.small))
    if not best:
        sys.exit("The part `few` comes first: what does best there is tried on the large set.")
    return trials_on_many(effort.small, best[0])


def best_tuned(shop: Workshop, trials: Sequence[Trial]) -> list[Trial]:
    """Fine-tunings by validation Dice, the best first."""
    tuned = [trial for trial in trials if trial.strategy != "scratch" and shop.done(trial)]
    return sorted(tuned, key=lambda trial: -read.of_trial(shop.run(trial), trial).best)


def collect(shop: Workshop, effort: Effort) -> read.Figures:
    """Figures of all that is trained; opens the test split for it."""
    small, large = effort.small, effort.large
    on_few = [trial.with_seed(seed) for trial in trials_on_few(small) for seed in effort.seeds]
    on_many = _on_many(shop, effort)
    trials = [t for t in (*on_few, *on_many, leaking(small), *(long(t, large) for t in on_many)) if shop.done(t)]
    for trial, split in itertools.product(trials, ("validation", "test")):
        shop.judge(trial, split)
    crossed = [trial for trial in trials_on_few(small) if shop.crossed(trial)]
    roots = [shop.cross_validate(trial, effort.folds) for trial in crossed]
    compared = [
        _compare("folds", crossed[0], trial, read.out_of_fold(roots[0]), read.out_of_fold(root))
        for trial, root in zip(crossed[1:], roots[1:], strict=True)
    ]
    done = [trial for trial in on_many if shop.done(trial)]
    compared += [
        _compare("test", done[0], trial, read.on_test(shop.run(done[0])), read.on_test(shop.run(trial)))
        for trial in done[1:]
    ]
    found = describe()
    sets = {trial.data.name: shop.folder / trial.data.name for trial in trials}
    return read.Figures(
        machine=f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB, no GPU used",
        software={name: importlib.metadata.version(name) for name in SOFTWARE},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        quick=effort == QUICK,
        counts={name: read.counts(shards) for name, shards in sets.items()},
        trials=tuple(read.of_trial(shop.run(trial), trial) for trial in trials),
        crossed=tuple(read.of_cross_validation(root, trial) for trial, root in zip(crossed, roots, strict=True)),
        compared=tuple(compared),
        looks={name: read.looks(shards) for name, shards in sets.items()},
    )


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
    checkpoint = asked.checkpoint or asked.data / "checkpoints" / "unet-lgg-savedmodel"
    effort = QUICK if asked.quick else Effort()
    work = asked.work.with_name(f"{asked.work.name}-quick") if asked.quick else asked.work
    shop = Workshop(work, asked.data.resolve(), checkpoint.resolve(), effort.options)
    parts = asked.part or PARTS
    for part, action in (("few", train_few), ("many", train_many), ("long", train_long)):
        if part in parts:
            action(shop, effort)
    if "page" in parts:
        found = collect(shop, effort)
        pages, documents = (work, work) if asked.quick else (ROOT / "docs", ROOT / "benchmarks")
        if (shown := pictured(found)) is not None:
            draw_examples(shop, shown, pages / "images")
        write_page(found, pages / "results.md", documents / "real.json")
        print(pages / "results.md")


if __name__ == "__main__":
    main()
