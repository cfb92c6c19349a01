"""Group volumes to cases of an image and its segmentation, by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import DataError, Problem, UsageError
from kerasseg_tfrecords.formats.sniff import VOLUME_SUFFIXES
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.base import LeftOut, SourceOptions
from kerasseg_tfrecords.sources.roles import folder_role, split_name, stem_of, without_suffix
from kerasseg_tfrecords.sources.tree import Tree, read_bytes
from kerasseg_tfrecords.text import count

_SEPARATORS = r"[\s_.\-]+"
_SEGMENTATION = re.compile(
    r"seg|segm|segs|segmentation|masks?|labels?|gt|annotation|groundtruth|glistrboost|tumou?r(seg|mask)"
)
# Words that qualify a segmentation of the tumour, and those that make it one of another structure.
_BESIDE = re.compile(r"tumou?r|lesion|whole|wt|manual|manuallycorrected|corrected|automated|approx|final|combined")
_OTHER_MASK = re.compile(r"brain|brainmask|parenchyma|skull|head|tissue|wm|gm|csf|brainextractionmask|ventricles?")
# Matched with the last words of a stem, joined by "_".
_CONTRAST = re.compile(
    r"t1(w|wi)?_?(c|ce|gd|cgd|post|km|contrast|postcontrast|postgd|gadolinium)|ct1|cet1|gdt1|(ce|gd)(_[a-z]+)?_t1w?"
)
_SEQUENCE = re.compile(
    r"t1|t1n|t1w|t1pre|t1native|t2|t2w|t2f|t2_?flair|flair|fla|adc|dwi|swi|asl|pd|dti|dce|dsc|t2star|t1map|t2map|mra?"
)
_PLAIN_WORDS = ("image", "img", "anat", "scan", "volume", "vol")
_PLAIN = re.compile("|".join(_PLAIN_WORDS))
# Spellings of the same sequence; `_CONTRAST` has those of the contrast-enhanced T1.
_SPELLINGS = ({"t1", "t1n", "t1w", "t1pre", "t1native"}, {"t2", "t2w"}, {"flair", "fla", "t2f", "t2flair"})


@dataclass(frozen=True, slots=True)
class Case:
    """A volume and its segmentation.

    Attributes:
        name: Folder and stem without the sequence; unique in the input; "" for a single case without a name.
        image: The volume.
        segmentation: Its labels, or None.
        channel: Channel of the image if `dataset.json` names several in one file; else -1.
    """

    name: str
    image: Location
    segmentation: Location | None
    channel: int = -1


@dataclass(frozen=True, slots=True)
class Cases:
    """The cases of a tree, in no particular order."""

    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Group:
    """Files with the same folder and stem."""

    name: str
    folder: str
    images: dict[Location, str] = field(default_factory=dict)
    segmentations: list[Location] = field(default_factory=list)


def find_cases(tree: Tree, options: SourceOptions) -> Cases:
    """Group the volumes of a tree into cases.

    Supports one folder per case (`case1/t1c.nii.gz`, `case1/seg.nii.gz`), names with a common start (`x_t1c`, `x_seg`), and
    nnU-Net's `imagesTr/x_0000` with `labelsTr/x` and `dataset.json`. Of several sequences, `options.sequence` is read, by
    default the contrast-enhanced T1 (t1c, t1ce, t1gd, t1post, ct1); without it, the user must choose.

    Raises:
        UsageError: `options.channel` is a name that `dataset.json` does not have.
    """
    masks = options.masks
    channels = channel_names(tree)
    channel = choose_channel(channels, options, tree)
    groups: dict[tuple[str, str], _Group] = {}
    left_out: list[LeftOut] = []
    for location in tree.with_suffix(*VOLUME_SUFFIXES):
        role, folders, base, sequence = _read_name(location, channels)
        if role == "other":
            left_out.append(LeftOut(location.name, "a mask of another structure than the tumour"))
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
            del group.segmentations[1:]  # they are not read, so several are not a problem
        case = _choose(group, options, problems)
        if case is not None:
            # Only a file whose name has no sequence can hold all channels in `dataset.json`.
            whole = len(group.images) == 1 and group.images[case.image] in {"", *_PLAIN_WORDS}
            cases.append(replace(case, channel=channel) if whole else case)
            chosen += len(group.images) > 1
            left_out += [
                LeftOut(location.name, f"another sequence of the case; {case.image.name} is read")
                for location in group.images
                if location != case.image
            ]
    notes = []
    if chosen:
        notes.append(
            f"{count(chosen, 'case')} with several sequences: {options.sequence or 'the T1 with contrast'} is read"
        )
    if channel in channels and len(channels) > 1 and any(case.channel >= 0 for case in cases):
        notes.append(f"volumes of several channels: channel {channel} ({channels[channel]}) is read")
    return Cases(tuple(cases), tuple(left_out), tuple(problems), tuple(notes))


def choose_channel(channels: Mapping[int, str], options: SourceOptions, tree: Tree) -> int:
    """Return the channel to read of a multi-channel volume; -1 if unknown."""
    if options.channel is None and options.sequence is None:
        contrast = [number for number, name in channels.items() if _CONTRAST.fullmatch(name)]
        return contrast[0] if len(contrast) == 1 and len(channels) > 1 else -1
    wanted = options.channel if options.channel is not None else options.sequence or ""
    if wanted.strip().isdecimal():
        return int(wanted)
    found = [number for number, name in channels.items() if _same_sequence(name, wanted)]
    if found or options.channel is None or not options.masks:
        return found[0] if found else -1
    names = ", ".join(f"{number} ({name})" for number, name in channels.items())
    raise UsageError(
        f"--channel cannot be {wanted!r}",
        path=tree.root,
        expected=names or "a number from 0: no dataset.json names the channels",
    )


def _plain_word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _same_sequence(name: str, wanted: str) -> bool:
    """Whether two names mean the same sequence.

    >>> _same_sequence("t1gd", "T1ce"), _same_sequence("t2f", "flair"), _same_sequence("t1", "t1ce")
    (True, True, False)
    """
    first, second = _plain_word(name), _plain_word(wanted)
    if _CONTRAST.fullmatch(second) or _CONTRAST.fullmatch(wanted.casefold()):
        return bool(_CONTRAST.fullmatch(first) or _CONTRAST.fullmatch(name))
    return first == second or any(first in names and second in names for names in _SPELLINGS)


def _read_name(location: Location, channels: Mapping[int, str]) -> tuple[str, tuple[str, ...], str, str]:
    """Return role ("image", "mask", "other"), folders and stem without the words for it, and sequence ("" if unknown)."""
    parents, _ = split_name(location.name)
    stem = stem_of(location.name)
    # Kaggle unpacks `x_t1ce.nii` to a folder with that name, which has a file with another name.
    if parents and parents[-1].casefold().endswith(VOLUME_SUFFIXES):
        stem, parents = without_suffix(parents[-1]), parents[:-1]
    roles = [folder_role(folder) for folder in parents]
    role = next((role for role, _ in reversed(roles) if role), "image")
    folders = tuple(left for _, left in roles if left)
    pieces = re.split(f"({_SEPARATORS})", stem)
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


def channel_names(tree: Tree) -> dict[int, str]:
    """Return the names of nnU-Net's channels in `dataset.json`, as words without separators; {} if there are none."""
    for location in tree.with_suffix("dataset.json"):
        try:
            content = parse_json(read_bytes(location, limit=1 << 26))
            names = content.get("channel_names") or content.get("modality") or {}
            return {int(key): _plain_word(str(name)) for key, name in names.items()}
        except (DataError, ValueError, AttributeError):
            continue
    return {}


def _join_lone(groups: dict[tuple[str, str], _Group]) -> None:
    """Pair the only image and the only segmentation of a folder, regardless of their names."""
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


def _choose(group: _Group, options: SourceOptions, problems: list[Problem]) -> Case | None:
    """Return the case with the image to read; None, and a problem, if the names are ambiguous."""
    wanted = options.sequence
    if wanted is None and options.channel is not None and len(group.images) > 1:
        wanted = f"channel {options.channel}" if options.channel.isdecimal() else options.channel
    fitting = [location for location, name in group.images.items() if _same_sequence(name, wanted or "t1c")]
    images = fitting or list(group.images)
    known = [name for name in group.images.values() if name and name not in _PLAIN_WORDS]
    # Without masks, the sequence comes from the training data rather than from the user, so one image is accepted.
    if wanted is not None and not fitting and (known if options.masks else len(images) > 1):
        message = f"no sequence {wanted} in this case (found {', '.join(sorted(known)) or 'no sequence in the names'})"
        problems.append(Problem(images[0].name, "missing-sequence", f"{message}. Choose another --sequence"))
        return None
    if len(group.segmentations) > 1:
        names = ", ".join(location.name for location in group.segmentations)
        message = f"{len(group.segmentations)} segmentations of one case: {names}. Keep the one to use"
        problems.append(Problem(group.segmentations[0].name, "ambiguous", message))
        return None
    if len(images) > 1:
        found = ", ".join(sorted(sequence or location.name for location, sequence in group.images.items()))
        which = "several of them are" if fitting else "none of them is called"
        message = (
            f"{len(group.images)} sequences of one case ({found}) and {which} {wanted or 'T1 with contrast (t1c)'}"
        )
        problems.append(Problem(images[0].name, "ambiguous", f"{message}. Choose one with --sequence"))
        return None
    return Case(group.name, images[0], group.segmentations[0] if group.segmentations else None)
