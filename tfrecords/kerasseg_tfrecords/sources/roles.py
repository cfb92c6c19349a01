"""Tells images from masks by the names of folders and files, and says which belong together."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from kerasseg_tfrecords.sources.base import Location
from kerasseg_tfrecords.sources.naming import split_name, without_suffix

__all__ = ["Named", "folder_role", "name_file"]

_IMAGE_FOLDER = re.compile(r"(images?|imgs?|inputs?|scans?)(tr|ts|va)?")
_MASK_FOLDER = re.compile(
    r"(tumou?r)?masks?|msks?|labels?(tr|ts|va)?|annot(ation)?s?|seg(mentation)?s?|gts?|ground_?truths?"
)
# In longer names (`train_masks`, `images_png`) only words that mean nothing else: `segmentation_task` holds both.
_IMAGE_WORD = re.compile(r"images?|imgs?")
_MASK_WORD = re.compile(r"masks?|msks?|labels|annotations|segs|gt|groundtruth")
# In file names, at the start or the end.
_MASK_TOKEN = re.compile(r"masks?|msk|seg|segmentation|labels?|gt|annotations?|groundtruth")
_SEPARATORS = r"[\s_.\-]+"


@dataclass(frozen=True, slots=True)
class Named:
    """What the name of a file says.

    Attributes:
        location: The file.
        role: "image", "mask", or "" where the name does not tell.
        key: Folder and stem without the words that make the role: equal for an image and its mask.
        exact: The same with the full stem, for when several files share a key.
        folders: The folders that are left, outermost first, as they are spelt.
    """

    location: Location
    role: str
    key: tuple[str, str]
    exact: tuple[str, str]
    folders: tuple[str, ...]


def _fold(text: str) -> str:
    # Names from macOS spell umlauts in two characters; Windows does not tell cases apart.
    return unicodedata.normalize("NFC", text).casefold()


@lru_cache(maxsize=4096)
def folder_role(folder: str) -> tuple[str, str]:
    """The role that a folder gives to its files ("image", "mask" or ""), and what is left of its name without that word.

    >>> folder_role("Masks"), folder_role("train_images"), folder_role("glioma")
    (('mask', ''), ('image', 'train'), ('', 'glioma'))
    """
    tokens = [token for token in re.split(_SEPARATORS, _fold(folder)) if token]
    for role, whole in (("mask", _MASK_FOLDER), ("image", _IMAGE_FOLDER)):
        if whole.fullmatch("".join(tokens)):
            return role, ""
    for role, word in (("mask", _MASK_WORD), ("image", _IMAGE_WORD)):
        for place in (-1, 0):
            if tokens and word.fullmatch(tokens[place]):
                return role, "_".join(tokens[:-1] if place else tokens[1:])
    return "", folder


def _strip(stem: str, token: re.Pattern[str]) -> str | None:
    """`stem` without `token` at its end or start; None where it has none."""
    match = re.fullmatch(rf"(?:(.*?){_SEPARATORS})?([a-z]+)", stem, re.DOTALL)
    if match and token.fullmatch(match.group(2)):
        return match.group(1) or ""
    match = re.fullmatch(rf"([a-z]+){_SEPARATORS}(.*)", stem, re.DOTALL)
    return match.group(2) if match and token.fullmatch(match.group(1)) else None


def name_file(location: Location, *, use_folders: bool = True) -> Named:
    """Reads role and key off a file's name. What the file itself is called goes before what its folders are called.

    >>> from pathlib import Path
    >>> name_file(Location(Path("x"), (), "train/masks/7_mask.png")).key
    ('train', '7')
    """
    folders, base = split_name(location.name)
    roles = [folder_role(folder) if use_folders else ("", folder) for folder in folders]
    by_folder = next((role for role, _ in reversed(roles) if role), "")
    left = tuple(rest for _, rest in roles if rest)
    stem = _fold(without_suffix(base))
    short = stem
    role = by_folder
    without_mask = _strip(stem, _MASK_TOKEN)
    if without_mask is not None:
        role, short = "mask", without_mask
    elif by_folder == "mask":
        short = stem.removesuffix("_m")
    without_image = _strip(short, _IMAGE_WORD)
    if without_image is not None:
        short = without_image
        role = role or "image"
    folder = "/".join(_fold(name) for name in left)
    return Named(location, role, (folder, short), (folder, stem), left)
