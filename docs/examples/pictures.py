"""The pictures of the README: `result.png` from a demonstration, and `unet.svg`, the U with what fine-tuning freezes.

kerasseg demo
python docs/examples/pictures.py demo-output docs/images
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import kerasseg
from kerasseg.evaluation.joined import NetworkPictures, SlicePicture
from kerasseg.evaluation.per_slice import SliceRow, read_csv
from kerasseg.models.blocks import Block
from kerasseg.runs.directory import RunDirectory
from kerasseg.training.tensorboard import MASK_COLOUR, PREDICTION_COLOUR
from kerasseg.tuning.threshold_file import load_threshold

WORDS = "#808080"
"""Of text on the page's own ground: to be read on white and on black."""

REFERENCE, PREDICTION = (tuple(value / 255 for value in colour) for colour in (MASK_COLOUR, PREDICTION_COLOUR))


def result(demo: Path, out: Path) -> Path:
    """Best, median and worst test slice of a demonstration, before and after fine-tuning."""
    run = RunDirectory.find(demo / "runs" / (demo / "runs" / "latest").read_text().strip())
    rows = sorted(read_csv(run.root / "evaluation" / "test" / "per_slice.csv"), key=lambda row: row.dice)
    chosen = {"best": rows[-1], "median": rows[len(rows) // 2], "worst": rows[0]}
    rules = load_threshold(run)
    networks = {}
    for name, file, tuned in (("before", run.baseline_file, rules.baseline), ("after", run.model_file, rules.model)):
        assert tuned is not None
        model = kerasseg.open_checkpoint(file)
        networks[name] = NetworkPictures(model, tuned.rule, demo / "shards", "test")

    figure = Figure(figsize=(6.6, 7.1))
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3, gridspec_kw={"left": 0.055, "right": 1, "top": 0.935, "bottom": 0.045})
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    lines = ("slice", "checkpoint as it came", "after fine-tuning")
    for column, (title, row) in zip(axes.T, chosen.items(), strict=True):
        before, after = (networks[name].picture(row.slice_id) for name in ("before", "after"))
        _slice(column, row, title, before, after)
    for axis, text in zip(axes[:, 0], lines, strict=True):
        axis.set_ylabel(text, color=WORDS, fontsize=11)
    handles = [
        Line2D([], [], color=REFERENCE, linewidth=2.2, label="reference"),
        Line2D([], [], color=PREDICTION, linewidth=2.2, label="network"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, labelcolor=WORDS, fontsize=11)
    return _write_png(canvas, out / "result.png")


def _slice(column: np.ndarray, row: SliceRow, title: str, before: SlicePicture, after: SlicePicture) -> None:
    """One slice from top to bottom."""
    dice = (row.stage("postprocessing").baseline_dice, row.dice)
    for axis, picture, score in zip(column, (None, before, after), (None, *dice), strict=True):
        grey = cv2.resize(after.image[..., 0], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
        # A gamma, so that dim brains show beside bright scalps.
        axis.imshow((grey / 255) ** 0.75, cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if picture is None:
            axis.set_title(f"{title}: {row.label}", color=WORDS, fontsize=11)
            continue
        for mask, colour in ((picture.reference, REFERENCE), (picture.prediction, PREDICTION)):
            if mask.any():
                fine = cv2.resize(mask.astype(np.float32), None, fx=3, fy=3, interpolation=cv2.INTER_LINEAR)
                axis.contour(fine, levels=[0.5], colors=[colour], linewidths=1.6, extent=(0, 1, 0, 1))
        axis.text(0.03, 0.97, f"Dice {score:.2f}", color="white", fontsize=10, va="bottom")


def unet(out: Path) -> Path:
    """The U of the default network, with what `--strategy conservative` freezes."""
    model = kerasseg.unet((256, 256, 3), filters=64, seed=0)
    blocks = kerasseg.find_blocks(model)
    frozen = set(kerasseg.freeze(model, "conservative").frozen_blocks)
    figure = Figure(figsize=(8.6, 4.5))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.1, 11.1), ylim=(-5.75, 0.85))
    axis.axis("off")
    levels = len(blocks.encoder)
    wide, step = 2.6, 0.62
    for k, (left, right) in enumerate(zip(blocks.encoder, reversed(blocks.decoder), strict=True)):
        x, y = step * k, -float(k) * 1.12
        _box(axis, x, y, wide, left, frozen=left.name in frozen)
        _box(axis, 11 - wide - x, y, wide, right, frozen=right.name in frozen)
        _arrow(axis, (x + wide + 0.08, y), (11 - wide - x - 0.08, y), f"skip, {left.filters}")
        _arrow(axis, (x + wide - 0.5, y - 0.42), (x + wide - 0.5, y - 0.74))
        _arrow(axis, (11 - x - wide + 0.5, y - 0.74), (11 - x - wide + 0.5, y - 0.42))
    x = step * levels
    _box(axis, x, -1.12 * levels, 11 - 2 * x, blocks.bottleneck, frozen="bottleneck" in frozen)
    axis.text(0.02, 0.62, "image 256×256×3", color=WORDS, fontsize=10, va="center")
    axis.text(10.98, 0.62, "mask 256×256×1", color=WORDS, fontsize=10, va="center", ha="right")
    note = "frozen by --strategy conservative; everything else is fine-tuned"
    axis.text(5.5, -5.5, f"❄  {note}", color=WORDS, fontsize=10.5, ha="center", va="center")
    path = out / "unet.svg"
    # Neither a date nor random ids: the same picture is the same file.
    with rc_context({"svg.hashsalt": "kerasseg", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    return path


def _box(axis: Axes, x: float, y: float, width: float, block: Block, *, frozen: bool) -> None:
    edge, fill = ("#2f7fb8", "#d5ebf9") if frozen else ("#8a6d3b", "#fbeed2")
    shape = FancyBboxPatch((x, y - 0.4), width, 0.8, boxstyle="round,pad=0,rounding_size=0.1", fc=fill, ec=edge, lw=1.6)
    axis.add_patch(shape)
    mark = "  ❄" if frozen else ""
    middle = x + width / 2
    axis.text(
        middle, y + 0.16, block.name + mark, ha="center", va="center", fontsize=10.5, weight="bold", color="#1c1c1c"
    )
    extent = "×".join(map(str, (*block.size, block.filters)))
    text = f"{extent}, {block.parameters:,} weights"
    axis.text(middle, y - 0.18, text, ha="center", va="center", fontsize=7.6, color="#333333")


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=WORDS, lw=1.3, shrinkA=0, shrinkB=0)
    )
    if text and end[0] - start[0] > 1.2:
        axis.text((start[0] + end[0]) / 2, start[1] + 0.15, text, ha="center", va="center", fontsize=8.5, color=WORDS)


def _write_png(canvas: FigureCanvasAgg, path: Path) -> Path:
    """A small PNG: noise does not compress, fewer shades do."""
    text = io.BytesIO()
    canvas.figure.savefig(text, format="png", dpi=100, transparent=True)
    with Image.open(text) as picture:
        few = picture.convert("RGBA").quantize(40, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    return path


def main() -> None:
    demo, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for path in (unet(out), result(demo, out)):
        sys.stdout.write(f"{path}  {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
