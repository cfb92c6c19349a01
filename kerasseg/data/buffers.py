"""Reused memory: page faults of new memory cost more than the arithmetic on it.

The allocator returns freed memory to the system, especially in the threads from which `tf.data` calls Python, and the
kernel zeroes each page when it is touched again.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64  # needed by TensorFlow to share memory
_KEPT = 16  # pieces in use or spare


class RecycledArrays:
    """Aligned arrays whose memory is reused once no array, view or tensor refers to it; thread-safe.

    Attributes:
        kept: The memory, in use or spare; at most 16 pieces.

    Example:
        >>> arrays = RecycledArrays()
        >>> place = arrays.take((2, 3), np.uint8).ctypes.data
        >>> arrays.take((2, 3), np.uint8).ctypes.data == place
        True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.kept: list[NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            memory = self._spare(size + _ALIGNMENT)
            start = -memory.ctypes.data % _ALIGNMENT
            return memory[start : start + size].view(dtype).reshape(shape)

    def _spare(self, size: int) -> NDArray[np.uint8]:
        for memory in self.kept:
            # Views keep their owner alive. Three references remain for spare memory: list, loop, and this call.
            if memory.nbytes == size and sys.getrefcount(memory) == 3:
                return memory
        memory = np.empty(size, np.uint8)
        # Spare memory of other sizes (the last batch of an evaluation, another image size) is released.
        self.kept = [m for m in self.kept if m.nbytes == size or sys.getrefcount(m) > 3][-_KEPT + 1 :]
        self.kept.append(memory)
        return memory


class Scratch:
    """Named buffers, each as large as its largest use so far; not thread-safe."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """Return a buffer; its earlier content under this name is lost."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._buffers.get(name)
        if memory is None or memory.nbytes < size:
            memory = self._buffers[name] = np.empty(size, np.uint8)
        return memory[:size].view(dtype).reshape(shape)
