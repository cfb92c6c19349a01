"""Synthetic slices, one by one: `phantom_slices`."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from kerasseg.phantom.anatomy import CLASSES, head
from kerasseg.phantom.scanners import SCANNERS
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.slices import Slice

__all__ = ["is_phantom", "phantom_slice", "phantom_slices"]

SMALLEST = 32
"""Pixels of a side below which a pituitary tumour is less than a few pixels."""


_PREFIX = "phantom-"
"""Of patients: tables, shards and reports made of phantoms say so by it wherever they come to lie."""


def is_phantom(patient: str) -> bool:
    """Whether a patient, by the id that shards hold, is a head that never was.

    >>> is_phantom("phantom-100001"), is_phantom("MR040240")
    (True, False)
    """
    return patient.startswith(_PREFIX)


def phantom_slice(patient: int, index: int, *, scanner: str = "A", size: int = 128, seed: int = 0) -> Slice:
    """One slice of one patient, which depends on nothing but the arguments.

    Args:
        patient: Number, from 0; its class is meningioma, glioma, pituitary in turn.
        index: Number of the slice within the patient, from 0.
        scanner: A name in `SCANNERS`; each has patients of its own.
        size: Pixels of a side, at least 32.
        seed: Whole number >= 0.

    Returns:
        Image int16 (size, size) from 0, mask bool (size, size), never empty; the nose is up.

    Raises:
        UsageError: An argument that cannot be meant.

    Example:
        >>> from kerasseg.phantom import phantom_slice
        >>> one = phantom_slice(1, 0, size=64)
        >>> one.label, one.patient, one.image.shape, one.image.dtype.name, bool(one.mask.any())
        ('glioma', 'phantom-100001', (64, 64), 'int16', True)
    """
    if scanner not in SCANNERS:
        raise UsageError("no such scanner", found=repr(scanner), expected=" or ".join(SCANNERS))
    if patient < 0 or index < 0:
        raise UsageError("patients and slices are counted from 0", found=f"patient {patient}, slice {index}")
    if size < SMALLEST:
        raise UsageError("phantoms cannot be so small", found=f"size {size}", expected=f"at least {SMALLEST}")
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
    """Synthetic head slices of a "scanner", with tumours that have the habits of their class.

    Skull, brain with folds, ventricles; meningiomas are round and bright at the brain's edge, gliomas ragged and inside,
    with a bright rim and a dark core, pituitary tumours small and central. Scanner A is sharp and even, scanner B
    blurred, noisy and uneven, with less contrast: a network that has learnt on one falls on the other. They stand in for
    real slices where a thing is tried out; no figure measured on them says anything about patients.

    Args:
        patients: How many; classes take turns.
        slices: Neighbouring cuts of each.
        scanner: `"A"` or `"B"`; each has patients of its own.
        size: Pixels of a side, at least 32.
        seed: Whole number >= 0. Each slice depends on (seed, scanner, patient, slice) alone.
        first: Number of the first patient: those of other numbers are other people.

    Yields:
        `Slice`: image int16 (size, size) from 0, mask bool (size, size), label, patient; patient by patient.

    Raises:
        UsageError: An argument that cannot be meant.

    Example:
        >>> import kerasseg
        >>> found = list(kerasseg.phantom_slices(patients=3, slices=2, size=48))
        >>> [one.label for one in found][::2], len({one.patient for one in found})
        (['meningioma', 'glioma', 'pituitary'], 3)
    """
    for patient in range(first, first + patients):
        for index in range(slices):
            yield phantom_slice(patient, index, scanner=scanner, size=size, seed=seed)
