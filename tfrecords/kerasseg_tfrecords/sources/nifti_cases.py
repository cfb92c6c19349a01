"""Which NIfTI files are the image and the segmentation of one case, by their names."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.formats.location import Location
from kerasseg_tfrecords.sources.base import LeftOut
from kerasseg_tfrecords.sources.roles import folder_role, split_name, stem_of
from kerasseg_tfrecords.sources.tree import Tree, read_bytes

__all__ = ["NIFTI_SUFFIXES", "Case", "Cases", "find_cases"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_SEPARATORS = r"[\s_.\-]+"
_SEGMENTATION = re.compile(
    r"seg|segm|segs|segmentation|masks?|labels?|gt|annotation|groundtruth|glistrboost|tumou?r(seg|mask)"
)
# Words that say more about a segmentation, and those that make it one of something else.
_BESIDE = re.compile(r"tumou?r|lesion|whole|wt|manual|manuallycorrected|corrected|automated|approx|final|combined")
_OTHER_MASK = re.compile(r"brain|brainmask|parenchyma|skull|head|tissue|wm|gm|csf|brainextractionmask|ventricles?")
# Of the last words of a stem, joined by "_".
_CONTRAST = re.compile(
    r"t1(w|wi)?_?(c|ce|gd|cgd|post|km|contrast|postcontrast|postgd|gadolinium)|ct1|cet1|gdt1|(ce|gd)(_[a-z]+)?_t1w?"
)
_SEQUENCE = re.compile(
    r"t1|t1n|t1w|t1pre|t1native|t2|t2w|t2f|t2_?flair|flair|fla|adc|dwi|swi|asl|pd|dti|dce|dsc|t2star|t1map|t2map|mra?"
)
_PLAIN = re.compile(r"image|img|anat|scan|volume|vol")


@dataclass(frozen=True, slots=True)
class Case:
    """A volume and its segmentation.

    Attributes:
        name: Folder and stem without what tells the sequence; unique in the input; "" for a single case without a name.
        image: The volume.
        segmentation: Its labels; None where there are none.
    """

    name: str
    image: Location
    segmentation: Location | None


@dataclass(frozen=True, slots=True)
class Cases:
    """What was found, in no particular order."""

    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Group:
    """Files with equal folder and stem."""

    name: str
    folder: str
    images: dict[Location, str] = field(default_factory=dict)
    segmentations: list[Location] = field(default_factory=list)


def find_cases(tree: Tree, *, masks: bool) -> Cases:
    """Groups the volumes of a tree into cases.

    Known are a folder a case (`case1/t1c.nii.gz`, `case1/seg.nii.gz`), names with a common start (`x_t1c`, `x_seg`), and
    nnU-Net's `imagesTr/x_0000` with `labelsTr/x` and its `dataset.json`. Of several sequences the T1 with contrast is
    taken (t1c, t1ce, t1gd, t1post, ct1); where none is, the user must choose.

    Args:
        tree: The input.
        masks: Whether a case needs a segmentation.
    """
    channels = _channels(tree)
    groups: dict[tuple[str, str], _Group] = {}
    left_out: list[LeftOut] = []
    for location in tree.with_suffix(*NIFTI_SUFFIXES):
        role, folders, base, sequence = _read_name(location, channels)
        if role == "other":
            left_out.append(LeftOut(location.name, "a mask of something else than the tumour"))
            continue
        folder = "/".join(folders)
        name = "/".join((*folders, base)) if base else folder
        group = groups.setdefault((folder.casefold(), base.casefold()), _Group(name, folder))
        if role == "mask":
            group.segmentations.append(location)
        else:
            group.images[location] = sequence
    _join_lone(groups)
    cases: list[Case] = []
    problems: list[Problem] = []
    chosen = 0
    for group in groups.values():
        if not group.images:
            reason = "a segmentation without its image"
            for location in group.segmentations:
                if masks:
                    problems.append(Problem(location.name, "missing-partner", reason))
                else:
                    left_out.append(LeftOut(location.name, reason))
            continue
        if masks and not group.segmentations:
            _without_segmentation(group, groups, left_out, problems)
            continue
        if not masks:
            del group.segmentations[1:]  # nobody reads them: it need not be known which is the right one
        case = _choose(group, problems)
        if case is not None:
            cases.append(case)
            chosen += len(group.images) > 1
            left_out += [
                LeftOut(location.name, f"another sequence of the case; {case.image.name} is read")
                for location in group.images
                if location != case.image
            ]
    notes = (f"{chosen} cases have several sequences: the T1 with contrast is read",) if chosen else ()
    return Cases(tuple(cases), tuple(left_out), tuple(problems), notes)


def _read_name(location: Location, channels: Mapping[int, str]) -> tuple[str, tuple[str, ...], str, str]:
    """Role ("image", "mask", "other"), folders that are left, stem that is left, and sequence ("" unknown)."""
    roles = [folder_role(folder) for folder in split_name(location.name)[0]]
    role = next((role for role, _ in reversed(roles) if role), "image")
    folders = tuple(left for _, left in roles if left)
    pieces = re.split(f"({_SEPARATORS})", stem_of(location.name))
    words = [piece.casefold() for piece in pieces[::2]]
    end = len(words)
    while end and (_SEGMENTATION.fullmatch(words[end - 1]) or _BESIDE.fullmatch(words[end - 1])):
        end -= 1
    if any(_SEGMENTATION.fullmatch(word) for word in words[end:]):
        if any(_OTHER_MASK.fullmatch(word) for word in words[max(0, end - 2) :]):
            return "other", folders, "", ""
        return "mask", folders, "".join(pieces[: 2 * end - 1]) if end else "", ""
    if _OTHER_MASK.fullmatch(words[-1]) and "mask" in words[-1]:
        return "other", folders, "", ""
    if role == "mask":
        return "mask", folders, "".join(pieces), ""
    for length in (3, 2, 1):  # `t1_ce` before `ce`
        tail = "_".join(words[-length:])
        if len(words) >= length and (_CONTRAST.fullmatch(tail) or _SEQUENCE.fullmatch(tail) or _PLAIN.fullmatch(tail)):
            rest = len(words) - length
            return "image", folders, "".join(pieces[: 2 * rest - 1]) if rest else "", tail
    if len(words) > 1 and re.fullmatch(r"[0-9]{4}", words[-1]) and any(role == "image" for role, _ in roles):
        number = int(words[-1])
        return "image", folders, "".join(pieces[:-2]), channels.get(number, f"channel {number}")
    return "image", folders, "".join(pieces), ""


def _channels(tree: Tree) -> dict[int, str]:
    """Names of nnU-Net's channels from `dataset.json`, as words without separators; {} where there is none."""
    for location in tree.with_suffix("dataset.json"):
        try:
            content = json.loads(read_bytes(location, limit=1 << 26))
            names = content.get("channel_names") or content.get("modality") or {}
            return {int(key): re.sub(r"[^a-z0-9]", "", str(name).casefold()) for key, name in names.items()}
        except (DataError, ValueError, AttributeError):
            continue
    return {}


def _join_lone(groups: dict[tuple[str, str], _Group]) -> None:
    """Puts the only image and the only segmentation of a folder together, whatever they are called."""
    folders: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for key in groups:
        folders[key[0]].append(key)
    for keys in folders.values():
        images = [key for key in keys if groups[key].images and not groups[key].segmentations]
        masks = [key for key in keys if groups[key].segmentations and not groups[key].images]
        if len(images) == 1 and len(masks) == 1:
            groups[images[0]].segmentations += groups.pop(masks[0]).segmentations


def _without_segmentation(
    group: _Group, groups: Mapping[tuple[str, str], _Group], left_out: list[LeftOut], problems: list[Problem]
) -> None:
    complete = [
        other
        for other in groups.values()
        if other.segmentations and other.images and other.folder == group.folder and group.name.startswith(other.name)
    ]
    for location in group.images:
        folders, _ = split_name(location.name)
        if complete:
            left_out.append(LeftOut(location.name, f"another volume of the case {complete[0].name}"))
        elif folders and folders[-1].casefold() == "imagests":
            left_out.append(LeftOut(location.name, "a test image without labels"))
        else:
            problems.append(Problem(location.name, "missing-partner", "a volume without its segmentation"))


def _choose(group: _Group, problems: list[Problem]) -> Case | None:
    """The image to read, or None and a problem where the names do not tell."""
    contrast = [location for location, sequence in group.images.items() if _CONTRAST.fullmatch(sequence)]
    images = contrast or list(group.images)
    if len(group.segmentations) > 1:
        names = ", ".join(location.name for location in group.segmentations)
        message = f"{len(group.segmentations)} segmentations of one case: {names}. Keep the one to use"
        problems.append(Problem(group.segmentations[0].name, "ambiguous", message))
        return None
    if len(images) > 1:
        found = ", ".join(sorted(sequence or location.name for location, sequence in group.images.items()))
        which = "several of them are" if contrast else "none of them is called"
        message = f"{len(group.images)} sequences of one case ({found}) and {which} T1 with contrast (t1c, t1ce, t1gd)"
        problems.append(Problem(images[0].name, "ambiguous", f"{message}. Keep the one to use, or rename it"))
        return None
    return Case(group.name, images[0], group.segmentations[0] if group.segmentations else None)
