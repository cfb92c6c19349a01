"""The search behind `split_by_group`: give whole groups to splits so that every class comes near to the asked shares.

Groups that hold the same number of slices of each class are interchangeable, so the search works on such kinds of groups
and how many of each kind a split gets. 200,000 single slices of three classes are three kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["apportion", "score"]

_BEGINNINGS = 24
_ALL = 60_000
"""Assignments up to which all are tried."""

_PAIRS = 4_000
"""Exchanges of two groups that are looked at in one step; drawn at random where there are more."""

_STEPS = 400


def score(held: NDArray[np.float64], asked: NDArray[np.float64]) -> NDArray[np.float64]:
    """How bad assignments are, smaller is better.

    Args:
        held: (..., rows, splits) slices that a split holds of a class; one row a class and one for all together.
        asked: (splits,) asked shares, which sum to 1.

    Returns:
        (...) number of empty cells times 1,000, plus the largest deviation from the asked shares, plus a hundredth of the
        root mean square of all deviations, which decides among those with the same largest.
    """
    total = held.sum(axis=-1, keepdims=True)
    deviation = held / np.maximum(total, 1) - asked
    empty = (held < 0.5).sum(axis=(-2, -1))
    worst = np.abs(deviation).max(axis=(-2, -1))
    return 1000 * empty + worst + 0.01 * np.sqrt((deviation**2).mean(axis=(-2, -1)))  # type: ignore[no-any-return]


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
    sizes = np.column_stack([kinds, kinds.sum(axis=1)]).astype(np.float64)
    problem = _Problem(sizes, many, asked)
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
        sizes: (kinds, classes + 1) slices of each class in a group of the kind, and of all classes.
        many: (kinds,) groups of the kind.
        asked: (splits,) asked shares.
    """

    sizes: NDArray[np.float64]
    many: NDArray[np.int64]
    asked: NDArray[np.float64]

    def held(self, plan: NDArray[np.int64]) -> NDArray[np.float64]:
        """(classes + 1, splits) slices, for a plan (kinds, splits) of groups."""
        return self.sizes.T @ plan

    def bound(self) -> float:
        """A deviation that no assignment can go below, because slices are whole."""
        totals = self.sizes.T @ self.many
        exact = totals[:, None] * self.asked
        away = np.minimum(exact - np.floor(exact), np.ceil(exact) - exact)
        return float((away / totals[:, None]).max())


def _best_of_all(
    problem: _Problem, counts: NDArray[np.int64], kind_of: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.int64]:
    choices = np.array(list(product(range(len(problem.asked)), repeat=len(counts))))
    rows = np.column_stack([counts, counts.sum(axis=1)]).astype(np.float64)
    held = np.stack([(choices == split) @ rows for split in range(len(problem.asked))], axis=-1)
    scores = score(held, problem.asked)
    best = choices[draw.choice(np.flatnonzero(scores <= scores.min() + 1e-12))]
    plan = np.zeros((len(problem.many), len(problem.asked)), np.int64)
    np.add.at(plan, (kind_of, best), 1)
    return plan


def _best_found(problem: _Problem, draw: np.random.Generator) -> NDArray[np.int64]:
    best, least = None, np.inf
    enough = problem.bound()
    for _ in range(_BEGINNINGS):
        plan = _improve(problem, _beginning(problem, draw), draw)
        found = float(score(problem.held(plan), problem.asked))
        if found < least - 1e-12:
            best, least = plan, found
        # Nothing is gained below a tenth of a percentage point, or below what whole slices allow.
        if least < max(enough, 1e-3) + 1e-4:
            break
    assert best is not None  # noqa: S101 - there is at least one beginning
    return best


def _beginning(problem: _Problem, draw: np.random.Generator) -> NDArray[np.int64]:
    """Each kind is shared out as asked; the groups left over go, largest first, where they are missed most."""
    plan = np.floor(problem.many[:, None] * problem.asked + 1e-9).astype(np.int64)
    held = problem.held(plan)
    target = (problem.sizes.T @ problem.many)[:, None] * problem.asked
    left = np.repeat(np.arange(len(problem.many)), problem.many - plan.sum(axis=1))
    # The noise lets beginnings differ; half a size up or down keeps large before small.
    rank = problem.sizes[left, -1] * draw.uniform(0.5, 1.5, len(left))
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
    """(n, classes + 1, splits): `held` after taking sizes (n, classes + 1) from `source` to `target`."""
    splits = np.arange(held.shape[1])
    direction = (splits == target[:, None]).astype(np.float64) - (splits == source[:, None])
    shifted: NDArray[np.float64] = held + sizes[:, :, None] * direction[:, None, :]
    return shifted
