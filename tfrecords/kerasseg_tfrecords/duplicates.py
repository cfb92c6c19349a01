"""Copies of a slice, found before the split: equal pixels, and the same picture re-encoded, resized or mirrored.

Two stages. A search tree over the perceptual hashes gives candidates, a fraction of a pair for each slice instead of all
pairs; the correlation of the two detail pictures, in the orientation that the hashes suggest, confirms them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from kerasseg_tfrecords.fingerprints import (
    ORIENTATIONS,
    Fingerprint,
    Fingerprints,
    fingerprint,
    invariant,
    turn_details,
    turn_hashes,
)

__all__ = [
    "HASH_RADIUS",
    "MAX_SHARE",
    "MIN_CORRELATION",
    "MIN_VARIANCE",
    "DuplicateReport",
    "Fingerprint",
    "Fingerprints",
    "Overlap",
    "Pair",
    "find_duplicates",
    "fingerprint",
    "merge_groups",
    "overlap",
]

MIN_CORRELATION = 0.97
"""Detail correlation from which two slices are copies.

Measured (docs/split.md): JPEG of quality 50 keeps 0.998, half size 0.993, both 0.989, contrast stretched until a tenth of
the head is white 0.979. Slices of different Cheng patients reach 0.79, of one patient 0.94; only neighbours in volumes of
1 mm reach 0.98, and those share a group anyway."""

HASH_RADIUS = 0.3
"""Distance of unit-length hashes up to which two slices are compared; the copies above lie within 0.26."""

MIN_VARIANCE = 50.0
"""Thumbnail variance, in grey levels squared, below which a slice is near-uniform and left out: what correlates in it is
noise and its border. The flattest of 2,271 Cheng slices has 469."""

MAX_SHARE = 0.05
"""Share of all slices that a chain of copies must not exceed."""

_NEAREST = 64
"""Candidates looked at for a slice, nearest first. It bounds time and memory where thousands of slices look alike."""

_CHUNK = 2048

Kind = Literal["equal", "near"]


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """Two slices that are copies.

    Attributes:
        first: Index of one slice; in an `Overlap`, into the first set.
        second: Index of the other, larger than `first`; in an `Overlap`, into the second set.
        kind: `equal` pixels, or `near`-equal.
        correlation: Of the details, 1.0 for equal pixels.
        orientation: How `second` must be laid to match `first`, one of `fingerprints.ORIENTATIONS`.
    """

    first: int
    second: int
    kind: Kind
    correlation: float
    orientation: str


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """What `find_duplicates` found.

    Attributes:
        pairs: Confirmed pairs, sorted. Of m slices with equal pixels, the first is paired with each of the others, and it
            alone stands for them in near-equal pairs.
        clusters: Sets of two and more slices that are to stay together, each sorted, sorted by their first slice.
        chains: Sets of slices that near-equal pairs connect but that were not merged, because they hold more than
            `MAX_SHARE` of the data without being copies of any one slice. Equal pixels within them are in `clusters`.
        left_out: Near-uniform slices, which were not compared.
        compared: Candidate pairs whose correlation was taken; what the search costs.
    """

    pairs: tuple[Pair, ...]
    clusters: tuple[tuple[int, ...], ...]
    chains: tuple[tuple[int, ...], ...]
    left_out: tuple[int, ...]
    compared: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """What `overlap` found.

    Attributes:
        matches: For each slice of the first set that the second set holds too, its best match; sorted.
        left_out: Near-uniform slices of the first set, which were not compared.
        compared: Candidate pairs whose correlation was taken.
    """

    matches: tuple[Pair, ...]
    left_out: tuple[int, ...]
    compared: int


def find_duplicates(
    prints: Fingerprints,
    *,
    min_correlation: float = MIN_CORRELATION,
    hash_radius: float = HASH_RADIUS,
    min_variance: float = MIN_VARIANCE,
    max_share: float = MAX_SHARE,
) -> DuplicateReport:
    """Slices that are copies of one another.

    Two slices are near-equal when, in one of the eight orientations, their hashes lie within `hash_radius` and their
    details correlate at `min_correlation` or more. Being near-equal carries on from slice to slice: a cluster is all that
    is connected. Where that swallows more than `max_share` of the data and no slice in it is near-equal to all others, it
    is a chain (thin neighbouring slices, each like the next): reported, not merged. So small data sets keep their
    pairs, and a hundred copies of one slice stay one cluster.

    Args:
        prints: Fingerprints of n slices.
        min_correlation: In (0, 1].
        hash_radius: In (0, 2).
        min_variance: Grey levels squared; flatter slices are left out, also from equality of pixels.
        max_share: In (0, 1].

    Returns:
        The report, in indices into `prints`. The set of pairs does not depend on the order of the slices, but for more
        than 64 look-alikes of one slice, of which the 64 nearest are compared.

    Example:
        >>> import numpy as np
        >>> picture = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        >>> prints = Fingerprints.of(fingerprint(p) for p in (picture, picture[:, ::-1], 255 - picture))
        >>> find_duplicates(prints).pairs
        (Pair(first=0, second=1, kind='near', correlation=1.0, orientation='mirrored'),)
    """
    usable = prints.variances >= min_variance
    copies = _equal_pixels(prints, np.flatnonzero(usable))
    members = np.array(sorted(copies), np.intp)
    points = invariant(prints.hashes[members])
    left, right = _candidates(points, points, hash_radius)
    # i names j and j names i, unless one of them has enough that are nearer.
    once = np.unique(np.sort(np.stack([left, right], axis=1)[left != right], axis=1), axis=0)
    judge = _Judge(prints, prints, min_correlation, hash_radius)
    near = judge.confirm(members[once[:, 0]], members[once[:, 1]])
    equal = [Pair(first, other, "equal", 1.0, ORIENTATIONS[0]) for first, others in copies.items() for other in others]

    clusters: list[tuple[int, ...]] = []
    chains: list[tuple[int, ...]] = []
    for component in _components(members, near):
        everyone = tuple(sorted(slice_ for first in component for slice_ in (first, *copies[first])))
        if len(everyone) > max_share * len(prints) and len(component) > 2 and not _has_hub(component, near, judge):
            chains.append(everyone)
            clusters += [(first, *copies[first]) for first in component if copies[first]]
        elif len(everyone) > 1:
            clusters.append(everyone)
    return DuplicateReport(
        pairs=tuple(sorted(equal + near)),
        clusters=tuple(sorted(clusters)),
        chains=tuple(sorted(chains)),
        left_out=tuple(np.flatnonzero(~usable).tolist()),
        compared=len(once),
    )


def overlap(
    prints: Fingerprints,
    others: Fingerprints,
    *,
    min_correlation: float = MIN_CORRELATION,
    hash_radius: float = HASH_RADIUS,
    min_variance: float = MIN_VARIANCE,
) -> Overlap:
    """Slices that another data set holds too, for leaving them out.

    Args:
        prints: Fingerprints of the slices that may have to go.
        others: Fingerprints of the other data set's slices.
        min_correlation: As in `find_duplicates`.
        hash_radius: As in `find_duplicates`.
        min_variance: As in `find_duplicates`; near-uniform slices match nothing.

    Returns:
        The best match of each slice of `prints` that has one: equal pixels first, then the largest correlation.
    """
    mine, theirs = np.flatnonzero(prints.variances >= min_variance), np.flatnonzero(others.variances >= min_variance)
    known: dict[bytes, int] = {}
    for index in theirs.tolist():
        known.setdefault(others.digests[index].tobytes(), index)
    equal = {index: known.get(prints.digests[index].tobytes(), -1) for index in mine.tolist()}
    matches = [Pair(index, other, "equal", 1.0, ORIENTATIONS[0]) for index, other in equal.items() if other >= 0]

    rest = np.array([index for index, other in equal.items() if other < 0], np.intp)
    left, right = _candidates(invariant(prints.hashes[rest]), invariant(others.hashes[theirs]), hash_radius)
    near = _Judge(prints, others, min_correlation, hash_radius).confirm(rest[left], theirs[right])
    best: dict[int, Pair] = {}
    for pair in sorted(near, key=lambda pair: (pair.first, -pair.correlation, pair.second)):
        best.setdefault(pair.first, pair)
    return Overlap(
        matches=tuple(sorted([*matches, *best.values()])),
        left_out=tuple(np.flatnonzero(~(prints.variances >= min_variance)).tolist()),
        compared=len(left),
    )


def merge_groups(groups: Sequence[str], clusters: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """One group for all slices of a cluster, and for all groups that clusters connect.

    Args:
        groups: The group of each slice.
        clusters: Sets of slice indices that must stay together.

    Returns:
        The group of each slice, where connected groups carry the smallest (first in alphabetical order) of their names.

    Example:
        >>> merge_groups(["b", "b", "c", "a", "d"], [(1, 2), (2, 3)])
        ('a', 'a', 'a', 'a', 'd')
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for cluster in clusters:
        roots = sorted({root(groups[index]) for index in cluster})
        for other in roots[1:]:
            parent[other] = roots[0]
    return tuple(root(group) for group in groups)


def _equal_pixels(prints: Fingerprints, indices: NDArray[np.intp]) -> dict[int, list[int]]:
    """The first slice of each set with equal pixels, and the others of it."""
    first: dict[bytes, int] = {}
    copies: dict[int, list[int]] = {}
    for index in indices.tolist():
        digest = prints.digests[index].tobytes()
        if digest in first:
            copies[first[digest]].append(index)
        else:
            first[digest] = index
            copies[index] = []
    return copies


def _candidates(
    points: NDArray[np.float32], others: NDArray[np.float32], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (place in `points`, place in `others`) within `radius`, at most `_NEAREST` for each of `points`."""
    if not len(points) or not len(others):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # Balanced trees spend their time on medians, which pays only where many more queries follow.
    tree = cKDTree(others, balanced_tree=False)
    # One more than asked for: in a search among themselves each point finds itself.
    count = min(_NEAREST + 1, len(others))
    left, right = [], []
    for start in range(0, len(points), _CHUNK):
        chunk = points[start : start + _CHUNK]
        _, found = tree.query(chunk, k=np.arange(1, count + 1), distance_upper_bound=radius * (1 + 1e-6))
        row, column = np.nonzero(found < len(others))
        left.append(row + start)
        right.append(found[row, column])
    return np.concatenate(left).astype(np.int64), np.concatenate(right).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Confirms candidates: is `second`, in some orientation, the same picture as `first`?"""

    prints: Fingerprints
    others: Fingerprints
    min_correlation: float
    hash_radius: float

    def confirm(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> list[Pair]:
        pairs: list[Pair] = []
        for start in range(0, len(first), _CHUNK):
            pairs += self._confirm(first[start : start + _CHUNK], second[start : start + _CHUNK])
        return pairs

    def _confirm(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> list[Pair]:
        best = np.full(len(first), -1.0)
        how = np.zeros(len(first), np.intp)
        target = self.prints.hashes[first].astype(np.int16)
        for orientation in range(len(ORIENTATIONS)):
            apart = target - turn_hashes(self.others.hashes[second], orientation)
            rows = np.flatnonzero(np.linalg.norm(apart, axis=1) <= self.hash_radius * 127)
            if not len(rows):
                continue
            value = _correlate(
                self.prints.details[first[rows]], turn_details(self.others.details[second[rows]], orientation)
            )
            better = value > best[rows]
            best[rows[better]], how[rows[better]] = value[better], orientation
        return [
            Pair(int(first[k]), int(second[k]), "near", round(float(best[k]), 6), ORIENTATIONS[how[k]])
            for k in np.flatnonzero(best >= self.min_correlation)
        ]


def _correlate(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.float64]:
    """Pearson correlation of (n, side, side) pictures, one by one; 0 where one is constant."""
    x = a.reshape(len(a), -1).astype(np.float32)
    y = b.reshape(len(b), -1).astype(np.float32)
    x -= x.mean(axis=1, keepdims=True)
    y -= y.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x) * np.einsum("ij,ij->i", y, y)).astype(np.float64)
    return np.einsum("ij,ij->i", x, y) / np.maximum(lengths, 1e-9)  # type: ignore[no-any-return]


def _components(members: NDArray[np.intp], near: Sequence[Pair]) -> Iterator[list[int]]:
    """Connected sets of `members`, single ones too; each sorted, in the order of their first."""
    place = {int(member): k for k, member in enumerate(members)}
    rows = [place[pair.first] for pair in near]
    columns = [place[pair.second] for pair in near]
    graph = coo_matrix((np.ones(len(near), np.int8), (rows, columns)), shape=(len(members), len(members)))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    for component in np.split(members[order], cuts):
        if len(component):
            yield component.tolist()


def _has_hub(component: Sequence[int], near: Sequence[Pair], judge: _Judge) -> bool:
    """Whether one slice is near-equal to all others: then they are its copies, and no chain."""
    inside = set(component)
    links = Counter(end for pair in near if pair.first in inside for end in (pair.first, pair.second))
    hub, _ = min(links.items(), key=lambda item: (-item[1], item[0]))
    others = np.array([member for member in component if member != hub], np.intp)
    return len(judge.confirm(np.full(len(others), hub, np.intp), others)) == len(others)
