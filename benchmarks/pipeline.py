"""Training batches from `kerasseg.pipeline` against the usual per-example `tf.image` map, in turn in one run.

    python -m benchmarks.pipeline [--slices 400] [--rounds 7] [--filters 16 64]

256x256, slices of one channel (repeated to the three that the network takes) and of three, all four augmentations, batch 8.
Both read the same shards and have them in memory when the clock starts (epochs after the first). The usual one is what a
careful user writes: parse, cache, shuffle, map over single slices with as many parallel calls as TensorFlow sees fit,
batch, prefetch. Beside them, what a step of training consumes: the conservative
strategy in the precision that `auto` chooses.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import cv2
import numpy as np
import tensorflow as tf

from benchmarks.measure import make_slices, seconds, spread
from benchmarks.training import BATCH, our_step
from kerasseg.pipeline import TrainingData
from kerasseg_tfrecords import parse_batch, prepare, shard_paths
from kerasseg_tfrecords.manifest import PrepareOptions

SIZE, EPOCHS = 256, 4


def augment(slice_: dict[str, tf.Tensor], draw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    image = tf.cast(slice_["image"], tf.float32) / 255.0
    mask = tf.cast(slice_["mask"], tf.float32)
    if draw[0] < 0.5:
        image, mask = tf.image.flip_left_right(image), tf.image.flip_left_right(mask)
    half = 0.5 / (0.95 + 0.1 * draw[3])
    box = tf.reshape(tf.stack([0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half]), [1, 4])
    image = tf.image.crop_and_resize(image[None], box, [0], [SIZE, SIZE])[0]
    mask = tf.image.crop_and_resize(mask[None], box, [0], [SIZE, SIZE], method="nearest")[0]
    image = tf.image.adjust_contrast(image, 0.9 + 0.2 * draw[2])
    image = tf.image.adjust_brightness(image, 0.2 * draw[1] - 0.1)
    image = tf.clip_by_value(image, 0.0, 1.0)
    return (tf.image.grayscale_to_rgb(image) if image.shape[-1] == 1 else image), mask


def usual(shards: Path, channels: int) -> tf.data.Dataset:
    data = tf.data.TFRecordDataset([str(path) for path in shard_paths(shards, "train")]).batch(64)
    data = data.map(lambda records: parse_batch(records, size=SIZE, channels=channels)).unbatch()
    data = data.map(lambda slice_: {"image": slice_["image"], "mask": slice_["mask"]}).cache().shuffle(512)
    data = data.map(lambda slice_: augment(slice_, tf.random.uniform([4])), tf.data.AUTOTUNE)
    return data.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def make_colour(folder: Path, count: int, distinct: int = 60) -> None:
    """`count` pairs of PNG files in three channels, `distinct` different ones linked."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(count):
        image, mask = (folder / kind / f"{number}.png" for kind in ("images", "masks"))
        if number >= distinct:
            for path in (image, mask):
                path.hardlink_to(path.with_name(f"{number % distinct}.png"))
            continue
        cv2.imwrite(str(image), rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        x, y, radius = (int(v) for v in rng.integers((60, 60, 15), (190, 190, 40)))
        cv2.imwrite(str(mask), cv2.circle(np.zeros((SIZE, SIZE), np.uint8), (x, y), radius, 255, -1))


def cost(data: tf.data.Dataset) -> tuple[float, float]:
    """Seconds and processor seconds a slice, without the first batch: it pays for the graph."""
    batches = iter(data)
    next(batches)
    start, used = time.perf_counter(), time.process_time()
    seen = sum(1 for _ in batches) * BATCH
    return (time.perf_counter() - start) / seen, (time.process_time() - used) / seen


def compare(work: Path, channels: int, asked: argparse.Namespace, steps: dict[int, Callable[[], object]]) -> None:
    """Prints the pipeline from each kind of cache over the usual one, and over what a step consumes."""
    (make_slices if channels == 1 else make_colour)(work / "raw", asked.slices)
    # All slices are linked copies of a few: a search for duplicates would put them into one group.
    options = PrepareOptions(size=SIZE, split="80/10/10", split_by="slice", find_duplicates=False)
    prepare(work / "raw", work / "shards", options)
    other = usual(work / "shards", channels).repeat(EPOCHS)
    ours = {
        kind: TrainingData(work / "shards", channels=3, cache=kind, cache_folder=work / "cache")
        for kind in ("memory", "disk", "none")
    }
    cost(other)
    found: dict[str, list[tuple[float, float]]] = {}
    consumed: dict[int, list[float]] = {}
    for round_ in range(asked.rounds):
        found.setdefault("tf.image", []).append(cost(other))
        for kind, data in ours.items():
            found.setdefault(kind, []).append(cost(data.epochs(round_, EPOCHS)))
        for filters, step in steps.items():
            consumed.setdefault(filters, []).append(seconds(step) / BATCH)
    words = "grey to 3 channels" if channels == 1 else "3 channels"
    print(f"pipeline, {SIZE}x{SIZE}, {words}, batch {BATCH}, after the first epoch")
    for kind, costs in found.items():
        speed = 1 / statistics.median(cost[0] for cost in costs)
        ratios = [[a[i] / b[i] for a, b in zip(found["tf.image"], costs, strict=True)] for i in (0, 1)]
        print(
            f"  {kind:8}: {speed:6,.0f} slices/s; times as fast as tf.image: {spread(ratios[0])}, "
            f"by processor time {spread(ratios[1])}" + ("   (goal: at least 3)" if kind == "memory" else "")
        )
    for filters, costs in consumed.items():
        ratios = [a / b[0] for a, b in zip(costs, found["memory"], strict=True)]
        print(
            f"  a step of the {filters}-filter network takes {1 / statistics.median(costs):.1f} slices/s; "
            f"pipeline over step: {spread(ratios)}   (goal: at least 5)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--filters", type=int, nargs="*", default=[16], help="16: 1.9 million parameters; 64: 31 million"
    )
    asked = parser.parse_args()
    steps = {filters: our_step(filters) for filters in asked.filters}
    for channels in (1, 3):
        with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
            compare(Path(name), channels, asked, steps)


if __name__ == "__main__":
    main()
