"""Find similar perceptual hashes, in any orientation, without comparing all pairs (locality-sensitive hashing).

Copies differ in about 1 % of the signs of their hash, other slices in about a third. A table uses the signs at some 20
positions as the key of a slice. Copies usually have the same key, and nearly always once the least certain signs are also
tried reversed. Several tables with different positions find most of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.splitting.fingerprints import HASH_SIZE, ORIENTATIONS, turn_hashes

_TABLES = 10
_UNCERTAIN = 3
"""Number of signs of a key, those of the smallest coefficients, that are also tried reversed."""

_MOST = 64
"""Largest number of slices compared per key, which bounds time and memory. More share a key only if all are alike, and are
then still connected through the same 64."""

_CHUNK = 4096


_UNDONE = (0, 1, 2, 3, 4, 6, 5, 7)
"""Inverse of each of the `ORIENTATIONS`: turning by 90 and by 270 degrees undo each other, the others themselves."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Pairs of similar hashes.

    Attributes:
        first: (m,) index into the query hashes.
        second: (m,) index into the hashes of the index.
        orientation: (m,) how `second` must be turned to match `first`, index into `fingerprints.ORIENTATIONS`.
        examined: Number of pairs whose hashes were compared (the cost of the search).
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    orientation: NDArray[np.int64]
    examined: int

    def once(self) -> Candidates:
        """For a search of an index in itself: keep each pair once, with `first` < `second`."""
        swap = self.first > self.second
        how = np.where(swap, np.array(_UNDONE)[self.orientation], self.orientation)
        pairs = np.column_stack([np.where(swap, self.second, self.first), np.where(swap, self.first, self.second), how])
        first, second, how = np.unique(pairs[self.first != self.second], axis=0).T
        return Candidates(first, second, how, self.examined)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    places: NDArray[np.int64]
    keys: NDArray[np.int64]
    starts: NDArray[np.int32]
    counts: NDArray[np.int32]
    slices: NDArray[np.int32]

    def look_up(self, hashes: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows of `hashes` and slices of the index that share a key."""
        keys = _probes(hashes[:, self.places])
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        count = np.where(self.keys[at] == keys, np.minimum(self.counts[at], _MOST), 0).ravel()
        probe = np.repeat(np.arange(len(count)), count)
        within = np.arange(len(probe)) - np.repeat(np.cumsum(count) - count, count)
        return probe // keys.shape[1], self.slices[self.starts[at.ravel()[probe]] + within]


def _keys(values: NDArray[np.int8]) -> NDArray[np.int64]:
    return (values > 0) @ (np.int64(1) << np.arange(values.shape[1], dtype=np.int64))


def _probes(values: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return (n, 2 ** _UNCERTAIN) keys: that of the slice, and those with the least certain signs reversed."""
    keys = _keys(values)[:, None]
    doubtful = np.argsort(np.abs(values.astype(np.int16)), axis=1, kind="stable")[:, :_UNCERTAIN]
    for place in doubtful.T:
        keys = np.concatenate([keys, keys ^ (np.int64(1) << place.astype(np.int64))[:, None]], axis=1)
    return keys


class HashIndex:
    """An index for similar hashes.

    Args:
        hashes: (n, HASH_SIZE) int8, as in `Fingerprints.hashes`.

    Example:
        >>> hashes = np.random.default_rng(0).integers(-99, 99, (50, HASH_SIZE), dtype=np.int8)
        >>> found = HashIndex(hashes).near(turn_hashes(hashes[7:8], 1), radius=0.1)
        >>> found.second.tolist(), found.orientation.tolist()
        ([7], [1])
    """

    def __init__(self, hashes: NDArray[np.int8]) -> None:
        self._hashes = hashes
        # Eight signs more than would separate n random hashes, because the signs of heads are not random.
        length = int(np.clip(np.log2(max(len(hashes), 2)) + 8, 12, 32))
        draw = np.random.default_rng(length)
        self._tables = [
            self._table(np.sort(draw.choice(HASH_SIZE, length, replace=False)))
            for _ in range(_TABLES if len(hashes) else 0)
        ]

    def _table(self, places: NDArray[np.int64]) -> _Table:
        all_keys = _keys(self._hashes[:, places])
        slices = np.argsort(all_keys, kind="stable")
        keys, starts, counts = np.unique(all_keys[slices], return_index=True, return_counts=True)
        # Half the memory: there are fewer than 2 ** 31 slices.
        return _Table(places, keys, starts.astype(np.int32), counts.astype(np.int32), slices.astype(np.int32))

    def near(self, hashes: NDArray[np.int8], radius: float) -> Candidates:
        """Find the slices of the index that are similar to each of `hashes` in some orientation.

        Args:
            hashes: (m, HASH_SIZE) int8.
            radius: Largest distance of the hashes, scaled to length 1; in (0, 2).

        Returns:
            Sorted pairs, each (first, second, orientation) once: nearly all within `radius`, and none beyond.
        """
        found = [np.empty((0, 3), np.int64)]
        examined = 0
        for start in range(0, len(hashes) if len(self._hashes) else 0, _CHUNK):
            chunk = hashes[start : start + _CHUNK]
            for orientation in range(len(ORIENTATIONS)):
                # The queries are turned instead of the index, so the inverse orientation applies.
                turned = turn_hashes(chunk, _UNDONE[orientation])
                near = []
                for table in self._tables:
                    rows, slices = table.look_up(turned)
                    examined += len(rows)
                    near.append(self._within(turned, rows, slices, radius))
                pairs = np.unique(np.concatenate(near), axis=0)
                found.append(np.column_stack([pairs[:, 0] + start, pairs[:, 1], np.full(len(pairs), orientation)]))
        first, second, how = np.concatenate(found).T
        order = np.lexsort((how, second, first))
        return Candidates(first[order], second[order], how[order], examined)

    def _within(
        self, turned: NDArray[np.int8], rows: NDArray[np.int64], slices: NDArray[np.int64], radius: float
    ) -> NDArray[np.int64]:
        kept = [np.empty((0, 2), np.int64)]
        limit = (radius * 127) ** 2
        for start in range(0, len(rows), 1 << 16):
            row, other = rows[start : start + (1 << 16)], slices[start : start + (1 << 16)]
            apart = turned[row].astype(np.int16) - self._hashes[other]
            apart = apart.astype(np.float32)  # exact: 88 * 254 ** 2 < 2 ** 24
            inside = np.einsum("ij,ij->i", apart, apart) <= limit
            kept.append(np.column_stack([row[inside], other[inside]]))
        return np.concatenate(kept)
