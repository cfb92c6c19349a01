"""Pictures and their masks: PNG, JPEG, TIFF or DICOM images with PNG, JPEG or TIFF masks.

| layout                              | example                                                          |
| ----------------------------------- | ---------------------------------------------------------------- |
| two folders, equal stems            | `images/1.png` + `masks/1.png`, also `train/images`, `masks/train` |
| the mask beside the image           | `1.tif` + `1_mask.tif` (`_seg`, `-label`, `mask_1`, ...)          |
| class folders, at any level         | `glioma/images/1.png` + `glioma/masks/1.png`                     |
| class codes in file names           | `Te-me_0010.jpg`, `brisc2025_train_00159_gl_ax_t1.jpg`           |
| an index table                      | `index.csv` with the columns image, mask, label, patient         |
| the LGG set                         | `TCGA_CS_4943_20000902/TCGA_CS_4943_20000902_12.tif` + `..._mask.tif` |
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
from kerasseg_tfrecords.formats.images import decode_picture, to_slice
from kerasseg_tfrecords.formats.location import Location
from kerasseg_tfrecords.formats.sniff import DICOM_SUFFIXES, VOLUME_SUFFIXES, is_dicom, is_picture
from kerasseg_tfrecords.slices import Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, SourceOptions, file_limit
from kerasseg_tfrecords.sources.index_csv import Index, Row, read_index
from kerasseg_tfrecords.sources.labelling import label_files
from kerasseg_tfrecords.sources.masks import mask_of_picture
from kerasseg_tfrecords.sources.roles import (
    Named,
    name_files,
    pair_by_name,
    patient_in_name,
    patient_of,
    split_name,
    stem_of,
    without_suffix,
)
from kerasseg_tfrecords.sources.tree import Tree, head, natural_key, read_bytes

__all__ = ["PICTURE_SUFFIXES", "SOURCE", "PairsSource"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_TABLES = (".csv", ".tsv")
_OTHER_DATA = (".mat", *VOLUME_SUFFIXES)


class PairsSource:
    """Reads pictures with masks."""

    name = "pairs"

    def recognises(self, tree: Tree) -> float:
        """1 where nothing but pictures (and DICOM files among them) could be data, else 0.9 of their share."""
        pictures = tree.with_suffix(*PICTURE_SUFFIXES)
        if not pictures:
            return 0.0
        files = len(pictures) + len(tree.with_suffix(*DICOM_SUFFIXES))
        others = len(tree.with_suffix(*_OTHER_DATA))
        share = 0.9 * files / (files + others) if others else 1.0
        # A few files tell; a tree in which none of them is what its name says may still be meant as pictures.
        real = any(is_picture(head(location)) for location in pictures[:: max(1, len(pictures) // 8)])
        return share if real else share / 9

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """One item for each image; what has no partner or no class is a problem."""
        files = tree.with_suffix(*PICTURE_SUFFIXES, *DICOM_SUFFIXES)
        named = name_files(files)
        indexes, left_out = _indexes(tree, named)
        problems = [problem for index in indexes for problem in index.problems]
        rows, doubled = _merge(indexes)
        problems += doubled
        masks: dict[Location, Location | None]
        if rows and any(index.names_masks for index in indexes):
            masks = {row.image: row.mask for row in rows.values()}
            problems += _shared_masks(masks)
            used = {file for index in indexes for row in index.rows for file in (row.image, row.mask)}
            left_out += [LeftOut(file.name, "not named in the index table") for file in files if file not in used]
            unused: Sequence[Location] = ()
        else:
            pairing = pair_by_name(named)
            problems += pairing.problems
            masks = {**dict(pairing.pairs), **dict.fromkeys(pairing.alone)}
            unused = pairing.unused
            if rows:
                left_out += [LeftOut(file.name, "not named in the index table") for file in masks if file not in rows]
                masks = {image: mask for image, mask in masks.items() if image in rows}
        if not options.masks:
            # What is wrong with masks, classes and the table that names them does not concern the images.
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
        """Reads an image and its mask; an image of the class without tumour that has no mask gets an empty one.

        Raises:
            DataError: A file is damaged, too large or no image; the mask is none, or of another size.
        """
        data = read_bytes(item.files[0], limit=file_limit(options))
        digest = hashlib.sha256(data)
        spacing, patient = (0.0, 0.0), item.patient
        notes: tuple[str, ...]
        if is_dicom(data):
            # Only here: most data sets have no DICOM file, and pydicom takes a while to import.
            from kerasseg_tfrecords.formats.dicom import read_dicom

            dicom = read_dicom(data, item.name, options.max_pixels)
            image, notes, spacing = dicom.pixels, dicom.notes, dicom.header.spacing
            patient = patient or dicom.header.patient
        else:
            image, notes = to_slice(decode_picture(data, item.name, options.max_pixels))
        mask = None
        if len(item.files) > 1:
            data = read_bytes(item.files[1], limit=file_limit(options))
            digest.update(data)
            mask, more = _read_mask(data, item, image.shape[:2], options)
            notes = (*notes, *more)
        elif options.masks:
            mask = np.zeros(image.shape[:2], np.bool_)
            notes = (*notes, f"no mask file: {item.label} has an empty mask")
        slice_ = Slice(
            image=image,
            mask=mask,
            slice_id=item.slice_id or without_suffix(item.name),
            source=item.files[0].name,
            label=item.label,
            patient=patient,
            volume=item.volume,
            slice_index=item.slice_index,
            spacing=spacing,
            notes=notes,
        )
        return Reading((slice_,), sha256=digest.hexdigest())


SOURCE = PairsSource()


def _read_mask(
    data: bytes, item: Item, size: tuple[int, ...], options: SourceOptions
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    name = item.files[1].name
    try:
        mask, notes = mask_of_picture(
            decode_picture(data, name, options.max_pixels), name, foreground=options.foreground
        )
    except DataError as error:
        raise DataError(
            f"its mask {name}: {error.what}",
            path=item.name,
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
            kind=error.kind,
        ) from error
    if mask.shape != size:
        raise DataError(
            f"its mask {name} is of another size",
            path=item.name,
            found=f"{mask.shape[0]} x {mask.shape[1]}",
            expected=f"{size[0]} x {size[1]} as the image",
            kind="size-mismatch",
        )
    return mask, notes


def _indexes(tree: Tree, files: Sequence[Named]) -> tuple[list[Index], list[LeftOut]]:
    indexes = []
    left_out = []
    known = {file.location for file in files}
    for location in tree.locations:
        if location in known:
            continue
        index = read_index(location, files) if location.name.lower().endswith(_TABLES) else None
        if index is not None:
            indexes.append(index)
            left_out.append(LeftOut(location.name, "the index table"))
        else:
            table = location.name.lower().endswith(_TABLES)
            left_out.append(LeftOut(location.name, "a table that names no images" if table else "not an image"))
    return indexes, left_out


def _merge(indexes: Iterable[Index]) -> tuple[dict[Location, Row], list[Problem]]:
    """The rows of all tables by image; several tables may say the same, but not different things."""
    rows: dict[Location, Row] = {}
    problems = []
    for index in indexes:
        for row in index.rows:
            before = rows.setdefault(row.image, row)
            if replace(before, where="") != replace(row, where=""):
                message = f"named twice with different entries ({before.where} and {row.where}). Keep one"
                problems.append(Problem(row.image.name, "ambiguous", message))
    bad = {problem.name for problem in problems}
    return {image: row for image, row in rows.items() if image.name not in bad}, problems


def _every_image(named: Sequence[Named], masks: Mapping[Location, Location | None]) -> dict[Location, Location | None]:
    """All files that are no masks, with the mask that goes with each where that is known."""
    reference = set(masks.values())
    return {
        file.location: masks.get(file.location)
        for file in named
        if file.role != "mask" and file.location not in reference
    }


def _shared_masks(masks: dict[Location, Location | None]) -> list[Problem]:
    """Takes images that share a mask out of `masks`, and reports them."""
    users: defaultdict[Location, list[Location]] = defaultdict(list)
    for image, mask in masks.items():
        if mask is not None:
            users[mask].append(image)
    problems = []
    for mask, images in users.items():
        if len(images) > 1:
            for image in images:
                other = next(one for one in images if one != image)
                message = f"{len(images)} images for one mask: {other.name} goes with {mask.name} as well"
                problems.append(Problem(image.name, "ambiguous", message))
                del masks[image]
    return problems


def _items(
    masks: Mapping[Location, Location | None], rows: Mapping[Location, Row], options: SourceOptions, tree: Tree
) -> tuple[list[Item], list[Problem], tuple[str, ...]]:
    names = [image.name for image in masks]
    written = {row.image.name: (row.label, row.where) for row in rows.values() if row.label is not None}
    labels = label_files(names, options.classes, written=written, root=tree.root.name)
    problems = list(labels.problems)
    healthy = class_name("no_tumor", options.classes)
    if options.masks and names and not any(masks.values()) and set(labels.by_name.values()) != {healthy}:
        message = (
            f"{len(names)} images and no masks. Put masks into a folder masks/ beside images/, or beside the images"
        )
        problem = Problem(".", "no-masks", f"{message} as NAME_mask.png")
        return [], [problem], ()
    volumes = _volumes(names)
    stems = Counter(stem_of(name) for name in names)
    items = []
    empty = 0
    unmatched = 0
    for image, mask in masks.items():
        label = labels.by_name.get(image.name, None if options.masks else "")
        if label is None:
            continue
        if mask is None and options.masks:
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
                (image,) if mask is None else (image, mask),
                label=label,
                patient=told or (row.patient if row else "") or patient_in_name(image.name),
                volume=(row.volume if row else "") or volume,
                slice_index=row.slice_index if row and row.slice_index >= 0 else place,
                slice_id=stem_of(image.name) if stems[stem_of(image.name)] == 1 else image.name,
            )
        )
    notes = list(labels.notes)
    if empty:
        notes.append(f"{empty} images of {healthy} have no mask file: an empty mask is taken")
    if unmatched:
        notes.append(f"the patient pattern matches {len(items) - unmatched} of {len(items)} names")
    return items, problems, tuple(notes)


def _volumes(names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Volume and place of slices that are named after their folder: `TCGA_1/TCGA_1_12.tif` is slice 11 of `TCGA_1`."""
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name in names:
        folders, _ = split_name(name)
        match = re.fullmatch(r"(.+?)[-_ ](?:slice[-_ ]?)?([0-9]{1,6})", stem_of(name), re.IGNORECASE | re.DOTALL)
        if match and folders and match.group(1) == folders[-1]:
            numbers["/".join(folders)][name] = int(match.group(2))
    found = {}
    for folder, places in numbers.items():
        if len(set(places.values())) == len(places) > 1:
            first = 0 if 0 in places.values() else 1  # people count from 1, machines from 0
            found.update({name: (folder, number - first) for name, number in places.items()})
    return found
