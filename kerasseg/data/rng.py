"""Random numbers that depend on their purpose, not on when or where they are drawn."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import UsageError

_WORDS = 1 << 64


def uniforms(seed: int, epoch: int, purpose: str, rows: int, columns: int) -> NDArray[np.float64]:
    """Draw uniform numbers in [0, 1), whose row `i` depends only on (seed, epoch, purpose, i).

    The generator is counter-based (Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), so a
    longer table begins with the shorter one, and neighbouring seeds or epochs are unrelated. Only the raw stream of the
    generator is used, which NumPy guarantees never to change.

    Args:
        seed: Integer from 0 to 2^64 - 1.
        epoch: Integer from 0 to 2^64 - 1.
        purpose: Name of the purpose; other names give unrelated numbers.
        rows: Number of rows.
        columns: Numbers in a row.

    Example:
        >>> bool((uniforms(1, 2, "zoom", 3, 2) == uniforms(1, 2, "zoom", 9, 2)[:3]).all())
        True
    """
    key = np.array([_word("seed", seed), _word("epoch", epoch)], np.uint64)
    # The highest word of the counter is never reached by counting: it separates the purposes.
    counter = np.array([0, 0, 0, zlib.crc32(purpose.encode())], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(rows * columns)
    return (raw >> np.uint64(11)).astype(np.float64).reshape(rows, columns) * 2.0**-53


def permutation(seed: int, epoch: int, purpose: str, size: int) -> NDArray[np.int64]:
    """Return a random order of `range(size)` that depends only on the arguments; see `uniforms`."""
    return np.argsort(uniforms(seed, epoch, purpose, size, 1)[:, 0], kind="stable").astype(np.int64)


def _word(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= int(value) < _WORDS:
        raise UsageError(f"invalid {name}", found=repr(value), expected="an integer from 0 to 2^64 - 1")
    return int(value)
