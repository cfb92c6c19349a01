"""Read pictures with masks: PNG, JPEG, TIFF, BMP, GIF, NPY or DICOM images, and masks in all of these but DICOM.

| layout                              | example                                                          |
| ----------------------------------- | ---------------------------------------------------------------- |
| two folders, equal stems            | `images/1.png` + `masks/1.png`, also `train/images`, `masks/train` |
| the mask beside the image           | `1.tif` + `1_mask.tif` (`_seg`, `-label`, `mask_1`, ...)          |
| class folders, at any level         | `glioma/images/1.png` + `glioma/masks/1.png`                     |
| class codes in file names           | `Te-me_0010.jpg`, `brisc2025_train_00159_gl_ax_t1.jpg`           |
| an index table                      | `index.csv` with the columns image, mask, label, patient         |
| the LGG set                         | `TCGA_CS_4943_20000902/TCGA_CS_4943_20000902_12.tif` + `..._mask.tif` |
| PASCAL VOC                          | `JPEGImages/1.jpg` + `SegmentationClass/1.png`                    |
| nnU-Net in 2-D                      | `imagesTr/x_0000.png` + `labelsTr/x.png`                          |
| several masks of an image           | `x.png` + `x_mask.png` + `x_mask_1.png`; `ID/images/ID.png` + `ID/masks/*.png` |
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.classes import class_name
from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.formats.images import Picture, decode_pages, decode_picture, to_slice, upright
from kerasseg_tfrecords.formats.sniff import DICOM_SUFFIXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES, is_dicom, picture_kind
from kerasseg_tfrecords.slices import Location, Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, SourceOptions, file_limit, partner_error
from kerasseg_tfrecords.sources.index_csv import Index, Row, read_index
from kerasseg_tfrecords.sources.labelling import label_files
from kerasseg_tfrecords.sources.masks import has_grey_regions, mask_of_picture
from kerasseg_tfrecords.sources.nifti_cases import channel_names, choose_channel
from kerasseg_tfrecords.sources.roles import (
    Named,
    name_file,
    name_files,
    pair_by_name,
    patient_in_name,
    patient_of,
    split_name,
    stem_of,
    without_suffix,
)
from kerasseg_tfrecords.sources.tree import Tree, head, natural_key, read_bytes, suffix_of
from kerasseg_tfrecords.text import count

_TABLES = (".csv", ".tsv")
_SAMPLE = 8  # number of masks that are opened while listing
_LABELS = 31  # whole numbers up to here are always labels
_OTHER_DATA = (".mat", *VOLUME_SUFFIXES)


class PairsSource:
    """Reader of pictures with masks."""

    name = "pairs"

    def recognises(self, tree: Tree) -> float:
        """Return 1 if pictures (possibly with DICOM files) are the only possible data, else 0.9 of their share."""
        pictures = tree.with_suffix(*PICTURE_SUFFIXES)
        if not pictures:
            return 0.0
        files = len(pictures) + len(tree.with_suffix(*DICOM_SUFFIXES))
        others = len(tree.with_suffix(*_OTHER_DATA))
        share = 0.9 * files / (files + others) if others else 1.0
        # A sample is enough. A tree whose files are all damaged may still be meant as pictures.
        real = any(picture_kind(head(location)) for location in pictures[:: max(1, len(pictures) // 8)])
        return share if real else share / 9

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """Return one item for each image; files without a partner or class are problems."""
        files = tuple(file for file in tree.with_suffix(*PICTURE_SUFFIXES, *DICOM_SUFFIXES) if not _is_instances(file))
        named = name_files(files)
        indexes, left_out = _indexes(tree, named)
        problems = [problem for index in indexes for problem in index.problems]
        named, more = _one_channel(named, tree, options)
        problems += more
        if more:
            return Listing((), tuple(left_out), tuple(problems))
        files = tuple(file.location for file in named)
        rows, doubled = _merge(indexes)
        problems += doubled
        masks: dict[Location, tuple[Location, ...]]
        if rows and any(index.names_masks for index in indexes):
            masks = {row.image: () if row.mask is None else (row.mask,) for row in rows.values()}
            problems += _shared_masks(masks)
            used = {file for index in indexes for row in index.rows for file in (row.image, row.mask)}
            left_out += [LeftOut(file.name, "not named in the index table") for file in files if file not in used]
            unused: Sequence[Location] = ()
        else:
            pairing = pair_by_name(named)
            problems += pairing.problems
            masks = {**dict(pairing.pairs), **dict.fromkeys(pairing.alone, ())}
            if options.masks and any(masks.values()):
                tests = {image for image in pairing.alone if "imagests" in map(str.lower, split_name(image.name)[0])}
                left_out += [LeftOut(image.name, "a test image without labels") for image in tests]
                masks = {image: found for image, found in masks.items() if image not in tests}
            unused = pairing.unused
            if rows:
                left_out += [LeftOut(file.name, "not named in the index table") for file in masks if file not in rows]
                masks = {image: mask for image, mask in masks.items() if image in rows}
        if not options.masks:
            # Problems of masks, classes and tables do not matter for images alone.
            masks, problems = _every_image(named, masks), []
            left_out = [entry for entry in left_out if entry.name not in {image.name for image in masks}]
        items, more, notes = _items(masks, rows, options, tree)
        if options.masks:
            problems += more
            problems += [Problem(mask.name, "missing-partner", "a mask without its image") for mask in unused]
        else:
            left_out += [LeftOut(mask.name, "a mask without its image") for mask in unused]
        return Listing(
            tuple(sorted(items, key=lambda item: natural_key(item.name))),
            tuple(sorted(left_out)),
            tuple(sorted(set(problems))),
            notes,
        )

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Read an image and its masks; a healthy image without a mask file gets an empty mask.

        A file of several pages becomes a volume with one slice per page.

        Raises:
            DataError: A file is damaged, too large or not an image, or the mask is invalid or differs in size.
        """
        data = read_bytes(item.files[0], limit=file_limit(options))
        digest = hashlib.sha256(data)
        spacing, patient = (0.0, 0.0), item.patient
        if is_dicom(data):
            from kerasseg_tfrecords.formats.dicom import read_dicom  # slow to import, and rarely needed

            dicom = read_dicom(data, item.name, options.max_pixels)
            pages: tuple[Picture, ...] = (Picture(dicom.pixels, None, False),)
            spacing, patient, notes = dicom.header.spacing, patient or dicom.header.patient, dicom.notes
        else:
            pages, notes = decode_pages(data, item.name, options.max_pixels), ()
        masks: list[tuple[NDArray[np.bool_], ...]] = []
        turned = True
        for location in item.files[1:]:
            data = read_bytes(location, limit=file_limit(options))
            digest.update(data)
            found, as_shown, more = _read_masks(data, location.name, item, pages, options)
            masks.append(found)
            turned = turned and as_shown
            notes = (*notes, *more)
        if options.masks and not masks:
            notes = (*notes, f"no mask file: an empty mask for {item.label}")
        slices = []
        for place, page in enumerate(pages):
            image, more = to_slice(page)
            if page.orientation > 1:
                image = upright(image, page.orientation) if turned else image
                more = (*more, _TURNED if turned else _NOT_TURNED)
            mask = None
            if masks or options.masks:
                mask = np.zeros(image.shape[:2], np.bool_)
                for found in masks:
                    mask |= found[place]
            one = Slice(
                image=image,
                mask=mask,
                slice_id=item.slice_id or without_suffix(item.name),
                source=item.files[0].name,
                label=item.label,
                patient=patient,
                volume=item.volume,
                slice_index=item.slice_index,
                spacing=spacing,
                notes=(*notes, *more),
            )
            if len(pages) > 1:
                name = f"{one.slice_id}#{place}"
                volume = item.volume or one.slice_id
                one = replace(one, slice_id=name, source=f"{one.source}#{place}", volume=volume, slice_index=place)
            slices.append(one)
        scope = np.stack([one.image for one in slices]) if len(pages) > 1 else None
        return Reading(tuple(slices), scope=scope, sha256=digest.hexdigest())


SOURCE = PairsSource()

_TURNED = "turned upright according to its EXIF data"
_NOT_TURNED = "not turned according to its EXIF data, because the mask fits the stored image"


def _read_masks(
    data: bytes, name: str, item: Item, pages: Sequence[Picture], options: SourceOptions
) -> tuple[tuple[NDArray[np.bool_], ...], bool, tuple[str, ...]]:
    """Return the masks of all pages, whether they fit the image after its EXIF orientation is applied, and notes."""
    try:
        pictures = decode_pages(data, name, options.max_pixels)
        read = [
            mask_of_picture(picture, name, foreground=options.foreground, regions=item.grey_regions)
            for picture in pictures
        ]
    except DataError as error:
        raise partner_error(error, f"mask {name}", item.name) from error
    if len(read) != len(pages):
        raise DataError(
            f"its mask {name} has another number of pages",
            path=item.name,
            found=len(read),
            expected=f"{len(pages)} like the image",
            kind="size-mismatch",
        )
    masks = [upright(mask, picture.orientation) for (mask, _), picture in zip(read, pictures, strict=True)]
    stored = pages[0].pixels.shape[:2]
    shown = stored[::-1] if pages[0].orientation >= 5 else stored
    # A mask with the same orientation was drawn on the stored pixels and is turned like the image.
    turned = masks[0].shape == shown
    if not turned and masks[0].shape != stored:
        raise DataError(
            f"its mask {name} differs in size",
            path=item.name,
            found=f"{masks[0].shape[0]} x {masks[0].shape[1]}",
            expected=f"{shown[0]} x {shown[1]} like the image",
            kind="size-mismatch",
        )
    return tuple(masks), turned, tuple(dict.fromkeys(note for _, notes in read for note in notes))


def _is_instances(location: Location) -> bool:
    """Whether a mask is one of PASCAL VOC's separate object masks."""
    return "segmentationobject" in (folder.casefold() for folder in split_name(location.name)[0])


def _one_channel(named: list[Named], tree: Tree, options: SourceOptions) -> tuple[list[Named], list[Problem]]:
    """Select the channel to read of images with one file per channel (`x_0000`, `x_0001`)."""
    channels = {file.channel for file in named} - {-1}
    if len(channels) < 2:
        return named, []
    chosen = choose_channel(channel_names(tree), options, tree)
    if chosen in channels:
        return [file for file in named if file.channel in {-1, chosen}], []
    if not options.masks:
        return named, []
    message = f"images with {len(channels)} channels ({', '.join(f'_{number:04}' for number in sorted(channels))})"
    return [file for file in named if file.channel < 0], [
        Problem(".", "channels", f"{message}. Choose one with --channel, for instance --channel {min(channels)}")
    ]


def _indexes(tree: Tree, files: Sequence[Named]) -> tuple[list[Index], list[LeftOut]]:
    indexes = []
    left_out = []
    known = {file.location for file in files}
    for location in tree.locations:
        if location in known:
            continue
        reason = "not an image"
        if location.name.lower().endswith(_TABLES):
            index = read_index(location, files)
            reason = "a table without images" if index is None else "the index table"
            indexes += [] if index is None else [index]
        left_out.append(LeftOut(location.name, reason))
    return indexes, left_out


def _merge(indexes: Iterable[Index]) -> tuple[dict[Location, Row], list[Problem]]:
    """Merge the rows of all tables by image; contradictions are problems."""
    rows: dict[Location, Row] = {}
    problems = []
    for index in indexes:
        for row in index.rows:
            before = rows.setdefault(row.image, row)
            if replace(before, where="") != replace(row, where=""):
                message = f"listed twice with different entries ({before.where} and {row.where}). Keep one"
                problems.append(Problem(row.image.name, "ambiguous", message))
    bad = {problem.name for problem in problems}
    return {image: row for image, row in rows.items() if image.name not in bad}, problems


def _every_image(
    named: Sequence[Named], masks: Mapping[Location, tuple[Location, ...]]
) -> dict[Location, tuple[Location, ...]]:
    """Return all files that are not masks, each with its masks if known."""
    reference = {mask for found in masks.values() for mask in found}
    return {
        file.location: masks.get(file.location, ())
        for file in named
        if file.role != "mask" and file.location not in reference
    }


def _shared_masks(masks: dict[Location, tuple[Location, ...]]) -> list[Problem]:
    """Remove images that share a mask from `masks`, and report them."""
    users: defaultdict[Location, list[Location]] = defaultdict(list)
    for image, found in masks.items():
        for mask in found:
            users[mask].append(image)
    problems = []
    for mask, images in users.items():
        if len(images) > 1:
            for image in images:
                other = next(one for one in images if one != image)
                message = f"{len(images)} images for one mask: {other.name} also has {mask.name}"
                problems.append(Problem(image.name, "ambiguous", message))
                del masks[image]
    return problems


def _items(
    masks: Mapping[Location, tuple[Location, ...]], rows: Mapping[Location, Row], options: SourceOptions, tree: Tree
) -> tuple[list[Item], list[Problem], tuple[str, ...]]:
    names = [image.name for image in masks]
    written = {row.image.name: (row.label, row.where) for row in rows.values() if row.label is not None}
    labels = label_files(names, options.classes, written=written, root=tree.root.name)
    problems = list(labels.problems)
    healthy = class_name("no_tumor", options.classes)
    if options.masks and names and not any(masks.values()) and set(labels.by_name.values()) != {healthy}:
        message = (
            f"{count(len(names), 'image')} without masks{_unread(tree)}. Put masks into a folder masks/ beside images/, or "
            "beside the images as NAME_mask.png"
        )
        return [], [Problem(".", "no-masks", f"{message}{_outlines(tree)}")], ()
    volumes = _volumes(names)
    regions = options.masks and options.foreground is None and _grey_regions(masks, options)
    stems = Counter(stem_of(name) for name in names)
    items = []
    empty = 0
    unmatched = 0
    for image, found in masks.items():
        label = labels.by_name.get(image.name, None if options.masks else "")
        if label is None:
            continue
        if not found and options.masks:
            if not healthy or label != healthy:
                problems.append(Problem(image.name, "missing-partner", "an image without its mask"))
                continue
            empty += 1
        row = rows.get(image)
        told = patient_of(image.name, options)
        unmatched += options.patient_pattern is not None and not told
        volume, place = volumes.get(image.name, ("", -1))
        items.append(
            Item(
                "pairs",
                image.name,
                (image, *found),
                label=label,
                patient=told or (row.patient if row else "") or patient_in_name(image.name),
                volume=(row.volume if row else "") or volume,
                slice_index=row.slice_index if row and row.slice_index >= 0 else place,
                slice_id=stem_of(image.name) if stems[stem_of(image.name)] == 1 else image.name,
                grey_regions=regions,
            )
        )
    notes = list(labels.notes)
    if empty:
        notes.append(f"{count(empty, 'image')} of class {healthy} without a mask file: an empty mask is used")
    if regions:
        notes.append("masks have regions in shades of grey: all of them are tumour (choose with --foreground)")
    if unmatched:
        notes.append(f"the patient pattern matches {len(items) - unmatched} of {len(items)} names")
    return items, problems, tuple(notes)


def _unread(tree: Tree) -> str:
    """Describe files with names of masks but of unsupported types, as a phrase for a message."""
    kinds: Counter[str] = Counter()
    for location in tree.locations:
        suffix = suffix_of(location.name)
        if suffix not in {*PICTURE_SUFFIXES, *DICOM_SUFFIXES, *_TABLES} and name_file(location).role == "mask":
            kinds["/".join((*split_name(location.name)[0][-1:], f"*{suffix}"))] += 1
    listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(3))
    return f" (not read: {listed}; masks may be {', '.join(PICTURE_SUFFIXES)})" if listed else ""


def _outlines(tree: Tree) -> str:
    """What to do with files of outlines (COCO, LabelMe, VIA), where there are any, as a sentence."""
    files = [one.name for one in tree.locations if suffix_of(one.name) in {".json", ".xml"}]
    if not files:
        return ""
    named = files[0] if len(files) == 1 else f"{files[0]} and {count(len(files) - 1, 'other')}"
    return f". Outlines, as {named} may hold, are not read: draw them as mask images (COCO: pycocotools' annToMask)"


def _grey_regions(masks: Mapping[Location, tuple[Location, ...]], options: SourceOptions) -> bool:
    """Whether a sample of masks has regions in shades of grey, so that one rule applies to all masks."""
    files = [mask for found in masks.values() for mask in found]
    for location in files[:: max(1, len(files) // _SAMPLE)][:_SAMPLE]:
        try:
            picture = decode_picture(read_bytes(location, limit=file_limit(options)), location.name, options.max_pixels)
        except (DataError, MemoryError):  # reported when the item is read
            continue
        pixels = picture.pixels
        shades = pixels.ndim == 2 and pixels.dtype.kind == "u" and not picture.lossy and pixels.max() > _LABELS
        if shades and has_grey_regions(pixels):
            return True
    return False


def _volumes(names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return volume and index of slices named after their folder: `TCGA_1/TCGA_1_12.tif` is slice 11 of `TCGA_1`."""
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name in names:
        folders, _ = split_name(name)
        match = re.fullmatch(r"(.+?)[-_ ](?:slice[-_ ]?)?([0-9]{1,6})", stem_of(name), re.IGNORECASE | re.DOTALL)
        if match and folders and match.group(1) == folders[-1]:
            numbers["/".join(folders)][name] = int(match.group(2))
    found = {}
    for folder, places in numbers.items():
        if len(set(places.values())) == len(places) > 1:
            first = 0 if 0 in places.values() else 1
            found.update({name: (folder, number - first) for name, number in places.items()})
    return found
