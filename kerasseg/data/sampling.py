"""Composition of the batches of an epoch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.data.rng import permutation, uniforms
from kerasseg_tfrecords.errors import UsageError


def stratified_batches(
    labels: ArrayLike,
    batch_size: int = 8,
    mode: Literal["proportional", "balanced"] = "proportional",
    *,
    seed: int = 0,
    epoch: int = 0,
) -> NDArray[np.int64]:
    """Compose the batches of one epoch, each with its share of every class.

    "proportional": each slice once per epoch, in ceil(slices / batch_size) batches. A class with share s = batch_size *
    (slices of the class / slices) has floor(s) or ceil(s) slices in every batch, and after k batches floor(k s) or
    ceil(k s) in total. The last batch is filled with slices drawn once more: at most batch_size - 1, none more than twice
    (given that many slices), and none twice in one batch while others of its class are left.

    "balanced": every class has the share batch_size / classes, with the same bounds, in ceil(classes * slices of the
    largest class / batch_size) batches, so that every slice is seen at least once. Smaller classes are drawn again in new
    orders: the counts of two slices of a class differ by at most 1.

    Slices are in random order within a batch, so that replicas which share a batch get the same mix on average. The result
    depends only on the arguments.

    Args:
        labels: (slices,) class of each slice, integers or names.
        batch_size: Slices in a batch, >= 1.
        mode: "proportional" or "balanced".
        seed: Integer >= 0.
        epoch: Integer >= 0; other epochs have other orders.

    Returns:
        (batches, batch_size) indices into `labels`.

    Raises:
        UsageError: There are no labels, or an argument is out of range.

    Example:
        >>> batches = stratified_batches([0] * 6 + [1] * 3, batch_size=3, seed=1)
        >>> batches.shape, sorted(batches.ravel().tolist()), (batches < 6).sum(axis=1).tolist()
        ((3, 3), [0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 2])
    """
    values = np.asarray(labels)
    if values.ndim != 1 or not values.size:
        raise UsageError("invalid labels", found=f"shape {values.shape}", expected="(slices,), not empty")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UsageError("invalid batch size", found=repr(batch_size), expected="an integer >= 1")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if mode == "proportional":
        weights = counts
        n_batches = _ceil(values.size, int(batch_size))
    elif mode == "balanced":
        weights = np.ones_like(counts)
        n_batches = _ceil(len(counts) * int(counts.max()), int(batch_size))
    else:
        raise UsageError("unknown mode of batches", found=mode, expected="proportional or balanced")

    ties = permutation(seed, epoch, "batches: ties", len(counts))
    shares = _shares([int(w) for w in weights], int(batch_size), n_batches, ties.tolist())
    decks = [_Deck(np.flatnonzero(inverse == c), seed, epoch, f"batches: class {c}") for c in range(len(counts))]
    within = uniforms(seed, epoch, "batches: order within", n_batches, int(batch_size))
    batches = np.empty((n_batches, int(batch_size)), np.int64)
    for row, share in enumerate(shares):
        chosen = np.concatenate([deck.draw(count) for deck, count in zip(decks, share, strict=True)])
        batches[row] = chosen[np.argsort(within[row], kind="stable")]
    return batches


class _Deck:
    """Slices of one class, drawn in random order; once all are drawn, in another order."""

    def __init__(self, members: NDArray[np.int64], seed: int, epoch: int, purpose: str) -> None:
        self.members, self.seed, self.epoch, self.purpose = members, seed, epoch, purpose
        self.rounds = 0
        self.left = members[:0]

    def draw(self, count: int) -> NDArray[np.int64]:
        """Return the next slices for one batch."""
        hand = self.left[:count]
        self.left = self.left[count:]
        while len(hand) < count:
            order = permutation(self.seed, self.epoch, f"{self.purpose}, round {self.rounds}", len(self.members))
            self.rounds += 1
            fresh = self.members[order]
            # Slices of this batch come last, so that a batch holds no slice twice without need.
            seen = np.isin(fresh, hand)
            fresh = np.concatenate([fresh[~seen], fresh[seen]])
            missing = count - len(hand)
            hand = np.concatenate([hand, fresh[:missing]])
            self.left = fresh[missing:]
        return hand


def _shares(weights: list[int], batch_size: int, n_batches: int, ties: list[int]) -> list[list[int]]:
    """Return the number of slices of each class in each batch.

    Each class gets the integer part of its share in every batch. Assigning the remaining places is the "proportionate
    progress" problem: at most one place per class and batch, and after every batch less than one place away from the exact
    share. It always has a solution, which the priorities of PD2 find (Baruah et al., Algorithmica 15, 1996; Anderson and
    Srinivasan, JCSS 68, 2004): earliest deadline, then places that overlap with their successor, then the latest deadline
    of the group that depends on it.
    """
    total = sum(weights)
    whole = [batch_size * w // total for w in weights]
    rest = [batch_size * w % total for w in weights]
    places = batch_size - sum(whole)
    given = [0] * len(weights)
    shares = []
    for batch in range(n_batches):
        # Place i of a class (from 0) is available from batch floor(i * total / rest) on.
        waiting = [c for c, r in enumerate(rest) if r and given[c] * total // r <= batch]
        waiting.sort(key=lambda c: (*_urgency(given[c] + 1, rest[c], total), ties[c]))
        taken = waiting[:places]
        for c in taken:
            given[c] += 1
        shares.append([w + (c in taken) for c, w in enumerate(whole)])
    return shares


def _urgency(number: int, rest: int, total: int) -> tuple[int, int, int]:
    """Return the priority of the `number`-th place (from 1) of a class that takes `rest` places in `total` batches."""
    deadline = _ceil(number * total, rest)
    overlaps = number * total % rest != 0
    group = 0
    if 2 * rest >= total:
        light = total - rest
        group = _ceil(_ceil(deadline * light, total) * total, light)
    return deadline, -int(overlaps), -group


def _ceil(above: int, below: int) -> int:
    return -(-above // below)
