"""Safe augmentation in OpenCV, for CPUs: the same steps as the reference in `kerasseg.data.augmentation`.

It is fast because memory is reused (`kerasseg.data.buffers`), results are aligned so that TensorFlow takes them without a
copy, and OpenCV's own threads are turned off, which cost more than they save at this image size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg.data.buffers import RecycledArrays, Scratch


class FastAugmenter:
    """Apply parameter tables to batches; thread-safe."""

    def __init__(self) -> None:
        self._results = RecycledArrays()
        # Not one per thread: `tf.data` calls Python from ever new threads.
        self._movers: list[_Mover] = []

    def __call__(
        self, images: NDArray[Any], masks: NDArray[Any], rows: NDArray[np.float64], channels: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return images (n, height, width, channels) and masks (n, height, width, 1), augmented.

        Args:
            images: (n, height, width, 1 or 3), integers from 0 to 255 or float in [0, 1].
            masks: (n, height, width, 1), 0 and 1.
            rows: (n, 4), columns as in `kerasseg.data.augmentation.COLUMNS`.
            channels: Channels of the result: those of the images, or 3 to repeat grey.
        """
        unit = 1.0 if images.dtype.kind == "f" else 1.0 / 255.0
        whole = images.dtype == np.uint8
        if images.dtype not in (np.uint8, np.float32):
            images = images.astype(np.float32)
        masks = masks.astype(np.uint8, copy=False)
        out = self._results.take((*images.shape[:3], channels))
        out_masks = self._results.take((*images.shape[:3], 1))
        repeated = images.shape[3] < channels
        with _SINGLE_THREADED, self._mover() as mover:
            for i, (flip, brightness, contrast, factor) in enumerate(rows.tolist()):
                zoom = 1.0 if _stays(images.shape[1:3], factor) else factor
                mover.move_mask(masks[i, ..., 0], bool(flip), zoom, out_masks[i])
                shaded = mover.scratch.get("shaded", images.shape[1:]) if repeated else out[i]
                image = images[i, ..., 0] if images.shape[3] == 1 else images[i]
                laid = _laid(mover.resized(mover.flipped(image, bool(flip)), zoom), shaded, zoom)
                _shade(laid, contrast, brightness, unit, whole=whole)
                if repeated:
                    cv2.cvtColor(shaded, cv2.COLOR_GRAY2RGB, dst=out[i])
        return out, out_masks

    @contextmanager
    def _mover(self) -> Iterator[_Mover]:
        try:
            mover = self._movers.pop()
        except IndexError:
            mover = _Mover()
        yield mover
        self._movers.append(mover)


class _Mover:
    """Step 1, with its own buffers."""

    def __init__(self) -> None:
        self.scratch = Scratch()

    def move_mask(self, mask: NDArray[Any], flip: bool, zoom: float, out: NDArray[np.float32]) -> None:
        """Apply step 1 to a mask (height, width), into (height, width, 1); beyond its tumour the mask is 0."""
        mask = self.flipped(mask, flip)
        x, y, width, height = cv2.boundingRect(mask)
        if not width:
            out.fill(0.0)
            return
        used = mask[: y + height + 1, : x + width + 1]
        if _stays(used.shape, zoom):
            used = mask  # OpenCV would copy a part that keeps its size, while the whole may change
        laid = _laid(self.resized(used, zoom), out, zoom)
        laid.surround(0.0)
        if laid.part.size:
            cv2.threshold(laid.part, 0.5, 1.0, cv2.THRESH_BINARY, dst=laid.place)

    def flipped(self, picture: NDArray[Any], flip: bool) -> NDArray[Any]:
        if not flip:
            return picture
        return cv2.flip(picture, 1, dst=self.scratch.get("flipped", picture.shape, picture.dtype))

    def resized(self, picture: NDArray[Any], zoom: float) -> NDArray[np.float32]:
        """Resize an image (height, width[, 3]) without scaling values; valid until the next call."""
        if picture.dtype != np.float32:
            plane = self.scratch.get("plane", picture.shape)
            np.copyto(plane, picture)
            picture = plane
        shape = (*(round(length * zoom) for length in picture.shape[:2]), *picture.shape[2:])
        space = self.scratch.get("resized", shape)
        # With a target size instead, OpenCV would zoom by the quotient of integers.
        return cv2.resize(picture, None, dst=space, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)


class _Laid(NamedTuple):
    """The middle of a resized image and its place in the result, with channels side by side."""

    part: NDArray[np.float32]
    result: NDArray[np.float32]
    rows: slice
    columns: slice

    @property
    def place(self) -> NDArray[np.float32]:
        return self.result[self.rows, self.columns]

    def surround(self, value: float) -> None:
        self.result[: self.rows.start] = value
        self.result[self.rows.stop :] = value
        self.result[:, : self.columns.start] = value
        self.result[:, self.columns.stop :] = value


def _laid(moved: NDArray[np.float32], result: NDArray[np.float32], zoom: float) -> _Laid:
    height, width, channels = result.shape
    rows, to_rows = _middle(height, moved.shape[0], zoom)
    columns, to_columns = (
        slice(found.start * channels, found.stop * channels) for found in _middle(width, moved.shape[1], zoom)
    )
    part = moved.reshape(len(moved), -1)[rows, columns]
    return _Laid(part, result.reshape(height, -1), to_rows, to_columns)


def _middle(length: int, found: int, zoom: float) -> tuple[slice, slice]:
    """Along one axis, return what is taken of `found` pixels, and its place among `length`."""
    first = round(length * (zoom - 1.0) / 2.0)
    start = max(first, 0)
    end = max(start, min(first + length, found))
    return slice(start, end), slice(start - first, end - first)


def _stays(size: tuple[int, ...], zoom: float) -> bool:
    return all(round(length * zoom) == length for length in size)


def _shade(image: _Laid, contrast: float, brightness: float, unit: float, *, whole: bool) -> None:
    """Apply steps 2 and 3: one multiplication, one addition, and clipping where needed."""
    part, place = image.part, image.place
    scale = contrast * unit
    mean = cv2.sumElems(part)[0] / image.result.size
    shift = mean * unit * (1.0 - contrast) + brightness
    image.surround(min(max(shift, 0.0), 1.0))  # shaded value of the zeros around a smaller image
    cv2.addWeighted(part, scale, part, 0.0, shift, dst=place)
    if not whole:
        np.clip(place, 0.0, 1.0, out=place)
        return
    # Clip only where values can leave [0, 1]; the margin is for rounding.
    if shift < 1e-6:
        cv2.threshold(place, 0.0, 0.0, cv2.THRESH_TOZERO, dst=place)
    if 255.0 * scale + shift > 1.0 - 1e-6:
        cv2.threshold(place, 1.0, 0.0, cv2.THRESH_TRUNC, dst=place)


class _SingleThreaded:
    """Turn off OpenCV's own threads, a setting of the whole process, while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = cv2.getNumThreads()
                if self._before != 1:
                    cv2.setNumThreads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._before != 1:
                cv2.setNumThreads(self._before)


_SINGLE_THREADED = _SingleThreaded()
