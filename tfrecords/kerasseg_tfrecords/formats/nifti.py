"""One NIfTI file: unpacked with its check sums, its size checked first, and turned upright by its affine.

nibabel reads a cut or bit-flipped .nii.gz without complaint as long as enough bytes come out, for it never reaches the
check sum at the end of the gzip stream. Here the stream is always read to its end.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import imageglobals, orientations
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.sniff import describe, is_gzip

__all__ = ["Volume", "is_nifti", "read_header", "read_volume", "write_like"]

_HEADER = 540  # of NIfTI-2; NIfTI-1 has 348
_SLACK = 1 << 20  # bytes that may follow the voxels
_REMEDY = "Get the file again from where it came"


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A volume whose first axis runs to the patient's left, the second to the back, the third to the head (LPS).

    Attributes:
        voxels: (left, back, head), in the stored type, or float32 where the header scales it; native byte order.
        affine: 4x4, from voxel to millimetres (right, front, head: NIfTI's world).
        spacing: Millimetres a voxel along the three axes.
        oriented: False where the header gives no orientation; the axes are then a guess.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    oriented: bool


def is_nifti(start: bytes) -> bool:
    """Whether a file that starts like this is a NIfTI volume, plain or in gzip."""
    if is_gzip(start):
        try:
            start = zlib.decompressobj(31).decompress(start, _HEADER)
        except zlib.error:
            return False
    return start[344:347] in {b"n+1", b"ni1"} or start[4:7] in {b"n+2", b"ni2"}


def read_volume(data: bytes, name: str, max_voxels: int) -> Volume:
    """Reads a .nii or .nii.gz file and turns it to the patient's axes, without interpolation.

    Axes of an oblique volume go to the nearest of the patient's axes, as radiologists' viewers do by default.

    Args:
        data: The file.
        name: For messages.
        max_voxels: Larger volumes are refused before they are unpacked.

    Raises:
        DataError: No NIfTI file, damaged (check sums included), too large, more than three dimensions, no numbers.
    """
    header = read_header(data, name)
    shape, dtype = _layout(header, name, max_voxels)
    offset = int(header["vox_offset"]) or int(header["sizeof_hdr"]) + 4
    needed = offset + math.prod(shape) * dtype.itemsize
    raw = _unpack(data, name, needed + _SLACK, to_the_end=True) if is_gzip(data) else data
    if len(raw) < needed:
        raise _damaged(name, f"the file is cut off: {len(raw)} of {needed} bytes")
    stored = np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape, order="F")
    voxels = _scaled(stored, header, name)
    return _upright(voxels, header, name)


def read_header(data: bytes, name: str) -> Any:
    """The header of a .nii or .nii.gz file, as nibabel has it.

    Args:
        data: The file.
        name: For messages.

    Raises:
        DataError: No NIfTI file, or a damaged one.
    """
    start = _unpack(data, name, _HEADER, to_the_end=False) if is_gzip(data) else data[:_HEADER]
    if not is_nifti(start):
        raise DataError(
            "not a NIfTI file", path=name, found=describe(start), expected=".nii or .nii.gz", remedy=_REMEDY
        )
    return _parse(start, name)


def write_like(voxels: NDArray[Any], header: Any) -> bytes:
    """A .nii.gz file that lies where another one does: the way back of `read_volume`.

    Args:
        voxels: (left, back, head), as many as the other file has.
        header: Of the other file; orientation, affine and shape are its own, bit by bit, the type is that of `voxels`.

    Returns:
        The file; the same for the same voxels.
    """
    stored_axes = orientations.io_orientation(header.get_best_affine())
    change = orientations.ornt_transform(orientations.axcodes2ornt(("L", "P", "S")), stored_axes)
    stored = orientations.apply_orientation(voxels, change).reshape(header.get_data_shape())
    new = header.copy()
    new.set_data_dtype(voxels.dtype)
    new.set_slope_inter(1, 0)
    new["cal_min"] = new["cal_max"] = 0  # a window for the image's grey levels
    new.extensions.clear()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return gzip.compress(kind(stored, None, new).to_bytes(), mtime=0)


def _damaged(name: str, detail: str) -> DataError:
    return DataError("a damaged NIfTI file", path=name, found=detail, remedy=_REMEDY)


def _unpack(data: bytes, name: str, limit: int, *, to_the_end: bool) -> bytes:
    """The first `limit` bytes of a gzip stream, or all of it, its check sums verified; more than `limit` is an error."""
    out = bytearray()
    while is_gzip(data):  # streams may stand one after the other
        stream = zlib.decompressobj(31)
        try:
            out += stream.decompress(data, limit + 1 - len(out))
            if not to_the_end:
                break
            # The check sums stand behind the last byte, which may have come out already.
            out += stream.decompress(stream.unconsumed_tail, 1)
        except zlib.error as error:
            reason = str(error).split(": ")[-1]
            raise _damaged(name, f"a gzip stream that cannot be unpacked: {reason}") from None
        if len(out) > limit:
            raise DataError(
                "unpacks to more than its header says",
                path=name,
                expected=f"at most {limit} bytes",
                remedy="Such a file is made to fill the memory; remove it",
                kind="zip-bomb",
            )
        if not stream.eof:
            raise _damaged(name, "the gzip stream is cut off")
        data = stream.unused_data
    return bytes(out)


def _parse(start: bytes, name: str) -> Any:
    kind = nib.Nifti2Header if start[4:6] == b"n+" or start[4:6] == b"ni" else nib.Nifti1Header
    try:
        # nibabel writes what it mends in a header to standard error.
        with imageglobals.LoggingOutputSuppressor():
            return kind.from_fileobj(io.BytesIO(start))
    except Exception as error:  # nibabel raises its own and NumPy's kinds
        raise _damaged(name, f"its header: {error}") from error


def _layout(header: Any, name: str, max_voxels: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    magic = bytes(header["magic"].item())[:2]
    if magic == b"ni":
        raise DataError(
            "a NIfTI header without its voxels",
            path=name,
            found="the .hdr of a pair",
            remedy="Save it as one .nii file",
        )
    try:
        shape = tuple(int(size) for size in header.get_data_shape())
        dtype = header.get_data_dtype()
    except Exception as error:
        raise _damaged(name, f"its header: {error}") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise DataError(
            "a volume of more than three dimensions",
            path=name,
            found=" x ".join(map(str, shape)),
            expected="one sequence a file",
            remedy="Split it, for instance with nibabel.four_to_three or fslsplit",
        )
    if not shape or min(shape) < 1:
        raise _damaged(name, f"a volume of {' x '.join(map(str, shape)) or 'no'} voxels")
    shape = (*shape, *(1,) * (3 - len(shape)))
    if dtype.kind not in "iuf":
        raise DataError("a volume of a kind that is not read", path=name, found=f"voxels of type {dtype}")
    if math.prod(shape) > max_voxels:
        raise DataError(
            "the volume is too large",
            path=name,
            found=f"{' x '.join(map(str, shape))} voxels",
            expected=f"at most {max_voxels}",
            kind="too-large",
        )
    return shape, dtype


def _scaled(stored: NDArray[Any], header: Any, name: str) -> NDArray[Any]:
    try:
        slope, intercept = header.get_slope_inter()
    except Exception as error:
        raise _damaged(name, f"its header: {error}") from error
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        bad = int(np.count_nonzero(~np.isfinite(stored)))
        raise DataError(
            "the volume holds NaN or infinite values",
            path=name,
            found=f"{bad} of {stored.size} voxels",
            expected="numbers",
            remedy="Replace them, for instance by 0, if they lie outside the head",
            kind="not-finite",
        )
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        return (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)
    native = stored.dtype.newbyteorder("=")
    return stored.astype(np.float64 if native.itemsize > 8 else native, copy=False)


def _upright(voxels: NDArray[Any], header: Any, name: str) -> Volume:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        ornt = orientations.io_orientation(affine)
    except Exception as error:  # impossible quaternions, NaN
        raise _damaged(name, f"its orientation: {error}") from error
    if not np.isfinite(affine).all() or np.isnan(ornt).any():
        raise _damaged(name, "its orientation: an affine that is no orientation")
    change = orientations.ornt_transform(ornt, orientations.axcodes2ornt(("L", "P", "S")))
    turned = affine @ orientations.inv_ornt_aff(change, voxels.shape)
    spacing = np.sqrt((turned[:3, :3] ** 2).sum(axis=0))
    return Volume(
        voxels=orientations.apply_orientation(voxels, change),
        affine=turned,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        oriented=bool(header["sform_code"] > 0 or header["qform_code"] > 0),
    )
