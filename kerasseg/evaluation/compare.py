"""Compare two evaluated runs on the same slices: which is better, in what, and where they differ most.

Differences are paired, slice by slice, because two separate intervals would hide most of them. They are computed from the
files that `kerasseg evaluate` wrote to each run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from kerasseg.evaluation.bootstrap import FEWEST_PATIENTS, paired_interval
from kerasseg.evaluation.figures import Resampling, as_mean, clusters
from kerasseg.evaluation.per_slice import SliceRow, read_csv
from kerasseg.evaluation.schema import Evaluation, Mean, StageName, read_evaluation
from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import load_manifest
from kerasseg_tfrecords.text import count

TIE = 0.0005
"""Dice values that differ less are a tie."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Difference(_Model):
    """Two runs on one set of slices: all, or one class.

    Attributes:
        first, second: Mean Dice of each run.
        dice: Paired difference of Dice, second minus first; above 0 the second is better.
        hd95: Paired difference of HD95 in pixels, over slices where both have one; below 0 the second is better.
        hd95_mm: The same in millimetres, over slices whose spacing is known.
        wins, losses, ties: Slices where the second is better, worse, or equal (see `TIE`).
        missed_first, missed_second: Tumours without any predicted pixel.
    """

    first: Mean
    second: Mean
    dice: Mean
    hd95: Mean
    hd95_mm: Mean
    wins: int
    losses: int
    ties: int
    missed_first: int
    missed_second: int

    @property
    def in_mm(self) -> bool:
        """Whether HD95 can be shown in millimetres, because the spacing of all its slices is known."""
        return 0 < self.hd95_mm.slices == self.hd95.slices


class Change(_Model):
    """One slice: Dice of both runs."""

    slice_id: str
    label: str
    first: float
    second: float

    @property
    def dice(self) -> float:
        """Change in Dice; above 0 the second run is better."""
        return self.second - self.first


class Comparison(_Model):
    """The whole comparison, as printed by `--json`.

    Attributes:
        first, second: Names of the runs.
        split: Split that both were evaluated on.
        resolution: Resolution of the figures.
        stages: Final stage of each run, which is compared.
        confidence: Confidence level of the intervals.
        all: Difference over all slices.
        classes: Class -> difference.
        changed: Slices that changed most, the largest change first.
        remarks: Sentences to show.
        with_tumour: Slices with a tumour in the reference; None if unknown.
    """

    first: str
    second: str
    split: str
    resolution: Literal["native", "model"]
    stages: tuple[StageName, StageName]
    confidence: float
    all: Difference
    classes: dict[str, Difference]
    changed: tuple[Change, ...]
    remarks: tuple[str, ...] = ()
    with_tumour: int | None = None

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        gain = self.all.dice
        if self.with_tumour == 0:
            return "No slice has a tumour: there is no verdict."
        if gain.mean is None or gain.low is None or gain.high is None or gain.patients < FEWEST_PATIENTS:
            found = "" if gain.mean is None else f" ({gain.mean:+.3f} Dice)"
            return f"{count(gain.patients, 'patient')}: too few for a conclusion{found}."
        interval = f"{gain.mean:+.3f} Dice, {100 * self.confidence:g} % interval {gain.low:+.3f} to {gain.high:+.3f}"
        if not gain.is_clear:
            return f"The difference may be chance: {interval}."
        return f"{self.second} is {'better' if gain.mean > 0 else 'worse'} than {self.first}: {interval}."


class Evaluated(_Model):
    """The files of an evaluation."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    run: Path
    figures: Evaluation
    rows: tuple[SliceRow, ...]

    def shards(self) -> Path:
        """Return the evaluated shard directory, as named by the evaluation or the run's configuration."""
        candidates = [Path(self.figures.shards)]
        with contextlib.suppress(KerassegError):
            trained_on = Path(RunDirectory(self.run).config().settings.shards)
            candidates += [trained_on, trained_on.parent / self.figures.shards]
        for folder in candidates:
            with contextlib.suppress(KerassegError):
                if load_manifest(folder).fingerprint == self.figures.data.fingerprint:
                    return folder
        raise DataError("the evaluated shards were not found", path=self.figures.shards)

    def scores(self, slice_id: str) -> SliceRow:
        """Return the row of a slice."""
        return next(row for row in self.rows if row.slice_id == slice_id)


def evaluated(run: RunDirectory, split: str = "test") -> Evaluated:
    """Read the evaluation of a run.

    Args:
        run: The run.
        split: "test", "val" (or "validation"), "train", or "all" for another shard directory (if there are several, the
            name of its folder in the run's `evaluation/`).
    """
    name = "val" if split == "validation" else split
    there = sorted(path.parent for path in (run.root / "evaluation").glob("*/metrics.json"))
    # Evaluations of other shard directories have folders with this prefix.
    meant = [path for path in there if path.name == name or (name == "all" and path.name.startswith("all-"))]
    if len(meant) > 1:
        raise UsageError(
            "the run was evaluated on several other shard directories",
            path=run.root,
            found=", ".join(path.name for path in meant),
            remedy="Name one: --split " + meant[0].name,
        )
    if not meant:
        word = "validation" if name == "val" else name
        asked = "--shards OTHER" if name.startswith("all") else f"--split {word}"
        raise DataError(
            f"the run was not evaluated on {'other' if name.startswith('all') else f'its {word}'} slices",
            path=run.root,
            found=f"figures of {', '.join(path.name for path in there)}" if there else None,
            remedy=f"Evaluate it: kerasseg evaluate {run.root} {asked}",
        )
    (folder,) = meant
    figures = read_evaluation(folder / "metrics.json")
    return Evaluated(run=run.root, figures=figures, rows=tuple(read_csv(folder / "per_slice.csv")))


def compare(first: Evaluated, second: Evaluated, *, most: int = 8) -> Comparison:
    """Compare two evaluations slice by slice.

    Slices that only one of them has are left out, with a remark. Slices are the same if id, class, size and reference are.

    Example:
        >>> runs = [RunDirectory.find(name) for name in ("a", "b")]  # doctest: +SKIP
        >>> print(compare(*map(evaluated, runs)).verdict)  # doctest: +SKIP
        b is better than a: +0.021 Dice, 95 % interval +0.008 to +0.035.
    """
    a, b = first.figures, second.figures
    if a.resolution != b.resolution:
        raise UsageError(
            "the runs were evaluated at different resolutions",
            found=f"{a.resolution} and {b.resolution}",
            remedy="Evaluate one of them again with the other's --resolution.",
        )
    before, after = _common(first, second)
    stages = a.final, b.final
    names = _names(first.run, second.run)
    classes = [name for name in (*a.classes, *b.classes) if any(row.label == name for row in before)]
    pairs = list(zip(before, after, strict=True))
    changes = [
        Change(slice_id=x.slice_id, label=x.label, first=x.stage(stages[0]).dice, second=y.stage(stages[1]).dice)
        for x, y in pairs
    ]
    changed = sorted((c for c in changes if abs(c.dice) >= TIE), key=lambda c: (-abs(c.dice), c.slice_id))
    return Comparison(
        first=names[0],
        second=names[1],
        split=a.split,
        resolution=a.resolution,
        stages=stages,
        confidence=a.confidence,
        all=_difference(pairs, stages, a.confidence),
        classes={
            name: _difference([pair for pair in pairs if pair[0].label == name], stages, a.confidence)
            for name in dict.fromkeys(classes)
        },
        changed=tuple(changed[:most]),
        remarks=_remarks(first, second, len(before)),
        with_tumour=sum(row.reference_pixels > 0 for row in before),
    )


def _common(first: Evaluated, second: Evaluated) -> tuple[list[SliceRow], list[SliceRow]]:
    others = {_identity(row): row for row in second.rows}
    before = [row for row in first.rows if _identity(row) in others]
    if not before:
        raise UsageError(
            "the runs have no slice in common",
            path=first.run,
            found=f"{len(first.rows)} slices of {first.figures.shards}, {len(second.rows)} of {second.figures.shards}",
            expected="the same slices",
            remedy="Evaluate both on the same shards: kerasseg evaluate RUN --shards SHARDS.",
        )
    return before, [others[_identity(row)] for row in before]


def _identity(row: SliceRow) -> tuple[str, str, int, int, int]:
    return row.slice_id, row.label, row.height, row.width, row.reference_pixels


def _difference(
    pairs: Sequence[tuple[SliceRow, SliceRow]], stages: tuple[StageName, StageName], confidence: float
) -> Difference:
    groups = clusters([x for x, _ in pairs])
    scores = [(x.stage(stages[0]), y.stage(stages[1])) for x, y in pairs]
    first, second = np.array([x.dice for x, _ in scores]), np.array([y.dice for _, y in scores])
    change, options = second - first, Resampling(confidence)

    def distance(name: Literal["hd95", "hd95_mm"]) -> Mean:
        before, after = [getattr(x, name) for x, _ in scores], [getattr(y, name) for _, y in scores]
        return as_mean(paired_interval(before, after, groups, confidence=confidence))

    return Difference(
        first=options.of(first, groups, 1.0),
        second=options.of(second, groups, 1.0),
        dice=options.paired(first, second, groups),
        hd95=distance("hd95"),
        hd95_mm=distance("hd95_mm"),
        wins=int((change >= TIE).sum()),
        losses=int((change <= -TIE).sum()),
        ties=int((np.abs(change) < TIE).sum()),
        missed_first=sum(x.missed(stages[0]) for x, _ in pairs),
        missed_second=sum(y.missed(stages[1]) for _, y in pairs),
    )


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return names that tell two runs apart."""
    a, b = first.resolve(), second.resolve()
    if a.name != b.name:
        return a.name, b.name
    return f"{a.parent.name}-{a.name}", f"{b.parent.name}-{b.name}"


def _remarks(first: Evaluated, second: Evaluated, common: int) -> tuple[str, ...]:
    a, b = first.figures, second.figures
    said = []
    if a.data.fingerprint != b.data.fingerprint:
        said.append("The runs were evaluated on different shard directories.")
    left = len(first.rows) - common, len(second.rows) - common
    if any(left):
        said.append(
            f"{common:,} slices are in both; {left[0]:,} of the first run and {left[1]:,} of the second are left out."
        )
    if a.final != b.final:
        said.append(
            f"The final stages differ ({a.final} and {b.final}): this compares rules as much as networks. "
            "Evaluate both with the same --threshold."
        )
    if a.split in ("train", "val"):
        said.append("Networks and rules were trained or chosen on these slices: the figures of both are too good.")
    if a.split == "test":
        said.append(
            "Choose between networks on validation slices: if test figures decide, the winner's figures are too good."
        )
    return tuple(said)
