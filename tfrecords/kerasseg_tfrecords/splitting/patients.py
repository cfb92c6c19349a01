"""Group slices by patient: which slices must stay in the same split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.sources.roles import compiled_pattern

_TCGA = re.compile(r"TCGA[-_][A-Za-z0-9]{2}[-_][A-Za-z0-9]{4}", re.IGNORECASE)
_CHENG = re.compile(r"((?:MR)?[0-9]+)[A-Za-z]+")


def compile_pattern(text: str) -> re.Pattern[str]:
    r"""Compile `--patient-pattern`: an expression for the whole patient id, whose first pair of brackets is the group.

    Raises:
        UsageError: The expression is invalid or has no brackets.

    Example:
        >>> group_of("sub-07_ses-2", compile_pattern(r"(sub-\d+)_.*"))
        'sub-07'
    """
    pattern = compiled_pattern(text)
    if pattern.groups < 1:
        raise UsageError(
            f"--patient-pattern {text!r} does not say which part of the id is the patient",
            remedy="Put that part in brackets, as in '(sub-[0-9]+)_.*'.",
        )
    return pattern


def group_of(patient: str, pattern: re.Pattern[str] | None = None) -> str:
    """Return the group of a patient id: one group per person, even with several ids.

    In the Cheng data (figshare 1512427) `MR040240`, `MR040240B` and `MR040240C` are scans of one person at three dates:
    233 ids are 209 people, and 15 of the 18 people with several ids cross the author's own five folds. The group of such an
    id (`MR` and digits, or digits) is the id without its trailing letters. TCGA bar codes with hyphens and with underscores
    are the same. Any other id is its own group.

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
        return patient.upper().replace("_", "-")
    cheng = _CHENG.fullmatch(patient)
    return cheng[1] if cheng else patient


@dataclass(frozen=True, slots=True)
class Grouping:
    """A group for each slice.

    Attributes:
        groups: In the order of the slices; never empty strings.
        notes: Sentences for the user.
    """

    groups: tuple[str, ...]
    notes: tuple[str, ...] = ()


def groups_of(
    patients: Sequence[str],
    ids: Sequence[str],
    volumes: Sequence[str] | None = None,
    *,
    by: Literal["patient", "id"] = "patient",
    pattern: re.Pattern[str] | None = None,
) -> Grouping:
    """Group slices by patient.

    A slice without a known patient is grouped with the slices of its volume, or is its own group if it has none; a note
    then explains the consequences.

    Args:
        patients: Patient id of each slice as read; "" if unknown.
        ids: Slice ids, unique.
        volumes: Volume id of each slice; "" for single slices.
        by: `patient` merges the ids of one person (`group_of`), `id` uses each id unchanged.
        pattern: From `compile_pattern`.

    Raises:
        UsageError: `pattern` matches none of the ids.

    Example:
        >>> groups_of(["MR1", "MR1B", ""], ["a", "b", "c"]).groups
        ('MR1', 'MR1', 'slice:c')
    """
    known = {patient for patient in patients if patient}
    if pattern is not None and by == "patient" and known and not any(pattern.fullmatch(patient) for patient in known):
        raise UsageError(
            f"--patient-pattern {pattern.pattern!r} matches none of the {len(known)} patient ids",
            found=f"ids such as {min(known)!r}",
            remedy="Use a pattern that matches the whole id.",
        )
    group = {patient: group_of(patient, pattern) if by == "patient" else patient for patient in known}
    places = volumes if volumes is not None else [""] * len(ids)
    groups = tuple(
        group[patient] if patient else f"volume:{volume}" if volume else f"slice:{name}"
        for patient, name, volume in zip(patients, ids, places, strict=True)
    )
    unknown = sum(not patient for patient in patients)
    if not unknown:
        return Grouping(groups)
    alone = sum(not patient and not volume for patient, volume in zip(patients, places, strict=True))
    which = (
        "No patient id is known" if unknown == len(ids) else f"{unknown:,} of {len(ids):,} slices have no patient id"
    )
    grouping = (
        "each of these slices is a group of its own"
        if alone == unknown
        else "these slices are grouped by volume"
        if not alone
        else f"{alone:,} of these slices are groups of their own and the others are grouped by volume"
    )
    note = (
        f"{which}: {grouping}. Slices of one patient may end up in several splits, and test results may be too good. "
        "Copies of a slice are still kept together."
    )
    return Grouping(groups, (note,))
