"""A few validation slices to look at while a network is trained: which ones, and how mask and prediction are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.randomness import permutation
from kerasseg_tfrecords.errors import UsageError

__all__ = ["MASK_COLOUR", "MOST", "PREDICTION_COLOUR", "Example", "choose", "draw_outlines"]

MOST = 6
"""Slices to look at, at most: each is predicted once an epoch, and stored."""

_PER_CLASS = 2

# Okabe and Ito's palette: told apart by the colour-blind, and on grey.
MASK_COLOUR = (0, 158, 115)
"""Bluish green, red-green-blue: what an expert drew."""

PREDICTION_COLOUR = (230, 159, 0)
"""Orange: what the network says."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One slice to look at.

    Attributes:
        name: For people, such as "glioma/data/17.mat".
        image: (height, width, channels) float32 in [0, 1], as the network takes it.
        mask: (height, width) bool.
    """

    name: str
    image: NDArray[np.float32]
    mask: NDArray[np.bool_]


def choose(labels: ArrayLike, tumour: ArrayLike, seed: int, most: int = MOST) -> list[int]:
    """Numbers of the slices to look at: two a class or fewer, in turn, those with tumour first, drawn by the seed.

    Args:
        labels: (slices,) class of each, whole numbers.
        tumour: (slices,) whether its mask has any pixel.
        seed: Whole number >= 0.
        most: Slices in all.

    Example:
        >>> chosen = choose([0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0, 1], seed=1)
        >>> chosen[0] in (0, 2), chosen[1] in (3, 4, 6), len(chosen)
        (True, True, 4)
    """
    classes, has_tumour = np.asarray(labels), np.asarray(tumour, bool)
    hands = []
    for label in np.unique(classes).tolist():
        members = np.flatnonzero(classes == label)
        mixed = members[permutation(seed, 0, f"examples: class {label}", len(members))]
        with_tumour = mixed[has_tumour[mixed]]
        hands.append(np.concatenate([with_tumour, mixed[~has_tumour[mixed]]])[:_PER_CLASS].tolist())
    return [hand[turn] for turn in range(_PER_CLASS) for hand in hands if turn < len(hand)][:most]


def draw_outlines(
    image: NDArray[np.float32],
    outlines: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]],
) -> NDArray[np.uint8]:
    """A slice with the outlines of masks, the later ones on top.

    Outlines are one pixel wide and lie within what they surround, so that a single pixel shows, too.

    Args:
        image: (height, width, 1 or 3) in [0, 1].
        outlines: (mask (height, width), colour as red, green, blue from 0 to 255).

    Returns:
        (height, width, 3) uint8, red-green-blue.

    Raises:
        UsageError: If a mask is of another size.

    Example:
        >>> mask = np.zeros((8, 8), bool); mask[2:6, 2:6] = True
        >>> picture = draw_outlines(np.zeros((8, 8, 1), "float32"), [(mask, (0, 255, 0))])
        >>> int((picture[..., 1] == 255).sum()), picture[3, 3].tolist()
        (12, [0, 0, 0])
    """
    grey = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    picture = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey.copy()
    for mask, colour in outlines:
        if mask.shape != picture.shape[:2]:
            raise UsageError("a mask is not of the image's size", found=mask.shape, expected=picture.shape[:2])
        found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, found, -1, colour, 1)
    return picture
