"""Result of a benchmark: one pair, measured in turn. Lines, JSON and pages are generated from it."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range over several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.low)} to {figure(self.high)})"


@dataclass(frozen=True, slots=True)
class Result:
    """One thing measured for us and for a peer.

    Attributes:
        part: Part of the benchmarks.
        name: What is measured.
        peer_name: Name of the peer.
        ours: Median of our rounds, in `unit`.
        peer: Median of the peer's rounds, in `unit`.
        ratio: Cost of the peer divided by ours, by round; above 1 kerasseg is cheaper.
        rounds: Number of rounds.
        unit: Unit of `ours` and `peer`: "s", "slices/s", "MB", ...
        processor: Ratio in processor time; None if not measured.
        goal: Smallest ratio to reach; None without a goal, 0 where being behind the peer means nothing.
        remark: Explanation of the line.
    """

    part: str
    name: str
    peer_name: str
    ours: float
    peer: float
    ratio: Spread
    rounds: int
    unit: str
    processor: Spread | None = None
    goal: float | None = None
    remark: str = ""

    def __str__(self) -> str:
        processor = "" if self.processor is None else f", in processor time {self.processor}"
        goal = "" if not self.goal else f" (goal: at least {self.goal:g})"
        rounds = f", {self.rounds} rounds" if self.rounds > 1 else ""
        return (
            f"{self.name}: {figure(self.ours)} {self.unit}; {self.peer_name}: {figure(self.peer)} {self.unit}; "
            f"peer over ours {self.ratio}{processor}{rounds}{goal}" + (f". {self.remark}" if self.remark else "")
        )

    def document(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, document: dict[str, Any]) -> Result:
        spreads = {k: Spread(**document[k]) for k in ("ratio", "processor") if document[k] is not None}
        return cls(**(document | spreads))


def figure(value: float) -> str:
    """Format a number with a sensible number of digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def compared(
    part: str,
    name: str,
    peer_name: str,
    ours: Sequence[Cost],
    peer: Sequence[Cost],
    *,
    slices: int = 0,
    unit: str = "s",
    scale: float = 1.0,
    goal: float | None = None,
    remark: str = "",
) -> Result:
    """Return the result of rounds in which both took turns.

    Args:
        part, name, peer_name, goal, remark: As in `Result`.
        ours, peer: Cost of each round.
        slices: Slices (or other things) per round, to show speeds; 0 shows costs.
        unit: Unit of costs, or of speeds if not slices/s.
        scale: Factor from seconds to the unit; 1000 for ms.
    """
    each = [statistics.median(cost.time for cost in costs) for costs in (ours, peer)]
    shown = [slices / value if slices else value * scale for value in each]
    used = all(cost.processor > 0 for cost in (*ours, *peer))
    return Result(
        part=part,
        name=name,
        peer_name=peer_name,
        ours=shown[0],
        peer=shown[1],
        ratio=Spread.of([b.time / a.time for a, b in zip(ours, peer, strict=True)]),
        rounds=len(ours),
        unit="slices/s" if slices and unit == "s" else unit,
        processor=Spread.of([b.processor / a.processor for a, b in zip(ours, peer, strict=True)]) if used else None,
        goal=goal,
        remark=remark,
    )


def sized(part: str, name: str, peer_name: str, ours: float, peer: float, **options: Any) -> Result:
    """Return the result of two figures that need only one round: memory, counted operations."""
    ratio = peer / ours
    return Result(
        part, name, peer_name, ours, peer, Spread(ratio, ratio, ratio), **({"unit": "MB", "rounds": 1} | options)
    )


def show(results: Callable[..., list[Result]]) -> None:
    """Print the results of one part, measured in this process; `--quick` on the command line uses few rounds."""
    for result in results(quick="--quick" in sys.argv):
        print(result, flush=True)
