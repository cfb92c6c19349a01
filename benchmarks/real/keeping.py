"""Merge new figures with those of the page: runs take hours, and earlier ones may have been deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pydantic

from benchmarks.real.figures import Figures

__all__ = ["joined", "read_earlier", "same_ground", "with_earlier"]

T = TypeVar("T")


def read_earlier(document: Path) -> Figures | None:
    """Read the document; None if missing or in an unknown format."""
    try:
        return Figures.model_validate_json(document.read_text())
    except (OSError, pydantic.ValidationError):
        return None


def with_earlier(found: Figures, earlier: Figures, names: Sequence[str]) -> Figures:
    """Merge new figures with earlier ones; new ones win.

    Args:
        found: New figures.
        earlier: Ignored unless `same_ground`.
        names: All planned trainings in order; others are left out.
    """
    if not same_ground(found, earlier):
        return found
    new = {trial.name for trial in found.trials}
    kept = [trial for trial in earlier.trials if trial.name not in new and trial.name in names]
    sets = [trial.data for trial in sorted([*kept, *found.trials], key=lambda trial: names.index(trial.name))]
    merged = found.model_copy(
        update={
            "dates": tuple(sorted({*earlier.dates, *found.dates})),
            "counts": {data: (found.counts.get(data) or earlier.counts[data]) for data in dict.fromkeys(sets)},
            "trials": tuple(sorted([*kept, *found.trials], key=lambda trial: names.index(trial.name))),
            "crossed": joined(earlier.crossed, found.crossed, lambda c: (c.data, c.label)),
            "compared": joined(earlier.compared, found.compared, lambda p: (p.data, p.split, p.first, p.second)),
            "looks": {
                # An earlier folder counted only its own.
                data: tuple(dict.fromkeys((*earlier.looks.get(data, ()), *found.looks.get(data, ()))))
                for data in dict.fromkeys(sets)
            },
        }
    )
    # Days without new figures are not listed.
    return earlier if merged.model_copy(update={"dates": earlier.dates}) == earlier else merged


def same_ground(found: Figures, earlier: Figures) -> bool:
    """Whether figures are comparable: same machine, software, effort, checkpoint and slices."""
    one, other = ((f.machine, f.software, f.quick, f.checkpoint) for f in (found, earlier))
    shared = found.counts.keys() & earlier.counts.keys()
    return one == other and all(found.counts[data] == earlier.counts[data] for data in shared)


def joined(earlier: Sequence[T], found: Sequence[T], key: Callable[[T], object]) -> tuple[T, ...]:
    """Earlier ones, replaced where found again, followed by new ones."""
    by_key = {key(one): one for one in earlier} | {key(one): one for one in found}
    return tuple(by_key.values())
