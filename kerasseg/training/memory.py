"""When a device runs out of memory: how it says so, and into how many parts a batch is then divided."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["more_parts", "out_of_memory"]

_WORDS = ("out of memory", "out_of_memory", "resource_exhausted", "failed to allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of TensorFlow means that memory ran out; XLA and CUDA's libraries wrap it in errors of other kinds.

    >>> out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    True
    """
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return True
    return isinstance(error, tf.errors.OpError) and any(word in str(error).lower() for word in _WORDS)


def more_parts(parts: int, share: int) -> int | None:
    """Into how many parts to divide next: twice as many, or the next number that divides the share; None beyond slices.

    Args:
        parts: So far.
        share: Slices of a batch on one device.

    Example:
        >>> [more_parts(parts, 8) for parts in (1, 2, 4, 8)], more_parts(1, 3)
        ([2, 4, 8, None], 3)
    """
    return next((n for n in range(2 * parts, share + 1) if share % n == 0), None) if parts < share else None
