"""What the names of files and folders tell: stems, patients, places in a volume."""

from __future__ import annotations

import re
from functools import lru_cache

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.sources.base import SourceOptions

__all__ = ["patient_in_name", "patient_of", "split_name", "stem_of", "without_suffix"]

_SUFFIX = re.compile(r"(\.nii)?\.[A-Za-z][A-Za-z0-9]{0,6}$")
# TCGA-DU-7294 is the patient in TCGA-DU-7294_20000902 and all longer bar codes.
_TCGA = re.compile(r"(?<![A-Za-z0-9])(TCGA[-_][A-Za-z0-9]{2}[-_][A-Za-z0-9]{4})(?![A-Za-z0-9])")
_BIDS = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+)")
_FOLDER = re.compile(r"(?:patient|subject|sub|pat|case)[-_ ]?[A-Za-z]*[0-9]+", re.IGNORECASE)


def split_name(name: str) -> tuple[tuple[str, ...], str]:
    """The folders (zips count as folders) and the base name of a location's name.

    >>> split_name("a/b.zip!c/1.png")
    (('a', 'b.zip', 'c'), '1.png')
    """
    *folders, base = re.split(r"/|(?<=\.zip)!", name, flags=re.IGNORECASE)
    return tuple(folders), base


def without_suffix(name: str) -> str:
    """`name` without its ending; `.nii.gz` is one ending, and a number after a dot is none.

    >>> without_suffix("a/t1c.nii.gz"), without_suffix("IM.0001")
    ('a/t1c', 'IM.0001')
    """
    return _SUFFIX.sub("", name) or name


def stem_of(name: str) -> str:
    """The base name without folders and ending.

    >>> stem_of("images/1.png")
    '1'
    """
    return without_suffix(split_name(name)[1])


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            "the patient pattern is no regular expression", found=repr(pattern), expected=str(error)
        ) from None


def patient_of(name: str, options: SourceOptions) -> str:
    r"""The patient that the user's pattern finds in an item's name: group 1, or all that matched; "" where it finds none.

    Raises:
        UsageError: The pattern is no regular expression.

    Example:
        >>> patient_of("p12/slice_3.png", SourceOptions(patient_pattern=r"p(\d+)"))
        '12'
    """
    if options.patient_pattern is None:
        return ""
    match = _compiled(options.patient_pattern).search(name)
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def patient_in_name(name: str) -> str:
    """The patient that a name tells by itself: a TCGA bar code, a BIDS subject, a folder like `patient_12`; else "".

    >>> patient_in_name("TCGA_CS_4943_20000902/TCGA_CS_4943_20000902_12.tif")
    'TCGA_CS_4943'
    >>> patient_in_name("sub-01/sub-01_slice-3.png"), patient_in_name("Patient 7/3.png"), patient_in_name("images/12.png")
    ('sub-01', 'Patient 7', '')
    """
    for pattern in (_TCGA, _BIDS):
        if match := pattern.search(name):
            return match.group(1)
    return next((folder for folder in reversed(split_name(name)[0]) if _FOLDER.fullmatch(folder)), "")
