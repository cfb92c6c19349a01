"""Safe augmentation in OpenCV, for CPUs: the same steps as the reference in `kerasseg.augment`.

Two things make it fast. Each slice goes through buffers that stay (fresh megabytes cost more in page faults than the
arithmetic on them), and results are aligned so that TensorFlow takes them over without a copy.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["FastAugmenter"]

_ALIGNMENT = 64  # what TensorFlow asks of memory that it is to share
_KEPT = 16  # buffers for results, in use or spare


class FastAugmenter:
    """Applies tables of parameters to batches; may be called from several threads at once."""

    def __init__(self) -> None:
        self._scratch = _Scratch()
        self._results = _Results()

    def __call__(
        self, images: NDArray[Any], masks: NDArray[Any], rows: NDArray[np.float64], channels: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Images (n, height, width, channels) and masks (n, height, width, 1), augmented.

        Args:
            images: (n, height, width, 1 or 3), whole numbers 0 to 255 or float in [0, 1].
            masks: (n, height, width, 1), 0 and 1.
            rows: (n, 4), columns as in `kerasseg.augment.COLUMNS`.
            channels: Those of the images, or 3 to repeat grey.
        """
        unit = 1.0 if images.dtype.kind == "f" else 1.0 / 255.0
        if images.dtype not in (np.uint8, np.float32):
            images = images.astype(np.float32)
        out = self._results.take((*images.shape[:3], channels))
        out_masks = self._results.take((*images.shape[:3], 1))
        for i, (flip, brightness, contrast, zoom) in enumerate(rows.tolist()):
            moved = self._geometry(images[i], bool(flip), zoom)
            _move_mask(masks[i, ..., 0], bool(flip), zoom, out_masks[i, ..., 0])
            self._colours(moved, contrast, brightness, unit, out[i])
        return out, out_masks

    def _geometry(self, image: NDArray[Any], flip: bool, zoom: float) -> NDArray[np.float32]:
        """Step 1 for one image: (height, width) where it is grey, else (height, width, 4) with a last channel to ignore."""
        size = image.shape[:2]
        if image.shape[2] == 1:
            plane = self._scratch.get("plane", size)
            np.copyto(plane, image[..., 0])
        else:
            # OpenCV moves four channels in less than half the time of three.
            plane = self._scratch.get("plane", (*size, 4))
            narrow = plane if image.dtype == np.float32 else self._scratch.get("narrow", plane.shape, np.uint8)
            cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2RGBA, dst=narrow)
            if narrow is not plane:
                np.copyto(plane, narrow)
        moved = self._scratch.get("moved", plane.shape)
        if zoom != 1.0:
            return _warp(plane, _matrix(size, flip, zoom), size, moved)
        return cv2.flip(plane, 1, dst=moved) if flip else plane

    def _colours(
        self, values: NDArray[np.float32], contrast: float, brightness: float, unit: float, out: NDArray[np.float32]
    ) -> None:
        """Steps 2 and 3, and into the result."""
        colours = 1 if values.ndim == 2 else 3
        mean = sum(cv2.mean(values)[:colours]) / colours * unit
        cv2.addWeighted(values, contrast * unit, values, 0.0, mean * (1.0 - contrast) + brightness, dst=values)
        np.clip(values, 0.0, 1.0, out=values)
        if out.shape[2] == 3:
            cv2.cvtColor(values, cv2.COLOR_GRAY2RGB if colours == 1 else cv2.COLOR_RGBA2RGB, dst=out)
        else:
            np.copyto(out[..., 0], values)


def _move_mask(mask: NDArray[Any], flip: bool, zoom: float, out: NDArray[np.float32]) -> None:
    """Step 1 for a mask; only the box around its tumour, beyond which all is 0 before and after."""
    out[...] = 0
    x, y, box_width, box_height = cv2.boundingRect(np.ascontiguousarray(mask, np.uint8))
    if not box_width:
        return
    # The pixels of the result that read from within one pixel of the box.
    matrix = _matrix(mask.shape, flip, zoom)
    first, last = _reach(matrix[0, 0], matrix[0, 2], x, box_width, mask.shape[1])
    top, bottom = _reach(matrix[1, 1], matrix[1, 2], y, box_height, mask.shape[0])
    matrix[:, 2] += matrix[:, :2] @ (first, top) - (x, y)
    box = np.ascontiguousarray(mask[y : y + box_height, x : x + box_width], np.float32)
    out[top:bottom, first:last] = _warp(box, matrix, (bottom - top, last - first)) > 0.5


def _reach(scale: float, offset: float, start: int, length: int, size: int) -> tuple[int, int]:
    ends = sorted(((start - 1 - offset) / scale, (start + length - offset) / scale))
    return max(0, math.floor(ends[0])), min(size, math.ceil(ends[1]) + 1)


def _matrix(size: tuple[int, ...], flip: bool, zoom: float) -> NDArray[np.float64]:
    """Where a pixel (x, y) of the result is read."""
    middle_x, middle_y = (size[1] - 1) / 2, (size[0] - 1) / 2
    scale_y = 1.0 / zoom
    scale_x = -scale_y if flip else scale_y
    return np.array([[scale_x, 0, middle_x - scale_x * middle_x], [0, scale_y, middle_y - scale_y * middle_y]])


def _warp(
    values: NDArray[np.float32],
    matrix: NDArray[np.float64],
    size: tuple[int, ...],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        values, matrix, (size[1], size[0]), dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )


class _Scratch(threading.local):
    """Buffers of one thread, by what they are for; the last shape of each stays."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[Any]] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        buffer = self.buffers.get(name)
        if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
            buffer = self.buffers[name] = np.empty(shape, dtype)
        return buffer


class _Results:
    """Aligned arrays for results; memory is used again once nobody holds the array, a view of it, or a tensor on it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: list[NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        size = math.prod(shape) * 4
        with self.lock:
            memory = self._spare(size + _ALIGNMENT)
            start = -memory.ctypes.data % _ALIGNMENT
            return memory[start : start + size].view(np.float32).reshape(shape)

    def _spare(self, size: int) -> NDArray[np.uint8]:
        for memory in self.kept:
            # Views keep their owner alive: three references are the list's, the loop's and the question's own.
            if memory.nbytes == size and sys.getrefcount(memory) == 3:
                return memory
        memory = np.empty(size, np.uint8)
        # Other sizes (the last batch of an evaluation, another image size) make room for each other.
        self.kept = [m for m in self.kept if m.nbytes == size or sys.getrefcount(m) > 3][-_KEPT + 1 :]
        self.kept.append(memory)
        return memory
