"""Training batches compared with a per-example `tf.image` map, a `keras.utils.PyDataset`, and MONAI.

Slices are 256x256 with one channel (repeated to three) or three, with all four augmentations, in batches of 8. All have the
slices in memory when the clock starts. The `tf.image` pipeline is what a careful user writes: parse, cache, shuffle, map
over single slices with as many parallel calls as TensorFlow chooses, batch, prefetch. The PyDataset augments NumPy arrays
with OpenCV in two threads; MONAI has the same arrays in a `CacheDataset`, in its own process. A training step (strategy
conservative, precision auto) shows how many slices training consumes.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import cv2
import numpy as np
import tensorflow as tf

from benchmarks.measure import Cost, costs, make_slices, rounds_of
from benchmarks.peers.sequence import sequence_epochs
from benchmarks.result import Result, compared, show
from benchmarks.training import BATCH, our_step
from benchmarks.turns import contenders
from kerasseg.data.tf_data import TrainingData
from kerasseg_tfrecords import parse_batch, prepare, shard_paths
from kerasseg_tfrecords.records.manifest import PrepareOptions

SIZE, EPOCHS = 256, 6  # about a second per turn; shorter ones would measure the start of threads


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
    """Create `count` pairs of PNG files with three channels, `distinct` different ones and links to them."""
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


def cost(data: tf.data.Dataset) -> Cost:
    """Measure the cost per slice, without the first batch, which traces the graph."""
    batches = iter(data)
    next(batches)
    seen = 0

    def rest() -> None:
        nonlocal seen
        seen = sum(1 for _ in batches) * BATCH

    whole = costs(rest)
    return whole.each(seen)


def compare(work: Path, channels: int, count: int, rounds: int) -> list[Result]:
    """Compare the pipeline for each kind of cache with those of others, and with a training step."""
    (make_slices if channels == 1 else make_colour)(work / "raw", count)
    # All slices are copies of a few: a search for duplicates would put them into one group.
    options = PrepareOptions(size=SIZE, split="80/10/10", split_by="slice", find_duplicates=False)
    prepare(work / "raw", work / "shards", options)
    other = usual(work / "shards", channels).repeat(EPOCHS)
    ours = {
        kind: TrainingData(work / "shards", channels=3, cache=kind, cache_folder=work / "cache")
        for kind in ("memory", "disk", "none")
    }
    kept = max(BATCH, ours["memory"].steps * BATCH)
    epoch = iter(range(1_000_000))
    actions = {
        "tf.image": lambda: cost(other),
        "PyDataset": sequence_epochs(kept, SIZE, channels, BATCH, EPOCHS),
        **{kind: lambda d=data: cost(d.epochs(next(epoch), EPOCHS)) for kind, data in ours.items()},
    }
    step = our_step(16)
    step()  # traces the graph
    peer = ("benchmarks.peers.monai_input:epochs", kept, SIZE, channels, BATCH, EPOCHS)
    with contenders({"MONAI": peer}) as running:
        actions["step"] = lambda: costs(step).each(BATCH)
        for name, ask in running.items():
            actions[name] = lambda a=ask: a().each(kept * EPOCHS)
        found = rounds_of(actions, rounds)
    words = "grey to 3 channels" if channels == 1 else "3 channels"
    names = {
        "tf.image": "tf.data, a tf.image map over slices",
        "PyDataset": "keras PyDataset, NumPy and OpenCV, 2 threads",
        "MONAI": "MONAI CacheDataset, DataLoader, 2 workers",
    }
    lines = []
    for key, title in names.items():
        for kind in ("memory", "disk", "none") if key == "tf.image" else ("memory",):
            if key in found:
                goal = 1.0 if (key, kind) == ("tf.image", "memory") else None
                # The processor time of its workers is unknown.
                pair = [found[kind], found[key] if key != "MONAI" else [Cost(c.time, 0.0) for c in found[key]]]
                lines.append(
                    compared("pipeline", f"{words}, cache in {kind}", title, *pair, slices=1, goal=goal)
                )  # fmt: skip
    remark = "slices that training consumes"
    title = "a step of the 1.9-million network"
    pair = found["memory"], found["step"]
    lines.append(compared("pipeline", f"{words}, cache in memory", title, *pair, slices=1, goal=5.0, remark=remark))
    return lines


def results(*, quick: bool) -> list[Result]:
    lines = []
    for channels in (1, 3):
        with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
            lines += compare(Path(name), channels, 200 if quick else 400, 2 if quick else 5)
    return lines


if __name__ == "__main__":
    show(results)
