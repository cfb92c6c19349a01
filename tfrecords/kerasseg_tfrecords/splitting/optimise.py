"""The search behind `split_by_group`: give whole groups to splits so that every class comes near to the asked shares.

Groups that hold the same number of slices of each class are interchangeable, so the search works on such kinds of groups
and how many of each kind a split gets. 200,000 single slices of three classes are three kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["apportion", "rows_of", "score"]

_BEGINNINGS = 24
_ALL = 60_000
"""Assignments up to which all are tried."""

_PAIRS = 4_000
"""Exchanges of two groups that are looked at in one step; drawn at random where there are more."""

_STEPS = 400


_HEADS = 0.005
"""What the shortage of groups weighs: a tenth fewer groups than asked counts as 0.05 percentage points of slices."""


def score(held: NDArray[np.float64], asked: NDArray[np.float64]) -> NDArray[np.float64]:
    """How bad assignments are, smaller is better.

    Args:
        held: (..., rows, splits). The first half of the rows: slices that a split holds of a class, and of all together.
            The second half: groups that hold slices of the class, and all groups. See `rows_of`.
        asked: (splits,) asked shares, which sum to 1.

    Returns:
        (...) number of empty cells times 1,000, plus the largest deviation of slices from the asked shares, plus a
        hundredth of the root mean square of these deviations, plus 0.005 times the largest shortage of groups, as a part
        of the groups that would be the split's share. Intervals are over groups: a tenth of the slices that comes from two
        heads of fifty tells little.
    """
    total = held.sum(axis=-1, keepdims=True)
    away = held / np.maximum(total, 1) - asked
    rows = held.shape[-2] // 2
    slices, short = away[..., :rows, :], -away[..., rows:, :] / asked
    empty = (held[..., :rows, :] < 0.5).sum(axis=(-2, -1))
    worst = np.abs(slices).max(axis=(-2, -1))
    spread = np.sqrt((slices**2).mean(axis=(-2, -1)))
    return 1000 * empty + worst + 0.01 * spread + _HEADS * short.max(axis=(-2, -1))  # type: ignore[no-any-return]


def rows_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each group adds to the rows that `score` weighs.

    Args:
        counts: (groups, classes) slices.

    Returns:
        (groups, 2 * (classes + 1)) slices of each class and of all, then 1 where there is any of the class, and 1.
    """
    slices = np.column_stack([counts, counts.sum(axis=1)])
    return np.column_stack([slices, slices > 0]).astype(np.float64)


def apportion(counts: NDArray[np.int64], asked: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """A split for each group.

    Args:
        counts: (groups, classes) slices of each class in each group, no row and no column all zero.
        asked: (splits,) shares above 0, which sum to 1; at most as many as groups.
        seed: Of the search, and of which groups of a kind go where.

    Returns:
        (groups,) index of the split. The same for the same arguments on every machine.
    """
    kinds, kind_of, many = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    problem = _Problem(rows_of(kinds), many, asked)
    draw = np.random.default_rng([seed, 1])
    if len(asked) ** len(counts) <= _ALL:
        plan = _best_of_all(problem, counts, np.asarray(kind_of).ravel(), draw)
    else:
        plan = _best_found(problem, draw)
    where = np.empty(len(counts), np.int64)
    for kind, row in enumerate(plan):
        members = draw.permutation(np.flatnonzero(np.asarray(kind_of).ravel() == kind))
        where[members] = np.repeat(np.arange(len(asked)), row)
    return where


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Kinds of groups.

    Attributes:
        sizes: (kinds, rows) what a group of the kind adds, see `rows_of`.
        many: (kinds,) groups of the kind.
        asked: (splits,) asked shares.
    """

    sizes: NDArray[np.float64]
    many: NDArray[np.int64]
    asked: NDArray[np.float64]

    def held(self, plan: NDArray[np.int64]) -> NDArray[np.float64]:
        """(rows, splits) slices and groups, for a plan (kinds, splits) of groups."""
        return self.sizes.T @ plan

    def bound(self) -> float:
        """A deviation that no assignment can go below, because slices are whole."""
        totals = (self.sizes.T @ self.many)[: self.sizes.shape[1] // 2]
        exact = totals[:, None] * self.asked
        away = np.minimum(exact - np.floor(exact), np.ceil(exact) - exact)
        return float((away / totals[:, None]).max())


def _best_of_all(
    problem: _Problem, counts: NDArray[np.int64], kind_of: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.int64]:
    choices = np.array(list(product(range(len(problem.asked)), repeat=len(counts))))
    rows = rows_of(counts)
    held = np.stack([(choices == split) @ rows for split in range(len(problem.asked))], axis=-1)
    scores = score(held, problem.asked)
    best = choices[draw.choice(np.flatnonzero(scores <= scores.min() + 1e-12))]
    plan = np.zeros((len(problem.many), len(problem.asked)), np.int64)
    np.add.at(plan, (kind_of, best), 1)
    return plan


def _best_found(problem: _Problem, draw: np.random.Generator) -> NDArray[np.int64]:
    best, least = None, np.inf
    enough = problem.bound()
    for number in range(_BEGINNINGS):
        plan = _improve(problem, _beginning(problem, draw, by_size=number % 2 == 1), draw)
        found = float(score(problem.held(plan), problem.asked))
        if found < least - 1e-12:
            best, least = plan, found
        # Nothing is gained below a tenth of a percentage point, or below what whole slices allow, where no split is short
        # of more than a tenth of its groups.
        if least < max(enough, 1e-3) + 1e-4 + 0.1 * _HEADS:
            break
    assert best is not None  # noqa: S101 - there is at least one beginning
    return best


def _beginning(problem: _Problem, draw: np.random.Generator, *, by_size: bool) -> NDArray[np.int64]:
    """Each kind is shared out as asked; the groups left over go, one by one, where they are missed most.

    Largest first fills splits exactly, but small splits with a few large groups; in random order groups come out even,
    and exchanges, which leave their numbers alone, then mend the slices.
    """
    plan = np.floor(problem.many[:, None] * problem.asked + 1e-9).astype(np.int64)
    held = problem.held(plan)
    target = (problem.sizes.T @ problem.many)[:, None] * problem.asked
    left = np.repeat(np.arange(len(problem.many)), problem.many - plan.sum(axis=1))
    # The noise lets beginnings differ; half a size up or down keeps large before small.
    largest = problem.sizes[left, problem.sizes.shape[1] // 2 - 1]
    rank = largest * draw.uniform(0.5, 1.5, len(left)) if by_size else draw.random(len(left))
    for kind in left[np.argsort(-rank, kind="stable")]:
        missed = ((target - held) / target * (problem.sizes[kind] > 0)[:, None]).mean(axis=0)
        split = int(np.argmax(missed + draw.uniform(0, 1e-9, len(missed))))
        plan[kind, split] += 1
        held[:, split] += problem.sizes[kind]
    return plan


def _improve(problem: _Problem, plan: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """Moves one group, or exchanges two between splits, as long as that makes the plan better."""
    plan = plan.copy()
    held = problem.held(plan)
    now = float(score(held, problem.asked))
    for _ in range(_STEPS):
        step = _best_step(problem, plan, held, now, draw)
        if step is None:
            break
        for kind, source, target in step:
            plan[kind, source] -= 1
            plan[kind, target] += 1
        held = problem.held(plan)
        now = float(score(held, problem.asked))
    return plan


_Move = tuple[int, int, int]


def _best_step(
    problem: _Problem, plan: NDArray[np.int64], held: NDArray[np.float64], now: float, draw: np.random.Generator
) -> tuple[_Move, ...] | None:
    splits = len(problem.asked)
    kind, source = np.nonzero(plan)
    moves = [(kind[source != t], source[source != t], np.full(int((source != t).sum()), t)) for t in range(splits)]
    k, s, t = (np.concatenate(column) for column in zip(*moves, strict=True))
    best = now - 1e-12
    step: tuple[_Move, ...] | None = None
    changed = _shift(held, problem.sizes[k], s, t)
    scores = score(changed, problem.asked)
    if len(scores) and scores.min() < best:
        at = int(scores.argmin())
        best, step = float(scores[at]), ((int(k[at]), int(s[at]), int(t[at])),)
    for low in range(splits):
        for high in range(low + 1, splits):
            a, b = np.flatnonzero(plan[:, low]), np.flatnonzero(plan[:, high])
            if len(a) * len(b) <= _PAIRS:
                first, second = np.repeat(a, len(b)), np.tile(b, len(a))
            else:
                first, second = draw.choice(a, _PAIRS), draw.choice(b, _PAIRS)
            differ = first != second
            first, second = first[differ], second[differ]
            if not len(first):
                continue
            ends = np.full(len(first), low), np.full(len(first), high)
            scores = score(_shift(held, problem.sizes[first] - problem.sizes[second], *ends), problem.asked)
            if scores.min() < best:
                at = int(scores.argmin())
                best = float(scores[at])
                step = ((int(first[at]), low, high), (int(second[at]), high, low))
    return step


def _shift(
    held: NDArray[np.float64], sizes: NDArray[np.float64], source: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n, rows, splits): `held` after taking sizes (n, rows) from `source` to `target`."""
    splits = np.arange(held.shape[1])
    direction = (splits == target[:, None]).astype(np.float64) - (splits == source[:, None])
    shifted: NDArray[np.float64] = held + sizes[:, :, None] * direction[:, None, :]
    return shifted
