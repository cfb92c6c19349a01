"""Synthetic head slices, also as MATLAB 7.3 files with the fields of the figshare data set."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from kerasseg.phantom.anatomy import CLASSES, head
from kerasseg.phantom.scanners import SCANNERS
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error, write_atomically
from kerasseg_tfrecords.slices import Slice

SMALLEST = 32
"""Smallest side in pixels: a pituitary tumour then has a few pixels."""


_PREFIX = "phantom-"
"""Prefix of patient ids, by which tables, shards and reports recognise synthetic data."""


def is_phantom(patient: str) -> bool:
    """Return whether a patient id is that of a synthetic patient.

    >>> is_phantom("phantom-100001"), is_phantom("MR040240")
    (True, False)
    """
    return patient.startswith(_PREFIX)


def phantom_slice(patient: int, index: int, *, scanner: str = "A", size: int = 128, seed: int = 0) -> Slice:
    """Create one slice of a synthetic patient, which depends only on the arguments.

    Args:
        patient: Number, from 0; classes alternate: meningioma, glioma, pituitary.
        index: Number of the slice within the patient, from 0.
        scanner: A name in `SCANNERS`; each scanner has its own patients.
        size: Side in pixels, at least 32.
        seed: Random seed, an integer >= 0.

    Returns:
        Image int16 (size, size) from 0, mask bool (size, size), never empty; the nose is up.

    Example:
        >>> one = phantom_slice(1, 0, size=64)
        >>> one.label, one.patient, one.image.shape, one.image.dtype.name, bool(one.mask.any())
        ('glioma', 'phantom-100001', (64, 64), 'int16', True)
    """
    if scanner not in SCANNERS:
        raise UsageError("no such scanner", found=repr(scanner), expected=" or ".join(SCANNERS))
    if patient < 0 or index < 0:
        raise UsageError("patients and slices are counted from 0", found=f"patient {patient}, slice {index}")
    if size < SMALLEST:
        raise UsageError("the size of phantoms is too small", found=size, expected=f"at least {SMALLEST}")
    anatomy = head(seed, scanner, patient, index, 2 * size)
    covered = cv2.resize(anatomy.mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    number = 100_000 * (1 + list(SCANNERS).index(scanner)) + patient
    person = f"{_PREFIX}{number}"
    name = f"{person}-{index + 1}"
    return Slice(
        image=SCANNERS[scanner].scan(anatomy, size, seed, scanner, patient, index),
        mask=covered >= 0.5,
        slice_id=name,
        source=f"{name}.mat",
        label=CLASSES[patient % len(CLASSES)],
        patient=person,
    )


def phantom_slices(
    patients: int = 30, slices: int = 3, *, scanner: str = "A", size: int = 128, seed: int = 0, first: int = 0
) -> Iterator[Slice]:
    """Create synthetic head slices with tumours that are typical of their class.

    The heads have a skull, a brain with folds, and ventricles. Meningiomas are round and bright at the brain's edge,
    gliomas ragged and inside, with a bright rim and a dark core, pituitary tumours small and central. Scanner A is sharp
    and even; scanner B is blurred, noisy and uneven, with less contrast, so that networks trained on A are worse on B.
    Figures measured on these slices say nothing about real patients.

    Args:
        patients: Number of patients; classes alternate.
        slices: Neighbouring cuts per patient.
        scanner: `"A"` or `"B"`; each scanner has its own patients.
        size: Side in pixels, at least 32.
        seed: Random seed, an integer >= 0. Each slice depends only on (seed, scanner, patient, slice).
        first: Number of the first patient.

    Yields:
        `Slice`: image int16 (size, size) from 0, mask bool (size, size), label, patient; patient by patient.

    Raises:
        UsageError: An argument is invalid.

    Example:
        >>> import kerasseg
        >>> found = list(kerasseg.phantom_slices(patients=3, slices=2, size=48))
        >>> [one.label for one in found][::2], len({one.patient for one in found})
        (['meningioma', 'glioma', 'pituitary'], 3)
    """
    for patient in range(first, first + patients):
        for index in range(slices):
            yield phantom_slice(patient, index, scanner=scanner, size=size, seed=seed)


# A fixed date, that of the first figshare file, so that the same slices give the same bytes.
_HEADER = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Mon Aug 03 21:51:33 2015 HDF5 schema 1.00 ."


def write_phantoms(
    folder: str | Path,
    patients: int = 30,
    slices: int = 3,
    *,
    scanner: str = "A",
    size: int = 128,
    seed: int = 0,
    first: int = 0,
) -> list[Path]:
    """Write synthetic slices in the layout of the figshare brain tumour data set: `1.mat`, `2.mat`, ...

    Args:
        folder: Output folder; created if missing.
        patients: Number of patients.
        slices: Slices per patient.
        scanner: `"A"` or `"B"`.
        size: Side of the slices in pixels, at least 32.
        seed: Random seed, an integer >= 0; the same seed writes the same bytes.
        first: Number of the first patient.

    Returns:
        The files.

    Raises:
        UsageError: An argument is invalid.
        KerassegError: The folder is not empty, or cannot be written to.

    Example:
        >>> import kerasseg
        >>> [path.name for path in kerasseg.write_phantoms("phantoms", patients=1, slices=2, size=48)]
        ['1.mat', '2.mat']
    """
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise KerassegError("the folder is not empty", path=root, remedy="Choose another folder, or delete it.")
    except OSError as error:
        raise explain_os_error(error, root) from error
    made = []
    found = phantom_slices(patients, slices, scanner=scanner, size=size, seed=seed, first=first)
    for number, one in enumerate(found, 1):
        path = root / f"{number}.mat"
        write_atomically(path, mat_bytes(one), durable=False)
        made.append(path)
    return made


def mat_bytes(one: Slice) -> bytes:
    """Encode a slice as a MATLAB 7.3 file: a header of 512 bytes, then HDF5.

    Args:
        one: Slice with a mask; its label is meningioma, glioma or pituitary.
    """
    assert one.mask is not None  # noqa: S101 - phantoms have masks
    # In memory, so that `write_atomically` reports a full disk.
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=512) as file:
        struct = file.create_group("cjdata")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")
        # MATLAB arrays are column-major, so HDF5 shows them transposed.
        for name, plane, kind in (("image", one.image, "int16"), ("tumorMask", one.mask.astype(np.uint8), "logical")):
            chunks = (plane.shape[1], max(plane.shape[0] // 8, 1))
            data = struct.create_dataset(name, data=np.ascontiguousarray(plane.T), chunks=chunks, compression=3)
            data.attrs["MATLAB_class"] = np.bytes_(kind)
        struct["label"] = np.full((1, 1), 1.0 + CLASSES.index(one.label))
        struct["PID"] = np.array([[ord(character)] for character in one.patient], np.uint16)
        struct["tumorBorder"] = _border(one.mask)
        for name, kind in (("label", "double"), ("PID", "char"), ("tumorBorder", "double")):
            struct[name].attrs["MATLAB_class"] = np.bytes_(kind)
    return _HEADER.ljust(124) + b"\x00\x02IM" + memory.getvalue()[128:]


def _border(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return points around the tumour as (1, 2 n): x, y, x, y, ..., counted from 1 as in MATLAB."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    longest = max(contours, key=len)
    return np.asarray(longest[:, 0] + 1.0, np.float64).reshape(1, -1)
