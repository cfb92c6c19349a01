"""Determine the role of picture files (image or mask) from their names, and pair them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from kerasseg_tfrecords.errors import Problem, UsageError
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.base import SourceOptions

_IMAGE_FOLDER = re.compile(r"(jpeg)?(images?|imgs?|inputs?|scans?)(tr|ts|va)?")
_MASK_FOLDER = re.compile(
    r"(tumou?r)?masks?|msks?|labels?(tr|ts|va)?|annot(ation)?s?|seg(mentation)?s?(class)?(raw|png)?|gts?|ground_?truths?"
    r"|targets?|segmaps?"
)
# In longer names (`train_masks`, `images_png`), only unambiguous words: `segmentation_task` may hold both.
_IMAGE_WORD = re.compile(r"images?|imgs?")
_MASK_WORD = re.compile(r"masks?|msks?|labels|annotations|segs|gt|groundtruth")
# In file names, at the start or the end.
_MASK_TOKEN = re.compile(r"masks?|msk|seg|segmentation|labels?|gt|annotations?|groundtruth")
_SEPARATORS = r"[\s_.\-]+"


@dataclass(frozen=True, slots=True)
class Named:
    """Role and key from the name of a file.

    Attributes:
        location: The file.
        role: "image", "mask", or "" if unknown.
        key: Folder and stem without the words for the role: equal for an image and its mask.
        exact: The same with the full stem, for when several files share a key.
        folders: The remaining folders, outermost first, in their original spelling.
        part: Whether it may be one of several masks of its image (`x_mask_1`, `x_mask_2`).
        channel: Channel number at the end of the name (`x_0001` with the mask `x`); else -1.
    """

    location: Location
    role: str
    key: tuple[str, str]
    exact: tuple[str, str]
    folders: tuple[str, ...]
    part: bool = False
    channel: int = -1


def _fold(text: str) -> str:
    # macOS writes umlauts as two characters; Windows ignores case.
    return unicodedata.normalize("NFC", text).casefold()


@lru_cache(maxsize=4096)
def folder_role(folder: str) -> tuple[str, str]:
    """Return the role that a folder gives to its files ("image", "mask" or ""), and its name without the word for it.

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
    """Remove `token` from the end or start of `stem`; None if it is not there."""
    match = re.fullmatch(rf"(?:(.*?){_SEPARATORS})?([a-z]+)", stem, re.DOTALL)
    if match and token.fullmatch(match.group(2)):
        return match.group(1) or ""
    match = re.fullmatch(rf"([a-z]+)(?:{_SEPARATORS}|(?=[0-9]+$))(.*)", stem, re.DOTALL)
    return match.group(2) if match and token.fullmatch(match.group(1)) else None


def name_file(location: Location, *, use_folders: bool = True) -> Named:
    """Determine role and key from a file's name; the file name takes precedence over its folders.

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


@dataclass(frozen=True, slots=True)
class Pairing:
    """Result of `pair_by_name`."""

    pairs: tuple[tuple[Location, tuple[Location, ...]], ...]
    alone: tuple[Location, ...]
    unused: tuple[Location, ...]
    problems: tuple[Problem, ...]


def name_files(locations: Iterable[Location]) -> list[Named]:
    """Determine roles and keys of picture files from all of their names.

    Folders are ignored if they would make every file a mask (`segmentation/1.png`). `x_m` is the mask of `x`, `x_mask_1`
    one of several masks of `x`, `Y/1` the mask of `X/1`, and `x_0000` is a channel if the mask is called `x`.
    """
    files = list(locations)
    named = [name_file(location) for location in files]
    if named and all(file.role == "mask" for file in named):
        named = [name_file(location, use_folders=False) for location in files]
    paths = {file.folders for file in named}
    folders = {"/".join(map(_fold, path[:end])) for path in paths for end in range(1, len(path) + 1)}
    letters = any(_LETTER.fullmatch(_fold(folder)) for path in paths for folder in path)
    named = [_by_letter(file, folders) for file in named] if letters else named
    images = {file.key for file in named if file.role != "mask"}
    named = [_beside(file, images) for file in named]
    masks = {file.key for file in named if file.role == "mask"}
    return [_channel(file, masks) for file in named]


_LETTER = re.compile(rf"(|.+{_SEPARATORS})([xy])(|{_SEPARATORS}.+)", re.DOTALL)
_CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)
_NUMBERED = re.compile(rf"(.+?){_SEPARATORS}([a-z]+)(?:{_SEPARATORS})?[0-9]+", re.DOTALL)


def _by_letter(file: Named, folders: set[str]) -> Named:
    """Treat `X/1.png` and `Y/1.png` as image and mask if both folders exist."""
    if file.role:
        return file
    for place, folder in enumerate(file.folders):
        match = _LETTER.fullmatch(_fold(folder))
        if match is None:
            continue
        other = match[1] + ("y" if match[2] == "x" else "x") + match[3]
        if "/".join([*map(_fold, file.folders[:place]), other]) in folders:
            rest = re.sub(f"^{_SEPARATORS}|{_SEPARATORS}$", "", match[1] + match[3])
            left = (*file.folders[:place], *([rest] if rest else []), *file.folders[place + 1 :])
            key = "/".join(map(_fold, left))
            role = "mask" if match[2] == "y" else "image"
            return replace(file, role=role, key=(key, file.key[1]), exact=(key, file.exact[1]), folders=left)
    return file


def _beside(file: Named, images: set[tuple[str, str]]) -> Named:
    folder, stem = file.key
    if file.role != "mask" and stem[-2:] in {"_m", "-m"} and (folder, stem[:-2]) in images:
        return replace(file, role="mask", key=(folder, stem[:-2]))
    match = _NUMBERED.fullmatch(stem) if stem[-1:].isdigit() else None
    if match and _MASK_TOKEN.fullmatch(match[2]) and (folder, match[1]) in images:
        return replace(file, role="mask", key=(folder, match[1]), part=True)
    return file


def _channel(file: Named, masks: set[tuple[str, str]]) -> Named:
    folder, stem = file.key
    match = _CHANNEL.fullmatch(stem) if file.role != "mask" else None
    if match and file.key not in masks and (folder, match[1]) in masks:
        return replace(file, role="image", key=(folder, match[1]), channel=int(match[2]))
    return file


def pair_by_name(named: Iterable[Named]) -> Pairing:
    """Pair images and masks with the same folder and stem.

    Words for images and masks do not count in folders (`train/images/1.png` matches `train/masks/1.png` and
    `masks/train/1.png`), nor at the start or end of stems (`1.tif` matches `1_mask.tif`, `img_1.png` matches `mask_1.png`).
    Remaining files are paired by a stem that occurs once among images and once among masks, if one folder is part of the
    other. Two images for one mask, or two masks for one image, are ambiguous: they are reported and not paired.
    """
    groups: defaultdict[tuple[str, str], tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
    for file in named:
        groups[file.key][file.role == "mask"].append(file)
    pairs: list[tuple[Location, tuple[Location, ...]]] = []
    alone: list[Named] = []
    unused: list[Named] = []
    problems: list[Problem] = []
    for images, masks in groups.values():
        if len(images) == 1 and len(masks) == 1:
            pairs.append((images[0].location, (masks[0].location,)))
        elif len(images) == 1 and sum(not mask.part for mask in masks) <= 1 and masks:
            pairs.append((images[0].location, tuple(mask.location for mask in masks)))
        elif not masks or not images:
            alone += images
            unused += masks
        else:
            _settle(images, masks, pairs, problems)
    across = _pair_across_folders([*alone, *unused])
    taken = {location for image, masks in across for location in (image, *masks)}
    across += _folder_of_masks(
        [file for file in alone if file.location not in taken], [file for file in unused if file.location not in taken]
    )
    pairs += across
    taken = {location for image, masks in across for location in (image, *masks)}
    return Pairing(
        tuple(pairs),
        tuple(file.location for file in alone if file.location not in taken),
        tuple(file.location for file in unused if file.location not in taken),
        tuple(problems),
    )


def _settle(
    images: list[Named], masks: list[Named], pairs: list[tuple[Location, tuple[Location, ...]]], problems: list[Problem]
) -> None:
    """Pair files that share a key if their full stems match one to one, and report the others."""
    stems: defaultdict[str, tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
    for file in [*images, *masks]:
        stems[file.exact[1]][file.role == "mask"].append(file)
    left: tuple[list[Named], list[Named]] = ([], [])
    for some, others in stems.values():
        if len(some) == 1 and len(others) == 1:
            pairs.append((some[0].location, (others[0].location,)))
        else:
            left[0].extend(some)
            left[1].extend(others)
    if len(left[0]) == 1 and len(left[1]) == 1:
        pairs.append((left[0][0].location, (left[1][0].location,)))
        return
    for files, other in ((left[0], left[1]), (left[1], left[0])):
        for file in files:
            word, partner = ("image", "mask") if files is left[0] else ("mask", "image")
            problems.append(_ambiguous(file, word, partner, files, other))


def _ambiguous(file: Named, word: str, partner: str, files: list[Named], other: list[Named]) -> Problem:
    same = [mine.location.name for mine in files if mine is not file]
    partners = [mine.location.name for mine in other]
    if len(partners) == 1 and same:
        text = f"{len(same) + 1} {word}s for one {partner}: {same[0]} also matches {partners[0]}"
    elif partners:
        text = f"{len(partners)} {partner}s for one {word}: {', '.join(partners[:3])}"
    else:
        text = f"{word} without its {partner}; {same[0] if same else 'another file'} has the same name"
    return Problem(file.location.name, "ambiguous", f"{text}. Keep one, or list the pairs in an index CSV")


def _pair_across_folders(left: list[Named]) -> list[tuple[Location, tuple[Location, ...]]]:
    """Pair files by stems that occur once on each side, if one folder is part of the other."""
    stems: defaultdict[str, tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
    for file in left:
        stems[file.key[1]][file.role == "mask"].append(file)
    return [
        (images[0].location, (masks[0].location,))
        for images, masks in stems.values()
        if len(images) == 1 and len(masks) == 1 and _within(images[0].key[0], masks[0].key[0])
    ]


def _folder_of_masks(alone: list[Named], unused: list[Named]) -> list[tuple[Location, tuple[Location, ...]]]:
    """Pair `ID/images/ID.png` with all of `ID/masks/*.png`, as in the Data Science Bowl."""
    images: defaultdict[str, list[Named]] = defaultdict(list)
    masks: defaultdict[str, list[Location]] = defaultdict(list)
    for file in alone:
        images[file.key[0]].append(file)
    for file in unused:
        masks[file.key[0]].append(file.location)
    return [
        (image[0].location, tuple(masks[folder]))
        for folder, image in images.items()
        if len(image) == 1 and folder in masks and image[0].key[1] in {"", folder.rsplit("/", 1)[-1]}
    ]


def _within(one: str, other: str) -> bool:
    short, long = sorted((one.split("/") if one else [], other.split("/") if other else []), key=len)
    return long[: len(short)] == short or (bool(short) and long[-len(short) :] == short)


_SUFFIX = re.compile(r"(\.nii)?\.[A-Za-z][A-Za-z0-9]{0,6}$")
# TCGA-DU-7294 is the patient in TCGA-DU-7294_20000902 and in longer bar codes.
_TCGA = re.compile(r"(?<![A-Za-z0-9])(TCGA[-_][A-Za-z0-9]{2}[-_][A-Za-z0-9]{4})(?![A-Za-z0-9])")
_BIDS = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+)")
_FOLDER = re.compile(r"(?:patient|subject|sub|pat|case)[-_ ]?[A-Za-z]*[0-9]+", re.IGNORECASE)


def split_name(name: str) -> tuple[tuple[str, ...], str]:
    """Split the name of a location into its folders (including zips) and base name.

    >>> split_name("a/b.zip!c/1.png")
    (('a', 'b.zip', 'c'), '1.png')
    """
    *folders, base = re.split(r"/|(?<=\.zip)!", name, flags=re.IGNORECASE)
    return tuple(folders), base


def without_suffix(name: str) -> str:
    """Remove the suffix of a name; `.nii.gz` is one suffix, and a number after a dot is not a suffix.

    >>> without_suffix("a/t1c.nii.gz"), without_suffix("IM.0001")
    ('a/t1c', 'IM.0001')
    """
    return _SUFFIX.sub("", name) or name


def stem_of(name: str) -> str:
    """Return the base name without folders and suffix.

    >>> stem_of("images/1.png")
    '1'
    """
    return without_suffix(split_name(name)[1])


@lru_cache(maxsize=8)
def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """Compile `--patient-pattern`."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient-pattern {pattern!r} is not a valid regular expression: {error}") from None


def patient_of(name: str, options: SourceOptions) -> str:
    r"""Find the patient in an item's name by the user's pattern: group 1, or the whole match; "" without a match.

    Example:
        >>> patient_of("p12/slice_3.png", SourceOptions(patient_pattern=r"p(\d+)"))
        '12'
    """
    if options.patient_pattern is None:
        return ""
    match = compiled_pattern(options.patient_pattern).search(name)
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def patient_in_name(name: str) -> str:
    """Find a patient in a name: a TCGA bar code, a BIDS subject, or a folder such as `patient_12`; else "".

    >>> patient_in_name("TCGA_CS_4943_20000902/TCGA_CS_4943_20000902_12.tif")
    'TCGA_CS_4943'
    >>> patient_in_name("sub-01/sub-01_slice-3.png"), patient_in_name("Patient 7/3.png"), patient_in_name("images/12.png")
    ('sub-01', 'Patient 7', '')
    """
    for pattern in (_TCGA, _BIDS):
        if match := pattern.search(name):
            return match.group(1)
    return next((folder for folder in reversed(split_name(name)[0]) if _FOLDER.fullmatch(folder)), "")
