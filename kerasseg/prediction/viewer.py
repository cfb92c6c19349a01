"""Predict a few files in memory, for a page on which people move the threshold."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.prediction.inputs import RawSlice, Unit, check_name, network_image, open_unit, plan_units
from kerasseg.prediction.predictor import Network
from kerasseg.prediction.table import FoundTumour, count_tumours, describe, to_csv, volume_ml
from kerasseg.prediction.writers import Layout, draw_overlay, grey_levels, png
from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.intensity import fit_image, restore
from kerasseg_tfrecords.sources.base import SourceOptions
from kerasseg_tfrecords.sources.unlabelled import list_images
from kerasseg_tfrecords.text import count

MAX_PIXELS = 50_000_000
"""Pixels of all slices together: with image and probabilities, about 300 MB of memory. A volume of 256 slices of
256x256 has 17 million."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A slice and its mask at one threshold.

    Attributes:
        image, probability, mask: PNG files of the slice, of its probabilities in colour, and of the slice with the outline
            of the mask.
        aspect: Width over height as the slice is on the patient, where pixels are not square.
        row: Area, box and number of tumours in the slice, and tumours and volume of its case.
    """

    image: bytes
    probability: bytes
    mask: bytes
    aspect: float
    row: FoundTumour


class Case:
    """A picture, volume or series with the probabilities of all its slices.

    Attributes:
        name: Name of the input.
        kind: What the input is.
        images: Grey or colour levels of each slice, (height, width) or (height, width, 3) uint8.
        probabilities: (height, width) float32 of each slice, in [0, 1].
        notes: Remarks for users.
    """

    def __init__(
        self,
        unit: Unit,
        layout: Layout,
        thickness: float,
        notes: Sequence[str],
        slices: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32], tuple[float, float]]],
    ) -> None:
        self.name: str = unit.name
        self.kind: Literal["picture", "volume", "series"] = unit.kind
        self.notes = tuple(notes)
        self.images = tuple(image for image, _, _ in slices)
        self.probabilities = tuple(probability for _, probability, _ in slices)
        self._spacings = tuple(spacing for _, _, spacing in slices)
        self._stem, self._layout, self._thickness = unit.stem, layout, thickness
        self._last: tuple[MaskRule, list[NDArray[np.bool_]], list[FoundTumour]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def middle(self) -> int:
        """Index of the slice with the largest sum of probabilities, which is shown first."""
        return int(np.argmax([float(probability.sum()) for probability in self.probabilities]))

    def measure(self, rule: MaskRule) -> tuple[list[NDArray[np.bool_]], list[FoundTumour]]:
        """Return the masks of all slices, as `predict_files` writes them, and their rows of `predictions.csv`."""
        last = self._last
        if last is None or last[0] != rule:  # stepping through slices keeps the rule
            masks = [apply_rule(probability, rule) for probability in self.probabilities]
            last = self._last = rule, masks, self._rows(masks)
        return last[1], last[2]

    def _rows(self, masks: Sequence[NDArray[np.bool_]]) -> list[FoundTumour]:
        rows = [
            describe(
                self.name,
                None if len(self) == 1 else place,
                self._stem + self._layout.name(place, "mask"),
                mask,
                self.probabilities[place],
                self._spacings[place],
                0.0,
            )
            for place, mask in enumerate(masks)
        ]
        tumours, volume = count_tumours(masks), volume_ml(rows, self._thickness)
        return [replace(row, case_tumours=tumours, case_volume_ml=volume) for row in rows]

    def view(self, place: int, rule: MaskRule) -> View:
        """Draw a slice, and measure it and its case."""
        masks, rows = self.measure(rule)
        height, width = masks[place].shape
        down, across = self._spacings[place]
        stretch = across / down if down > 0 and across > 0 else 1.0
        return View(
            image=draw_slice(self.images[place]),
            probability=draw_probability(self.probabilities[place]),
            mask=png(draw_overlay(self.images[place], masks[place])),
            aspect=width * stretch / height,
            row=rows[place],
        )

    def files(self, rule: MaskRule) -> dict[str, bytes]:
        """Encode the masks in the geometry of the input: name -> content."""
        return {self._stem + end: data for end, data in self._layout.encode(self.measure(rule)[0], "mask").items()}


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What was made of the files."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def open_cases(folder: Path, network: Network, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """Read all images in a folder and predict them. The files are not needed afterwards.

    Args:
        folder: Folder with pictures, .mat files, volumes and DICOM files, also in folders of their own.
        network: Network from `open_network`.
        max_pixels: Pixels of all slices together; cases beyond it become problems.

    Raises:
        DataError: There are no images.
        UsageError: Two inputs would have the same mask file.

    Example:
        >>> import kerasseg
        >>> from kerasseg.prediction.predictor import open_network
        >>> Path("dropped").mkdir()
        >>> _ = Path("dropped/1.png").write_bytes(png(np.arange(4800, dtype=np.uint8).reshape(60, 80)))
        >>> network = open_network(kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0))
        >>> (case,) = open_cases(Path("dropped"), network).cases
        >>> case.name, len(case), list(case.files(network.rule))
        ('1.png', 1, ['1_mask.png'])
    """
    options = SourceOptions(masks=False, channel=network.channel, sequence=network.sequence)
    (listed,) = list_images([folder], options)
    cases, problems, left = [], list(listed.problems), max_pixels
    for unit in plan_units([listed]):
        try:
            case = _open(unit, network, options, left)
        except DataError as error:
            problems.append(Problem.of(error, unit.name if len(unit.items) == 1 else error.path))
        else:
            left -= sum(probability.size for probability in case.probabilities)
            cases.append(case)
    return Opened(
        tuple(cases),
        tuple(sorted(problems)),
        tuple(entry.name for entry in listed.left_out if entry.reason != "a mask"),
        listed.notes,
    )


def download(cases: Sequence[Case], rule: MaskRule) -> tuple[str, bytes]:
    """Encode the masks of all cases as one file: the mask itself, or a zip archive of masks and `predictions.csv`."""
    files = {name: data for case in cases for name, data in case.files(rule).items()}
    if len(files) == 1:
        name, data = files.popitem()
        return name.rsplit("/", 1)[-1], data
    files["predictions.csv"] = to_csv(row for case in cases for row in case.measure(rule)[1]).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_STORED if name.endswith(".gz") else None)
    return "masks.zip", stream.getvalue()


_SHOWN = 384
"""Least pixels of a picture's longer side: smaller ones are enlarged smoothly."""


def draw_slice(image: NDArray[np.uint8]) -> bytes:
    """Draw a slice as a PNG file.

    Args:
        image: (height, width) or (height, width, 3, RGB).
    """
    return png(_enlarged(image if image.ndim == 2 else image[..., ::-1]))


def draw_probability(probability: NDArray[np.float32]) -> bytes:
    """Draw probabilities as a PNG file: 0 is dark blue, 1 is yellow (viridis).

    Args:
        probability: (height, width), in [0, 1].
    """
    levels = np.asarray(np.rint(probability * 255), np.uint8)
    return png(cv2.applyColorMap(_enlarged(levels), cv2.COLORMAP_VIRIDIS))


def _enlarged(image: NDArray[Any]) -> NDArray[Any]:
    height, width = image.shape[:2]
    scale = max(1, -(-_SHOWN // max(height, width)))
    if scale == 1:
        return image
    return np.asarray(cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_LINEAR))


def _open(unit: Unit, network: Network, options: SourceOptions, max_pixels: int) -> Case:
    check_name(unit)
    opened = open_unit(unit, network.intensity, options, None, network.plane)
    slices: list[tuple[NDArray[np.uint8], NDArray[np.float32], tuple[float, float]]] = []
    batch: list[RawSlice] = []

    def flush() -> None:
        fitted = [
            network_image(fit_image(raw.image, raw.window, network.size, raw.spacing), network.channels, unit.name)
            for raw in batch
        ]
        for raw, answer in zip(batch, network.probabilities(np.stack(fitted)), strict=True):
            height, width = raw.image.shape[:2]
            probability = np.clip(restore(answer, height, width, raw.spacing), 0, 1)
            slices.append((grey_levels(raw.image, raw.window), probability, raw.spacing))
        batch.clear()

    for raw in opened.slices:
        max_pixels -= raw.image.shape[0] * raw.image.shape[1]
        if max_pixels < 0:
            raise DataError(
                "too large for this page",
                path=unit.name,
                found=count(opened.count, "slice"),
                remedy="Drop fewer files, or use kerasseg predict, which has no limit.",
                kind="size",
            )
        batch.append(raw)
        if len(batch) == network.batch_size:
            flush()
    if batch:
        flush()
    return Case(unit, opened.layout, opened.thickness, opened.notes, slices)
