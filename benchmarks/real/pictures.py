"""Pictures of real slices: best, median and worst, with the annotator's and the network's outlines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import keras
import numpy as np

from benchmarks.real.figures import Figures, TrialFigures
from benchmarks.real.workshop import Workshop
from kerasseg.data.split import Caching, open_split
from kerasseg.evaluation.per_slice import read_csv
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.report.evaluation import choose
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.threshold_file import load_threshold

__all__ = ["draw_before_after", "draw_curves", "draw_examples"]

REFERENCE, NETWORK = "#f0e442", "#56b4e9"
_GREYS = 64
"""Few colours keep the picture for README small."""


class HeldOut(NamedTuple):
    """A slice, the run of the fold that held it out, and its Dice before and after training."""

    slice_id: str
    label: str
    fold: Path
    before: float
    after: float


def draw_examples(shop: Workshop, trial: TrialFigures, folder: Path) -> None:
    """Draw best, median and worst test slice of each class as `results-slices.jpg`."""
    run = RunDirectory(shop.folder / "runs" / trial.name)
    rows = read_csv(run.root / "evaluation" / "test" / "per_slice.csv")
    slices = open_split(shop.folder / trial.data, "test", Caching("memory"), check=False)
    at = {slices.record(k).slice_id: k for k in range(len(slices))}
    model = keras.saving.load_model(run.model_file, compile=False)
    rule = load_threshold(run).model.rule
    figure, axes = _figure(len(slices.classes), "Annotator (yellow) and network (blue, dashed); Dice of the slice")
    for line, name in zip(axes, slices.classes, strict=True):
        chosen = choose([row for row in rows if row.label == name])
        for axis, (place, row) in zip(line, chosen, strict=False):
            record = slices.record(at[row.slice_id])
            masks = {REFERENCE: record.mask, NETWORK: _predict(model, record.image, rule)}
            _draw(axis, record.image[..., 0], masks, f"{name}, {place}: {row.dice:.2f}")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "results-slices.jpg", dpi=90, pil_kwargs={"quality": 80})


def draw_before_after(pairs: Path, folds: Sequence[Path], folder: Path) -> None:
    """Draw the held-out slices with the largest gain, the median and the largest loss, before and after training.

    Args:
        pairs: Folder of the raw slices, as `another_scanner` writes it.
        folds: Runs whose validation slices are held-out slices of that folder.
        folder: Receives `results-before-after.png`.
    """
    rows = []
    for fold in folds:
        with (fold / "validation.csv").open(newline="") as stream:
            for line in csv.DictReader(stream):
                before, after = float(line["dice_epoch_0"]), float(line["dice_best"])
                rows.append(HeldOut(line["slice_id"], line["label"], fold, before, after))
    rows.sort(key=lambda row: row.after - row.before)
    chosen = {"largest gain": rows[-1], "median": rows[len(rows) // 2], "largest loss": rows[0]}
    figure, axes = _figure(
        3, "Annotator (yellow) and network (blue, dashed); heads and a scanner that the checkpoint has not seen"
    )
    for row_axes, (place, row) in zip(axes, chosen.items(), strict=True):
        run = RunDirectory(row.fold)
        slices = open_split(run.root / "shards", "val", Caching("memory"), check=False)
        record = next(r for r in map(slices.record, range(len(slices))) if r.slice_id == row.slice_id)
        image, reference = (
            cv2.imread(str(pairs / f"{Path(row.slice_id).stem}{end}.png"), cv2.IMREAD_GRAYSCALE)
            for end in ("", "_mask")
        )
        reference = (reference > 0).astype(np.float32)
        _draw(row_axes[0], image, {REFERENCE: reference}, f"{place}: {row.label}")
        for axis, file, title in (
            (row_axes[1], run.baseline_file, f"untouched: {row.before:.2f}"),
            (row_axes[2], run.model_file, f"fine-tuned: {row.after:.2f}"),
        ):
            model = keras.saving.load_model(file, compile=False)
            _draw(axis, image, {REFERENCE: reference, NETWORK: _predict(model, record.image, MaskRule())}, title)
    folder.mkdir(parents=True, exist_ok=True)
    _save_small(figure, folder / "results-before-after.png")


def draw_curves(found: Figures, folder: Path) -> None:
    """Draw Dice by epoch of the first fold of each training, and Dice by number of patients, as `results-curves.png`."""
    from matplotlib.figure import Figure as Canvas

    knows, shares = found.knows, [j for j in found.judgements if j.name.isdecimal() or j.name == "scratch"]
    if knows is None or knows.shifted is None:
        return
    canvas = Canvas(figsize=(9, 3), layout="constrained", facecolor="white")
    axes = canvas.subplots(1, 3 if len(shares) > 1 else 2, sharey=True)
    for axis, start, title in zip(
        axes, (knows.same, knows.shifted), ("the same data set", "a simulated scanner"), strict=False
    ):
        for label in (row.label for row in start.rows if "seed" not in row.label and "vgg16" not in row.label):
            axis.plot(start.curves[label], label=label, linewidth=1.2)
        axis.set(title=title, xlabel="epoch")
        axis.legend(fontsize=6, frameon=False)
    axes[0].set_ylabel("Dice")
    if len(shares) > 1:
        means = [judgement.all for judgement in shares]
        errors = [[m.mean - m.low for m in means], [m.high - m.mean for m in means]]  # type: ignore[operator]
        axes[2].errorbar([j.heads for j in shares], [m.mean for m in means], errors, marker="o", capsize=3)
        axes[2].set(title="trained on fewer patients", xlabel="patients")
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / "results-curves.png", dpi=100)


def _save_small(figure: Any, file: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    # A palette of its own: one that is fitted to the picture has greys alone, and the outlines lose their colours.
    lines = [
        int(colour[k : k + 2], 16) * share // 8
        for colour in (REFERENCE, NETWORK)
        for share in range(2, 9)
        for k in (1, 3, 5)
    ]
    greys = [value * 255 // (_GREYS - 1) for value in range(_GREYS) for _ in range(3)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*greys, *lines])
    picture = Image.open(buffer).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(file, optimize=True)


def _figure(rows: int, title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.6 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, 3, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure, axes


def _predict(model: keras.Model, image: np.ndarray, rule: MaskRule) -> np.ndarray:
    grey = image.astype(np.float32)[None] / 255
    channels = model.input_shape[-1]
    batch = np.repeat(grey, channels, axis=-1) if grey.shape[-1] < channels else grey
    probability = np.asarray(model(batch, training=False))[0, ..., 0]
    return apply_rule(probability, rule)


def _draw(axis: Any, image: np.ndarray, masks: Mapping[str, np.ndarray], title: str) -> None:
    axis.imshow(cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA), cmap="gray", vmin=0, vmax=255)
    for colour, mask in masks.items():
        fine = cv2.resize(np.squeeze(mask).astype(np.float32), (256, 256), interpolation=cv2.INTER_LINEAR)
        if fine.max() > 0.5:
            style = "--" if colour == NETWORK else "-"
            axis.contour(fine, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.2)
    axis.set_title(title, fontsize=8)
