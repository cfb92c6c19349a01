"""Synthetic head slices."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from kerasseg.phantom.anatomy import CLASSES, head
from kerasseg.phantom.scanners import SCANNERS
from kerasseg_tfrecords.errors import UsageError
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

    Raises:
        UsageError: An argument is invalid.

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
