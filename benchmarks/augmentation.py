"""Augmentation: batches in OpenCV against a per-example `tf.image` map, in turn in one run.

256x256 slices, all four augmentations; outputs are network inputs (float32, three channels) and masks. Both read the same
uint8 slices from memory, in a `tf.data` pipeline with as many parallel calls as TensorFlow chooses.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks.measure import Cost, rounds_of
from benchmarks.pipeline import SIZE, augment
from benchmarks.result import Result, compared, show
from kerasseg.data.augmentation import SafeAugmentation


def slices(count: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = (rng.random((count, SIZE, SIZE, channels)) * 255).astype(np.uint8)
    masks = np.zeros((count, SIZE, SIZE, 1), np.uint8)
    masks[:, 100:140, 90:150] = 1
    return images, masks


def per_example(images: np.ndarray, masks: np.ndarray, batch: int) -> tf.data.Dataset:
    """Build a pipeline as a careful user would with tf.image: stateless operations, one slice at a time."""

    def drawn(image, mask, i):
        return augment({"image": image, "mask": mask}, tf.random.stateless_uniform([4], tf.stack([i, 0])))

    data = tf.data.Dataset.from_tensor_slices((images, masks, np.arange(len(images))))
    return data.repeat().map(drawn, tf.data.AUTOTUNE).batch(batch).prefetch(2)


def batched(images: np.ndarray, masks: np.ndarray, batch: int, *, reference: bool) -> tf.data.Dataset:
    augmentation = SafeAugmentation()
    table = augmentation.parameters(0, 0, np.arange(len(images)))

    def fast(image, mask, row):
        return tf.numpy_function(
            lambda i, m, t: augmentation.apply_numpy(i, m, t, 3), [image, mask, row], [tf.float32, tf.float32]
        )

    def slow(image, mask, row):
        image, mask = augmentation.apply(image, mask, row)
        return (tf.image.grayscale_to_rgb(image) if image.shape[-1] == 1 else image), mask

    data = tf.data.Dataset.from_tensor_slices((images, masks, table))
    return data.repeat().batch(batch).map(slow if reference else fast, tf.data.AUTOTUNE).prefetch(2)


def cost(data: tf.data.Dataset, batch: int, seconds: float) -> Cost:
    """Measure the cost per slice."""
    source = iter(data)
    for _ in range(4):
        next(source)
    seen, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        next(source)
        seen += batch
    return Cost(time.perf_counter() - start, time.process_time() - used).each(seen)


def results(*, quick: bool) -> list[Result]:
    lines = []
    for channels in (1, 3):
        images, masks = slices(64, channels)
        for batch in (8, 32):
            ways = {
                "tf.image, slice by slice": per_example(images, masks, batch),
                "keras.ops, the reference": batched(images, masks, batch, reference=True),
                "ours": batched(images, masks, batch, reference=False),
            }
            found = rounds_of(
                {name: lambda d=data, b=batch: cost(d, b, 1.0) for name, data in ways.items()}, 2 if quick else 5
            )
            what = f"OpenCV, {channels} channel{'s' * (channels > 1)}, batch {batch}"
            lines += [
                compared("augmentation", what, name, found["ours"], found[name], slices=1) for name in list(ways)[:2]
            ]
    return lines


if __name__ == "__main__":
    show(results)
