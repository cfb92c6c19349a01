"""Arrays for batches out of memory that is used again.

A batch of eight 256 x 256 x 3 slices is 6 MB. Fresh memory of that size comes from the system page by page, zeroed, and
TensorFlow copies what is not aligned as it likes: together that can take as long as flipping, zooming and brightening.
These arrays are aligned, so that `tf.numpy_function` passes them on as they are, and their memory is used again once
nobody holds them any longer, tensor or array.
"""

from __future__ import annotations

import math
import weakref

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buffers"]

_ALIGNMENT = 64
_KEPT = 32
"""Free pieces of one size that are kept at most."""


class Buffers:
    """Gives float32 arrays with whatever contents; from several threads at once.

    Example:
        >>> buffers = Buffers()
        >>> array = buffers.empty((8, 256, 256, 3))
        >>> array.shape, array.ctypes.data % 64
        ((8, 256, 256, 3), 0)
    """

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Like `numpy.empty(shape, "float32")`."""
        size = 4 * math.prod(shape)
        free = self._free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        # Through a memoryview, since NumPy lets views of views point to the first array and forgets those between: every
        # view of `flat` now keeps `flat`, so that its end is the end of them all.
        flat = np.frombuffer(memory.data[start : start + size], np.float32)
        weakref.finalize(flat, _give_back, free, memory).atexit = False
        return flat.reshape(shape)


def _give_back(free: list[NDArray[np.uint8]], memory: NDArray[np.uint8]) -> None:
    if len(free) < _KEPT:
        free.append(memory)
