"""Read volumes (NIfTI, Analyze, FreeSurfer, MetaImage, NRRD) with their segmentations as slices in radiological view.

The affine determines the axes, regardless of their order in the file. In every plane the picture is upright:

| plane    | top      | left of the picture | slices are numbered from     |
| -------- | -------- | ------------------- | ---------------------------- |
| axial    | front    | patient's right     | feet to head                 |
| coronal  | head     | patient's right     | front to back                |
| sagittal | head     | front               | patient's right to left      |
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.formats.nifti import Volume
from kerasseg_tfrecords.formats.sniff import VOLUME_SUFFIXES
from kerasseg_tfrecords.formats.volumes import is_volume, open_volume
from kerasseg_tfrecords.isolation import isolated, working_on
from kerasseg_tfrecords.slices import Location, Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, SourceOptions, partner_error
from kerasseg_tfrecords.sources.labelling import label_files
from kerasseg_tfrecords.sources.nifti_cases import Case, find_cases
from kerasseg_tfrecords.sources.roles import patient_in_name, patient_of, split_name, without_suffix
from kerasseg_tfrecords.sources.tree import Tree, head, natural_key, read_bytes, suffix_of

PLANES = ("axial", "coronal", "sagittal")
_OTHER_DATA = (".mat", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
_SECONDS = 60  # processor time for one volume
_SLICES = 4  # largest volume, as a multiple of the largest image
_MAX_LABELS = 32  # a segmentation with more labels is an anatomical map
_ROUNDING = 1e-3  # largest distance of a label from a whole number
# The same patient at several times: BraTS-GLI-00005-100, UPENN-GBM-00012_11.
_TIME_POINT = re.compile(r"(BraTS-[A-Za-z]+-[0-9]{5})-[0-9]{3}|(UPENN-GBM-[0-9]{5})_[0-9]{2}")


class NiftiSource:
    """Reader of volumes with their segmentations."""

    name = "nifti"

    def recognises(self, tree: Tree) -> float:
        """Return 1 if volumes are the only possible data, else 0.9 of their share."""
        files = tree.with_suffix(*VOLUME_SUFFIXES)
        if not files:
            return 0.0
        others = len(tree.with_suffix(*_OTHER_DATA))
        share = 0.9 * len(files) / (len(files) + others) if others else 1.0
        real = any(
            is_volume(head(location), suffix_of(location.name)) for location in files[:: max(1, len(files) // 4)]
        )
        return share if real else share / 9

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        _check_plane(options.plane)
        found = find_cases(tree, options)
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
                    channel=case.channel,
                )
            )
        volumes = set(tree.with_suffix(*VOLUME_SUFFIXES))
        voxels = {_voxels_of(location).name for location in volumes if suffix_of(location.name) == ".hdr"}
        others = (loc.name for loc in tree.locations if loc not in volumes and loc.name not in voxels)
        left_out = [*found.left_out, *(LeftOut(name, _other_file(name)) for name in others)]
        return Listing(
            tuple(sorted(items, key=lambda item: natural_key(item.name))),
            tuple(sorted(left_out)),
            tuple(sorted((*found.problems, *(labels.problems if options.masks else ())))),
            (*found.notes, *labels.notes),
        )

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Read a volume and cut it into slices in `options.plane` (a volume of one slice in the plane of that slice).

        With `options.masks`, all slices with tumour are returned, and a share of the others that are not blank
        (`options.empty_share`), chosen by seed, item and index; a larger share includes the slices of a smaller one.
        Without, all slices are returned.

        Raises:
            DataError: A file is damaged, or the segmentation has another grid, no labels, or no tumour.
        """
        _check_plane(options.plane)
        image, data = read_volume_file(item.files[0], options, channel=item.channel)
        digest = hashlib.sha256(data)
        notes = image.notes
        mask = None
        if len(item.files) > 1:
            mask, data, more = _read_segmentation(item, image, options)
            digest.update(data)
            notes = (*notes, *more)
        plane = own_plane(image.voxels.shape) or options.plane
        if plane != options.plane:
            notes = (*notes, f"a volume of one {plane} slice, read in its own plane")
        planes, spacing = cut(image, plane)
        masks = None if mask is None else _planes(mask, plane)
        chosen = list(range(len(planes)))
        if options.masks and masks is not None:
            chosen = _choose(planes, masks, item, options)
        if chosen and planes[0].size > options.max_pixels:
            found = " x ".join(map(str, planes[0].shape))
            raise DataError("the slices are too large", path=item.name, found=f"{found} pixels", kind="too-large")
        slices = tuple(
            Slice(
                image=np.ascontiguousarray(planes[place]),
                mask=None if masks is None else np.ascontiguousarray(masks[place]),
                slice_id=f"{item.volume}#{place}",
                source=f"{item.files[0].name}#{place}",
                label=item.label,
                patient=item.patient,
                volume=item.volume,
                slice_index=place,
                spacing=spacing,
                notes=notes,
            )
            for place in chosen
        )
        return Reading(slices, scope=image.voxels, sha256=digest.hexdigest())


SOURCE = NiftiSource()


@isolated
def read_volume_file(location: Location, options: SourceOptions, *, channel: int = -1) -> tuple[Volume, bytes]:
    """Read a volume of any file type.

    Args:
        location: The file; for a .hdr/.img pair, the .hdr file.
        options: Provides `max_pixels`, and `channel` if the argument is -1.
        channel: Channel of a multi-channel volume.

    Returns:
        The volume, and the bytes that were read.
    """
    limit = _SLICES * options.max_pixels
    suffix = suffix_of(location.name)
    if channel < 0 and options.channel is not None and options.channel.strip().isdecimal():
        channel = int(options.channel)
    data = read_bytes(location, limit=8 * limit)
    try:
        pair = read_bytes(_voxels_of(location), limit=8 * limit) if suffix == ".hdr" else None
    except DataError as error:
        raise DataError(
            "a header without its voxels",
            path=location.name,
            expected=f"{_voxels_of(location).name} in the same folder",
            kind="missing-partner",
        ) from error
    working_on(location.name, _SECONDS)
    volume = open_volume(data, location.name, suffix, limit, channel=channel, pair=pair)
    return volume, data if pair is None else data + pair


def _voxels_of(header: Location) -> Location:
    """Return the location of the .img file of a .hdr file."""
    end = ".IMG" if header.name.endswith(".HDR") else ".img"
    members = (*header.members[:-1], header.members[-1][:-4] + end) if header.members else ()
    path = header.path if members else header.path.with_suffix(end)
    return Location(path, members, header.name[:-4] + end)


def _other_file(name: str) -> str:
    if suffix_of(name) in {".mhd", ".nhdr"}:
        return "a header whose voxels are in another file; save the volume as .mha, .nrrd or .nii.gz"
    return "not a volume"


def own_plane(shape: tuple[int, ...]) -> str | None:
    """Return the plane of a volume of one slice; None for other volumes.

    >>> own_plane((1, 64, 64)), own_plane((64, 64, 20))
    ('sagittal', None)
    """
    thin = [axis for axis, size in enumerate(shape) if size == 1]
    return ("sagittal", "coronal", "axial")[thin[0]] if len(thin) == 1 else None


def cut(volume: Volume, plane: str) -> tuple[NDArray[Any], tuple[float, float]]:
    """Cut a volume into upright pictures in a plane; nothing is copied or interpolated.

    Returns:
        (slices, height, width), a view of the volume; the pixel size in millimetres, rows then columns.
    """
    left, back, up = volume.spacing
    spacing = {"axial": (back, left), "coronal": (up, left), "sagittal": (up, back)}[plane]
    return _planes(volume.voxels, plane), spacing


def stack(slices: NDArray[Any], plane: str) -> NDArray[Any]:
    """Stack upright pictures (slices, rows, columns) to a volume (left, back, head); the inverse of `cut`.

    Example:
        >>> voxels = np.arange(24).reshape(2, 3, 4)
        >>> all((stack(_planes(voxels, plane), plane) == voxels).all() for plane in PLANES)
        True
    """
    if plane == "axial":
        return slices.transpose(2, 1, 0)
    return slices.transpose((2, 0, 1) if plane == "coronal" else (0, 2, 1))[:, :, ::-1]


def _planes(voxels: NDArray[Any], plane: str) -> NDArray[Any]:
    """Rearrange (left, back, head) voxels as (slices, rows, columns)."""
    if plane == "axial":
        return voxels.transpose(2, 1, 0)
    # The top row is the head, so rows run against the third axis.
    return voxels[:, :, ::-1].transpose((1, 2, 0) if plane == "coronal" else (0, 2, 1))


def _check_plane(plane: str) -> None:
    if plane not in PLANES:
        raise UsageError("unknown plane", found=plane, expected=", ".join(PLANES))


def _patient(case: Case, volume: str) -> str:
    """Return the patient in the names; if there is none, each case counts as one patient."""
    match = _TIME_POINT.search(case.image.name)
    if match:
        return match.group(1) or match.group(2)
    return patient_in_name(case.image.name) or split_name(volume)[1]


def _read_segmentation(
    item: Item, image: Volume, options: SourceOptions
) -> tuple[NDArray[np.bool_], bytes, tuple[str, ...]]:
    name = item.files[1].name
    try:
        segmentation, data = read_volume_file(item.files[1], options)
    except DataError as error:
        raise partner_error(error, f"segmentation {name}", item.name) from error
    _check_grid(image, segmentation, item.name, name)
    labels = np.unique(segmentation.voxels)
    # Labels stored as scaled floats may be 1.00002 instead of 1.
    whole = np.rint(labels)
    wrong = (whole < 0) | (np.abs(labels - whole) > _ROUNDING)
    if wrong.any():
        odd = labels[wrong][0]
        raise DataError(
            f"its segmentation {name} has values that are not labels",
            path=item.name,
            found=f"{odd:g}",
            expected="whole numbers from 0",
            kind="bad-mask",
        )
    voxels = segmentation.voxels if (labels == whole).all() else np.rint(segmentation.voxels)
    present = sorted({int(label) for label in whole if label > 0})
    if options.foreground is None and len(present) > _MAX_LABELS:
        raise DataError(
            f"its segmentation {name} seems to be an anatomical map",
            path=item.name,
            found=f"{len(present)} labels",
            expected=f"at most {_MAX_LABELS}",
            remedy="Choose the labels of the tumour with --foreground",
            kind="unknown-label",
        )
    mask = voxels > 0 if options.foreground is None else np.isin(voxels, options.foreground)
    found = ", ".join(map(str, present)) or "none"
    if options.masks and not mask.any() and item.label != "no_tumor":
        wanted = "any" if options.foreground is None else ", ".join(map(str, options.foreground))
        raise DataError(
            f"its segmentation {name} has no tumour",
            path=item.name,
            found=f"labels {found}",
            expected=wanted,
            remedy="Choose the labels of the tumour with --foreground, or remove the case",
            kind="no-tumour",
        )
    if options.foreground is not None:
        wanted = ", ".join(map(str, options.foreground))
        return mask, data, (f"the segmentation has the labels {found}: {wanted} count as tumour",)
    several = len(present) > 1
    return mask, data, (f"the segmentation has the labels {found}: all of them are tumour",) if several else ()


def _check_grid(image: Volume, segmentation: Volume, name: str, other: str) -> None:
    if segmentation.voxels.shape != image.voxels.shape:
        raise DataError(
            f"its segmentation {other} differs in size",
            path=name,
            found=" x ".join(map(str, segmentation.voxels.shape)),
            expected=f"{' x '.join(map(str, image.voxels.shape))} like the image (left, back, head)",
            kind="size-mismatch",
        )
    size = image.voxels.shape
    corners = np.array([(i, j, k, 1) for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)])
    shift = np.abs((corners @ image.affine.T - corners @ segmentation.affine.T)[:, :3]).max()
    if shift > min(image.spacing) / 2:
        raise DataError(
            f"its segmentation {other} has another position in space",
            path=name,
            found=f"a corner {shift:.3g} mm away",
            expected="the affine of the image",
            remedy="Resample it to the image, or save it with the affine of the image",
            kind="affine-mismatch",
        )


def _choose(slices: NDArray[Any], masks: NDArray[np.bool_], item: Item, options: SourceOptions) -> list[int]:
    tumour = masks.any(axis=(1, 2))
    seen = slices.max(axis=(1, 2)) > slices.min(axis=(1, 2))  # not beyond the head
    empty = sorted(np.flatnonzero(~tumour & seen).tolist(), key=lambda place: _draw(options.seed, item.name, place))
    # All slices of a case without tumour, since there is no number to take a share of.
    count = round(options.empty_share * int(tumour.sum())) if tumour.any() else len(empty)
    return sorted([*np.flatnonzero(tumour).tolist(), *empty[:count]])


def _draw(seed: int, name: str, place: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}\n{place}".encode()).digest()
