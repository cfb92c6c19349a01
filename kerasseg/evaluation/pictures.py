"""Slices as pictures: what the network saw, the reference, and the final mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pictures", "SlicePicture"]


@dataclass(frozen=True, slots=True, eq=False)
class SlicePicture:
    """One slice, at the network's size.

    Attributes:
        image: (height, width, channels) uint8, 1 or 3 channels.
        reference: (height, width) bool.
        prediction: (height, width) bool, after the last stage.
    """

    image: NDArray[np.uint8]
    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


class Pictures(Protocol):
    """Pictures of slices by their id."""

    def picture(self, slice_id: str) -> SlicePicture:
        """The picture of a slice.

        Raises:
            KeyError: No such slice.
        """
