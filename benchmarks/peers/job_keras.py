"""The whole job with common means: read, resize, split by patient, train a U-Net, choose a threshold, evaluate, report.

    python -m benchmarks.peers.job_keras DATA OUT EPOCHS FILTERS SIZE PRECISION

The last line of its output is a JSON object of stage -> seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import h5py
import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf
from keras import layers
from scipy import ndimage
from sklearn.model_selection import GroupShuffleSplit

mpl.use("Agg")
from matplotlib import pyplot as plt


def prepare(data: Path, out: Path, size: int) -> dict[str, np.ndarray]:
    images, masks, patients = [], [], []
    for path in sorted(data.glob("*.mat")):
        with h5py.File(path) as file:
            image, mask = (np.asarray(file[f"cjdata/{name}"]).T for name in ("image", "tumorMask"))
            patients.append("".join(map(chr, np.asarray(file["cjdata/PID"]).ravel())))
        image = cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        images.append((image - image.min()) / (image.max() - image.min()) * 255)
        masks.append(cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST))
    found = {"image": np.stack(images).astype(np.uint8)[..., None], "mask": np.stack(masks)[..., None]}
    rest, test = next(GroupShuffleSplit(1, test_size=0.15, random_state=0).split(images, groups=patients))
    inner = GroupShuffleSplit(1, test_size=0.15 / 0.85, random_state=0)
    _, val = next(inner.split(rest, groups=np.array(patients)[rest]))
    split = np.full(len(images), "train")
    split[rest[val]], split[test] = "val", "test"
    np.savez(out / "slices.npz", **found, split=split)
    return found | {"split": split}


def unet(size: int, filters: int) -> keras.Model:
    def block(x: Any, width: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    x = inputs = keras.Input((size, size, 3))
    skips = []
    for level in range(4):
        skips.append(block(x, filters * 2**level))
        x = layers.MaxPooling2D()(skips[-1])
    x = block(x, filters * 16)
    for level in range(3, -1, -1):
        up = layers.Conv2DTranspose(filters * 2**level, 2, strides=2)(x)
        x = block(layers.Concatenate()([up, skips[level]]), filters * 2**level)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x))


def loss(true: Any, found: Any) -> Any:
    both, sizes = (tf.reduce_sum(t, (1, 2, 3)) for t in (true * found, true + found))
    return 1 - (2 * both + 1) / (sizes + 1) + tf.reduce_mean(keras.losses.binary_crossentropy(true, found), (1, 2))


def batches(slices: dict[str, np.ndarray], split: str, *, training: bool) -> tf.data.Dataset:
    chosen = slices["split"] == split

    def ready(image: Any, mask: Any) -> Any:
        image, mask = tf.cast(image, tf.float32) / 255, tf.cast(mask, tf.float32)
        if training:
            if tf.random.uniform([]) < 0.5:
                image, mask = tf.image.flip_left_right(image), tf.image.flip_left_right(mask)
            image = tf.image.random_contrast(tf.image.random_brightness(image, 0.1), 0.9, 1.1)
        return tf.image.grayscale_to_rgb(tf.clip_by_value(image, 0, 1)), mask

    data = tf.data.Dataset.from_tensor_slices((slices["image"][chosen], slices["mask"][chosen]))
    data = data.shuffle(512) if training else data
    return data.map(ready, tf.data.AUTOTUNE).batch(8, drop_remainder=training).prefetch(tf.data.AUTOTUNE)


def dice(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    both, sizes = (found & true).sum((1, 2)), found.sum((1, 2)) + true.sum((1, 2))
    return np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1)


def hd95(found: np.ndarray, true: np.ndarray) -> float:
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (found, true)]
    far = [ndimage.distance_transform_edt(~border) for border in borders]
    return max(np.percentile(far[1][borders[0]], 95), np.percentile(far[0][borders[1]], 95))


def main(data: Path, out: Path, epochs: int, filters: int, size: int, precision: str) -> dict[str, float]:
    took, last = {}, time.perf_counter()

    def stage(name: str) -> None:
        nonlocal last
        took[name], last = time.perf_counter() - last, time.perf_counter()

    keras.mixed_precision.set_global_policy(precision)
    slices = prepare(data, out, size)
    stage("prepare")
    model = unet(size, filters)
    model.compile(keras.optimizers.AdamW(1e-3, 1e-5), loss)
    keep = keras.callbacks.ModelCheckpoint(out / "best.keras", save_best_only=True)
    train, val = batches(slices, "train", training=True), batches(slices, "val", training=False)
    history = model.fit(train, validation_data=val, epochs=epochs, callbacks=[keep], verbose=0).history
    model.load_weights(out / "best.keras")
    stage("train")
    true = slices["mask"][..., 0] > 0
    wanted, found = true[slices["split"] == "val"], model.predict(val, verbose=0)[..., 0]
    thresholds = np.arange(1, 100) / 100
    threshold = thresholds[np.argmax([dice(found >= t, wanted).mean() for t in thresholds])]
    stage("tune-threshold")
    test = batches(slices, "test", training=False)
    wanted, found = true[slices["split"] == "test"], model.predict(test, verbose=0)[..., 0] >= threshold
    each = dice(found, wanted)
    distances = [hd95(a, b) for a, b in zip(found, wanted, strict=True) if a.any() and b.any()]
    figure, axes = plt.subplots(2, 4, figsize=(12, 6))
    axes.flat[0].plot(history["loss"])
    axes.flat[0].plot(history["val_loss"])
    axes.flat[1].hist(each)
    for axis, number in zip(axes.flat[2:], np.argsort(each)[:6], strict=True):
        axis.imshow(slices["image"][slices["split"] == "test"][number, ..., 0], cmap="gray")
        axis.contour(wanted[number], [0.5], colors="lime")
        axis.contour(found[number], [0.5], colors="red")
    figure.savefig(out / "report.png")
    text = f"<p>Dice {each.mean():.3f}, HD95 {np.mean(distances):.1f} pixels</p><img src=report.png>"
    (out / "report.html").write_text(text)
    stage("evaluate")
    return took


if __name__ == "__main__":
    source, folder, *numbers, policy = sys.argv[1:]
    print(json.dumps(main(Path(source), Path(folder), *map(int, numbers), policy)))
