"""Find copies of slices before the split: equal pixels, and the same image re-encoded, resized or mirrored.

An index over the perceptual hashes gives candidates. The correlation of their details, in the orientation that the hashes
suggest, confirms them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.splitting.fingerprints import ORIENTATIONS, Fingerprints, turn_details
from kerasseg_tfrecords.splitting.hash_index import HashIndex

MIN_CORRELATION = 0.97
"""Detail correlation from which two slices are copies.

Measured (docs/split.md): JPEG of quality 50 keeps 0.998, half size 0.997, both 0.992, contrast x 1.6 with clipping 0.977.
Slices of different Cheng patients reach 0.79, of one patient 0.94; only neighbours in volumes of 1 mm reach 0.98, and those
share a group anyway."""

HASH_RADIUS = 0.3
"""Distance of unit-length hashes up to which two slices are compared; the copies above lie within 0.25."""

MIN_VARIANCE = 50.0
"""Thumbnail variance, in grey levels squared, below which a slice is near-uniform and not compared, since only its noise
and border would correlate. The smallest of 2,271 Cheng slices is 469."""

MAX_SHARE = 0.05
"""Share of all slices that a chain of copies must not exceed."""

_CHUNK = 2048

Kind = Literal["equal", "near"]
T = TypeVar("T", int, str)


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """Two slices that are copies.

    Attributes:
        first: Index of one slice; of `overlap`, into its first set.
        second: Index of the other, larger than `first`; of `overlap`, into its second set.
        kind: `equal` pixels, or `near`-equal.
        correlation: Of the details, 1.0 for equal pixels.
        orientation: How `second` must be turned to match `first`, one of `fingerprints.ORIENTATIONS`.
    """

    first: int
    second: int
    kind: Kind
    correlation: float
    orientation: str


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Result of `find_duplicates`.

    Attributes:
        pairs: Confirmed pairs, sorted. Of several slices with equal pixels, the first is paired with each of the others and
            represents them in near-equal pairs.
        clusters: Sets of two or more slices that must stay together; each is sorted, and they are sorted by first slice.
        chains: Sets of slices connected by near-equal pairs that were not merged, because they hold more than `MAX_SHARE`
            of the data and are not all copies of one slice. Equal pixels within them are in `clusters`.
        left_out: Near-uniform slices, which were not compared.
        examined: Number of pairs whose hashes were compared (the cost of the search).
        compared: Number of pairs whose correlation was computed.
    """

    pairs: tuple[Pair, ...]
    clusters: tuple[tuple[int, ...], ...]
    chains: tuple[tuple[int, ...], ...]
    left_out: tuple[int, ...]
    examined: int
    compared: int


def find_duplicates(prints: Fingerprints, *, max_share: float = MAX_SHARE) -> DuplicateReport:
    """Find slices that are copies of one another; the report has indices into `prints`.

    Two slices are near-equal if, in one of the eight orientations, their hashes are within `HASH_RADIUS` and their details
    correlate at `MIN_CORRELATION` or more. A cluster is a connected set of near-equal slices. If it holds more than
    `max_share` of the data and no slice in it is near-equal to all others, it is a chain (thin neighbouring slices, each
    like the next): it is reported but not merged. A hundred copies of one slice are a cluster.

    Example:
        >>> from kerasseg_tfrecords.splitting.fingerprints import fingerprint
        >>> picture = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        >>> prints = Fingerprints.of(fingerprint(p) for p in (picture, picture[:, ::-1], 255 - picture))
        >>> find_duplicates(prints).pairs
        (Pair(first=0, second=1, kind='near', correlation=1.0, orientation='mirrored'),)
    """
    usable = prints.variances >= MIN_VARIANCE
    copies = _equal_pixels(prints, np.flatnonzero(usable))
    members = np.array(list(copies), np.int64)
    chosen = prints.hashes[members]
    found = HashIndex(chosen).near(chosen, HASH_RADIUS).once()
    near = _confirm(prints, prints, members[found.first], members[found.second], found.orientation)
    equal = [Pair(first, other, "equal", 1.0, ORIENTATIONS[0]) for first, others in copies.items() for other in others]

    clusters: list[tuple[int, ...]] = []
    chains: list[tuple[int, ...]] = []
    for component in _components(copies, near):
        everyone = tuple(sorted(slice_ for first in component for slice_ in (first, *copies[first])))
        if len(everyone) > max_share * len(prints) and len(component) > 2 and not _has_hub(component, near, prints):
            chains.append(everyone)
            clusters += [(first, *copies[first]) for first in component if copies[first]]
        elif len(everyone) > 1:
            clusters.append(everyone)
    return DuplicateReport(
        pairs=tuple(sorted(equal + near)),
        clusters=tuple(sorted(clusters)),
        chains=tuple(sorted(chains)),
        left_out=tuple(np.flatnonzero(~usable).tolist()),
        examined=found.examined,
        compared=len(found.first),
    )


def overlap(prints: Fingerprints, others: Fingerprints) -> tuple[Pair, ...]:
    """Find slices of which another data set holds copies, by the criteria of `find_duplicates`.

    Returns:
        The best match of each such slice in `prints` (equal pixels, else the highest correlation), sorted.
    """
    mine, theirs = np.flatnonzero(prints.variances >= MIN_VARIANCE), np.flatnonzero(others.variances >= MIN_VARIANCE)
    known: dict[bytes, int] = {}
    for index in theirs.tolist():
        known.setdefault(others.digests[index].tobytes(), index)
    equal = {index: known.get(prints.digests[index].tobytes(), -1) for index in mine.tolist()}
    matches = [Pair(index, other, "equal", 1.0, ORIENTATIONS[0]) for index, other in equal.items() if other >= 0]

    rest = np.array([index for index, other in equal.items() if other < 0], np.intp)
    found = HashIndex(others.hashes[theirs]).near(prints.hashes[rest], HASH_RADIUS)
    near = _confirm(prints, others, rest[found.first], theirs[found.second], found.orientation)
    best: dict[int, Pair] = {}
    for pair in sorted(near, key=lambda pair: (pair.first, -pair.correlation, pair.second)):
        best.setdefault(pair.first, pair)
    return tuple(sorted([*matches, *best.values()]))


def merge_groups(groups: Sequence[str], clusters: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """Merge the groups of slices that clusters connect; each takes the alphabetically first of its names.

    Example:
        >>> merge_groups(["b", "b", "c", "a", "d"], [(1, 2), (2, 3)])
        ('a', 'a', 'a', 'a', 'd')
    """
    joined = _Joined(groups)
    for cluster in clusters:
        for index in cluster[1:]:
            joined.join(groups[cluster[0]], groups[index])
    return tuple(joined.name(group) for group in groups)


class _Joined(Generic[T]):
    """Union-find; each set is named after its smallest member."""

    def __init__(self, members: Iterable[T]) -> None:
        self._parent: dict[T, T] = {member: member for member in members}

    def name(self, member: T) -> T:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, a: T, b: T) -> None:
        low, high = sorted((self.name(a), self.name(b)))
        self._parent[high] = low


def _equal_pixels(prints: Fingerprints, indices: NDArray[np.intp]) -> dict[int, list[int]]:
    """Return the first slice of each set with equal pixels -> the others."""
    sets: dict[bytes, list[int]] = {}
    for index in indices.tolist():
        sets.setdefault(prints.digests[index].tobytes(), []).append(index)
    return {first: others for first, *others in sets.values()}


def _confirm(
    prints: Fingerprints,
    others: Fingerprints,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    orientation: NDArray[np.int64],
) -> list[Pair]:
    """Return the candidates whose details correlate, each pair once with its best orientation."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for how in range(len(ORIENTATIONS)):
        rows = np.flatnonzero(orientation == how)
        for start in range(0, len(rows), _CHUNK):
            a, b = first[rows[start : start + _CHUNK]], second[rows[start : start + _CHUNK]]
            values = _correlate(prints.details[a], turn_details(others.details[b], how))
            for k in np.flatnonzero(values >= MIN_CORRELATION):
                pair, value = (int(a[k]), int(b[k])), round(float(values[k]), 6)
                if value > best.get(pair, (-1.0, 0))[0]:
                    best[pair] = value, how
    return [Pair(a, b, "near", value, ORIENTATIONS[how]) for (a, b), (value, how) in best.items()]


def _correlate(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return the Pearson correlation of each pair of pictures (n, side, side); 0 if one is constant."""
    x = a.reshape(len(a), -1).astype(np.float32)
    y = b.reshape(len(b), -1).astype(np.float32)
    x -= x.mean(axis=1, keepdims=True)
    y -= y.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x) * np.einsum("ij,ij->i", y, y)).astype(np.float64)
    return np.einsum("ij,ij->i", x, y) / np.maximum(lengths, 1e-9)  # type: ignore[no-any-return]


def _components(members: Iterable[int], near: Sequence[Pair]) -> list[list[int]]:
    """Return the connected sets of `members`, including single ones."""
    members = list(members)
    joined = _Joined(members)
    for pair in near:
        joined.join(pair.first, pair.second)
    sets: dict[int, list[int]] = {}
    for member in members:
        sets.setdefault(joined.name(member), []).append(member)
    return list(sets.values())


def _has_hub(component: Sequence[int], near: Sequence[Pair], prints: Fingerprints) -> bool:
    """Whether one slice is near-equal to all others, so that they are its copies rather than a chain."""
    inside = set(component)
    links = Counter(end for pair in near if pair.first in inside for end in (pair.first, pair.second))
    hub, _ = min(links.items(), key=lambda item: (-item[1], item[0]))
    others = np.array([member for member in component if member != hub], np.int64)
    ways = len(ORIENTATIONS)
    copies = _confirm(
        prints,
        prints,
        np.full(len(others) * ways, hub, np.int64),
        np.repeat(others, ways),
        np.tile(np.arange(ways), len(others)),
    )
    return len(copies) == len(others)
