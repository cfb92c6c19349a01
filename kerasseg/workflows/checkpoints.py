"""Measure which network is the best one to start from: untouched, on the validation split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg.catalogue import STARTING_POINTS, settings_for
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance, public_name
from kerasseg.data.batches import EvaluationBatches
from kerasseg.evaluation.bootstrap import Interval, bootstrap_interval, paired_interval
from kerasseg.evaluation.overlap import dice
from kerasseg.evaluation.predictions import predict_batch
from kerasseg.models.adapt import fit_to_task
from kerasseg.training.data import no_tumour
from kerasseg.training.diagnostics import check_intensity
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.text import Progress, count

_FRESH_DECODER = "its decoder has fresh weights, so there is nothing to measure before training"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An untouched network and its validation Dice at threshold 0.5 and the network's resolution.

    Attributes:
        name: What `kerasseg train --checkpoint` takes.
        source: Where it came from.
        dice: Mean over all validation slices.
        tumour: Mean over slices with tumour in mask or prediction.
        behind: How far the best candidate is above it on the same slices; None for the best one.
    """

    name: str
    source: str
    dice: Interval
    tumour: Interval
    behind: Interval | None


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A candidate that could not be measured.

    Attributes:
        name: As it was given.
        reason: In one sentence.
        asked: Whether the user named it, so that this counts as a failure.
    """

    name: str
    reason: str
    asked: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, the best one first."""

    candidates: tuple[Candidate, ...]
    unmeasured: tuple[Unmeasured, ...]
    slices: int
    patients: int

    @property
    def verdict(self) -> str:
        """What the figures allow to say, in one or two sentences."""
        if not self.candidates:
            return "No candidate could be measured."
        best, *others = self.candidates
        if best.dice.few:
            return f"{count(self.patients, 'patient')}: too few for a conclusion."
        if not others:
            return f"{best.name} is the only candidate that could be measured."
        behind = others[0].behind
        if behind is not None and behind.above_zero:
            return f"{best.name} is the best start: {behind.estimate:.3f} above {others[0].name} ({_reach(behind)})."
        close = [other.name for other in others if other.behind is None or not other.behind.above_zero]
        return f"No clear difference between {best.name} and {', '.join(close)} over {count(self.patients, 'patient')}."

    def to_json(self) -> dict[str, Any]:
        """The ranking as JSON values; limits of intervals are null where there are too few patients."""
        return {
            "slices": self.slices,
            "patients": self.patients,
            "verdict": self.verdict,
            "candidates": [
                {
                    "name": c.name,
                    "source": public_name(c.source),
                    "dice": _json(c.dice),
                    "dice_tumour_slices": _json(c.tumour),
                    "behind": None if c.behind is None else {**_json(c.behind), "clear": c.behind.clear},
                }
                for c in self.candidates
            ],
            "unmeasured": [{"name": u.name, "reason": u.reason} for u in self.unmeasured],
        }


def rank_checkpoints(
    shards: Path | str, checkpoints: Sequence[str] = (), *, batch_size: int = 8, progress: Progress | None = None
) -> Ranking:
    """Run candidates untouched on the validation split, and rank them by mean Dice.

    The networks are fitted to the shards as training would fit them. A candidate that cannot be opened, or whose decoder
    or head would start with fresh weights, is listed with the reason and costs the others nothing.

    Args:
        shards: A shard directory. Its test split is not read.
        checkpoints: Names of `kerasseg checkpoints`, files, folders or addresses; empty for the whole list and the one
            that `KERASSEG_CHECKPOINT` names.
        batch_size: Slices at once.
        progress: Called with a candidate's name, batches done, and batches in all.
    """
    data = EvaluationBatches(shards, "val", batch_size=batch_size, cache="memory")
    if not data.slices.with_tumour().any():
        raise no_tumour(str(shards))
    groups = np.array([data.records.record(number).group for number in range(len(data.slices))])
    own = os.environ.get("KERASSEG_CHECKPOINT")
    names = list(dict.fromkeys(checkpoints or [*([own] if own else []), *(point.name for point in STARTING_POINTS)]))
    scores: dict[str, tuple[str, NDArray[np.float64], NDArray[np.bool_]]] = {}
    unmeasured = []
    for name in names:
        try:
            scores[name] = _measured(name, data, progress)
        except KerassegError as error:
            # The list of what works offline is for training, not for each line of this table.
            unmeasured.append(Unmeasured(name, _reason(error), asked=name in checkpoints))
    order = sorted(scores, key=lambda name: -scores[name][1].mean())
    candidates = []
    for name in order:
        source, values, counted = scores[name]
        behind = None if name == order[0] else paired_interval(values, scores[order[0]][1], groups).cut(-1.0, 1.0)
        tumour = bootstrap_interval(values[counted], groups[counted]).cut(0.0, 1.0)
        everything = bootstrap_interval(values, groups).cut(0.0, 1.0)
        candidates.append(Candidate(name, source, everything, tumour, behind))
    patients = bootstrap_interval(np.zeros(len(groups)), groups).groups
    return Ranking(tuple(candidates), tuple(unmeasured), len(groups), patients)


def _measured(
    name: str, data: EvaluationBatches, progress: Progress | None
) -> tuple[str, NDArray[np.float64], NDArray[np.bool_]]:
    """Source, Dice of each slice, and whether mask or prediction holds tumour."""
    source = settings_for(name)["checkpoint"]
    if source is None:
        raise KerassegError(_FRESH_DECODER)
    manifest = data.manifest
    model = open_checkpoint(source)
    record = provenance(model)
    check_intensity(manifest.intensity, None if record is None else record.intensity, checkpoint=name)
    fitted = fit_to_task(model, size=manifest.size, channels=manifest.channels, head="auto", seed=0)
    if fitted.fresh_head:
        raise KerassegError("its last layer would be replaced by a fresh one, so there is nothing to measure")
    values, counted = [], []
    for step in range(data.steps):
        batch = data.batch(step)
        images = np.repeat(batch.image, fitted.repeat_channels, axis=3)
        found = predict_batch(fitted.model, images) >= 0.5
        truth = batch.mask[..., 0] > 0
        values.append(np.atleast_1d(dice(found, truth)))
        counted.append((found | truth).any(axis=(1, 2)))
        if progress is not None:
            progress(name, step + 1, data.steps)
    return source, np.concatenate(values), np.concatenate(counted)


def _reason(error: KerassegError) -> str:
    return error.what + (f" ({error.found})" if error.found else "")


def _reach(interval: Interval) -> str:
    return (
        f"{100 * interval.confidence:g} % CI {interval.low:.3f} to {interval.high:.3f}, "
        f"{count(interval.groups, 'patient')}"
    )


def _json(interval: Interval) -> dict[str, Any]:
    limits = (None, None) if interval.few else (interval.low, interval.high)
    return {"mean": interval.estimate if interval.slices else None, "low": limits[0], "high": limits[1]}
