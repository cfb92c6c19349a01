"""Training batches from `kerasseg.pipeline` against the usual per-example `tf.image` map, in turn in one run.

    python -m benchmarks.pipeline [--slices 400] [--rounds 7]

256x256, grey slices repeated to the three channels that the network takes, all four augmentations, batch 8. Both read the
same shards and have them in memory when the clock starts (epochs after the first). The usual one is what a careful user
writes: parse, cache, shuffle, map over single slices with as many parallel calls as TensorFlow sees fit, batch, prefetch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tensorflow as tf

from benchmarks.measure import make_slices, spread
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
    return tf.image.grayscale_to_rgb(tf.clip_by_value(image, 0.0, 1.0)), mask


def usual(shards: Path, batch: int) -> tf.data.Dataset:
    data = tf.data.TFRecordDataset([str(path) for path in shard_paths(shards, "train")]).batch(64)
    data = data.map(lambda records: parse_batch(records, size=SIZE, channels=1)).unbatch()
    data = data.map(lambda slice_: {"image": slice_["image"], "mask": slice_["mask"]}).cache().shuffle(512)
    data = data.map(lambda slice_: augment(slice_, tf.random.uniform([4])), tf.data.AUTOTUNE)
    return data.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def cost(data: tf.data.Dataset, batch: int) -> tuple[float, float]:
    """Seconds and processor seconds a slice, without the first batch: it pays for the graph."""
    batches = iter(data)
    next(batches)
    start, used = time.perf_counter(), time.process_time()
    steps = sum(1 for _ in batches)
    return (time.perf_counter() - start) / (steps * batch), (time.process_time() - used) / (steps * batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        work = Path(name)
        make_slices(work / "raw", asked.slices)
        # All slices are linked copies of a few: a search for duplicates would put them into one group.
        options = PrepareOptions(size=SIZE, split="80/10/10", split_by="slice", find_duplicates=False)
        prepare(work / "raw", work / "shards", options)
        other = usual(work / "shards", 8).repeat(EPOCHS)
        ours = {
            kind: TrainingData(work / "shards", channels=3, cache=kind, cache_folder=work / "cache")
            for kind in ("memory", "disk", "none")
        }
        cost(other, 8)
        found: dict[str, list[tuple[float, float]]] = {}
        for round_ in range(asked.rounds):
            found.setdefault("tf.image", []).append(cost(other, 8))
            for kind, data in ours.items():
                found.setdefault(kind, []).append(cost(data.epochs(round_, EPOCHS), 8))
        print("pipeline, 256x256, grey to 3 channels, batch 8, after the first epoch")
        for kind, costs in found.items():
            speed = 1 / statistics.median(cost[0] for cost in costs)
            ratios = [[a[i] / b[i] for a, b in zip(found["tf.image"], costs, strict=True)] for i in (0, 1)]
            print(
                f"  {kind:8}: {speed:6,.0f} slices/s; times as fast as tf.image: {spread(ratios[0])}, "
                f"by processor time {spread(ratios[1])}" + ("   (goal: at least 3)" if kind == "memory" else "")
            )


if __name__ == "__main__":
    main()
