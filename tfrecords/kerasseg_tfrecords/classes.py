"""Tumour classes and their spellings in published data: numbers, folder names, and codes in file names."""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from numbers import Real

TUMOUR_CLASSES = ("meningioma", "glioma", "pituitary", "no_tumor")

# Numbers of the figshare set and of data sets made from it, some of which add healthy slices as 0.
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

# Codes between separators in file names (`Te-me_0010`, `Tr-glTr_0000`, `brisc2025_train_00159_gl_ax_t1`).
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
    """Return the lower-case letters and digits of a text, Unicode-normalised: "No-Tumour" -> "notumor"."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum()).replace("tumour", "tumor")


def _plain(text: str) -> str | None:
    """Return the built-in class that a text spells, or None."""
    key = re.sub(r"^[0-9]+(?=[a-z])", "", _letters(text))  # folders are numbered: `01_glioma`
    key = key.removeprefix("brain") or key
    for candidate in (key, key.removesuffix("s"), key.removesuffix("tumor"), key.removesuffix("tumors")):
        name = _SPELLINGS.get(candidate)
        if name:
            return name
    return None


def _number(value: str | float) -> int | None:
    """Return a class number from 2, 2.0, "2" or "2.0"; None for other values."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:\.0*)?\s*", value)
        return int(match.group(1)) if match else None
    return int(value) if float(value).is_integer() else None


def class_name(value: str | float, classes: tuple[str, ...] | None = None) -> str | None:
    """Return the class of a label in a data set.

    Args:
        value: A name in any spelling ("Meningioma Tumor", "pituitary_tumour", "notumor", "01_glioma", "HGG") or a number.
        classes: The user's class names; None for `TUMOUR_CLASSES`. Names are matched by letters and digits, then by the
            built-in class that they spell. Numbers count from 1 in the given order; if all names are tumour classes, the
            published numbers apply in any order (1 meningioma, 2 glioma, 3 pituitary, 0 no tumour), so that
            `--classes glioma,meningioma` does not exchange the classes.

    Returns:
        One of `classes` in the user's spelling; None if the label matches none of them.

    Example:
        >>> class_name("Pituitary tumour"), class_name(2), class_name("pitutary")
        ('pituitary', 'glioma', None)
        >>> class_name("LGG", ("lgg", "hgg")), class_name(1, ("lesion", "cyst"))
        ('lgg', 'lesion')
    """
    if isinstance(value, str) and classes is not None:
        letters = _letters(value)
        for mine in classes:  # first, because a class may be called "1"
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
    """Return the user's spelling of a built-in class; None if there is none, or more than one."""
    same = [mine for mine in classes if name and _plain(mine) == name]
    return same[0] if len(same) == 1 else None


def class_code(text: str, classes: tuple[str, ...] | None = None) -> str | None:
    """Return the class of a short code (`me`, `gl`, `pi`, `no`, `men`, ...); only for text known to be a code.

    >>> class_code("gl"), class_code("xy")
    ('glioma', None)
    """
    name = _CODES.get(text.casefold())
    return name if classes is None else _same_tumour(name, classes)


def class_in_file_name(stem: str, classes: tuple[str, ...] | None = None) -> str | None:
    """Return the class in a file name, as a word or else as a code between separators; None if absent or contradictory.

    The caller must decide from all files whether codes are used: the "no" in `scan_no_12` is not about tumours.

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
    """Return the class closest to a misspelt name; None if none is similar.

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
    """Return the message for an unknown label, with the valid classes and the closest one.

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
