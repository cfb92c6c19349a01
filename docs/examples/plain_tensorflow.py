"""Only the shards, in a training loop of plain TensorFlow: no kerasseg model, no Keras `fit`.

    python docs/examples/plain_tensorflow.py [FOLDER [SHARDS]]

Without SHARDS it draws 36 small slices of 12 patients and makes shards of them in FOLDER. The network is three convolutions
of TensorFlow itself: whatever takes (batch, height, width, channels) goes here.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

import kerasseg

SIZE, CLASSES, EPOCHS = 32, ("glioma", "meningioma", "pituitary"), 4


def write_slices(folder: Path) -> None:
    """Grey heads with a bright tumour as PNG files, and the table that says whose they are and what they show."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    with (folder / "index.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "mask", "label", "patient"])
        for number in range(36):
            down, right = rng.integers(-5, 6, 2)
            tumour = np.hypot(rows - down, columns - right) < rng.integers(3, 6)
            head = np.where((rows / 14) ** 2 + (columns / 11) ** 2 < 1, 110, 40)
            image = np.where(tumour, 190, head) + rng.normal(0, 8, (SIZE, SIZE))
            cv2.imwrite(str(folder / "images" / f"{number}.png"), np.clip(image, 0, 255).astype(np.uint8))
            cv2.imwrite(str(folder / "masks" / f"{number}.png"), tumour.astype(np.uint8) * 255)
            label = CLASSES[number // 3 % 3]
            table.writerow([f"images/{number}.png", f"masks/{number}.png", label, f"patient-{number // 3}"])


class Network(tf.Module):
    """Three convolutions; probabilities (batch, height, width, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, random = 8, tf.random.Generator.from_seed(1)
        shapes = [(3, 3, channels, wide), (3, 3, wide, wide), (1, 1, wide, 1)]
        self.kernels = [tf.Variable(random.normal(shape, stddev=(2 / np.prod(shape[:3])) ** 0.5)) for shape in shapes]
        self.biases = [tf.Variable(tf.zeros(shape[-1])) for shape in shapes]

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            image = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME") + bias)
        return tf.nn.sigmoid(tf.nn.conv2d(image, self.kernels[-1], 1, "SAME") + self.biases[-1])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "plain-tensorflow-output")
    if len(sys.argv) > 2:
        shards = Path(sys.argv[2])
    else:
        shutil.rmtree(folder, ignore_errors=True)
        shards = folder / "shards"
        write_slices(folder / "data")
        kerasseg.prepare(folder / "data", shards, kerasseg.PrepareOptions(size=SIZE, split="60/20/20"), jobs=1)
    manifest = kerasseg.load_manifest(shards)
    sys.stdout.write(f"{manifest.slices_in('train')} slices of {', '.join(manifest.classes)}\n")

    # Batches are a function of (seed, epoch, step): a stopped loop resumes with `start_step`.
    train = kerasseg.TrainingData(shards, batch_size=8, seed=1)
    validation = kerasseg.EvaluationData(shards, "val", batch_size=8).dataset()
    network = Network(manifest.channels)
    moments = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in network.trainable_variables]

    @tf.function
    def step(image: tf.Tensor, mask: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            p = network(image)
            overlap = 2 * tf.reduce_sum(p * mask, (1, 2, 3)) + 1
            dice = overlap / (tf.reduce_sum(p, (1, 2, 3)) + tf.reduce_sum(mask, (1, 2, 3)) + 1)
            loss = tf.reduce_mean(1 - dice)
        gradients = tape.gradient(loss, network.trainable_variables)
        for variable, gradient, (first, second) in zip(network.trainable_variables, gradients, moments, strict=True):
            first.assign(0.9 * first + 0.1 * gradient)  # Adam, in full
            second.assign(0.99 * second + 0.01 * gradient**2)
            change = first / (1 - 0.9**count) / (tf.sqrt(second / (1 - 0.99**count)) + 1e-7)
            variable.assign_sub(0.03 * change)
        return loss

    count = 0
    for epoch in range(EPOCHS):
        losses = []
        for image, mask in train.epoch(epoch):
            count += 1
            losses.append(float(step(image, mask, tf.constant(float(count)))))
        scores = [kerasseg.dice(network(image).numpy() >= 0.5, mask.numpy()) for image, mask in validation]
        score = np.concatenate([np.atleast_1d(part) for part in scores]).mean()
        sys.stdout.write(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, validation Dice {score:.3f}\n")


if __name__ == "__main__":
    main()
