"""`--format savedmodel`: stored slices of any size in, masks of that size out; usable without kerasseg.

| signature | takes | gives |
| --- | --- | --- |
| `serving_default` | uint8 (batch, height, width, channels), as stored | `mask`, `probability` (batch, height, width) |
| `stored_values` | the same as float32: 16-bit or floating-point values | the same |
| `volume` | the same; the batch is one volume, with one window | the same |
| `kerasseg_network` | float32 in [0, 1] (batch, size, size, channels) | `probability` (batch, size, size, 1) |

The argument is always `image`. `open_checkpoint` rebuilds the last signature as a trainable network.

Post-processing (`kerasseg.postprocessing`) is part of the graph, for a batch of masks of any size. Objects and holes are
found by spreading: every pixel takes the largest number among its neighbours until nothing changes. All steps stay within
the bounding box of the batch's tumours, which makes this fast. Only operations that `open_checkpoint` allows are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg.checkpoints.savedmodel import NETWORK_SIGNATURE
from kerasseg.export.serving import Network
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import explain_os_error, system_error
from kerasseg_tfrecords.intensity import IntensityRule


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


# `kerasseg_tfrecords.intensity` as TensorFlow operations. Resizing a square is linear in rows and in columns, so it
# is a product with a matrix from either side. The matrices are OpenCV's weights, computed in the graph from the size
# of the slices. Padding is implicit: it has the window's lower end, which is 0 after subtraction. Only operations
# that `open_checkpoint` allows in a SavedModel are used.
_LEAST_OVERLAP = 1e-3
"""OpenCV ignores parts of a pixel that are smaller."""


def fit_images(pixels: Any, rule: IntensityRule, size: int, *, one_window: bool = False) -> Any:
    """Compute `fit_image` for each slice of a batch.

    Args:
        pixels: (batch, height, width, channels), any numbers.
        rule: Intensity rule.
        size: Side of the result.
        one_window: Whether the batch is one volume with one window; otherwise every slice has its own.

    Returns:
        (batch, size, size, channels) float32, integers from 0 to 255.
    """
    values = tf.cast(pixels, tf.float32)
    low, high = _window(values, rule, one_window=one_window)
    shape = tf.shape(values)
    height, width = shape[1], shape[2]
    side = tf.maximum(height, width)
    low32, high32 = tf.cast(low, tf.float32), tf.cast(high, tf.float32)
    if rule != "minmax":
        values = tf.minimum(tf.maximum(values, low32), high32)
    weights = _shrinking_or_growing(side, size)
    small = _along(_cut(weights, side, height), values - low32, 1)
    small = _along(_cut(weights, side, width), small, 2)
    scale = tf.cast(
        tf.constant(255.0, tf.float64) / tf.maximum(high - low, tf.constant(1e-300, tf.float64)), tf.float32
    )
    whole = tf.minimum(tf.maximum(tf.round(small * scale), 0.0), 255.0)
    return tf.where(high > low, whole, tf.zeros_like(whole))


def restore_all(probabilities: Any, height: Any, width: Any) -> Any:
    """Compute `restore` for each slice of a batch."""
    side = tf.maximum(height, width)
    weights = tf.transpose(_linear(int(probabilities.shape[1]), side))
    large = _along(tf.transpose(_cut(weights, side, height)), probabilities[..., tf.newaxis], 1)
    return _along(tf.transpose(_cut(weights, side, width)), large, 2)[..., 0]


def _window(values: Any, rule: IntensityRule, *, one_window: bool) -> tuple[Any, Any]:
    """Return the ends of the window, (batch, 1, 1, 1) or (1, 1, 1, 1) float64."""
    axes = [0, 1, 2, 3] if one_window else [1, 2, 3]
    if rule == "minmax":
        low, high = tf.reduce_min(values, axes, keepdims=True), tf.reduce_max(values, axes, keepdims=True)
        return tf.cast(low, tf.float64), tf.cast(high, tf.float64)
    if rule == "percentile":
        flat = tf.reshape(values, [1, -1] if one_window else [tf.shape(values)[0], -1])
        ordered = tf.sort(flat, axis=1)
        return _percentile(ordered, 0.005), _percentile(ordered, 0.995)
    exact = tf.cast(values, tf.float64)
    mean = tf.reduce_mean(exact, axes, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(exact - mean), axes, keepdims=True))
    return mean - 3 * deviation, mean + 3 * deviation


def _percentile(ordered: Any, share: float) -> Any:
    """Compute a percentile as NumPy does, linear between the two nearest values."""
    last = tf.shape(ordered)[1] - 1
    place = tf.cast(last, tf.float64) * tf.constant(share, tf.float64)
    under = tf.cast(tf.floor(place), tf.int32)
    part = place - tf.cast(under, tf.float64)
    below = tf.cast(tf.gather(ordered, under, axis=1), tf.float64)
    above = tf.cast(tf.gather(ordered, tf.minimum(under + 1, last), axis=1), tf.float64)
    return tf.reshape(below + (above - below) * part, [-1, 1, 1, 1])


def _along(weights: Any, values: Any, axis: int) -> Any:
    """Multiply (new, old) weights with one axis of a tensor of rank 4."""
    # As one product of two matrices: products of batches of matrices with one side broadcast crash TensorFlow 2.21 (oneDNN
    # kernels, batches of two and more).
    order = [axis, *(i for i in range(4) if i != axis)]
    turned = tf.transpose(values, order)
    shape = tf.shape(turned)
    product = tf.matmul(weights, tf.reshape(turned, [shape[0], -1]))
    found = tf.reshape(product, tf.concat([tf.shape(weights)[:1], shape[1:]], 0))
    return tf.transpose(found, [order.index(i) for i in range(4)])


def _cut(weights: Any, side: Any, length: Any) -> Any:
    """Return the columns for a slice of this length in the middle of the square."""
    first = (side - length) // 2
    return weights[:, first : first + length]


def _shrinking_or_growing(side: Any, size: int) -> Any:
    """Return (size, side) float32 weights of OpenCV's INTER_AREA, which interpolates when enlarging."""
    scale = tf.cast(side, tf.float64) / size
    source = tf.cast(tf.range(side), tf.float64)[tf.newaxis, :]
    target = tf.cast(tf.range(size), tf.float64)[:, tf.newaxis]
    # Shares of the input pixels that each output pixel covers.
    begin = target * scale
    end = tf.minimum(begin + scale, tf.cast(side, tf.float64))
    overlap = tf.minimum(end, source + 1) - tf.maximum(begin, source)
    area = tf.where(overlap > _LEAST_OVERLAP, overlap, tf.zeros_like(overlap)) / (end - begin)
    # Interpolation between two pixels.
    under = tf.floor(begin)
    part = (target + 1) - (under + 1) / scale
    part = tf.where(part <= 0, tf.zeros_like(part), part - tf.floor(part))
    grown = _two_pixels(under, part, source, tf.cast(side, tf.float64))
    return tf.cast(tf.where(scale >= 1, area, grown), tf.float32)


def _linear(size: int, side: Any) -> Any:
    """Return (side, size) float32 weights of OpenCV's INTER_LINEAR from `size` to `side` pixels."""
    scale = size / tf.cast(side, tf.float64)
    place = (tf.cast(tf.range(side), tf.float64)[:, tf.newaxis] + 0.5) * scale - 0.5
    under = tf.floor(place)
    part = tf.where(under < 0, tf.zeros_like(place), place - under)
    source = tf.cast(tf.range(size), tf.float64)[tf.newaxis, :]
    return tf.cast(_two_pixels(tf.maximum(under, 0.0), part, source, tf.constant(size, tf.float64)), tf.float32)


def _two_pixels(under: Any, part: Any, source: Any, many: Any) -> Any:
    """Return weights 1 - part for the pixel `under` and part for the next; the last pixel has no next."""
    part = tf.where(under >= many - 1, tf.zeros_like(part), part)
    under = tf.minimum(under, many - 1)
    first = tf.cast(tf.equal(source, under), tf.float64)
    second = tf.cast(tf.equal(source, under + 1), tf.float64)
    return (1 - part) * first + part * second


RawNetwork = Callable[[NDArray[Any]], tuple[NDArray[np.bool_], NDArray[np.float32]]]
"""One stored slice (height, width, channels) -> mask and probabilities (height, width)."""


@dataclass(frozen=True, slots=True)
class FromStored:
    """Steps before and after the network."""

    intensity: IntensityRule
    size: int
    channels: int
    rule: MaskRule


def write_savedmodel(model: keras.Model, folder: Path, around: FromStored) -> None:
    wanted = int(model.inputs[0].shape[-1])

    def from_stored(image: Any, *, one_window: bool = False) -> dict[str, Any]:
        shape = tf.shape(image)
        seen = fit_images(image, around.intensity, around.size, one_window=one_window) / 255.0
        if around.channels != wanted:
            seen = tf.tile(seen, [1, 1, 1, wanted])
        seen = tf.ensure_shape(seen, [None, around.size, around.size, wanted])
        found = model(seen, training=False)[..., 0]
        # Clipped like every network output in kerasseg.
        probability = restore_all(tf.minimum(tf.maximum(found, 0.0), 1.0), shape[1], shape[2])
        mask = tf.cast(probability >= tf.constant(around.rule.threshold, tf.float32), tf.int32)
        return {"mask": tf.cast(postprocess_all(mask, around.rule), tf.uint8), "probability": probability}

    # Not Keras' own archive, which saves every variable twice.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    stored = [None, None, None, around.channels]
    whole, values = (tf.TensorSpec(stored, dtype, "image") for dtype in (tf.uint8, tf.float32))
    seen = tf.TensorSpec([None, around.size, around.size, wanted], tf.float32, "image")
    calls = {
        "serving_default": (from_stored, whole),
        "stored_values": (from_stored, values),
        "volume": (lambda image: from_stored(image, one_window=True), values),
        NETWORK_SIGNATURE: (lambda image: {"probability": model(image, training=False)}, seen),
    }
    signatures = {
        name: tf.function(call, autograph=False).get_concrete_function(image) for name, (call, image) in calls.items()
    }
    try:
        tf.saved_model.save(module, str(folder), signatures)
    except tf.errors.OpError as error:
        if (known := system_error(error)) is not None:
            raise explain_os_error(known, folder) from error
        first = str(error).splitlines()[0][:200]
        raise KerassegError(
            "the SavedModel cannot be written", path=folder, found=first, remedy="Check the free space of the disk."
        ) from error


def open_savedmodel_export(folder: Path) -> Network:
    signature = _signature(folder, NETWORK_SIGNATURE)

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"probability": signature(image=tf.constant(images))["probability"].numpy()[..., 0]}

    return call


def open_savedmodel_raw(folder: Path) -> RawNetwork:
    """Open the signatures for stored slices with TensorFlow."""
    whole, values = _signature(folder, "serving_default"), _signature(folder, "stored_values")

    def call(image: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        if image.dtype == np.uint8:
            found = whole(image=tf.constant(image[np.newaxis]))
        else:
            found = values(image=tf.constant(image[np.newaxis].astype(np.float32)))
        return found["mask"].numpy()[0] > 0, found["probability"].numpy()[0]

    return call


def _signature(folder: Path, name: str) -> Any:
    # The loaded object is kept with the function, because it owns the variables.
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures[name]
    function._kerasseg_keep = loaded
    return function
