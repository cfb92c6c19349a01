"""What works today, on slices and a network made here: check, prepare, inspect, train, tune, evaluate.

    python docs/examples/demo.py FOLDER

Writes 90 synthetic slices of 30 patients as MATLAB 7.3 files, as the figshare data set has them, and a small U-Net as a
SavedModel; then types the commands that one types with real data.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

SIZE = 192
CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}


def head(label: int, seed: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A head (skull, brain, ventricles, noise, bias field) with the tumour of its class: (SIZE, SIZE) image and mask.

    Meningiomas are round and bright at the edge of the brain, gliomas ragged and inside, pituitary tumours small, central.
    """
    rng = np.random.default_rng(seed)
    folds = cv2.resize(
        rng.normal(0, 1, (24, 24)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
    )  # no two brains are alike
    tall, wide = rng.uniform(0.75, 0.95), rng.uniform(0.6, 0.8)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]

    def ellipse(row: float, column: float, height: float, width: float) -> NDArray[np.bool_]:
        return np.asarray(((y - row) / height) ** 2 + ((x - column) / width) ** 2 < 1)

    image = np.where(ellipse(0, 0, tall, wide), 900.0, 20.0)
    brain = ellipse(0, 0, tall - 0.1, wide - 0.09)
    image[brain] = 450 + 110 * folds[brain]
    for side in (-0.13, 0.13):
        image[ellipse(rng.uniform(-0.15, 0.05), side, rng.uniform(0.15, 0.35), 0.08)] = 180
    turn, angle = rng.uniform(0, 2 * np.pi), np.arctan2(y, x)
    place = {1: 0.55, 2: rng.uniform(0.15, 0.4), 3: 0.05}[label]
    row, column = place * np.sin(turn) * tall / wide + (0.35 if label == 3 else 0), place * np.cos(turn)
    radius = {1: rng.uniform(0.12, 0.2), 2: rng.uniform(0.14, 0.26), 3: rng.uniform(0.06, 0.1)}[label]
    ragged = 1 + (0.3 * np.sin(5 * angle + turn) * np.sin(3 * turn + 7 * angle) if label == 2 else 0)
    mask = (y - row) ** 2 + (x - column) ** 2 < (radius * ragged) ** 2
    image[mask] = {1: 1100, 2: 750, 3: 850}[label]
    bias = 1 + 0.2 * (y * np.cos(turn) + x * np.sin(turn))
    noisy = np.hypot(image * bias + rng.normal(0, 30, image.shape), rng.normal(0, 30, image.shape))  # Rician
    return noisy.astype(np.int16), mask


def write_slices(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(1, 91):
        patient, label = (number - 1) // 3, 1 + (number - 1) // 3 % 3
        image, mask = head(label, number)
        with h5py.File(folder / f"{number}.mat", "w", userblock_size=512) as file:
            # MATLAB stores columns: HDF5 shows its arrays transposed.
            file.create_dataset("cjdata/image", data=image.T, chunks=(SIZE, 48), compression=3)
            file.create_dataset("cjdata/tumorMask", data=mask.T.astype(np.uint8), chunks=(SIZE, 48), compression=3)
            file["cjdata/label"] = np.full((1, 1), float(label))
            file["cjdata/PID"] = np.array([[ord(character)] for character in f"{100_000 + patient}"], np.uint16)


def type_command(folder: Path, *words: str) -> None:
    """Shows a command as one would type it, and runs it."""
    sys.stdout.write(f"\n$ kerasseg {' '.join(words)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "kerasseg_cli", *words], cwd=folder, check=True)


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(f"Writing 90 synthetic slices and a small U-Net to {folder}\n")
    write_slices(folder / "data")
    export = 'import kerasseg; kerasseg.unet((192, 192, 3), filters=8, seed=0).export("unet-export", verbose=False)'
    subprocess.run([sys.executable, "-c", export], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    type_command(folder, "verify", "--data", "data")
    type_command(folder, "prepare", "data", "--size", "192")
    type_command(folder, "verify", "shards")
    type_command(folder, "inspect", "unet-export", "--strategy", "conservative")
    type_command(folder, "convert", "unet-export", "unet.keras")
    # The network has learnt nothing yet, so there is nothing to preserve: all of it is trained, at the rate of fresh ones.
    type_command(folder, "train", "--strategy", "scratch", "--checkpoint", "unet-export", "--epochs", "10")
    type_command(folder, "tune-threshold")
    type_command(folder, "evaluate", "--threshold", "auto")
    sys.stdout.write(f"\nEverything lies in {folder}. Next: the same with your own slices and checkpoint.\n")


if __name__ == "__main__":
    main()
