"""Intervals by bootstrap over patients."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Interval"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        estimate: The mean.
        low, high: Limits of the interval.
    """

    estimate: float
    low: float
    high: float
