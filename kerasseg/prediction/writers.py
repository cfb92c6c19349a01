"""Write masks in the geometry of their input: a picture, a volume or a DICOM series."""

from __future__ import annotations

import gzip
import importlib.util
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.intensity import Window
from kerasseg_tfrecords.isolation import isolated, working_on
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.base import SourceOptions, file_limit
from kerasseg_tfrecords.sources.roles import stem_of
from kerasseg_tfrecords.sources.tree import read_bytes

Values = Literal["mask", "probabilities"]
"""Kind of values: bool masks, or float32 probabilities in [0, 1]."""


class Layout(Protocol):
    """Mapping from the slices of an input to files."""

    def name(self, place: int, what: Values) -> str:
        """Return the end of the name of a slice's file, after the stem of the input."""

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        """Encode the files, as end of the name -> content.

        Args:
            slices: (height, width) each, in order, at their own size.
            what: What the slices contain.
        """


class PictureLayout:
    """A picture: 8-bit PNG with 0 and 255; probabilities as 16-bit PNG, where 65535 is 1."""

    def name(self, place: int, what: Values) -> str:  # noqa: ARG002 - all slices are in one file
        return f"_{what}.png"

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        return {self.name(0, what): png(_grey(slices[0], what))}


@dataclass(frozen=True, slots=True, eq=False)
class VolumeLayout:
    """A NIfTI volume with the input's shape, orientation and affine; 0 and 1, or float32."""

    header: Any
    plane: str

    def name(self, place: int, what: Values) -> str:  # noqa: ARG002 - all slices are in one file
        return f"_{what}.nii.gz"

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        # Imported here, because pictures need no nibabel.
        from kerasseg_tfrecords.formats.nifti import write_like
        from kerasseg_tfrecords.sources.nifti import stack

        voxels = stack(np.stack([_voxels(values, what) for values in slices]), self.plane)
        return {self.name(0, what): write_like(voxels, self.header)}


@dataclass(frozen=True, slots=True, eq=False)
class SeriesLayout:
    """A DICOM series: one NIfTI volume if its slices are evenly spaced, else one file per slice.

    Attributes:
        files: Names of the slices.
        affine: 4x4, from (column, row, slice) to millimetres (right, front, head); None for one file per slice.
        affines: Affine of each slice; None if its header has no position, so that the mask becomes a PNG.
    """

    files: tuple[str, ...]
    affine: NDArray[np.float64] | None
    affines: tuple[NDArray[np.float64] | None, ...]

    def name(self, place: int, what: Values) -> str:
        if self.affine is not None:
            return f"_{what}.nii.gz"
        ending = ".png" if self.affines[place] is None else ".nii.gz"
        return (
            f"_{what}{ending}" if len(self.files) == 1 else f"/{place:04}-{stem_of(self.files[place])}_{what}{ending}"
        )

    def encode(self, slices: Sequence[NDArray[Any]], what: Values) -> dict[str, bytes]:
        if self.affine is not None:
            return {self.name(0, what): _nifti(np.stack([_voxels(s, what) for s in slices]), self.affine)}
        files = {}
        for place, values in enumerate(slices):
            affine = self.affines[place]
            grey = png(_grey(values, what)) if affine is None else _nifti(_voxels(values, what)[None], affine)
            files[self.name(place, what)] = grey
        return files


def png(picture: NDArray[Any]) -> bytes:
    """Encode a PNG file.

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
    """Encode (slices, rows, columns) as a NIfTI file whose first axis runs along the rows."""
    import nibabel as nib

    image = nib.Nifti1Image(slices.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return gzip.compress(image.to_bytes(), mtime=0)


_SECONDS = 300
"""Processor time to encode the masks of a series."""


def has_highdicom() -> bool:
    """Return whether DICOM SEG files can be written."""
    return importlib.util.find_spec("highdicom") is not None


def segmentation(
    files: Sequence[Location], masks: Sequence[NDArray[np.bool_]], options: SourceOptions
) -> tuple[bytes | None, str]:
    """Encode the masks of a series as one DICOM SEG object that refers to its slices.

    Returns:
        The file and "", or None and the reason; the reason is "" if there is no tumour, because an empty SEG is not valid.
    """
    if not any(mask.any() for mask in masks):
        return None, ""
    try:
        return _encoded_segmentation(files, masks, options)
    except DataError as error:
        return None, f"no DICOM SEG file: {error.what}. {error.remedy}"


@isolated
def _encoded_segmentation(
    files: Sequence[Location], masks: Sequence[NDArray[np.bool_]], options: SourceOptions
) -> tuple[bytes | None, str]:
    working_on(files[0].name, _SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about anonymised values
            return _write(files, masks, options), ""
    except (MemoryError, SystemError) as error:  # the latter from libraries in C that got no memory
        raise MemoryError from error
    except Exception as error:  # highdicom checks hundreds of tags and raises many types
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
        missing = str(error).partition("Dataset' object has no attribute ")[2]
        reason = f"no {missing.strip(chr(39))}" if missing else reason
        return None, f"no DICOM SEG file, because the headers are incomplete ({reason})"


def _write(files: Sequence[Location], masks: Sequence[NDArray[np.bool_]], options: SourceOptions) -> bytes:
    # Imported here, because it takes seconds.
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    sources = [
        pydicom.dcmread(io.BytesIO(read_bytes(place, limit=file_limit(options))), stop_before_pixels=True)
        for place in files
    ]
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="tumour",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="kerasseg", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    made: Any = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.stack(masks).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="kerasseg",
        manufacturer_model_name="kerasseg",
        software_versions=__version__,
        device_serial_number="0",
        series_description="Tumour mask predicted by a network: not for clinical use",
    )
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


_LEAST = 512
"""Smallest longer side of an overlay in pixels: smaller slices are enlarged, so that the outline is thin."""
_COLOUR = (0, 159, 230)
"""Orange of the Okabe-Ito palette, BGR."""
_FILL = 0.2


def grey_levels(image: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Scale a slice by its intensity window, at its own size.

    Args:
        image: (height, width) or (height, width, 3), stored values.
        window: Window of the intensity rule.

    Returns:
        The same shape, 0 to 255.
    """
    if window.high <= window.low:
        return np.zeros(image.shape, np.uint8)
    scaled = (image.astype(np.float32) - np.float32(window.low)) * np.float32(255 / (window.high - window.low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def draw_overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the outline and a tint of a mask over a slice.

    Args:
        image: (height, width) or (height, width, 3, RGB).
        mask: (height, width).

    Returns:
        (height * k, width * k, 3), BGR, with the smallest integer k for which the longer side is at least 512.

    Example:
        >>> draw_overlay(np.zeros((100, 80), np.uint8), np.ones((100, 80), bool)).shape
        (600, 480, 3)
    """
    height, width = mask.shape
    scale = max(1, -(-_LEAST // max(height, width)))
    size = (width * scale, height * scale)
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    if not mask.any():
        return np.asarray(picture)
    inside = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    tinted = cv2.addWeighted(picture, 1 - _FILL, np.full_like(picture, _COLOUR), _FILL, 0)
    picture = np.where(inside[..., None] > 0, tinted, picture)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Black below the colour, for contrast on bright tumours.
    for colour, thickness in (((0, 0, 0), 3), (_COLOUR, 1)):
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    return np.asarray(picture)
