"""Read volumes of all file types: NIfTI and Analyze by `nifti`, FreeSurfer by nibabel, MetaImage and NRRD by SimpleITK."""

from __future__ import annotations

import io
import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import temporary_space
from kerasseg_tfrecords.formats.nifti import (
    Volume,
    damaged,
    is_nifti,
    read_volume,
    start_of,
    upright,
    volume_shape,
    voxels_of,
)

_EXTRA = "Install the extra for such files (pip install 'kerasseg[volumes]'), or save it as .nii.gz"
_ITK_MESSAGES = re.compile(r"Meta(Image|Object)|ideal =|[Nn]rrd|biff|itk|WARNING|^\s*$")
_HEADER_END = 1 << 20  # largest text header
_READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}
_DATA_FILE = re.compile(rb"data ?file\s*[=:]\s*(\S*)", re.IGNORECASE)


def is_volume(start: bytes, suffix: str) -> bool:
    if suffix in {".nii", ".nii.gz"}:
        return is_nifti(start)
    magic = {".mha": b"ObjectType", ".nrrd": b"NRRD", ".mgz": b"\x1f\x8b", ".mgh": b"\x00\x00\x00\x01"}.get(suffix)
    if magic is not None:
        return start.startswith(magic)
    return 348 in {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}


def open_volume(
    data: bytes, name: str, suffix: str, max_voxels: int, *, channel: int = -1, pair: bytes | None = None
) -> Volume:
    """Read a volume and reorient it to the patient's axes.

    Args:
        data: Content of the file.
        name: File name for messages.
        suffix: ".nii", ".nii.gz", ".hdr", ".mgh", ".mgz", ".mha" or ".nrrd".
        max_voxels: Larger volumes are refused.
        channel: Channel to read; -1 if the volume should have only one.
        pair: Content of the .img file that belongs to a .hdr file.
    """
    if suffix in {".mgh", ".mgz"}:
        return _read_mgh(data, name, max_voxels, channel)
    if suffix in {".mha", ".nrrd"}:
        return _read_itk(data, name, suffix, max_voxels, channel)
    return read_volume(data, name, max_voxels, channel=channel, pair=pair)


def _read_mgh(data: bytes, name: str, max_voxels: int, channel: int) -> Volume:
    from nibabel.freesurfer.mghformat import MGHHeader

    start = start_of(data, name)
    try:
        header = MGHHeader.from_fileobj(io.BytesIO(start))
        stored = voxels_of(header, data, header.get_data_offset(), name, max_voxels)
        affine = np.asarray(header.get_affine(), np.float64)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # nibabel raises its own and NumPy's exceptions
        raise damaged(name, f"its header: {error}") from error
    return upright(stored, affine, name, channel=channel, oriented=int(header["goodRASFlag"]) > 0)


def _read_itk(data: bytes, name: str, suffix: str, max_voxels: int, channel: int) -> Volume:
    from kerasseg_tfrecords.formats.codecs import codec_messages  # loads OpenCV, which NIfTI does not need

    try:
        sitk: Any = import_module("SimpleITK")  # it has no types
    except ImportError as error:
        raise DataError(f"reading {suffix} files needs SimpleITK", path=name, remedy=_EXTRA) from error
    if (elsewhere := _elsewhere(data, suffix)) is not None:
        remedy = "Save it as one file, with its voxels inside"
        expected = "voxels in the file itself"
        raise DataError("its voxels are in another file", path=name, found=elsewhere, expected=expected, remedy=remedy)
    with temporary_space(), tempfile.TemporaryDirectory(prefix="kerasseg-") as folder:
        path = Path(folder) / f"volume{suffix}"
        path.write_bytes(data)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_READERS[suffix])  # ITK would choose by content: HDF5, for one, reads other files
        reader.SetFileName(str(path))
        heard: list[str] = []
        try:
            with codec_messages(heard, _ITK_MESSAGES):
                reader.ReadImageInformation()
                parts = reader.GetNumberOfComponents()
                shape = volume_shape((*reader.GetSize(), *((parts,) if parts > 1 else ())), name, max_voxels)
                image = reader.Execute()
        except RuntimeError as error:  # the message also names the temporary file and lines of ITK's source
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and folder not in line]
            found = (heard or lines or ["no reason given"])[0]
            raise DataError(f"a damaged {suffix} file", path=name, found=found) from error
    values = np.asarray(sitk.GetArrayFromImage(image))
    if values.dtype.kind not in "iuf":
        raise DataError("this kind of volume is not supported", path=name, found=f"voxels of type {values.dtype}")
    # The axes of the array are those of the image in reverse order, components last.
    spatial = values.transpose(*range(values.ndim - 1)[::-1], values.ndim - 1) if parts > 1 else values.T
    return upright(spatial.reshape(shape), _affine(image), name, channel=channel)


def _elsewhere(data: bytes, suffix: str) -> str | None:
    """Return the data file that the header names; None if the voxels are in the file itself."""
    if suffix == ".mha":  # in the whole file, because comments can be of any length, and hold the words as well
        named = [re.split(rb"[\s=:]+", part[:200].lstrip(b"\t =:"))[0] for part in data.split(b"ElementDataFile")[1:]]
        others = [name for name in named if name != b"LOCAL"] if named else [b"no data"]
        return others[0].decode(errors="replace")[:100] if others else None
    # The header of NRRD ends with an empty line, and names a file only if the voxels are in another one.
    start = data[:_HEADER_END]
    ends = [place for end in (b"\n\n", b"\r\n\r\n") if (place := start.find(end)) >= 0]
    if not ends:
        return "no end of the header"
    other = _DATA_FILE.search(start[: min(ends)])
    return None if other is None else other.group(1).decode(errors="replace")[:100]


def _affine(image: Any) -> NDArray[np.float64]:
    """Return the affine from voxels to millimetres (right, front, head); ITK's axes run to the left and to the back."""
    axes = min(image.GetDimension(), 3)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:axes, :axes]
    affine[:axes, :axes] = direction * np.array(image.GetSpacing()[:axes])
    affine[:axes, 3] = image.GetOrigin()[:axes]
    affine[:2] *= -1
    return affine
