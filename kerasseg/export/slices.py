"""Slices for calibration and comparison: from the run's shards, or synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg.data.split import Caching, open_split
from kerasseg.runs.config import RunConfig
from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.intensity import restore
from kerasseg_tfrecords.records.manifest import Manifest, load_manifest


@dataclass(frozen=True, slots=True)
class Shards:
    """The shard directory of a run, present and unchanged."""

    root: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Slices for the comparison.

    Attributes:
        images: (slices, size, size, channels) uint8, as in the shards.
        raw: Slices as in a scanner's file, of various sizes: (height, width, channels) uint8 or float32.
        source: Origin of the slices.
        volumes: Whether the slices belong to volumes.
    """

    images: NDArray[np.uint8]
    raw: tuple[NDArray[np.uint8] | NDArray[np.float32], ...]
    source: Literal["validation", "synthetic"]
    volumes: bool


def find_shards(run: RunDirectory, config: RunConfig, moved: Path | None) -> Shards | None:
    """Open the run's shards; None if they are missing and no other location is given."""
    if run.folds and moved is None:
        config = run.folds[0].config()
    root = Path(config.settings.shards) if moved is None else moved
    if moved is None and not root.is_dir():
        return None
    manifest = load_manifest(root)
    if manifest.fingerprint != config.resolved.fingerprint:
        raise DataError(
            "these are not the shards of the run",
            path=root,
            found=f"fingerprint {manifest.fingerprint[:12]}",
            expected=config.resolved.fingerprint[:12],
            remedy="Give the run's own shards with --shards, or prepare them again with the same options.",
        )
    return Shards(root, manifest)


def comparison_samples(shards: Shards | None, config: RunConfig, count: int) -> Samples:
    """Choose validation slices, spread evenly over the split, each at its own size and at another."""
    size, channels = config.resolved.size, config.resolved.channels
    if shards is None:
        images = _made_up(count, size, channels)
        return Samples(images, _raw(images, [(size + 37, size + 11)] * count), "synthetic", volumes=False)
    split = open_split(shards.root, "val", Caching("none"))
    numbers = _evenly(len(split), count)
    images, _ = split.pixels(numbers)
    records = [split.record(int(number)) for number in numbers]
    volumes = any(record.volume for record in records)
    return Samples(images, _raw(images, [(r.height, r.width) for r in records]), "validation", volumes)


def calibration_images(shards: Shards, count: int) -> NDArray[np.uint8]:
    """Return (slices, size, size, channels) training slices, spread evenly over the split and so over its classes."""
    if count < 1:
        raise UsageError("calibration needs slices", found=count, expected="at least 1; 100 are usual")
    split = open_split(shards.root, "train", Caching("none"))
    return split.pixels(_evenly(len(split), count))[0]


def network_images(images: NDArray[np.uint8], channels: int) -> NDArray[np.float32]:
    """Convert stored slices (n, size, size, 1 or 3) to the input of a network: float32 in [0, 1], grey repeated."""
    scaled = images.astype(np.float32) / np.float32(255)
    return scaled if images.shape[3] == channels else np.repeat(scaled, channels, axis=3)


def _evenly(many: int, count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, many - 1, min(many, count)).round().astype(np.int64))


def _raw(
    images: NDArray[np.uint8], sizes: list[tuple[int, int]]
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], ...]:
    """Return each slice at its own size; every second one cropped to another shape, every fourth one in 16 bits."""
    found: list[NDArray[np.uint8] | NDArray[np.float32]] = []
    for number, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        planes = [restore(image[..., c].astype(np.float32), height, width) for c in range(image.shape[2])]
        whole = np.stack(planes, axis=-1)
        if number % 2:
            whole = np.ascontiguousarray(whole[height // 9 :, : width - width // 5])
        if number % 4 == 3:
            found.append(np.rint(whole * np.float32(16.25)) - np.float32(100))
        else:
            found.append(np.rint(whole).astype(np.uint8))
    return tuple(found)


def _made_up(count: int, size: int, channels: int) -> NDArray[np.uint8]:
    """Return synthetic slices, always the same: a bright head with a brighter spot, and blurred noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    images = np.zeros((count, size, size, channels), np.uint8)
    for image in images:
        noise = cv2.GaussianBlur(random.random((size, size)), (0, 0), max(size / 64, 0.5))
        head = (rows / 0.45) ** 2 + (columns / 0.38) ** 2 < 1
        row, column = random.uniform(-0.2, 0.2, 2)
        tumour = np.hypot(rows - row, columns - column) < random.uniform(0.03, 0.12)
        image[...] = (255 * np.clip(head * (0.2 + 0.5 * noise) + 0.3 * tumour, 0, 1)).astype(np.uint8)[..., np.newaxis]
    return images
