"""Safe augmentation in OpenCV, for CPUs: the same steps as the reference in `kerasseg.augment`.

Two things make it fast. Each slice goes through buffers that stay (fresh megabytes cost more in page faults than the
arithmetic on them), and results are aligned so that TensorFlow takes them over without a copy.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any, NamedTuple

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
        whole = images.dtype == np.uint8
        if images.dtype not in (np.uint8, np.float32):
            images = images.astype(np.float32)
        out = self._results.take((*images.shape[:3], channels))
        out_masks = self._results.take((*images.shape[:3], 1))
        for i, (flip, brightness, contrast, zoom) in enumerate(rows.tolist()):
            read = _Reading.of(images.shape[1:3], bool(flip), zoom)
            _move_mask(masks[i, ..., 0], read, out_masks[i, ..., 0])
            if images.shape[3] == 3:
                self._move_colours(images[i], read, out[i])
                _shade(out[i], contrast, brightness, unit, whole=whole)
                continue
            moved = out[i, ..., 0] if channels == 1 else self._scratch.get("moved", images.shape[1:3])
            self._move_grey(images[i, ..., 0], read, moved)
            _shade(moved, contrast, brightness, unit, whole=whole)
            if channels == 3:
                cv2.cvtColor(moved, cv2.COLOR_GRAY2RGB, dst=out[i])
        return out, out_masks

    def _move_grey(self, image: NDArray[Any], read: _Reading, out: NDArray[np.float32]) -> None:
        """Step 1 for an image (height, width)."""
        if read.whole_pixels:
            np.copyto(out, self._flipped(image) if read.flip else image)
            return
        plane = self._scratch.get("plane", image.shape)
        np.copyto(plane, image)
        _warp(plane, read.matrix, image.shape, out)

    def _move_colours(self, image: NDArray[Any], read: _Reading, out: NDArray[np.float32]) -> None:
        """Step 1 for an image (height, width, 3)."""
        if read.whole_pixels:
            np.copyto(out, self._flipped(image) if read.flip else image)
            return
        # OpenCV moves four channels in less than half the time of three.
        size = image.shape[:2]
        plane, moved = self._scratch.get("plane", (*size, 4)), self._scratch.get("moved", (*size, 4))
        narrow = plane if image.dtype == np.float32 else self._scratch.get("narrow", plane.shape, np.uint8)
        cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2RGBA, dst=narrow)
        if narrow is not plane:
            np.copyto(plane, narrow)
        _warp(plane, read.matrix, size, moved)
        # Three again before anything else: what follows then has a quarter less to do.
        cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB, dst=out)

    def _flipped(self, image: NDArray[Any]) -> NDArray[Any]:
        return cv2.flip(image, 1, dst=self._scratch.get("flipped", image.shape, image.dtype))


def _shade(values: NDArray[np.float32], contrast: float, brightness: float, unit: float, *, whole: bool) -> None:
    """Steps 2 and 3, in place: one multiplication, one addition, and what is left of the clipping.

    Args:
        values: (height, width) or (height, width, 3).
        contrast: Factor.
        brightness: Shift, on the scale [0, 1].
        unit: What makes the values a number in [0, 1].
        whole: Whether the values were uint8: then it is known how far they can reach.
    """
    channels = 1 if values.ndim == 2 else 3
    scale = contrast * unit
    shift = sum(cv2.mean(values)[:channels]) / channels * unit * (1.0 - contrast) + brightness
    cv2.addWeighted(values, scale, values, 0.0, shift, dst=values)
    if not whole:
        np.clip(values, 0.0, 1.0, out=values)
        return
    # A bright slice does not reach 0 and a dark one does not reach 1; the margin is for rounding.
    if shift < 1e-6:
        cv2.threshold(values, 0.0, 0.0, cv2.THRESH_TOZERO, dst=values)
    if 255.0 * scale + shift > 1.0 - 1e-6:
        cv2.threshold(values, 1.0, 0.0, cv2.THRESH_TRUNC, dst=values)


def _move_mask(mask: NDArray[Any], read: _Reading, out: NDArray[np.float32]) -> None:
    """Step 1 for a mask; only the box around its tumour, beyond which all is 0 before and after."""
    out.fill(0)
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask, np.uint8))
    if not width:
        return
    # The pixels of the result that read from within one pixel of the box.
    first, last = _reach(read.scale_x, read.start_x, x, width, mask.shape[1])
    top, bottom = _reach(read.scale_y, read.start_y, y, height, mask.shape[0])
    inside = read.within(first, top, x, y)
    box = mask[y : y + height, x : x + width].astype(np.float32)
    np.greater(_warp(box, inside.matrix, (bottom - top, last - first)), 0.5, out=out[top:bottom, first:last])


def _reach(scale: float, start: float, first: int, length: int, size: int) -> tuple[int, int]:
    ends = sorted(((first - 1 - start) / scale, (first + length - start) / scale))
    return max(0, math.floor(ends[0])), min(size, math.ceil(ends[1]) + 1)


class _Reading(NamedTuple):
    """Where pixel (x, y) of a result is read: at (start_x + scale_x * x, start_y + scale_y * y)."""

    scale_x: float
    start_x: float
    scale_y: float
    start_y: float

    @classmethod
    def of(cls, size: tuple[int, ...], flip: bool, zoom: float) -> _Reading:
        middle_x, middle_y = (size[1] - 1) / 2, (size[0] - 1) / 2
        scale_y = 1.0 / zoom
        scale_x = -scale_y if flip else scale_y
        return cls(scale_x, middle_x - scale_x * middle_x, scale_y, middle_y - scale_y * middle_y)

    def within(self, first: int, top: int, x: int, y: int) -> _Reading:
        """The same for a part of the result, from (first, top) on, read from a part of the image, from (x, y) on."""
        start_x, start_y = self.start_x + self.scale_x * first - x, self.start_y + self.scale_y * top - y
        return _Reading(self.scale_x, start_x, self.scale_y, start_y)

    @property
    def flip(self) -> bool:
        return self.scale_x < 0

    @property
    def whole_pixels(self) -> bool:
        return self.scale_y == 1.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        return np.array([(self.scale_x, 0.0, self.start_x), (0.0, self.scale_y, self.start_y)])


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
