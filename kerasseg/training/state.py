"""Progress of a run: scores of every validation slice, and everything that resuming needs except the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kerasseg.callbacks import PlateauState
from kerasseg.runs.history import EpochRow, rows_from_json, rows_to_json

Score = Literal["loss", "dice", "soft_dice", "iou", "precision", "recall"]


@dataclass(frozen=True, slots=True, eq=False)
class SliceTable:
    """One row per slice.

    Attributes:
        slice: (slices,) int64 number within the split.
        label: (slices,) int64 class.
        loss: (slices,) float32 loss, without L2.
        dice, soft_dice, iou, precision, recall: (slices,) float32, as in `kerasseg.slice_scores`, at threshold 0.5 and
            the network's resolution.
        tumour: (slices,) float32, 1 if the mask or the prediction contains a tumour pixel.
    """

    slice: NDArray[np.int64]
    label: NDArray[np.int64]
    loss: NDArray[np.float32]
    dice: NDArray[np.float32]
    soft_dice: NDArray[np.float32]
    iou: NDArray[np.float32]
    precision: NDArray[np.float32]
    recall: NDArray[np.float32]
    tumour: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Iterable[SliceTable]) -> SliceTable:
        """Join tables in slice order, without padding (slice -1)."""
        tables = list(parts)
        columns = {f.name: np.concatenate([getattr(table, f.name) for table in tables]) for f in fields(cls)}
        order = np.argsort(columns["slice"], kind="stable")
        order = order[columns["slice"][order] >= 0]
        return cls(**{name: column[order] for name, column in columns.items()})

    def __len__(self) -> int:
        return len(self.slice)

    def mean(self, score: Score, *, subset: Literal["all", "tumour"] = "all", label: int | None = None) -> float:
        """Return the mean over slices; NaN if there are none.

        Args:
            score: Name of a column.
            subset: "tumour" leaves out slices where mask and prediction are both empty.
            label: Only slices of this class.
        """
        chosen = np.ones(len(self), bool) if label is None else self.label == label
        if subset == "tumour":
            chosen &= self.tumour > 0
        values = getattr(self, score)[chosen]
        # float64, so that the mean does not depend on how slices were batched.
        return float(values.astype(np.float64).mean()) if values.size else float("nan")

    def by_class(self, score: Score, classes: Sequence[str]) -> dict[str, float]:
        """Class name -> mean over its slices."""
        return {name: self.mean(score, label=i) for i, name in enumerate(classes)}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Column name -> column, for saving; `SliceTable(**arrays)` restores the table."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_FIRST, _BEST, _LAST, _BASE = "first/", "best/", "last/", "base/"


@dataclass(frozen=True, slots=True)
class EpochSums:
    """Sums over the training steps of the current epoch."""

    steps: int = 0
    loss: float = 0.0
    dice: float = 0.0
    slices: int = 0
    seconds: float = 0.0

    def with_step(self, loss: float, dice: NDArray[np.float32], seconds: float) -> EpochSums:
        total = self.dice + float(dice.astype(np.float64).sum())
        return EpochSums(self.steps + 1, self.loss + loss, total, self.slices + len(dice), self.seconds + seconds)

    @property
    def mean_loss(self) -> float:
        """Mean loss over steps; NaN before the first."""
        return self.loss / self.steps if self.steps else float("nan")

    @property
    def mean_dice(self) -> float:
        """Mean Dice over slices; NaN before the first."""
        return self.dice / self.slices if self.slices else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """Progress of a run; immutable.

    Attributes:
        phase: Index of the current phase.
        epoch: Completed epochs of the phase, validation included.
        sums: Sums of the current epoch.
        plateau: State of the schedule; None before the phase's first epoch.
        parts: Number of parts that a batch is divided into for lack of memory.
        history: Rows so far.
        best: (phase, epoch) of the best weights so far; (0, 0) is the untouched network.
        first_table: Validation before the first step; None until it is done.
        best_table: Validation of the best weights.
        last_table: Validation of the last epoch; None if an earlier version saved the state.
        base: Index -> weight for the weights that recalibration changed; later phases start from them.
        said: Kinds of messages sent so far.
        guarded: Number of times the guard has acted in this phase.
        seconds: Duration of all sessions up to the last saved state.
        finished: "finished", "stopped", or "" while the run has not finished.
        text: The reason as a sentence.
    """

    phase: int = 0
    epoch: int = 0
    sums: EpochSums = EpochSums()
    plateau: PlateauState | None = None
    parts: int = 1
    history: tuple[EpochRow, ...] = ()
    best: tuple[int, int] = (0, 0)
    first_table: SliceTable | None = None
    best_table: SliceTable | None = None
    last_table: SliceTable | None = None
    base: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    said: frozenset[str] = frozenset()
    guarded: int = 0
    seconds: float = 0.0
    finished: str = ""
    text: str = ""

    @property
    def best_tag(self) -> str:
        """Name of the best weights, for their file."""
        return f"{self.best[0]}-{self.best[1]:05d}"

    def facts(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON values."""
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "sums": [self.sums.steps, self.sums.loss, self.sums.dice, self.sums.slices, self.sums.seconds],
            "plateau": None if self.plateau is None else self.plateau.to_json(),
            "parts": self.parts,
            "history": rows_to_json(self.history),
            "best": list(self.best),
            "said": sorted(self.said),
            "guarded": self.guarded,
            "seconds": self.seconds,
            "finished": self.finished,
            "text": self.text,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the tables and the recalibrated weights as named arrays."""
        arrays: dict[str, NDArray[Any]] = {f"{_BASE}{i}": weight for i, weight in self.base.items()}
        for prefix, table in ((_FIRST, self.first_table), (_BEST, self.best_table), (_LAST, self.last_table)):
            if table is not None:
                arrays |= {prefix + name: column for name, column in table.arrays().items()}
        return arrays

    @classmethod
    def from_saved(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Progress:

        def table(prefix: str) -> SliceTable | None:
            columns = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            return SliceTable(**columns) if columns else None

        plain = {key: facts[key] for key in ("phase", "epoch", "parts", "guarded", "seconds", "finished", "text")}
        return replace(
            cls(),
            **plain,
            sums=EpochSums(*facts["sums"]),
            plateau=None if facts["plateau"] is None else PlateauState.from_json(facts["plateau"]),
            history=tuple(rows_from_json(facts["history"])),
            best=(int(facts["best"][0]), int(facts["best"][1])),
            said=frozenset(facts["said"]),
            first_table=table(_FIRST),
            best_table=table(_BEST),
            last_table=table(_LAST),
            base={int(name.removeprefix(_BASE)): a for name, a in arrays.items() if name.startswith(_BASE)},
        )
