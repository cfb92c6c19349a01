"""Tumour classes and the spellings of them that are out there: numbers, folder names, codes in file names."""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from numbers import Real

__all__ = ["TUMOUR_CLASSES", "class_code", "class_in_file_name", "class_name", "suggest_class", "unknown_class"]

TUMOUR_CLASSES = ("meningioma", "glioma", "pituitary", "no_tumor")

# The numbers of the figshare set, which every data set made from it has kept; 0 is what those with healthy slices add.
_NUMBERS = {1: "meningioma", 2: "glioma", 3: "pituitary", 0: "no_tumor"}

# Letters only, `tumour` written `tumor`, without a leading `brain` and without a trailing `tumor` or plural.
_SPELLINGS = {
    "meningioma": "meningioma",
    "meningeoma": "meningioma",
    "glioma": "glioma",
    "lowgradeglioma": "glioma",
    "highgradeglioma": "glioma",
    "lgg": "glioma",
    "hgg": "glioma",
    "gbm": "glioma",
    "glioblastoma": "glioma",
    "glioblastomamultiforme": "glioma",
    "pituitary": "pituitary",
    "pituitaryadenoma": "pituitary",
    "pituitarygland": "pituitary",
    "pituitarymacroadenoma": "pituitary",
    "pituitarymicroadenoma": "pituitary",
    "notumor": "no_tumor",
    "nontumor": "no_tumor",
    "nontumorous": "no_tumor",
    "notumorous": "no_tumor",
    "withouttumor": "no_tumor",
    "tumorfree": "no_tumor",
    "healthy": "no_tumor",
    "healthycontrol": "no_tumor",
    "normal": "no_tumor",
}

# Codes that stand between separators in file names (`Te-me_0010`, `Tr-glTr_0000`, `brisc2025_train_00159_gl_ax_t1`).
_CODES = {
    "me": "meningioma",
    "men": "meningioma",
    "gl": "glioma",
    "gli": "glioma",
    "pi": "pituitary",
    "pit": "pituitary",
    "no": "no_tumor",
    "nt": "no_tumor",
}


def _letters(text: str) -> str:
    """Lower-case letters and digits of `text`, compatibility forms folded: "No-Tumour" -> "notumor"."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum()).replace("tumour", "tumor")


def _plain(text: str) -> str | None:
    """The built-in class that `text` spells, or None."""
    key = re.sub(r"^[0-9]+(?=[a-z])", "", _letters(text))  # folders are numbered: `01_glioma`
    key = key.removeprefix("brain") or key
    for candidate in (key, key.removesuffix("s"), key.removesuffix("tumor"), key.removesuffix("tumors")):
        name = _SPELLINGS.get(candidate)
        if name:
            return name
    return None


def _number(value: str | float) -> int | None:
    """`value` as a class number: 2, 2.0, "2", "2.0"; None for all else."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:\.0*)?\s*", value)
        return int(match.group(1)) if match else None
    return int(value) if float(value).is_integer() else None


def class_name(value: str | float, classes: tuple[str, ...] | None = None) -> str | None:
    """The class that a label of a data set means.

    Args:
        value: A name in any spelling ("Meningioma Tumor", "pituitary_tumour", "notumor", "01_glioma", "HGG") or a number.
        classes: The user's class names; None for `TUMOUR_CLASSES`. A name is found by its letters (case, spaces and dashes
            do not count), then by what it spells among the built-in classes. Numbers count from 1 in the order given -
            unless every name is a tumour class, for then the published numbers hold whatever the order: 1 meningioma,
            2 glioma, 3 pituitary, 0 no tumour. Otherwise `--classes glioma,meningioma` would silently swap them.

    Returns:
        One of `classes` as the user spelt it; None where the label is none of them.

    Example:
        >>> class_name("Pituitary tumour"), class_name(2), class_name("pitutary")
        ('pituitary', 'glioma', None)
        >>> class_name("LGG", ("lgg", "hgg")), class_name(1, ("lesion", "cyst"))
        ('lgg', 'lesion')
    """
    if isinstance(value, str) and classes is not None:
        letters = _letters(value)
        for mine in classes:  # first, for a class may be called "1"
            if letters and _letters(mine) == letters:
                return mine
    number = _number(value) if isinstance(value, str | Real) else None
    if number is not None:
        return _class_of_number(number, classes)
    if not isinstance(value, str):
        return None
    name = _plain(value)
    return name if classes is None else _same_tumour(name, classes)


def _class_of_number(number: int, classes: tuple[str, ...] | None) -> str | None:
    published = _NUMBERS.get(number)
    if classes is None:
        return published
    if all(_plain(name) for name in classes):
        return _same_tumour(published, classes)
    return classes[number - 1] if 1 <= number <= len(classes) else None


def _same_tumour(name: str | None, classes: tuple[str, ...]) -> str | None:
    """The user's spelling of a built-in class; None where it is not among theirs, or where two of theirs spell it."""
    same = [mine for mine in classes if name and _plain(mine) == name]
    return same[0] if len(same) == 1 else None


def class_code(text: str, classes: tuple[str, ...] | None = None) -> str | None:
    """The class of a short code: `me`, `gl`, `pi`, `no` and the three-letter forms, in any case.

    Only for text that is known to be a code: `no` and `me` are words elsewhere.

    >>> class_code("gl"), class_code("xy")
    ('glioma', None)
    """
    name = _CODES.get(text.casefold())
    return name if classes is None else _same_tumour(name, classes)


def class_in_file_name(stem: str, classes: tuple[str, ...] | None = None) -> str | None:
    """The class that a file name carries, as a whole word or as a code between separators.

    Words win over codes; None where there is none, or where several contradict each other. Whether codes are in use at
    all is for the caller to decide over all files: `scan_no_12` is no statement about tumours.

    >>> class_in_file_name("Te-meTr_0010"), class_in_file_name("brisc2025_train_00159_gl_ax_t1")
    ('meningioma', 'glioma')
    >>> class_in_file_name("glioma (12)"), class_in_file_name("12")
    ('glioma', None)
    """
    tokens = [token for token in re.split(r"[^A-Za-z]+", stem) if token]
    phrases = [*tokens, *(a + b for a, b in itertools.pairwise(tokens))]  # `no_tumor`
    words = {class_name(phrase, classes) for phrase in phrases if len(phrase) > 2} - {None}
    # Nickparvar's Kaggle set writes `Tr-glTr_0000` and `Te-noTr_0001`.
    codes = {class_code(re.sub(r"(?<=[a-z])T[re]$", "", token), classes) for token in tokens} - {None}
    for found in (words, codes):
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def suggest_class(value: str, classes: tuple[str, ...] | None = None) -> str | None:
    """The class that was probably meant by a misspelt name; None where none is near.

    >>> suggest_class("pitutary_tumor"), suggest_class("kidney")
    ('pituitary', None)
    """
    names = {_letters(name): name for name in classes or TUMOUR_CLASSES}
    letters = _letters(value)
    for candidate in (letters, letters.removesuffix("tumor")):
        near = difflib.get_close_matches(candidate, names, n=1, cutoff=0.75)
        if near:
            return names[near[0]]
    return None


def unknown_class(value: str | float, classes: tuple[str, ...] | None = None) -> str:
    """The sentence for a label that is no class: what was found, what was expected, what was probably meant.

    >>> unknown_class("pitutary")
    "unknown class 'pitutary' (expected meningioma, glioma, pituitary, no_tumor). Did you mean pituitary?"
    >>> unknown_class(7)
    'unknown class 7 (expected meningioma = 1, glioma = 2, pituitary = 3, no_tumor = 0). Name other classes with --classes.'
    """
    known = classes or TUMOUR_CLASSES
    number = _number(value) if isinstance(value, str | Real) else None
    if number is not None:
        numbers = {_class_of_number(n, classes): n for n in range(len(known), -1, -1)}
        expected = ", ".join(f"{name} = {numbers[name]}" for name in known if name in numbers)
        return f"unknown class {number} (expected {expected}). Name other classes with --classes."
    near = suggest_class(str(value), classes)
    hint = f"Did you mean {near}?" if near else "Name other classes with --classes."
    return f"unknown class {value!r} (expected {', '.join(known)}). {hint}"
