"""One DICOM file: its header, checked, and its pixels in the scanner's units.

pydicom accepts almost anything and unpacks what it is told to: so a file without the DICOM mark is refused (never
`force=True`), the transfer syntax is looked at before the data set is read (a "deflated" one could unpack to any size), and
the declared size is compared with what the file holds before pixels are decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.image_headers import check_pixels
from kerasseg_tfrecords.formats.sniff import describe, is_dicom

__all__ = ["DicomHeader", "DicomSlice", "read_dicom", "read_dicom_header"]

_READ = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless}
_MAX_META = 1 << 16
_UNPACK = "Unpack it first, for instance with gdcmconv --raw or dcmdjpeg"
_CONVERT = "Convert the series to NIfTI, for instance with dcm2niix"


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """What the header of a single-frame MR file says.

    Attributes:
        rows, columns: Size in pixels.
        patient: PatientID; "" where empty.
        series: SeriesInstanceUID; "" where empty.
        instance: InstanceNumber; None where missing.
        position: Place of the slice in millimetres along the normal of its plane; None where the header does not tell.
        spacing: Millimetres a pixel, rows then columns; (0, 0) where unknown.
        slope, intercept: Of the rescaling to the scanner's units; 1 and 0 where there is none.
        inverted: Whether small values are bright (MONOCHROME1).
        origin: Centre of the first pixel in millimetres (left, back, head); None where the header does not tell.
        axes: Unit vectors along a row and down a column, in the same space; None likewise.
        thickness: Millimetres from this slice to the next, or of the slice itself; 0 where unknown.
    """

    rows: int
    columns: int
    patient: str
    series: str
    instance: int | None
    position: float | None
    spacing: tuple[float, float]
    slope: float
    intercept: float
    inverted: bool
    origin: tuple[float, ...] | None = None
    axes: tuple[float, ...] | None = None
    thickness: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class DicomSlice:
    """A decoded DICOM file.

    Attributes:
        pixels: (rows, columns); the stored integers, or float32 where the header rescales them. Large is bright.
        header: What the header says.
        notes: What had to be decided.
    """

    pixels: NDArray[Any]
    header: DicomHeader
    notes: tuple[str, ...]


def read_dicom_header(data: bytes, name: str, max_pixels: int) -> DicomHeader:
    """Reads and checks the header; no pixels are decoded.

    Args:
        data: The file.
        name: For messages.
        max_pixels: Larger images are refused.

    Raises:
        DataError: No DICOM file, damaged, no single-frame grey MR image, compressed, too large, or cut off.
    """
    return _header(_open(data, name), name, max_pixels)


def read_dicom(data: bytes, name: str, max_pixels: int) -> DicomSlice:
    """Decodes a single-frame MR file.

    Rescale slope and intercept are applied; MONOCHROME1 is turned round within the range that the stored bits allow, so
    that all slices of a series stay comparable. Windowing is a matter of display and is not applied. Rows and columns stay
    as stored, which is how viewers show them and how masks are drawn.

    Args:
        data: The file.
        name: For messages.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        DataError: As `read_dicom_header`, and where the pixels cannot be decoded.
    """
    dataset = _open(data, name)
    header = _header(dataset, name, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd values in tags that are not used here
            pixels = np.asarray(dataset.pixel_array)
            stored_bits = min(max(1, int(dataset.get("BitsStored") or 64)), int(dataset.BitsAllocated))
    except Exception as error:  # pydicom raises what its decoders raise
        raise _damaged(name, f"{type(error).__name__}: {error}") from error
    if pixels.shape != (header.rows, header.columns):
        raise _damaged(name, f"pixels of shape {pixels.shape}")
    notes: tuple[str, ...] = ()
    if header.inverted:
        # Lowest and highest possible value add up to -1 with a sign and to the highest without.
        turn = -1 if pixels.dtype.kind == "i" else (1 << stored_bits) - 1
        pixels = (turn - pixels.astype(np.int64)).astype(np.int32 if stored_bits < 31 else np.int64)
        notes = ("MONOCHROME1 was turned round: large is bright",)
    if (header.slope, header.intercept) != (1.0, 0.0):
        pixels = (pixels * header.slope + header.intercept).astype(np.float32)
        if not np.isfinite(pixels).all():
            raise DataError(
                "the rescaled image holds infinite values",
                path=name,
                found=f"slope {header.slope:g}",
                kind="not-finite",
            )
    return DicomSlice(np.ascontiguousarray(pixels), header, notes)


def _damaged(name: str, detail: str) -> DataError:
    return DataError("a damaged DICOM file", path=name, found=detail, remedy="Get the file again from where it came")


def _open(data: bytes, name: str) -> pydicom.Dataset:
    if not is_dicom(data):
        raise DataError(
            "not a DICOM file",
            path=name,
            found=describe(data),
            expected="'DICM' after 128 bytes",
            remedy="Remove it, or export it again from the archive system",
        )
    syntax = _transfer_syntax(data, name)
    if syntax not in _READ:
        raise DataError(
            "compressed DICOM is not read", path=name, found=syntax.name, expected="raw pixels or RLE", remedy=_UNPACK
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(io.BytesIO(data))
    except InvalidDicomError as error:
        raise _damaged(name, str(error)) from error
    except Exception as error:  # damaged files end in EOFError, struct.error, KeyError, ...
        raise _damaged(name, f"{type(error).__name__}: {error}") from error


def _transfer_syntax(data: bytes, name: str) -> UID:
    """The transfer syntax from the file's meta group, which is always explicit VR little endian, before anything else."""
    position, end = 132, min(len(data), 132 + _MAX_META)
    try:
        while position + 8 <= end:
            group, element, kind, length = struct.unpack_from("<HH2sH", data, position)
            if group != 2:
                break
            position += 8
            if kind in {b"OB", b"UN", b"OW", b"SQ", b"UT"}:
                (length,) = struct.unpack_from("<I", data, position)
                position += 4
            if element == 0x10:
                text = data[position : position + length].decode("ascii").rstrip("\x00 ")
                return UID(text, validation_mode=pydicom.config.IGNORE)
            position += length
    except (struct.error, UnicodeDecodeError):
        pass
    raise _damaged(name, "no transfer syntax")


def _header(dataset: pydicom.Dataset, name: str, max_pixels: int) -> DicomHeader:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_kind(dataset, name)
            header = _parse(dataset)
            bits, held = int(dataset.get("BitsAllocated") or 0), len(dataset.PixelData)
    except DataError:
        raise
    except Exception as error:  # values that are not what their tags say
        raise _damaged(name, f"{type(error).__name__}: {error}") from error
    check_pixels(header.rows, header.columns, name, max_pixels)
    if bits not in {8, 16, 32}:
        raise DataError("a DICOM image of a kind that is not read", path=name, found=f"{bits} bits a pixel")
    if not np.isfinite([header.slope, header.intercept, *header.spacing]).all() or header.slope == 0:
        raise _damaged(name, f"rescale slope {header.slope:g}, spacing {header.spacing}")
    needed = header.rows * header.columns * bits // 8
    if dataset.file_meta.get("TransferSyntaxUID") != RLELossless and held < needed:
        raise _damaged(name, f"{held} bytes of pixels where {header.rows} x {header.columns} need {needed}")
    return header


def _check_kind(dataset: pydicom.Dataset, name: str) -> None:
    modality = str(dataset.get("Modality") or "")
    if "PixelData" not in dataset:
        kind = dataset.file_meta.get("MediaStorageSOPClassUID")
        found = kind.name if kind else modality or "no modality"
        raise DataError(
            "a DICOM file without pixels", path=name, found=found, expected="an MR image", remedy="Remove it"
        )
    if modality not in {"MR", ""}:
        raise DataError("not an MR image", path=name, found=f"modality {modality}", expected="modality MR")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(
            "a DICOM file with several frames", path=name, found=f"{frames} frames", expected="one", remedy=_CONVERT
        )
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise DataError(
            "a colour DICOM image",
            path=name,
            found=photometric,
            expected="a grey MR image",
            remedy="Screenshots and overlays are no MR data; remove it",
        )


def _parse(dataset: pydicom.Dataset) -> DicomHeader:
    spacing = dataset.get("PixelSpacing")
    instance = dataset.get("InstanceNumber")
    slope = dataset.get("RescaleSlope")
    return DicomHeader(
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        patient=str(dataset.get("PatientID") or "").strip(),
        series=str(dataset.get("SeriesInstanceUID") or ""),
        instance=None if instance is None else int(instance),
        position=_position(dataset),
        spacing=(float(spacing[0]), float(spacing[1])) if spacing and len(spacing) == 2 else (0.0, 0.0),
        slope=1.0 if slope is None else float(slope),
        intercept=float(dataset.get("RescaleIntercept") or 0.0),
        inverted=str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1",
        origin=_numbers(dataset.get("ImagePositionPatient"), 3),
        axes=_numbers(dataset.get("ImageOrientationPatient"), 6),
        thickness=_thickness(dataset),
    )


def _position(dataset: pydicom.Dataset) -> float | None:
    place, axes = _numbers(dataset.get("ImagePositionPatient"), 3), _numbers(dataset.get("ImageOrientationPatient"), 6)
    if place is None or axes is None:
        return None
    return float(np.dot(np.cross(axes[:3], axes[3:]), place))


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if not value or len(value) != count:
        return None
    numbers = tuple(float(number) for number in value)
    return numbers if np.isfinite(numbers).all() else None


def _thickness(dataset: pydicom.Dataset) -> float:
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        value = float(dataset.get(tag) or 0.0)
        if np.isfinite(value) and value > 0:
            return value
    return 0.0
