"""Read one DICOM file: its header, and its pixels in the scanner's units.

pydicom accepts almost any file. Therefore a file without the DICOM mark must at least begin with DICOM elements.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.image_headers import check_pixels
from kerasseg_tfrecords.formats.sniff import describe, has_no_preamble, is_dicom

_MAX_FRAMES = 10_000
_UNPACK = "Install the decoders (pip install 'kerasseg[dicom]'), or decompress it with gdcmconv --raw"
_CONVERT = "Convert the series to NIfTI, for instance with dcm2niix"


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """The header of one frame of an MR file.

    Attributes:
        rows, columns: Size in pixels.
        patient: PatientID, or "".
        series: SeriesInstanceUID, or "".
        instance: InstanceNumber, or None.
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown.
        slope, intercept: Rescaling to the scanner's units; 1 and 0 by default.
        inverted: Whether small values are bright (MONOCHROME1).
        origin: Centre of the first pixel in millimetres (left, back, head); None if unknown.
        axes: Unit vectors along a row and down a column, in the same space; None if unknown.
        thickness: Distance to the next slice, or else thickness of the slice, in millimetres; 0 if unknown.
        body_part: BodyPartExamined, or "".
    """

    rows: int
    columns: int
    patient: str
    series: str
    instance: int | None
    spacing: tuple[float, float]
    slope: float
    intercept: float
    inverted: bool
    origin: tuple[float, ...] | None = None
    axes: tuple[float, ...] | None = None
    thickness: float = 0.0
    body_part: str = ""

    @property
    def position(self) -> float | None:
        """Position of the slice in millimetres along the normal of its plane; None if unknown."""
        if self.origin is None or self.axes is None:
            return None
        return float(np.dot(np.cross(self.axes[:3], self.axes[3:]), self.origin))


@dataclass(frozen=True, slots=True, eq=False)
class DicomSlice:
    """A decoded frame.

    Attributes:
        pixels: (rows, columns); the stored integers, or float32 if the header rescales them. Large values are bright.
        header: The header of the frame.
        notes: Decisions of the reader.
    """

    pixels: NDArray[Any]
    header: DicomHeader
    notes: tuple[str, ...]


def read_dicom_frames(data: bytes, name: str, max_pixels: int) -> tuple[DicomHeader, ...]:
    """Read and check the headers of all frames (several in enhanced MR files) without decoding pixels.

    Raises:
        DataError: Not a DICOM file or not a grey MR image, unknown compression, too large (`max_pixels`), or damaged.
    """
    return _headers(_open(data, name), name, max_pixels)


def read_dicom(data: bytes, name: str, max_pixels: int, frame: int = -1) -> DicomSlice:
    """Decode one frame of an MR file.

    Rescale slope and intercept are applied. MONOCHROME1 is inverted within the range of the stored bits, so that the slices
    of a series stay comparable. Windowing only concerns display and is not applied. Rows and columns stay as stored, as
    viewers show them and masks are drawn.

    Args:
        data: Content of the file.
        name: File name for messages.
        max_pixels: Larger images are refused before they are decoded.
        frame: Frame to decode; -1 if the file should have only one.
    """
    dataset = _open(data, name)
    header = one_frame(_headers(dataset, name, max_pixels), name, frame)
    with _explained(name):
        pixels = np.asarray(pixel_array(dataset, index=max(frame, 0)))
        stored_bits = min(max(1, int(dataset.get("BitsStored") or 64)), int(dataset.BitsAllocated))
    if pixels.shape != (header.rows, header.columns):
        raise _damaged(name, f"pixels of shape {pixels.shape}")
    notes: tuple[str, ...] = ()
    if header.inverted:
        # The lowest and the highest possible value add up to -1 if signed, else to the highest.
        turn = -1 if pixels.dtype.kind == "i" else (1 << stored_bits) - 1
        pixels = (turn - pixels.astype(np.int64)).astype(np.int32 if stored_bits < 31 else np.int64)
        notes = ("MONOCHROME1 was inverted, so that large values are bright",)
    if (header.slope, header.intercept) != (1.0, 0.0):
        pixels = (pixels * header.slope + header.intercept).astype(np.float32)
        if not np.isfinite(pixels).all():
            found = f"slope {header.slope:g}"
            raise DataError("the rescaled image has infinite values", path=name, found=found, kind="not-finite")
    return DicomSlice(np.ascontiguousarray(pixels), header, notes)


def _damaged(name: str, detail: str) -> DataError:
    return DataError("a damaged DICOM file", path=name, found=detail, remedy="Download or copy it again")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Convert the exceptions of pydicom to `DataError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual values of tags
            yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # of any kind: EOFError, struct.error, KeyError, those of decoders, ...
        raise _damaged(name, f"{type(error).__name__}: {error}") from error


def one_frame(headers: tuple[DicomHeader, ...], name: str, frame: int) -> DicomHeader:
    """Return the header of a frame; -1 if the file should have only one."""
    if frame < 0 and len(headers) > 1:
        raise DataError(
            "a DICOM file with several frames",
            path=name,
            found=f"{len(headers)} frames",
            expected="one, with a mask of its own",
            remedy=_CONVERT,
        )
    return headers[max(frame, 0)]


def _open(data: bytes, name: str) -> pydicom.Dataset:
    if not is_dicom(data):
        raise DataError(
            "not a DICOM file",
            path=name,
            found=describe(data),
            expected="'DICM' after 128 bytes, or DICOM elements from the start",
            remedy="Export it again from the image archive (PACS)",
        )
    bare = has_no_preamble(data)
    with _explained(name):
        dataset = pydicom.dcmread(io.BytesIO(data), force=bare)
        if "TransferSyntaxUID" in dataset.file_meta:
            named = str(dataset.file_meta.TransferSyntaxUID)  # several, in a damaged file
            _check_decoder(UID(named, validation_mode=pydicom.config.IGNORE), name)
        elif not bare:
            raise _damaged(name, "no transfer syntax")
        else:  # no meta group: the encoding is that of the elements
            implicit, little = dataset.original_encoding
            plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
    return dataset


def _check_decoder(syntax: UID, name: str) -> None:
    remedy = "Decompress it, for instance with gdcmconv --raw"
    try:
        if get_decoder(syntax).is_available:
            return
        remedy = _UNPACK
    except NotImplementedError:  # videos, say
        pass
    expected = "raw pixels, RLE, or JPEG and JPEG 2000 with their decoders"
    what = "this DICOM compression is not supported"
    raise DataError(what, path=name, found=syntax.name, expected=expected, remedy=remedy)


def _headers(dataset: pydicom.Dataset, name: str, max_pixels: int) -> tuple[DicomHeader, ...]:
    with _explained(name):
        _check_kind(dataset, name)
        frames = int(dataset.get("NumberOfFrames") or 1)
        if not 1 <= frames <= _MAX_FRAMES:
            raise _damaged(name, f"{frames} frames")
        headers = tuple(_parse(_Frame(dataset, frame)) for frame in range(frames))
        bits, held = int(dataset.get("BitsAllocated") or 0), len(dataset.PixelData)
    check_pixels(headers[0].rows, headers[0].columns, name, max_pixels)
    if bits not in {8, 16, 32}:
        raise DataError("this kind of DICOM image is not supported", path=name, found=f"{bits} bits per pixel")
    for header in headers:
        if not np.isfinite([header.slope, header.intercept]).all() or header.slope == 0 or not _near(header.spacing):
            raise _damaged(name, f"rescale slope {header.slope:g}, spacing {header.spacing}")
    needed = frames * headers[0].rows * headers[0].columns * bits // 8
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and held < needed:  # found here, while listing
        found = f"{held} bytes of pixels, but {frames} x {headers[0].rows} x {headers[0].columns} need {needed}"
        raise _damaged(name, found)
    return headers


class _Frame:
    """Elements of one frame, looked up in the frame, then in the part shared by all frames, then in the file."""

    def __init__(self, dataset: pydicom.Dataset, frame: int) -> None:
        self._places = [dataset]
        groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
        for group in (*(dataset.get("SharedFunctionalGroupsSequence") or [])[:1], *groups[frame : frame + 1]):
            for macro in group:
                if macro.VR == "SQ" and macro.value:
                    self._places.insert(0, macro.value[0])

    def get(self, tag: str) -> Any:
        return next((place.get(tag) for place in self._places if tag in place), None)


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
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise DataError(
            "a colour DICOM image",
            path=name,
            found=photometric,
            expected="a grey MR image",
            remedy="Remove it: screenshots and overlays are not MR data",
        )


def _parse(dataset: _Frame) -> DicomHeader:
    spacing = dataset.get("PixelSpacing")
    instance = dataset.get("InstanceNumber")
    slope = dataset.get("RescaleSlope")
    return DicomHeader(
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        patient=str(dataset.get("PatientID") or "").strip(),
        series=str(dataset.get("SeriesInstanceUID") or ""),
        instance=None if instance is None else int(instance),
        spacing=(float(spacing[0]), float(spacing[1])) if spacing and len(spacing) == 2 else (0.0, 0.0),
        slope=1.0 if slope is None else float(slope),
        intercept=float(dataset.get("RescaleIntercept") or 0.0),
        inverted=str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1",
        origin=_numbers(dataset.get("ImagePositionPatient"), 3),
        axes=_numbers(dataset.get("ImageOrientationPatient"), 6),
        thickness=_thickness(dataset),
        body_part=str(dataset.get("BodyPartExamined") or "").strip(),
    )


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if not value or len(value) != count:
        return None
    numbers = tuple(float(number) for number in value)
    return numbers if _near(numbers) else None


def _near(lengths: tuple[float, ...]) -> bool:
    """Whether all lengths are possible; absurd ones would be infinite in a NIfTI file."""
    return bool((np.abs(lengths) < 1e9).all())


def _thickness(dataset: _Frame) -> float:
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        value = float(dataset.get(tag) or 0.0)
        if value > 0 and _near((value,)):
            return value
    return 0.0
