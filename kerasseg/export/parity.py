"""Compare an export, opened from disk, with the original network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.data.split import Caching, open_split
from kerasseg.evaluation.bootstrap import bootstrap_interval, paired_interval
from kerasseg.evaluation.figures import as_mean
from kerasseg.evaluation.overlap import dice
from kerasseg.evaluation.predictions import check_probabilities
from kerasseg.export.schema import Comparison, Int8Facts
from kerasseg.export.serving import BATCH, Network
from kerasseg.export.slices import Samples, Shards, network_images
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.intensity import IntensityRule, fit_image, intensity_window, restore
from kerasseg_tfrecords.text import Progress

if TYPE_CHECKING:
    from kerasseg.export.savedmodel_format import RawNetwork

MOST_DIFFERENT = 1e-4
"""Largest allowed difference of probabilities: other runtimes add in another order."""
LEAST_EQUAL = 0.999
"""Smallest allowed share of equal mask pixels: one grey level rounded differently moves a few pixels at a border."""


def native(model: keras.Model) -> Network:
    """Return the original network as a function."""

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
    cost = paired_interval(after, before, groups)
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
        dice_float=as_mean(bootstrap_interval(before, groups)),
        dice_int8=as_mean(bootstrap_interval(after, groups)),
        cost=as_mean(cost),
        allowed_cost=allowed,
        bytes_float=bytes_float,
    )
