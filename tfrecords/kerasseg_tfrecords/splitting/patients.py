"""Which slices belong to one head: patient ids as they are read, and the groups that must stay on one side of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kerasseg_tfrecords.errors import UsageError

__all__ = ["Grouping", "compile_pattern", "group_of", "groups_of"]

_TCGA = re.compile(r"TCGA[-_][A-Za-z0-9]{2}[-_][A-Za-z0-9]{4}", re.IGNORECASE)
_CHENG = re.compile(r"((?:MR)?[0-9]+)[A-Za-z]+")


def compile_pattern(text: str) -> re.Pattern[str]:
    r"""The regular expression of `--patient-pattern`.

    Args:
        text: An expression for the whole patient id, in which the first pair of brackets holds the group.

    Raises:
        UsageError: It does not compile, or has no brackets.

    Example:
        >>> group_of("sub-07_ses-2", compile_pattern(r"(sub-\d+)_.*"))
        'sub-07'
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"--patient-pattern {text!r} is no regular expression: {error}") from error
    if pattern.groups < 1:
        raise UsageError(
            f"--patient-pattern {text!r} does not say which part of the id is the patient",
            remedy="Put that part in brackets, as in '(sub-[0-9]+)_.*'.",
        )
    return pattern


def group_of(patient: str, pattern: re.Pattern[str] | None = None) -> str:
    """The group of a patient id: one head, however many ids it has.

    In the Cheng data (figshare 1512427) `MR040240`, `MR040240B` and `MR040240C` are one head before surgery and at later
    scans: 233 ids are 209 people, and 15 of the 18 such families cross the author's own five folds. A split by id as it
    stands therefore trains and tests on the same heads. The group of such an id (`MR` and digits, or digits) is the id
    without its trailing letters. TCGA bar codes are written with hyphens and with underscores: both are one. Any other
    id is its own group.

    Args:
        patient: Patient id as read, not empty.
        pattern: From `compile_pattern`; where it matches the whole id, its first brackets are the group.

    Example:
        >>> [group_of(p) for p in ("MR040240B", "MR040240", "100416", "TCGA_CS_4943")]
        ['MR040240', 'MR040240', '100416', 'TCGA-CS-4943']
    """
    if pattern is not None and (match := pattern.fullmatch(patient)) and match[1]:
        return match[1]
    if _TCGA.fullmatch(patient):
        return patient.upper().replace("_", "-")  # one head, whether a data set writes its bar code with - or _
    cheng = _CHENG.fullmatch(patient)
    return cheng[1] if cheng else patient


@dataclass(frozen=True, slots=True)
class Grouping:
    """A group for each slice.

    Attributes:
        groups: In the order of the slices; never empty strings.
        unknown: Number of slices whose patient is not known.
        notes: Sentences for the user.
    """

    groups: tuple[str, ...]
    unknown: int
    notes: tuple[str, ...] = ()


def groups_of(
    patients: Sequence[str],
    ids: Sequence[str],
    volumes: Sequence[str] | None = None,
    *,
    by: Literal["patient", "id"] = "patient",
    pattern: re.Pattern[str] | None = None,
) -> Grouping:
    """The group of each slice, also where no patient is known.

    A slice without a patient is grouped with the slices of its volume, and alone if it has no volume either; a note then
    says what follows from it.

    Args:
        patients: Patient id of each slice as read; "" where unknown.
        ids: Slice ids, unique.
        volumes: Volume id of each slice; "" where it is a single slice.
        by: `patient` joins the ids of one head (`group_of`), `id` takes each id as it stands.
        pattern: From `compile_pattern`.

    Raises:
        UsageError: `pattern` matches none of the ids, so it cannot be meant for these data.

    Example:
        >>> groups_of(["MR1", "MR1B", ""], ["a", "b", "c"]).groups
        ('MR1', 'MR1', 'slice:c')
    """
    known = {patient for patient in patients if patient}
    if pattern is not None and by == "patient" and known and not any(pattern.fullmatch(patient) for patient in known):
        raise UsageError(
            f"--patient-pattern {pattern.pattern!r} matches none of the {len(known)} patient ids",
            found=f"ids such as {min(known)!r}",
            remedy="Write a pattern for the whole id.",
        )
    group = {patient: group_of(patient, pattern) if by == "patient" else patient for patient in known}
    places = volumes if volumes is not None else [""] * len(ids)
    groups = tuple(
        group[patient] if patient else f"volume:{volume}" if volume else f"slice:{name}"
        for patient, name, volume in zip(patients, ids, places, strict=True)
    )
    unknown = sum(not patient for patient in patients)
    if not unknown:
        return Grouping(groups, 0)
    alone = sum(not patient and not volume for patient, volume in zip(patients, places, strict=True))
    which = (
        "No patient is known" if unknown == len(ids) else f"The patient of {unknown} of {len(ids)} slices is not known"
    )
    fate = (
        "each of these slices is a group of its own"
        if alone == unknown
        else "these slices are grouped by their volume"
        if not alone
        else f"{alone} of these slices are groups of their own and the others are grouped by their volume"
    )
    note = (
        f"{which}: {fate}, so slices of one head may stand in several splits and test figures may be too good. "
        "Copies of a slice are still kept together."
    )
    return Grouping(groups, unknown, (note,))
