"""Compare an export, opened from disk, with the original network, on slices of the run's shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.data.split import Caching, open_split
from kerasseg.evaluation.bootstrap import paired_interval
from kerasseg.evaluation.figures import USUAL, as_mean
from kerasseg.evaluation.overlap import dice
from kerasseg.evaluation.predictions import check_probabilities
from kerasseg.export.schema import Comparison, Int8Facts
from kerasseg.export.serving import BATCH, Network
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.runs.config import RunConfig, manifest_of
from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.intensity import IntensityRule, fit_image, intensity_window, restore
from kerasseg_tfrecords.records.manifest import Manifest
from kerasseg_tfrecords.storage import url_of
from kerasseg_tfrecords.text import Progress

if TYPE_CHECKING:
    from kerasseg.export.savedmodel_format import RawNetwork


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
    if moved is None and url_of(root) is None and not root.is_dir():
        return None
    return Shards(root, manifest_of(config, moved))


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


MOST_DIFFERENT = 1e-4
"""Largest allowed difference of probabilities: other runtimes add in another order."""
LEAST_EQUAL = 0.999
"""Smallest allowed share of equal mask pixels: one grey level rounded differently moves a few pixels at a border."""


def native(model: keras.Model) -> Network:

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        count, height, width = images.shape[:3]
        return {"probability": check_probabilities(model.predict_on_batch(images), (count, height, width))}

    return call


def compare(
    network: Network,
    exported: Network,
    samples: Samples,
    rule: MaskRule,
    *,
    channels: int,
    intensity: IntensityRule,
    raw: RawNetwork | None = None,
    raw_rule: MaskRule | None = None,
    bounded: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Compare probabilities and masks of both on the same slices."""
    images = network_images(samples.images, channels)
    side = images.shape[1]
    largest, equal = 0.0, 0
    total = len(images) + (len(samples.raw) if raw is not None else 0)
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        first, results = network(batch)["probability"], exported(batch)
        second = results["probability"]
        # NumPy's maximum propagates NaN.
        largest = float(np.maximum(largest, np.abs(first - second).max()))
        masks = results["mask"] > 0 if "mask" in results else [apply_rule(p, rule) for p in second]
        equal += sum(int((apply_rule(p, rule) == mask).sum()) for p, mask in zip(first, masks, strict=True))
        if progress is not None:
            progress("compare", start + len(batch), total)
    found: dict[str, Any] = {}
    if raw is not None and raw_rule is not None:
        found = _compare_raw(network, raw, samples, raw_rule, side, channels, intensity, len(images), progress)
    return Comparison(
        slices=len(images),
        source=samples.source,
        largest_difference=largest,
        allowed_difference=MOST_DIFFERENT if bounded else None,
        equal_pixels=equal / (len(images) * side * side),
        least_equal_pixels=LEAST_EQUAL if bounded else None,
        **found,
    )


def _compare_raw(
    network: Network,
    raw: RawNetwork,
    samples: Samples,
    rule: MaskRule,
    side: int,
    channels: int,
    intensity: IntensityRule,
    before: int,
    progress: Progress | None,
) -> dict[str, Any]:
    largest, equal, pixels = 0.0, 0, 0
    for number, image in enumerate(samples.raw):
        height, width = image.shape[:2]
        seen = fit_image(image, intensity_window(image, intensity), side)
        probability = restore(network(network_images(seen[np.newaxis], channels))["probability"][0], height, width)
        mask, found = raw(image)
        largest = float(np.maximum(largest, np.abs(probability - found).max()))
        equal += int((mask == apply_rule(probability, rule)).sum())
        pixels += mask.size
        if progress is not None:
            progress("compare", before + number + 1, before + len(samples.raw))
    return {"raw_slices": len(samples.raw), "raw_equal_pixels": equal / pixels, "raw_largest_difference": largest}


def check(found: Comparison, path: Path) -> None:
    """Refuse an export that differs from the network."""
    remedy = "Nothing was written. Please report this bug with the network."
    # `not <=` instead of `>`, which NaN would pass.
    if found.allowed_difference is not None and not found.largest_difference <= found.allowed_difference:
        raise KerassegError(
            "the export and the network give different probabilities",
            path=path,
            found=f"a difference of {found.largest_difference:.3g}",
            expected=f"at most {found.allowed_difference:g}",
            remedy=remedy,
        )
    shares = [share for share in (found.equal_pixels, found.raw_equal_pixels) if share is not None]
    least = found.least_equal_pixels
    lacking = [share for share in shares if least is not None and not share >= least]
    if lacking:
        raise KerassegError(
            "the export and the network give different masks",
            path=path,
            found=f"{100 * lacking[0]:.4f} % of the pixels equal",
            expected=f"at least {100 * (least or 0):g} %",
            remedy=remedy,
        )


def measure_int8(
    network: Network,
    exported: Network,
    shards: Shards,
    rule: MaskRule,
    *,
    channels: int,
    calibration: int,
    allowed: float,
    bytes_float: int,
    path: Path,
    progress: Progress | None = None,
) -> Int8Facts:
    """Measure the Dice of both on every validation slice at native size, and the paired difference."""
    split = open_split(shards.root, "val", Caching("none"), check=False)
    scores: list[tuple[float, float]] = []
    groups: list[str] = []
    for start in range(0, len(split), BATCH):
        numbers = np.arange(start, min(start + BATCH, len(split)))
        images = network_images(split.pixels(numbers)[0], channels)
        both = zip(numbers.tolist(), network(images)["probability"], exported(images)["probability"], strict=True)
        for number, first, second in both:
            record = split.record(number)
            spacing = split.manifest.fit_spacing(record.spacing)
            masks = [apply_rule(restore(p, record.height, record.width, spacing), rule) for p in (first, second)]
            scores.append((float(dice(masks[0], record.mask_native)), float(dice(masks[1], record.mask_native))))
            groups.append(record.group)
        if progress is not None:
            progress("int8", int(numbers[-1]) + 1, len(split))
    before, after = np.array(scores).T
    cost = paired_interval(after, before, groups).cut(-1.0, 1.0)
    if not cost.estimate <= allowed:
        raise KerassegError(
            "8 bits cost too much Dice on validation",
            path=path,
            found=f"{cost}",
            expected=f"at most {allowed:g}",
            remedy="Use more slices with --calibration, allow more loss with --max-loss, or omit --int8.",
        )
    return Int8Facts(
        calibration=calibration,
        slices=cost.slices,
        patients=cost.groups,
        dice_float=USUAL.of(before, groups, 1.0),
        dice_int8=USUAL.of(after, groups, 1.0),
        cost=as_mean(cost),
        allowed_cost=allowed,
        bytes_float=bytes_float,
    )
