"""`kerasseg.postprocessing` as TensorFlow operations, for a batch of masks of any size.

Objects and holes are found by spreading: every pixel takes the largest number among its neighbours until nothing changes.
All steps stay within the bounding box of the batch's tumours, which makes this fast.

Only operations that `open_checkpoint` allows in a SavedModel are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasseg.postprocessing import MaskRule


def postprocess_all(masks: Any, rule: MaskRule) -> Any:
    """Compute `postprocess` for each mask of a batch.

    Returns:
        (batch, height, width) int32, 0 and 1.
    """
    if not rule.postprocesses:
        return masks
    shape = tf.shape(masks)
    height, width = shape[1], shape[2]
    scale = tf.cast(tf.maximum(height, width), tf.float64)
    top, bottom = _ends(tf.reduce_max(masks, [0, 2]))
    left, right = _ends(tf.reduce_max(masks, [0, 1]))
    # One pixel of background around the box, where holes end.
    inner = tf.pad(masks[:, top:bottom, left:right], [[0, 0], [1, 1], [1, 1]])
    if rule.min_diameter:
        inner = _remove_small(inner, math.pi / 4 * (rule.min_diameter * scale) ** 2)
    if rule.close_radius:
        inner = _with_disk(inner, rule.close_radius * scale, _dilate, _erode)
    if rule.fill_holes:
        inner = _fill(inner)
    if rule.keep_largest:
        inner = _largest(inner)
    if rule.open_radius:
        inner = _with_disk(inner, rule.open_radius * scale, _erode, _dilate)
    return tf.pad(inner[:, 1:-1, 1:-1], [[0, 0], [top, height - bottom], [left, width - right]])


def _ends(line: Any) -> tuple[Any, Any]:
    """Return the first place of a 1, and the place after the last; the whole line if there is none."""
    first = tf.argmax(line, output_type=tf.int32)
    after = tf.shape(line)[0] - tf.argmax(tf.reverse(line, [0]), output_type=tf.int32)
    return first, after


# --- objects -----------------------------------------------------------------------------------------------------------


def _objects(masks: Any) -> Any:
    """Number each pixel by its object, with larger numbers for objects that start earlier in reading order; others -1."""
    count = tf.size(masks)
    own = tf.reshape(tf.range(count - 1, -1, -1), tf.shape(masks))

    # A number denotes the pixel that it started from. Taking over the number which that pixel has now lets numbers leap
    # through an object instead of moving pixel by pixel.
    def leap(now: Any) -> Any:
        near = _eight(now)
        return tf.reshape(tf.gather(tf.reshape(near, [-1]), tf.minimum(count - 1 - near, count - 1)), tf.shape(near))

    return _spread(tf.where(masks > 0, own, -tf.ones_like(own)), masks > 0, leap)


def _areas(objects: Any) -> Any:
    """Return the area of each pixel's object; undefined outside objects."""
    count = tf.size(objects)
    flat = tf.reshape(objects, [-1, 1]) + 1
    sums = tf.scatter_nd(flat, tf.ones([count], tf.int32), [count + 1])
    return tf.reshape(tf.gather(sums, flat[:, 0]), tf.shape(objects))


def _remove_small(masks: Any, area: Any) -> Any:
    kept = tf.cast(_areas(_objects(masks)), tf.float64) >= area
    return tf.where(kept, masks, tf.zeros_like(masks))


def _largest(masks: Any) -> Any:
    objects = _objects(masks)
    inside = objects >= 0
    areas = tf.where(inside, _areas(objects), tf.zeros_like(objects))
    largest = tf.equal(areas, tf.reduce_max(areas, [1, 2], keepdims=True)) & inside
    candidates = tf.where(largest, objects, -tf.ones_like(objects))
    first = tf.equal(objects, tf.reduce_max(candidates, [1, 2], keepdims=True)) & inside
    return tf.cast(first, tf.int32)


# --- holes -------------------------------------------------------------------------------------------------------------


def _fill(masks: Any) -> Any:
    free = tf.equal(masks, 0)
    rows, columns = tf.range(tf.shape(masks)[1])[:, tf.newaxis], tf.range(tf.shape(masks)[2])[tf.newaxis, :]
    # The added frame is background on all sides, and connected.
    corner = tf.cast(tf.equal(rows, 0) | tf.equal(columns, 0), tf.int32)
    outside = _spread(tf.cast(free, tf.int32) * corner, free, _four)
    return 1 - outside


def _spread(start: Any, allowed: Any, neighbours: Callable[[Any], Any]) -> Any:
    def step(now: Any, _: Any) -> tuple[Any, Any]:
        following = tf.where(allowed, neighbours(now), now)
        return following, tf.reduce_any(tf.not_equal(following, now))

    shapes = (tf.TensorShape([None, None, None]), tf.TensorShape([]))
    found, _ = tf.while_loop(lambda _, going: going, step, (start, tf.constant(True)), shape_invariants=shapes)
    return found


def _eight(now: Any) -> Any:
    rows = _three(now, 1)
    return _three(rows, 2)


def _four(now: Any) -> Any:
    return tf.maximum(_three(now, 1), _three(now, 2))


def _three(now: Any, axis: int) -> Any:
    """Return the maximum of a pixel and its two neighbours along an axis."""
    around = [[0, 0], [0, 0], [0, 0]]
    around[axis] = [1, 1]
    wide = tf.pad(now, around, constant_values=-1)
    if axis == 1:
        return tf.maximum(tf.maximum(wide[:, :-2], wide[:, 2:]), now)
    return tf.maximum(tf.maximum(wide[:, :, :-2], wide[:, :, 2:]), now)


# --- disks -------------------------------------------------------------------------------------------------------------


def _with_disk(masks: Any, radius: Any, first: Callable[[Any, Any], Any], second: Callable[[Any, Any], Any]) -> Any:
    """Apply both steps with background all around, as if the slice were larger."""
    square = tf.cast(tf.floor(radius * radius + 1e-9), tf.int32)
    reach = tf.cast(tf.floor(tf.sqrt(tf.cast(square, tf.float64))), tf.int32)
    line = tf.range(-reach, reach + 1)
    disk = tf.cast(line[:, tf.newaxis] ** 2 + line[tf.newaxis, :] ** 2 <= square, tf.float32)
    frame = [[0, 0], [reach, reach], [reach, reach]]
    pixels = tf.cast(tf.pad(masks, frame), tf.float32)
    done = tf.cast(second(first(pixels, disk), disk), tf.int32)
    shape = tf.shape(masks)
    return done[:, reach : reach + shape[1], reach : reach + shape[2]]


def _dilate(pixels: Any, disk: Any) -> Any:
    sums = tf.nn.conv2d(pixels[..., tf.newaxis], disk[..., tf.newaxis, tf.newaxis], 1, "SAME")
    return tf.cast(sums[..., 0] > 0.5, tf.float32)


def _erode(pixels: Any, disk: Any) -> Any:
    return 1 - _dilate(1 - pixels, disk)
