"""Synthetic anatomy: a head as a map of tissues, with a tumour.

It extends the phantom of Shepp and Logan (*IEEE Trans. Nucl. Sci.* 21, 1974) with cortical folds. Coordinates are shares of
half the picture's side: (-1, -1) is the upper left corner, the nose is up. The shape of a head is drawn once per patient;
slices of a patient are neighbouring cuts through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg.data.rng import uniforms

Tissue = Literal["air", "scalp", "skull", "csf", "grey", "white", "oedema", "tumour", "rim", "core"]
TISSUES: tuple[Tissue, ...] = get_args(Tissue)
Tumour = Literal["meningioma", "glioma", "pituitary"]
CLASSES: tuple[Tumour, ...] = get_args(Tumour)

Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]
_SMOOTH = ((2, 0.05), (3, 0.03))
_RAGGED = ((2, 0.13), (3, 0.14), (5, 0.13), (8, 0.09), (11, 0.07))
"""(waves around a border, their largest height as a share of its radius)."""

_Painter = Callable[[Tissue, Mask], None]


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """A cut through a head.

    Attributes:
        tissue: (side, side) uint8, indices into `TISSUES`.
        brain: (side, side) True in the brain, tumour and ventricles included.
        mask: (side, side) True in the tumour.
    """

    tissue: NDArray[np.uint8]
    brain: Mask
    mask: Mask


def head(seed: int, name: str, patient: int, index: int, side: int) -> Anatomy:
    """Create one cut through a patient's head.

    Args:
        seed: Random seed, an integer >= 0.
        name: Name of the collection; other names have other patients.
        patient: Number of the patient; the class is `CLASSES[patient % 3]`.
        index: Number of the cut.
        side: Side of the map in pixels.
    """
    kind = CLASSES[patient % len(CLASSES)]
    person = _Draws(uniforms(seed, patient, f"phantom head {name}", 1, 600)[0])
    cut = _Draws(uniforms(seed, patient, f"phantom cut {name}", index + 1, 4)[index])
    # Steps of the golden ratio between -0.6 and 0.6 of the tumour's radius: cuts differ, and all contain the tumour.
    z = 1.2 * ((index * 0.6180339887) % 1.0) - 0.6
    y, x = _grid(side, person, cut, z)
    tall, wide = person(0.78, 0.88), person(0.64, 0.74)
    # Egg-shaped: the back of the head is wider than the forehead.
    out = 1 - np.hypot(y / tall, x / (wide * (1 + 0.1 * y)))
    scalp, skull = person(0.05, 0.08), person(0.06, 0.09)
    depth = out - scalp - skull  # below the inner table of the skull
    brain = depth > 0.022
    tissue = np.full((side, side), TISSUES.index("air"), np.uint8)

    def paint(name: Tissue, where: Mask) -> None:
        tissue[where] = TISSUES.index(name)

    paint("scalp", out > 0)
    paint("skull", out > scalp)
    paint("csf", depth > 0)
    _paint_brain(paint, person, depth, brain, y, x, z, low=kind == "pituitary")
    mask = _paint_tumour(paint, person, kind, depth, brain, y, x, z, least=3.4 / side)
    return Anatomy(tissue, brain, mask)


class _Draws:
    """Numbers of one random stream, taken in order."""

    def __init__(self, numbers: Plane) -> None:
        self._numbers, self._next = numbers, 0

    def __call__(self, low: float, high: float) -> float:
        self._next += 1
        return low + (high - low) * float(self._numbers[self._next - 1])

    def field(self, cells: int, side: int) -> Plane:
        """Return a smooth field, about -1 to 1."""
        count = cells * cells
        values = 2 * self._numbers[self._next : self._next + count].reshape(cells, cells) - 1
        self._next += count
        return np.asarray(cv2.resize(values, (side, side), interpolation=cv2.INTER_CUBIC))


def _grid(side: int, person: _Draws, cut: _Draws, z: float) -> tuple[Plane, Plane]:
    """Return the coordinates of the pixels in the head's own frame: tilted, shifted and slightly distorted."""
    places = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(places, places, indexing="ij")
    tilt = np.deg2rad(person(-9, 9) + cut(-1.5, 1.5))
    down, across = person(-0.03, 0.03) + cut(-0.01, 0.01), person(-0.04, 0.04) + cut(-0.01, 0.01)
    y, x = y - down, x - across
    y, x = np.cos(tilt) * y - np.sin(tilt) * x, np.sin(tilt) * y + np.cos(tilt) * x
    crooked = 0.022
    larger = 1 + 0.04 * z  # towards the crown a cut is smaller
    return (y + crooked * person.field(5, side)) * larger, (x + crooked * person.field(5, side)) * larger


def _paint_brain(
    paint: _Painter, person: _Draws, depth: Plane, brain: Mask, y: Plane, x: Plane, z: float, *, low: bool
) -> None:
    """Paint cortex with folds, white matter, deep grey, fissure and ventricles (`low`: the cistern at the base)."""
    side = len(depth)
    folds = person.field(15, side) + 0.5 * z * person.field(8, side)
    cortex = depth < 0.065 + 0.05 * person.field(9, side)
    near = depth < 0.26
    paint("white", brain)
    paint("grey", brain & (cortex | (near & (np.abs(folds) < 0.2))))
    paint("csf", brain & (depth < 0.2) & (np.abs(folds) < 0.035))
    paint("csf", brain & (np.abs(x) < 0.011) & (np.abs(y) > 0.3))
    swollen, lift = person(0.75, 1.35) * (1 - 0.25 * z), person(-0.03, 0.03)
    for sign in (-1, 1):
        paint("grey", brain & _ellipse(y, x, 0.0, sign * 0.235, 0.155, 0.075, sign * 14))
        if low:
            continue
        paint("csf", brain & _ellipse(y, x, lift - 0.17, sign * 0.085, 0.15 * swollen, 0.042 * swollen, sign * -16))
        paint("csf", brain & _ellipse(y, x, lift + 0.24, sign * 0.15, 0.16 * swollen, 0.045 * swollen, sign * 24))
    if low:
        star = 0.15 * (1 + 0.25 * np.cos(5 * np.arctan2(x, y) + np.pi))
        paint("csf", brain & (np.hypot(y, x) < star * swollen))
    else:
        paint("csf", brain & _ellipse(y, x, lift + 0.05, 0.0, 0.075, 0.014 * swollen, 0))


def _paint_tumour(
    paint: _Painter,
    person: _Draws,
    kind: Tumour,
    depth: Plane,
    brain: Mask,
    y: Plane,
    x: Plane,
    z: float,
    *,
    least: float,
) -> Mask:
    """Paint a meningioma (round, at the brain's edge), glioma (ragged, inside) or pituitary tumour (small, central)."""
    within = np.sqrt(1 - z * z)
    # Areas, not radii, are uniformly distributed.
    low, high = {"meningioma": (0.14, 0.24), "glioma": (0.17, 0.27), "pituitary": (0.075, 0.125)}[kind]
    radius = max(np.sqrt(person(low**2, high**2)) * within, least)
    place, turn = person(0, 1), person(0, 2 * np.pi)
    if kind == "pituitary":
        row, column = 0.05 * np.sin(turn) * place, 0.04 * np.cos(turn) * place
    elif kind == "glioma":
        # In one hemisphere, far enough from the edge for its rim to differ from the skull.
        side = 1 if np.cos(turn) > 0 else -1
        row, column = 0.32 * np.sin(turn), side * (0.18 + 0.08 * place)
    else:
        row, column = _on_the_edge(depth, y, x, turn, 0.62 * radius)
    from_centre, angle = np.hypot(y - row, x - column), np.arctan2(y - row, x - column)
    waves = {"meningioma": _SMOOTH, "glioma": _RAGGED, "pituitary": _SMOOTH}[kind]
    border, hollow = np.ones_like(angle), np.full_like(angle, person(0.5, 0.66))
    for n, height in waves:
        wave = n * angle + person(0, 2 * np.pi) + z
        border += height * person(0.5, 1) * np.sin(wave)
        hollow += 0.8 * height * np.sin(wave + person(-1, 1))
    relative = from_centre / (radius * border)
    inside = brain & (depth > 0.07) if kind == "glioma" else brain
    mask = inside & (relative < 1)
    if kind == "glioma":
        paint("oedema", brain & (relative < 1.2 + 0.25 * person.field(6, len(depth))) & (depth > 0.05))
        paint("rim", mask)
        paint("core", mask & (relative < hollow))
    else:
        paint("tumour", mask)
    return mask


def _on_the_edge(depth: Plane, y: Plane, x: Plane, turn: float, inside: float) -> tuple[float, float]:
    """Return the place in the direction `turn` that is `inside` the brain's edge."""
    # Depth is a share of the head's radius in that direction, about 0.8, which is accurate enough.
    along = y * np.sin(turn) + x * np.cos(turn)
    across = np.abs(x * np.sin(turn) - y * np.cos(turn))
    off = np.abs(depth - 0.022 - inside / 0.8) + 3 * across + 10 * (along < 0)
    row, column = np.unravel_index(np.argmin(off), off.shape)
    return float(y[row, column]), float(x[row, column])


def _ellipse(y: Plane, x: Plane, row: float, column: float, height: float, width: float, tilt: float) -> Mask:
    """Return the pixels inside an ellipse that is rotated by `tilt` degrees."""
    sine, cosine = np.sin(np.deg2rad(tilt)), np.cos(np.deg2rad(tilt))
    down, across = y - row, x - column
    return np.asarray(
        ((cosine * down - sine * across) / height) ** 2 + ((sine * down + cosine * across) / width) ** 2 < 1
    )
