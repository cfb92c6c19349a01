"""Which mask belongs to which image, by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.sources.base import Location
from kerasseg_tfrecords.sources.roles import Named, name_file

__all__ = ["Pairing", "name_files", "pair_by_name"]


@dataclass(frozen=True, slots=True)
class Pairing:
    """What goes with what.

    Attributes:
        pairs: Image and mask.
        alone: Images without a mask.
        unused: Masks without an image.
        problems: Names that do not tell which belong together; these files are in none of the other lists.
    """

    pairs: tuple[tuple[Location, Location], ...]
    alone: tuple[Location, ...]
    unused: tuple[Location, ...]
    problems: tuple[Problem, ...]


def name_files(locations: Iterable[Location]) -> list[Named]:
    """Roles and keys of picture files. Folders that would make everything a mask (`segmentation/1.png`) are overruled."""
    files = list(locations)
    named = [name_file(location) for location in files]
    if named and all(file.role == "mask" for file in named):
        named = [name_file(location, use_folders=False) for location in files]
    return named


def pair_by_name(named: Iterable[Named]) -> Pairing:
    """Pairs images and masks of equal folder and stem.

    Folders count without the words for images and masks (`train/images/1.png` goes with `train/masks/1.png`, and with
    `masks/train/1.png`), stems without such a word at their start or end (`1.tif` goes with `1_mask.tif`, `img_1.png` with
    `mask_1.png`). Where that leaves files over, a stem that occurs once among images and once among masks decides, if the
    one folder is part of the other.

    Two images for one mask, or two masks for one image, are reported and not paired: nobody can know which is right.
    """
    groups: defaultdict[tuple[str, str], tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
    for file in named:
        groups[file.key][file.role == "mask"].append(file)
    pairs: list[tuple[Location, Location]] = []
    alone: list[Named] = []
    unused: list[Named] = []
    problems: list[Problem] = []
    for images, masks in groups.values():
        if len(images) == 1 and len(masks) == 1:
            pairs.append((images[0].location, masks[0].location))
        elif not masks or not images:
            alone += images
            unused += masks
        else:
            _settle(images, masks, pairs, problems)
    across = _pair_across_folders([*alone, *unused])
    pairs += across
    taken = {location for pair in across for location in pair}
    return Pairing(
        tuple(pairs),
        tuple(file.location for file in alone if file.location not in taken),
        tuple(file.location for file in unused if file.location not in taken),
        tuple(problems),
    )


def _settle(
    images: list[Named], masks: list[Named], pairs: list[tuple[Location, Location]], problems: list[Problem]
) -> None:
    """Several files share a key: pairs those whose full stems agree one to one, and reports the others."""
    stems: defaultdict[str, tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
    for file in [*images, *masks]:
        stems[file.exact[1]][file.role == "mask"].append(file)
    left: tuple[list[Named], list[Named]] = ([], [])
    for some, others in stems.values():
        if len(some) == 1 and len(others) == 1:
            pairs.append((some[0].location, others[0].location))
        else:
            left[0].extend(some)
            left[1].extend(others)
    if len(left[0]) == 1 and len(left[1]) == 1:
        pairs.append((left[0][0].location, left[1][0].location))
        return
    for files, other in ((left[0], left[1]), (left[1], left[0])):
        for file in files:
            word, partner = ("image", "mask") if files is left[0] else ("mask", "image")
            problems.append(_ambiguous(file, word, partner, files, other))


def _ambiguous(file: Named, word: str, partner: str, files: list[Named], other: list[Named]) -> Problem:
    same = [mine.location.name for mine in files if mine is not file]
    partners = [mine.location.name for mine in other]
    if len(partners) == 1 and same:
        text = f"{len(same) + 1} {word}s for one {partner}: {same[0]} goes with {partners[0]} as well"
    elif partners:
        text = f"{len(partners)} {partner}s for one {word}: {', '.join(partners[:3])}"
    else:
        text = f"{word} without its {partner}; {same[0] if same else 'another file'} has the same name"
    return Problem(file.location.name, "ambiguous", f"{text}. Keep one, or name the pairs in an index CSV")


def _pair_across_folders(left: list[Named]) -> list[tuple[Location, Location]]:
    """Pairs what is left by stems that occur once on each side, where the one folder is part of the other."""
    stems: defaultdict[str, tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
    for file in left:
        stems[file.key[1]][file.role == "mask"].append(file)
    return [
        (images[0].location, masks[0].location)
        for images, masks in stems.values()
        if len(images) == 1 and len(masks) == 1 and _within(images[0].key[0], masks[0].key[0])
    ]


def _within(one: str, other: str) -> bool:
    short, long = sorted((one.split("/") if one else [], other.split("/") if other else []), key=len)
    return long[: len(short)] == short or (bool(short) and long[-len(short) :] == short)
