"""NIfTI volumes with their segmentations, cut into slices as radiologists see them.

Axes come from the affine, whatever order the file stores them in. In every plane the picture is upright:

| plane    | top      | left of the picture | slices are counted from      |
| -------- | -------- | ------------------- | ---------------------------- |
| axial    | front    | patient's right     | feet to head                 |
| coronal  | head     | patient's right     | front to back                |
| sagittal | head     | front               | patient's right to left      |
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.formats.nifti import Volume, is_nifti, read_volume
from kerasseg_tfrecords.slices import Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, SourceOptions
from kerasseg_tfrecords.sources.labelling import label_files
from kerasseg_tfrecords.sources.nifti_cases import NIFTI_SUFFIXES, Case, find_cases
from kerasseg_tfrecords.sources.roles import patient_in_name, patient_of, split_name, without_suffix
from kerasseg_tfrecords.sources.tree import Tree, head, natural_key, read_bytes

__all__ = ["PLANES", "SOURCE", "NiftiSource", "cut", "stack"]

PLANES = ("axial", "coronal", "sagittal")
_OTHER_DATA = (".mat", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
_SLICES = 4  # a volume may have this many times the pixels of the largest image
_MAX_LABELS = 32  # more, and it is a map of anatomy
# The same patient at several times: BraTS-GLI-00005-100, UPENN-GBM-00012_11.
_TIME_POINT = re.compile(r"(BraTS-[A-Za-z]+-[0-9]{5})-[0-9]{3}|(UPENN-GBM-[0-9]{5})_[0-9]{2}")


class NiftiSource:
    """Reads cases of a volume and its segmentation."""

    name = "nifti"

    def recognises(self, tree: Tree) -> float:
        """1 where nothing but volumes could be data, else 0.9 of their share."""
        files = tree.with_suffix(*NIFTI_SUFFIXES)
        if not files:
            return 0.0
        others = len(tree.with_suffix(*_OTHER_DATA))
        share = 0.9 * len(files) / (len(files) + others) if others else 1.0
        real = any(is_nifti(head(location)) for location in files[:: max(1, len(files) // 4)])
        return share if real else share / 9

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """One item for each case."""
        _check_plane(options.plane)
        found = find_cases(tree, masks=options.masks)
        labels = label_files([case.image.name for case in found.cases], options.classes, root=tree.root.name)
        items = []
        for case in found.cases:
            label = labels.by_name.get(case.image.name, None if options.masks else "")
            if label is None:
                continue
            volume = case.name or without_suffix(tree.root.name)
            items.append(
                Item(
                    self.name,
                    case.image.name,
                    (case.image,) if case.segmentation is None else (case.image, case.segmentation),
                    label=label,
                    patient=patient_of(case.image.name, options) or _patient(case, volume),
                    volume=volume,
                )
            )
        volumes = set(tree.with_suffix(*NIFTI_SUFFIXES))
        left_out = [*found.left_out, *(LeftOut(f.name, "not a NIfTI file") for f in tree.locations if f not in volumes)]
        return Listing(
            tuple(sorted(items, key=lambda item: natural_key(item.name))),
            tuple(sorted(left_out)),
            tuple(sorted((*found.problems, *(labels.problems if options.masks else ())))),
            (*found.notes, *labels.notes),
        )

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Reads a volume and cuts it into slices along `options.plane`.

        With `options.masks`: all slices with tumour, and of those without - and with anything to see - as many as
        `options.empty_share` says, drawn by (seed, item, place); a larger share keeps the slices of a smaller one.
        Without: all slices.

        Raises:
            DataError: A file is damaged; the segmentation does not lie on the image's grid, holds no labels, or no tumour.
        """
        _check_plane(options.plane)
        limit = _SLICES * options.max_pixels
        data = read_bytes(item.files[0], limit=8 * limit)
        digest = hashlib.sha256(data)
        image = read_volume(data, item.name, limit)
        notes = () if image.oriented else ("the header gives no orientation: its axes are a guess",)
        mask = None
        if len(item.files) > 1:
            data = read_bytes(item.files[1], limit=8 * limit)
            digest.update(data)
            mask, more = _read_segmentation(data, item, image, options)
            notes = (*notes, *more)
        planes = cut(image, options.plane)
        masks = None if mask is None else _planes(mask, options.plane)
        chosen = list(range(len(planes.slices)))
        if options.masks and masks is not None:
            chosen = _choose(planes.slices, masks, item, options)
        if chosen and planes.slices[0].size > options.max_pixels:
            found = " x ".join(map(str, planes.slices[0].shape))
            raise DataError("the slices are too large", path=item.name, found=f"{found} pixels", kind="too-large")
        slices = tuple(
            Slice(
                image=np.ascontiguousarray(planes.slices[place]),
                mask=None if masks is None else np.ascontiguousarray(masks[place]),
                slice_id=f"{item.volume}#{place}",
                source=f"{item.files[0].name}#{place}",
                label=item.label,
                patient=item.patient,
                volume=item.volume,
                slice_index=place,
                spacing=planes.spacing,
                notes=notes,
            )
            for place in chosen
        )
        return Reading(slices, scope=image.voxels, sha256=digest.hexdigest())


SOURCE = NiftiSource()


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """A volume as a stack of upright pictures.

    Attributes:
        slices: (slices, height, width), a view of the volume.
        spacing: Millimetres a pixel, rows then columns.
    """

    slices: NDArray[Any]
    spacing: tuple[float, float]


def cut(volume: Volume, plane: str) -> Planes:
    """Cuts a volume into upright pictures.

    Args:
        volume: As `read_volume` gives it.
        plane: "axial", "coronal" or "sagittal".

    Returns:
        A view; no voxel is copied or interpolated.
    """
    left, back, up = volume.spacing
    spacing = {"axial": (back, left), "coronal": (up, left), "sagittal": (up, back)}[plane]
    return Planes(_planes(volume.voxels, plane), spacing)


def stack(slices: NDArray[Any], plane: str) -> NDArray[Any]:
    """Upright pictures as a volume: the way back of `cut`.

    Args:
        slices: (slices, rows, columns).
        plane: "axial", "coronal" or "sagittal".

    Returns:
        (left, back, head), a view.

    Example:
        >>> voxels = np.arange(24).reshape(2, 3, 4)
        >>> all((stack(_planes(voxels, plane), plane) == voxels).all() for plane in PLANES)
        True
    """
    if plane == "axial":
        return slices.transpose(2, 1, 0)
    return slices.transpose((2, 0, 1) if plane == "coronal" else (0, 2, 1))[:, :, ::-1]


def _planes(voxels: NDArray[Any], plane: str) -> NDArray[Any]:
    """(left, back, head) voxels as (slices, rows, columns)."""
    if plane == "axial":
        return voxels.transpose(2, 1, 0)
    # The head is up: rows run against the third axis.
    return voxels[:, :, ::-1].transpose((1, 2, 0) if plane == "coronal" else (0, 2, 1))


def _check_plane(plane: str) -> None:
    if plane not in PLANES:
        raise UsageError("unknown plane", found=plane, expected=", ".join(PLANES))


def _patient(case: Case, volume: str) -> str:
    """A case is at least not two patients: where names tell no more, each is one."""
    match = _TIME_POINT.search(case.image.name)
    if match:
        return match.group(1) or match.group(2)
    return patient_in_name(case.image.name) or split_name(volume)[1]


def _read_segmentation(
    data: bytes, item: Item, image: Volume, options: SourceOptions
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    name = item.files[1].name
    try:
        segmentation = read_volume(data, name, _SLICES * options.max_pixels)
    except DataError as error:
        raise DataError(
            f"its segmentation {name}: {error.what}",
            path=item.name,
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
            kind=error.kind,
        ) from error
    _check_grid(image, segmentation, item.name, name)
    labels = np.unique(segmentation.voxels)
    if labels[0] < 0 or (labels != np.rint(labels)).any():
        odd = next(value for value in labels if value < 0 or value != np.rint(value))
        raise DataError(
            f"its segmentation {name} holds no labels",
            path=item.name,
            found=f"{odd:g}",
            expected="whole numbers from 0",
            kind="bad-mask",
        )
    present = [int(label) for label in labels if label > 0]
    if options.foreground is None and len(present) > _MAX_LABELS:
        raise DataError(
            f"its segmentation {name} looks like a map of anatomy",
            path=item.name,
            found=f"{len(present)} labels",
            expected=f"at most {_MAX_LABELS}",
            remedy="Say which labels are tumour with --foreground",
            kind="unknown-label",
        )
    mask = segmentation.voxels > 0 if options.foreground is None else np.isin(segmentation.voxels, options.foreground)
    found = ", ".join(map(str, present)) or "none"
    if options.masks and not mask.any() and item.label != "no_tumor":
        wanted = "any" if options.foreground is None else ", ".join(map(str, options.foreground))
        raise DataError(
            f"its segmentation {name} has no tumour",
            path=item.name,
            found=f"labels {found}",
            expected=wanted,
            remedy="Say which labels are tumour with --foreground, or leave the case out",
            kind="no-tumour",
        )
    if options.foreground is not None:
        wanted = ", ".join(map(str, options.foreground))
        return mask, (f"the segmentation has the labels {found}: {wanted} count as tumour",)
    return mask, (f"the segmentation has the labels {found}: all of them are tumour",) if len(present) > 1 else ()


def _check_grid(image: Volume, segmentation: Volume, name: str, other: str) -> None:
    if segmentation.voxels.shape != image.voxels.shape:
        raise DataError(
            f"its segmentation {other} is of another size",
            path=name,
            found=" x ".join(map(str, segmentation.voxels.shape)),
            expected=f"{' x '.join(map(str, image.voxels.shape))} as the image (left, back, head)",
            kind="size-mismatch",
        )
    size = image.voxels.shape
    corners = np.array([(i, j, k, 1) for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)])
    shift = np.abs((corners @ image.affine.T - corners @ segmentation.affine.T)[:, :3]).max()
    if shift > min(image.spacing) / 2:
        raise DataError(
            f"its segmentation {other} lies elsewhere",
            path=name,
            found=f"a corner {shift:.3g} mm away",
            expected="the image's affine",
            remedy="Resample it to the image, or save it with the image's affine",
            kind="affine-mismatch",
        )


def _choose(slices: NDArray[Any], masks: NDArray[np.bool_], item: Item, options: SourceOptions) -> list[int]:
    tumour = masks.any(axis=(1, 2))
    # Slices beyond the head are no examples of anything.
    seen = slices.max(axis=(1, 2)) > slices.min(axis=(1, 2))
    empty = sorted(np.flatnonzero(~tumour & seen).tolist(), key=lambda place: _draw(options.seed, item.name, place))
    # A case of a healthy head has nothing to take a share of.
    count = round(options.empty_share * int(tumour.sum())) if tumour.any() else len(empty)
    return sorted([*np.flatnonzero(tumour).tolist(), *empty[:count]])


def _draw(seed: int, name: str, place: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}\n{place}".encode()).digest()
