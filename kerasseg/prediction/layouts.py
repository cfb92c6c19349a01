"""From the masks of slices to files that lie where the input lay: a picture, a volume, a DICOM series."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.sources.naming import stem_of

__all__ = ["Layout", "PictureLayout", "SeriesLayout", "Values", "VolumeLayout", "png"]

Values = Literal["mask", "probabilities"]
"""Of what is written: bool masks, or float32 probabilities in [0, 1]."""


class Layout(Protocol):
    """How a unit's slices become files."""

    def name(self, place: int, what: Values) -> str:
        """The file that holds a slice: what follows the unit's stem."""

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        """The files, by what follows the unit's stem.

        Args:
            slices: (height, width) each, in order, at their own size.
            what: What they hold.
        """


class PictureLayout:
    """A picture: 8-bit PNG of 0 and 255; probabilities 16-bit PNG, 65535 for 1."""

    def name(self, place: int, what: Values) -> str:  # noqa: ARG002 - there is one
        """The file's ending."""
        return f"_{what}.png"

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        """The file."""
        return {self.name(0, what): png(_grey(slices[0], what))}


@dataclass(frozen=True, slots=True, eq=False)
class VolumeLayout:
    """A NIfTI volume: the input's shape, orientation and affine; 0 and 1, or float32.

    Attributes:
        header: Of the input.
        plane: That it was cut in.
    """

    header: Any
    plane: str

    def name(self, place: int, what: Values) -> str:  # noqa: ARG002 - all slices are in one file
        """The file's ending."""
        return f"_{what}.nii.gz"

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        """The file."""
        # Not above: pictures need no nibabel.
        from kerasseg_tfrecords.sources.nifti import stack
        from kerasseg_tfrecords.sources.nifti_file import write_like

        voxels = stack(np.stack([_voxels(values, what) for values in slices]), self.plane)
        return {self.name(0, what): write_like(voxels, self.header)}


@dataclass(frozen=True, slots=True, eq=False)
class SeriesLayout:
    """A DICOM series: one NIfTI volume where its slices lie evenly one behind the other, else a file a slice.

    Attributes:
        files: Names of the slices.
        affine: 4x4, from (column, row, slice) to millimetres (right, front, head); None: a file a slice.
        affines: Of each slice alone; None where its header gives no place: that one becomes a PNG.
    """

    files: tuple[str, ...]
    affine: NDArray[np.float64] | None
    affines: tuple[NDArray[np.float64] | None, ...]

    def name(self, place: int, what: Values) -> str:
        """The file's ending."""
        if self.affine is not None:
            return f"_{what}.nii.gz"
        ending = ".png" if self.affines[place] is None else ".nii.gz"
        return (
            f"_{what}{ending}" if len(self.files) == 1 else f"/{place:04}-{stem_of(self.files[place])}_{what}{ending}"
        )

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        """The file or files."""
        if self.affine is not None:
            return {self.name(0, what): _nifti(np.stack([_voxels(s, what) for s in slices]), self.affine)}
        files = {}
        for place, values in enumerate(slices):
            affine = self.affines[place]
            grey = png(_grey(values, what)) if affine is None else _nifti(_voxels(values, what)[None], affine)
            files[self.name(place, what)] = grey
        return files


def png(picture: NDArray[Any]) -> bytes:
    """A PNG file.

    Args:
        picture: (height, width) or (height, width, 3, BGR), uint8 or uint16.
    """
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:  # pragma: no cover - OpenCV writes any such picture
        msg = f"a picture cannot be encoded. Received: shape {picture.shape}"
        raise ValueError(msg)
    return bytes(data.tobytes())


def _grey(values: NDArray[Any], what: Values) -> NDArray[Any]:
    if what == "mask":
        return np.asarray(values, np.uint8) * np.uint8(255)
    return np.asarray(np.rint(values * 65535), np.uint16)


def _voxels(values: NDArray[Any], what: Values) -> NDArray[Any]:
    return np.asarray(values, np.uint8 if what == "mask" else np.float32)


def _nifti(slices: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """(slices, rows, columns) as a NIfTI file whose first axis runs along the rows."""
    import nibabel as nib

    image = nib.Nifti1Image(slices.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return gzip.compress(image.to_bytes(), mtime=0)
