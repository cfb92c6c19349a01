"""The search behind `split_by_group`: assign whole groups to splits so that every class comes close to its shares.

Groups with the same number of slices of each class are interchangeable. The search therefore works on kinds of groups and
on how many groups of each kind a split gets: 200,000 single slices of three classes are only three kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

_STARTS = 24
_ALL = 60_000
"""Largest number of assignments that are all tried."""

_PAIRS = 4_000
"""Largest number of exchanges of two groups per step; a random sample of more."""

_STEPS = 400

_GROUPS = 0.005
"""Weight of missing groups: 10 % fewer groups than requested count as 0.05 percentage points of slices."""


def score(held: NDArray[np.float64], asked: NDArray[np.float64]) -> NDArray[np.float64]:
    """Score assignments; lower is better.

    Args:
        held: (..., rows, splits). The first half of the rows counts slices in each split, the second half their groups; see
            `rows_of`.
        asked: (splits,) requested shares, which sum to 1.

    Returns:
        (...) 1,000 times the number of empty cells, plus the largest deviation of slices from the requested shares, plus
        0.01 times the root mean square of these deviations, plus 0.005 times the largest relative shortage of groups
        (confidence intervals are computed over groups, so a split needs enough of them).
    """
    total = held.sum(axis=-1, keepdims=True)
    away = held / np.maximum(total, 1) - asked
    rows = held.shape[-2] // 2
    slices, short = away[..., :rows, :], -away[..., rows:, :] / asked
    empty = (held[..., :rows, :] < 0.5).sum(axis=(-2, -1))
    worst = np.abs(slices).max(axis=(-2, -1))
    spread = np.sqrt((slices**2).mean(axis=(-2, -1)))
    return 1000 * empty + worst + 0.01 * spread + _GROUPS * short.max(axis=(-2, -1))  # type: ignore[no-any-return]


def rows_of(counts: NDArray[np.int64], tumours: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return the contribution of each group to the rows of `score`.

    Args:
        counts: (groups, classes) slices.
        tumours: (groups, k) slices with tumour of k classes that also have slices without; None means k = 0.

    Returns:
        (groups, 2 * (classes + 1 + k)): slices of each class, of all classes, and with tumour; then 1 for each of these
        numbers above 0.
    """
    columns = [counts, counts.sum(axis=1)] if tumours is None else [counts, counts.sum(axis=1), tumours]
    slices = np.column_stack(columns)
    return np.column_stack([slices, slices > 0]).astype(np.float64)


def apportion(
    counts: NDArray[np.int64], asked: NDArray[np.float64], seed: int, tumours: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Choose a split for each group.

    Args:
        counts: (groups, classes) slices of each class in each group; no row and no column is all zero.
        asked: (splits,) requested shares above 0, which sum to 1; at most as many as groups.
        seed: Seed of the search, and of the choice among groups of a kind.
        tumours: As in `rows_of`; no column is all zero.

    Returns:
        (groups,) index of the split; the same for the same arguments on every machine.
    """
    classes = counts.shape[1]
    if tumours is None:
        tumours = np.zeros((len(counts), 0), np.int64)
    kinds, kind_of, many = np.unique(
        np.column_stack([counts, tumours]), axis=0, return_inverse=True, return_counts=True
    )
    problem = _Problem(rows_of(kinds[:, :classes], kinds[:, classes:]), many, asked, total=classes)
    draw = np.random.default_rng([seed, 1])
    if len(asked) ** len(counts) <= _ALL:
        plan = _best_of_all(problem, rows_of(counts, tumours), np.asarray(kind_of).ravel(), draw)
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
        sizes: (kinds, rows) contribution of one group, see `rows_of`.
        many: (kinds,) number of groups.
        asked: (splits,) requested shares.
        total: Index of the row with the slices of all classes.
    """

    sizes: NDArray[np.float64]
    many: NDArray[np.int64]
    asked: NDArray[np.float64]
    total: int

    def held(self, plan: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (rows, splits) slices and groups for a plan of (kinds, splits) groups."""
        return self.sizes.T @ plan

    def bound(self) -> float:
        """Return a lower bound of the largest deviation: slices cannot be divided."""
        totals = (self.sizes.T @ self.many)[: self.sizes.shape[1] // 2]
        exact = totals[:, None] * self.asked
        away = np.minimum(exact - np.floor(exact), np.ceil(exact) - exact)
        return float((away / totals[:, None]).max())


def _best_of_all(
    problem: _Problem, rows: NDArray[np.float64], kind_of: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.int64]:
    choices = np.array(list(product(range(len(problem.asked)), repeat=len(rows))))
    held = np.stack([(choices == split) @ rows for split in range(len(problem.asked))], axis=-1)
    scores = score(held, problem.asked)
    best = choices[draw.choice(np.flatnonzero(scores <= scores.min() + 1e-12))]
    plan = np.zeros((len(problem.many), len(problem.asked)), np.int64)
    np.add.at(plan, (kind_of, best), 1)
    return plan


def _best_found(problem: _Problem, draw: np.random.Generator) -> NDArray[np.int64]:
    best, least = None, np.inf
    enough = problem.bound()
    for number in range(_STARTS):
        plan = _improve(problem, _starting_plan(problem, draw, by_size=number % 2 == 1), draw)
        found = float(score(problem.held(plan), problem.asked))
        if found < least - 1e-12:
            best, least = plan, found
        # Good enough: within 0.1 percentage points (or the bound), and no split lacks more than a tenth of its groups.
        if least < max(enough, 1e-3) + 1e-4 + 0.1 * _GROUPS:
            break
    assert best is not None  # noqa: S101 - there is at least one starting point
    return best


def _starting_plan(problem: _Problem, draw: np.random.Generator, *, by_size: bool) -> NDArray[np.int64]:
    """Distribute each kind by the shares, then give each remaining group to the split that lacks it most.

    The order of decreasing size fits the shares of slices best, but gives small splits few large groups. A random order
    balances the number of groups, and exchanges then improve the slices. Both are tried.
    """
    plan = np.floor(problem.many[:, None] * problem.asked + 1e-9).astype(np.int64)
    held = problem.held(plan)
    target = (problem.sizes.T @ problem.many)[:, None] * problem.asked
    left = np.repeat(np.arange(len(problem.many)), problem.many - plan.sum(axis=1))
    # The noise varies the starting points, but large groups still come first.
    largest = problem.sizes[left, problem.total]
    rank = largest * draw.uniform(0.5, 1.5, len(left)) if by_size else draw.random(len(left))
    for kind in left[np.argsort(-rank, kind="stable")]:
        missed = ((target - held) / target * (problem.sizes[kind] > 0)[:, None]).mean(axis=0)
        split = int(np.argmax(missed + draw.uniform(0, 1e-9, len(missed))))
        plan[kind, split] += 1
        held[:, split] += problem.sizes[kind]
    return plan


def _improve(problem: _Problem, plan: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """Move one group, or exchange two, for as long as that improves the plan."""
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
    """Return (n, rows, splits): `held` after moving sizes (n, rows) from `source` to `target`."""
    splits = np.arange(held.shape[1])
    direction = (splits == target[:, None]).astype(np.float64) - (splits == source[:, None])
    shifted: NDArray[np.float64] = held + sizes[:, :, None] * direction[:, None, :]
    return shifted
