"""Read and write NIfTI and Analyze volumes, reoriented by their affine.

nibabel reads the headers. It accepts a truncated or corrupted .nii.gz if it yields enough bytes, since it never reads the
checksum at the end of the gzip stream. Here the stream is always read to its end.
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
from kerasseg_tfrecords.text import count

_HEADER = 540  # of NIfTI-2; NIfTI-1 has 348, and MGH 284
_SLACK = 1 << 20  # bytes that may follow the voxels


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A volume whose first axis runs to the patient's left, the second to the back, the third to the head (LPS).

    Attributes:
        voxels: (left, back, head), in the stored type, or float32 if the header scales it; native byte order; finite.
        affine: 4x4, from voxels to millimetres (right, front, head: NIfTI's world).
        spacing: Voxel size in millimetres along the three axes.
        header: Bytes of a NIfTI header with the file's shape (one channel), orientation and affine, for `write_like`.
        notes: Decisions of the reader.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    header: bytes
    notes: tuple[str, ...] = ()


_VERSION_1, _VERSION_2 = {b"n+1", b"ni1"}, {b"n+2", b"ni2"}


def is_nifti(start: bytes) -> bool:
    """Whether a file with these first bytes is a NIfTI volume, plain or compressed with gzip."""
    if is_gzip(start):
        try:
            start = zlib.decompressobj(31).decompress(start, _HEADER)
        except zlib.error:
            return False
    return start[344:347] in _VERSION_1 or start[4:7] in _VERSION_2


def read_volume(data: bytes, name: str, max_voxels: int, *, channel: int = -1, pair: bytes | None = None) -> Volume:
    """Read a .nii or .nii.gz file, or a .hdr/.img pair, and reorient it to the patient's axes without interpolation.

    Axes of an oblique volume become the nearest of the patient's axes, the default of radiologists' viewers.

    Args:
        data: Content of the file, or of the .hdr file.
        name: File name for messages.
        max_voxels: Larger volumes are refused before they are unpacked.
        channel: Channel to read; -1 if the volume should have only one.
        pair: Content of the .img file, plain or compressed with gzip.

    Raises:
        DataError: The file is not NIfTI or Analyze, is damaged (including checksums) or too large, has several channels
            and none is chosen, is not numeric, or has NaN inside the head.
    """
    start = start_of(data, name)
    kind = _header_class(start, name, pair=pair is not None)
    try:
        with imageglobals.LoggingOutputSuppressor():  # nibabel logs its corrections of a header to standard error
            # Without the extensions behind it, which are of any length and say nothing about the voxels.
            header = kind(start[: kind.template_dtype.itemsize])
        # Some programs leave the offset at 0.
        offset = header.get_data_offset() or (0 if pair is not None else int(header["sizeof_hdr"]) + 4)
        stored = voxels_of(header, data if pair is None else pair, offset, name, max_voxels)
        affine, scale = np.asarray(header.get_best_affine(), np.float64), header.get_slope_inter()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # nibabel raises its own and NumPy's exceptions
        raise damaged(name, f"its header: {error}") from error
    oriented = any("sform_code" in header and header[code] > 0 for code in ("sform_code", "qform_code"))
    return upright(stored, affine, name, channel=channel, scale=scale, header=header, oriented=oriented)


def _header_class(start: bytes, name: str, *, pair: bool) -> Any:
    """Return nibabel's class for the header of a .nii file, or of a .hdr file if `pair` is set."""
    magic = start[344:347] if start[344:347] in _VERSION_1 else start[4:7]
    if not pair and magic in {b"ni1", b"ni2"}:
        raise DataError(
            "a NIfTI header without its voxels",
            path=name,
            found="the header of a .hdr and .img pair",
            remedy="Put NAME.hdr and NAME.img into one folder, or save the volume as one .nii file",
        )
    if magic in _VERSION_1:
        return nib.nifti1.Nifti1PairHeader if pair else nib.Nifti1Header
    if magic in _VERSION_2:
        return nib.nifti2.Nifti2PairHeader if pair else nib.Nifti2Header
    if pair and 348 in {int.from_bytes(start[:4], order) for order in ("little", "big")}:
        return nib.Spm2AnalyzeImage.header_class
    expected = "a NIfTI or Analyze header" if pair else ".nii or .nii.gz"
    raise DataError("not a NIfTI file", path=name, found=describe(start), expected=expected, remedy=_REMEDY)


def voxels_of(header: Any, data: bytes, offset: int, name: str, max_voxels: int) -> NDArray[Any]:
    """Return the stored voxels that a nibabel header describes: three axes, and a fourth for several channels.

    `data` may be compressed with gzip, and is then unpacked only as far as the header declares.
    """
    shape, dtype = volume_shape(tuple(map(int, header.get_data_shape())), name, max_voxels), header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DataError("this kind of volume is not supported", path=name, found=f"voxels of type {dtype}")
    if not 0 <= offset <= 1 << 28:
        raise damaged(name, f"its voxels start at byte {offset:g}")
    needed = offset + math.prod(shape) * dtype.itemsize
    raw = _unpack(data, name, needed + _SLACK) if is_gzip(data) else data
    if len(raw) < needed:
        raise damaged(name, f"cut off: {len(raw)} of {needed} bytes")
    return np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape, order="F")


def upright(
    stored: NDArray[Any],
    affine: NDArray[np.float64],
    name: str,
    *,
    channel: int = -1,
    scale: tuple[float | None, float | None] = (None, None),
    header: Any = None,
    oriented: bool = True,
) -> Volume:
    """Reorient voxels to the patient's axes.

    Args:
        stored: Three axes as in the file, and a fourth for several channels.
        affine: 4x4, from voxels to millimetres (right, front, head).
        name: File name for messages.
        channel: Channel to read; -1 if there should be only one.
        scale: Slope and intercept of the values, or None.
        header: A NIfTI or Analyze header; None creates one from shape and affine.
        oriented: Whether the file states the orientation.

    Raises:
        DataError: Several channels and none chosen, NaN inside the head, or an invalid affine.
    """
    notes: tuple[str, ...] = () if oriented else ("the header states no orientation: its axes are a guess",)
    if stored.ndim == 4:
        stored, chosen = _channel(stored, channel, name)
        notes = (*notes, chosen)
    stored, more = _finite(stored, name)
    notes = (*notes, *more)
    slope, intercept = scale
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):
            voxels = (stored * np.float64(slope) + np.float64(intercept or 0.0)).astype(np.float32)
        if not np.isfinite(voxels).all():
            raise damaged(name, f"its header: values times {slope:g} plus {intercept or 0.0:g} are infinite")
    else:
        native = stored.dtype.newbyteorder("=")
        voxels = stored.astype(np.float64 if native.itemsize > 8 else native, copy=False)
    ornt = None
    if (np.abs(affine) < 1e9).all():  # absurd lengths would be infinite in a NIfTI file
        try:
            ornt = orientations.io_orientation(affine)
        except Exception as error:
            raise damaged(name, f"its orientation: {error}") from error
    if ornt is None or np.isnan(ornt).any():
        raise damaged(name, "its orientation: the affine describes no orientation")
    if isinstance(header, nib.Nifti1Header):  # NIfTI-2 is a subclass
        header = header.copy()
        if math.prod(header.get_data_shape()) != stored.size:  # one of several channels; else axes of length 1 are kept
            header.set_data_shape(stored.shape)
    else:
        header = nib.Nifti1Header()
        header.set_sform(affine, 1)
        header.set_data_shape(stored.shape)
    change = orientations.ornt_transform(ornt, orientations.axcodes2ornt(("L", "P", "S")))
    turned = affine @ orientations.inv_ornt_aff(change, voxels.shape)
    across, down, along = np.sqrt((turned[:3, :3] ** 2).sum(axis=0)).tolist()
    return Volume(
        orientations.apply_orientation(voxels, change), turned, (across, down, along), header.binaryblock, notes
    )


def _channel(stored: NDArray[Any], channel: int, name: str) -> tuple[NDArray[Any], str]:
    many = stored.shape[3]
    if not 0 <= channel < many:
        raise DataError(
            "a volume of several channels" if channel < 0 else f"there is no channel {channel}",
            path=name,
            found=f"{many} channels",
            expected="one" if channel < 0 else f"0 to {many - 1}",
            remedy=f"Choose one with --channel 0 to {many - 1}",
            kind="channels",
        )
    return stored[..., channel], f"channel {channel} of {many} was read"


def _finite(stored: NDArray[Any], name: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Replace NaN outside the head, which some tools write there, by the lowest value."""
    if stored.dtype.kind != "f" or np.isfinite(stored).all():
        return stored, ()
    missing = np.isnan(stored)
    many = int(np.count_nonzero(missing))
    endless = int(np.count_nonzero(~np.isfinite(stored))) - many
    # A voxel is outside if only zeros and NaN lie between it and the border in one of the six directions.
    empty = missing | (stored == 0)
    outside = np.zeros_like(missing)
    for axis in range(3):
        outside |= np.logical_and.accumulate(empty, axis)
        outside |= np.flip(np.logical_and.accumulate(np.flip(empty, axis), axis), axis)
    inside = int(np.count_nonzero(missing & ~outside))
    if endless or inside or many == stored.size:
        raise DataError(
            "the volume has NaN or infinite values",
            path=name,
            found=f"{endless + (inside or many)} of {stored.size} voxels inside the head",
            expected="numbers",
            remedy="Replace them with the tool that wrote the file",
            kind="not-finite",
        )
    lowest = stored[~missing].min()
    return np.where(missing, lowest, stored), (f"{count(many, 'voxel')} outside the head held NaN: read as {lowest:g}",)


def write_like(voxels: NDArray[Any], header: bytes) -> bytes:
    """Return a .nii.gz file with the geometry of another one; the inverse of `read_volume`, and deterministic.

    Args:
        voxels: (left, back, head), of the same size as the other volume.
        header: `Volume.header` of the other volume; its shape, orientation and affine are copied exactly.
    """
    kind = nib.Nifti2Image if len(header) == _HEADER else nib.Nifti1Image
    old = kind.header_class(header, check=False)
    stored_axes = orientations.io_orientation(old.get_best_affine())
    change = orientations.ornt_transform(orientations.axcodes2ornt(("L", "P", "S")), stored_axes)
    stored = orientations.apply_orientation(voxels, change).reshape(old.get_data_shape())
    new = kind.header_class.from_header(old, check=False)
    new.set_data_dtype(voxels.dtype)
    new.set_slope_inter(1, 0)
    new["cal_min"] = new["cal_max"] = 0  # a display window for the grey levels of the other file
    for name in _TEXTS & set(new.keys()):
        new[name] = b""
    new.extensions.clear()
    return gzip.compress(kind(stored, None, new).to_bytes(), mtime=0)


_TEXTS = {"descrip", "aux_file", "intent_name", "db_name", "data_type"}
"""What tools and people write about the other file, which may be a name or a path."""
_REMEDY = "Download or copy it again"


def damaged(name: str, detail: str) -> DataError:
    return DataError("a damaged volume", path=name, found=detail, remedy=_REMEDY)


def start_of(data: bytes, name: str) -> bytes:
    """Return the first bytes of a volume, unpacked, with all of its header."""
    return _unpack(data, name, _HEADER, to_the_end=False) if is_gzip(data) else data[:_HEADER]


def _unpack(data: bytes, name: str, limit: int, *, to_the_end: bool = True) -> bytes:
    """Unpack consecutive gzip streams and verify their checksums; or only `limit` bytes, if not `to_the_end`."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:  # quick for many streams, unlike gzip.decompress
            out = stream.read(limit + 1 if to_the_end else limit)
    except EOFError:
        raise damaged(name, "the gzip stream is cut off") from None
    except (OSError, zlib.error) as error:
        raise damaged(name, f"a gzip stream that cannot be unpacked: {error}") from None
    if len(out) > limit:
        raise DataError(
            "it unpacks to more bytes than its header declares",
            path=name,
            expected=f"at most {limit} bytes",
            remedy="Remove the file: it may be made to fill the memory",
            kind="zip-bomb",
        )
    return out


def volume_shape(shape: tuple[int, ...], name: str, max_voxels: int) -> tuple[int, ...]:
    """Check a declared shape and return it as three axes, and a fourth for several channels.

    Raises:
        DataError: There are no voxels, too many, or more than four dimensions.
    """
    # In NIfTI, the fourth axis is time and the fifth the components of a voxel.
    channels = [size for size in shape[3:] if size != 1]
    shape = (*shape[:3], *(1,) * (3 - len(shape)), *channels)
    written = " x ".join(map(str, shape))
    if min(shape) < 1:
        raise damaged(name, f"a volume of {written} voxels")
    if len(shape) > 4:
        raise DataError(
            "a volume of more than four dimensions", path=name, found=written, expected="one channel or several"
        )
    if math.prod(shape) > max_voxels:
        found, expected = f"{written} voxels", f"at most {max_voxels}"
        raise DataError("the volume is too large", path=name, found=found, expected=expected, kind="too-large")
    return shape
