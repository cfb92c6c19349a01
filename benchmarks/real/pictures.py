"""A picture of the best, median and worst test slice per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np

from benchmarks.real.figures import TrialFigures
from benchmarks.real.workshop import Workshop
from kerasseg.data.split import Caching, open_split
from kerasseg.evaluation.per_slice import read_csv
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.report.examples import choose
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.threshold_file import load_threshold

__all__ = ["draw_examples"]

REFERENCE, NETWORK = "#f0e442", "#56b4e9"


def draw_examples(shop: Workshop, trial: TrialFigures, folder: Path) -> None:
    """Write `results-slices.jpg` for a network."""
    run = RunDirectory(shop.folder / "runs" / trial.name)
    rows = read_csv(run.root / "evaluation" / "test" / "per_slice.csv")
    slices = open_split(shop.folder / trial.data, "test", Caching("memory"), check=False)
    at = {slices.record(k).slice_id: k for k in range(len(slices))}
    model = keras.saving.load_model(run.model_file, compile=False)
    rule = load_threshold(run).model.rule
    figure, axes = _figure(len(slices.classes))
    for line, name in zip(axes, slices.classes, strict=True):
        chosen = choose([row for row in rows if row.label == name])
        for axis, (place, row) in zip(line, chosen, strict=False):
            record = slices.record(at[row.slice_id])
            _draw(
                axis, record.image, record.mask, _predict(model, record.image, rule), f"{name}, {place}: {row.dice:.2f}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "results-slices.jpg", dpi=90, pil_kwargs={"quality": 80})


def _figure(classes: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.6 * classes), layout="constrained", facecolor="white")
    axes = figure.subplots(classes, 3, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("Annotator (yellow) and network (blue, dashed); Dice of the slice", fontsize=9)
    return figure, axes


def _predict(model: keras.Model, image: np.ndarray, rule: MaskRule) -> np.ndarray:
    grey = image.astype(np.float32)[None] / 255
    channels = model.input_shape[-1]
    batch = np.repeat(grey, channels, axis=-1) if grey.shape[-1] < channels else grey
    probability = np.asarray(model(batch, training=False))[0, ..., 0]
    return apply_rule(probability, rule)


def _draw(axis: Any, image: np.ndarray, mask: np.ndarray, found: np.ndarray, title: str) -> None:
    axis.imshow(cv2.resize(image[..., 0], (256, 256), interpolation=cv2.INTER_CUBIC), cmap="gray", vmin=0, vmax=255)
    for area, colour, style in ((mask, REFERENCE, "-"), (found, NETWORK, "--")):
        fine = cv2.resize(np.squeeze(area).astype(np.float32), (256, 256), interpolation=cv2.INTER_LINEAR)
        if fine.max() > 0.5:
            axis.contour(fine, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.2)
    axis.set_title(title, fontsize=8)
