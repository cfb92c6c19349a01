"""Synthetic scanners: contrast, blur, bias field, noise and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from kerasseg.data.rng import uniforms
from kerasseg.phantom.anatomy import TISSUES, Anatomy


@dataclass(frozen=True, slots=True)
class Scanner:
    """A scanner and its protocol.

    Attributes:
        signal: Tissue -> signal as a share of the brightest, 0 to 1.
        spread: Largest relative change of a tissue's signal between patients.
        texture: Largest relative change of signal within a tissue.
        blur: Standard deviation of the point spread, as a share of the picture's side.
        bias: Largest relative change of sensitivity over the picture.
        noise: Standard deviation of the Rician noise, as a share of the brightest signal.
        unit: Stored value for a signal of 1.
    """

    signal: Mapping[str, float]
    spread: float
    texture: float
    blur: float
    bias: float
    noise: float
    unit: int

    def scan(self, anatomy: Anatomy, size: int, seed: int, name: str, patient: int, index: int) -> NDArray[np.int16]:
        """Simulate the picture of a cut.

        Returns:
            (size, size) int16, from 0.
        """
        person = uniforms(seed, patient, f"phantom signal {name}", 1, len(TISSUES) + 2)[0]
        cut = uniforms(seed, patient, f"phantom field {name}", index + 1, 9 + 256)[index]
        signals = np.array([self.signal[tissue] for tissue in TISSUES]) * (
            1 + self.spread * (2 * person[: len(TISSUES)] - 1)
        )
        picture = signals[anatomy.tissue]
        picture *= 1 + self.texture * _field(cut[9:], len(picture))
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
        picture = cv2.GaussianBlur(picture, (0, 0), max(self.blur * size, 0.01), borderType=cv2.BORDER_REPLICATE)
        picture *= 1 + self.bias * _field(cut[:9], size)
        real, imaginary = ndtri(
            np.maximum(uniforms(seed, patient, f"phantom noise {name} {index}", 2, size * size), 2.0**-53)
        ).reshape(2, size, size)
        picture = np.hypot(picture + self.noise * real, self.noise * imaginary)
        return np.rint(np.minimum(picture * self.unit, np.iinfo(np.int16).max)).astype(np.int16)


def _field(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return a smooth field, about -1 to 1, from a square number of values."""
    cells = round(len(values) ** 0.5)
    return np.asarray(cv2.resize(2 * values.reshape(cells, cells) - 1, (side, side), interpolation=cv2.INTER_CUBIC))


# In the order of TISSUES: air, scalp, skull, csf, grey, white, oedema, tumour, rim, core.
_SIGNALS_A = (0.0, 0.78, 0.06, 0.14, 0.36, 0.52, 0.32, 0.92, 0.85, 0.36)
_SIGNALS_B = (0.0, 1.0, 0.08, 0.12, 0.36, 0.46, 0.3, 0.7, 0.68, 0.3)


def _signal(values: tuple[float, ...]) -> Mapping[str, float]:
    return MappingProxyType(dict(zip(TISSUES, values, strict=True)))


_A = Scanner(_signal(_SIGNALS_A), spread=0.06, texture=0.08, blur=0.004, bias=0.1, noise=0.02, unit=2600)
_B = Scanner(_signal(_SIGNALS_B), spread=0.06, texture=0.1, blur=0.008, bias=0.28, noise=0.035, unit=900)

SCANNERS: Mapping[str, Scanner] = MappingProxyType({"A": _A, "B": _B})
"""Two protocols with contrast agent. A is sharp and even; B is blurred, noisy, brightest near its coil, and shows tumours
with less contrast."""
