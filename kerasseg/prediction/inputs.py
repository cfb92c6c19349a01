"""Inputs of a prediction: pictures, volumes and series, each with the name of its mask file."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kerasseg.prediction.writers import Layout, PictureLayout, SeriesLayout, VolumeLayout
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError, one_line
from kerasseg_tfrecords.intensity import IntensityRule, Window, intensity_window
from kerasseg_tfrecords.sources import read_item
from kerasseg_tfrecords.sources.base import Item, SourceOptions
from kerasseg_tfrecords.sources.roles import split_name, without_suffix
from kerasseg_tfrecords.sources.tree import natural_key, suffix_of
from kerasseg_tfrecords.sources.unlabelled import ImageInput


@dataclass(frozen=True, slots=True)
class Unit:
    """An input that gets one mask file.

    Attributes:
        name: Name shown to users; unique.
        kind: A picture, a volume in one file, or a DICOM series with one file per slice.
        items: One item, or the slices of a series in order.
        stem: Path of its output files in the output folder, without suffix.
        prefix: Prefix of the names of its items if there are several inputs.
    """

    name: str
    kind: Literal["picture", "volume", "series"]
    items: tuple[Item, ...]
    stem: str
    prefix: str = ""

    @property
    def stamp(self) -> list[list[int]]:
        """Size and time of its files, to notice changes; [] if one is missing."""
        stamps = []
        for path in dict.fromkeys(item.files[0].path for item in self.items):
            try:
                facts = path.stat()
            except OSError:
                return []
            stamps.append([facts.st_size, facts.st_mtime_ns])
        return stamps


def plan_units(inputs: Sequence[ImageInput], *, bids: bool = False) -> list[Unit]:
    """List the units in the order of inputs and names; with several inputs, each has its own folder.

    Raises:
        UsageError: Two units would have the same mask file, or one has no BIDS name.
    """
    units: list[Unit] = []
    for entry in inputs:
        prefix = f"{entry.name}/" if len(inputs) > 1 else ""
        series: defaultdict[str, list[Item]] = defaultdict(list)
        for item in entry.items:
            if item.format == "dicom":
                series[item.volume or item.name].append(item)
            else:
                kind: Literal["picture", "volume"] = "volume" if item.format == "nifti" else "picture"
                units.append(Unit(prefix + item.name, kind, (item,), _stem(prefix + item.name)))
        units += _series(series, prefix, entry)
    units.sort(key=lambda unit: natural_key(unit.name))
    units = [replace(unit, stem=bids_stem(unit)) for unit in units] if bids else _told_apart(units)
    _check_names(units)
    return units


def bids_stem(unit: Unit) -> str:
    """Return the path of a unit's outputs in a BIDS derivative, without the suffix `_mask.nii.gz`.

    Example:
        >>> name = "raw/sub-01/ses-2/anat/sub-01_ses-2_ce-gd_T1w"
        >>> bids_stem(Unit(f"{name}.nii.gz", "volume", (), name))
        'sub-01/ses-2/anat/sub-01_ses-2_ce-gd_label-tumor'
    """
    *folders, base = unit.stem.split("/")
    match = _BIDS_NAME.fullmatch(base)
    if match is None:
        raise UsageError(
            "not a BIDS name",
            path=unit.name,
            expected="a name such as sub-01_ses-1_T1w.nii.gz",
            remedy="Rename the file, or leave out --bids.",
        )
    kind = folders[-1] if folders and folders[-1] in _BIDS_KINDS else "anat"
    places = [match["subject"], *filter(None, [match["session"]]), kind]
    return "/".join([*places, f"{match['entities']}_label-tumor"])


_BIDS_NAME = re.compile(
    r"(?P<entities>(?P<subject>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?(_[a-z]+-[A-Za-z0-9]+)*)_[A-Za-z0-9]+"
)
_BIDS_KINDS = {"anat", "dwi", "func", "perf", "fmap"}


def check_inputs(out: Path, given: Iterable[Path | str]) -> None:
    """Check the inputs before anything is listed.

    Raises:
        UsageError: An input is the output folder or directly in it, or is a run.
    """
    for path in map(Path, given):
        _refuse_same(out, path if path.is_dir() else path.parent)
        if (path / "config.json").is_file() and (path / "model.keras").is_file():
            raise UsageError(
                "this is a run, not a folder of images",
                path=path,
                remedy="Give a run with --run, several networks with --ensemble A --ensemble B, or --ensemble A,B.",
            )


def check_folder(out: Path, inputs: Sequence[ImageInput]) -> None:
    """Check that masks are not written into an input.

    Raises:
        UsageError: The output folder is an input; the next prediction would treat masks and overlays as images.
    """
    for entry in inputs:
        root = entry.root if entry.root.is_dir() else entry.root.parent
        _refuse_same(out, root)
        if len(inputs) > 1:
            _refuse_same(out / entry.name, root)


def check_name(unit: Unit) -> None:
    """Check that output files can be named after a unit."""
    longest = len(f"{unit.stem.rsplit('/', 1)[-1]}_probabilities.nii.gz".encode())
    if longest > _NAME:
        raise DataError(
            "the file name is too long for the name of its mask",
            path=unit.name,
            expected=f"{longest - _NAME} bytes fewer",
            remedy="Rename the file.",
            kind="name",
        )


_NAME = 240
"""Maximum bytes of a file name: file systems allow 255, and temporary files need some of them."""


def _refuse_same(out: Path, root: Path) -> None:
    if out.exists() and root.is_dir() and os.path.samefile(out, root):  # noqa: PTH121 - follows links
        raise UsageError(
            "the output folder is the input folder",
            path=out,
            expected="another folder",
            remedy=f"Otherwise masks would be treated as images next time. Use for example --out {out / 'predictions'}",
        )


def _told_apart(units: Sequence[Unit]) -> list[Unit]:
    """Add suffixes to the names of masks if names alone are ambiguous, as for `1.png` and `1.jpg`."""
    groups: defaultdict[tuple[str, bool], list[Unit]] = defaultdict(list)
    for unit in units:
        groups[_place(unit)].append(unit)
    found = []
    for unit in units:
        alike = groups[_place(unit)]
        endings = {suffix_of(one.items[0].name) for one in alike}
        single = all(len(one.items) == 1 for one in alike)
        if len(alike) > 1 and single and len(endings) == len(alike):
            unit = replace(unit, stem=f"{unit.stem}-{suffix_of(unit.items[0].name).lstrip('.')}")
        found.append(unit)
    return found


def _place(unit: Unit) -> tuple[str, bool]:
    # Some file systems ignore case. Masks of pictures and of volumes have different suffixes.
    return unit.stem.casefold(), unit.kind == "picture"


def _stem(name: str) -> str:
    # Members of a zip archive are in a folder with its name.
    folders, base = split_name(name)
    parts = [re.sub(r"\.zip$", "", folder, flags=re.IGNORECASE) for folder in folders]
    return "/".join([*(part for part in parts if part not in {"", ".", ".."}), without_suffix(base)])


def _series(series: dict[str, list[Item]], prefix: str, entry: ImageInput) -> list[Unit]:
    """Name a series after its folder, with its number if there are several; a single file after itself."""
    named: defaultdict[str, list[tuple[str, list[Item]]]] = defaultdict(list)
    for uid, items in series.items():
        items.sort(key=lambda item: item.slice_index)
        folder = os.path.commonpath([os.path.dirname(item.name) for item in items])  # noqa: PTH120 - no files of ours
        named[folder].append((uid, items))
    units = []
    for folder, members in named.items():
        for uid, items in members:
            if len(items) == 1:
                units.append(
                    Unit(prefix + items[0].name, "series", tuple(items), _stem(prefix + items[0].name), prefix)
                )
                continue
            files = {item.files[0].name for item in items}
            if len(files) == 1:  # the frames of an enhanced file
                base = _stem(prefix + files.pop())
            else:
                base = _stem(prefix + folder) if folder else prefix + (entry.root.resolve().stem or "series")
                if len(members) > 1:
                    base = f"{base}-{_short(uid, [other for other, _ in members])}"
            name = f"{prefix}{items[0].name} and {len(items) - 1} more"
            units.append(Unit(name, "series", tuple(items), base, prefix))
    return units


def _short(uid: str, others: Sequence[str]) -> str:
    numbers = uid.split(".")
    for length in range(1, len(numbers) + 1):
        end = numbers[-length:]
        if sum(other.split(".")[-length:] == end for other in others) == 1:
            return ".".join(end)
    return uid


def _check_names(units: Sequence[Unit]) -> None:
    taken: dict[tuple[str, bool], Unit] = {}
    for unit in units:
        other = taken.setdefault(_place(unit), unit)
        if other is not unit:
            raise UsageError(
                "two inputs would be written to the same file",
                path=unit.name,
                found=f"the mask of {other.name} also has the name {unit.stem}",
                remedy="Predict them into two folders (--out), or rename one of them.",
            )


_EVEN = 0.02  # millimetres by which slice distances may differ, because headers are rounded


@dataclass(frozen=True, slots=True, eq=False)
class RawSlice:
    """A slice as stored.

    Attributes:
        image: (height, width) or (height, width, 3).
        window: Window of the intensity rule, over the slice or its volume.
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown.
    """

    image: NDArray[Any]
    window: Window
    spacing: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class OpenedUnit:
    """A unit that is being read.

    Attributes:
        count: Number of slices.
        layout: How their masks become files.
        slices: The slices, read one by one; raises DataError if a slice cannot be read.
        notes: Remarks for users.
        thickness: Distance of neighbouring slices in millimetres; 0 if unknown or uneven.
    """

    count: int
    layout: Layout
    slices: Iterator[RawSlice]
    notes: tuple[str, ...] = ()
    thickness: float = 0.0


def open_unit(
    unit: Unit, rule: IntensityRule, options: SourceOptions, plane: str | None, usual: str = "axial"
) -> OpenedUnit:
    """Open a unit for reading."""
    if unit.kind == "volume":
        return _open_volume(unit.items[0], rule, options, plane, usual)
    if unit.kind == "series":
        return _open_series(unit, rule, options)
    reading = read_item(unit.items[0], options)
    first = reading.slices[0]
    raws = [
        RawSlice(one.image, intensity_window(one.image if reading.scope is None else reading.scope, rule), one.spacing)
        for one in reading.slices
    ]
    if len(raws) == 1:
        return OpenedUnit(1, PictureLayout(), iter(raws), first.notes)
    pages = SeriesLayout(tuple(one.slice_id for one in reading.slices), None, (None,) * len(raws))
    return OpenedUnit(len(raws), pages, iter(raws), first.notes)


def network_image(image: NDArray[np.uint8], channels: int, name: str) -> NDArray[np.uint8]:
    """Give a prepared slice the number of channels that the network takes."""
    if image.shape[2] == 3 and channels == 1:
        raise DataError(
            "the network takes grey pictures, but this is a colour picture",
            path=name,
            expected="one channel",
            remedy="Save it as a grey picture.",
            kind="colour",
        )
    return image if image.shape[2] == channels else np.repeat(image, channels, axis=2)


# --- volumes ---------------------------------------------------------------------------------------------------------


def _open_volume(item: Item, rule: IntensityRule, options: SourceOptions, plane: str | None, usual: str) -> OpenedUnit:
    from kerasseg_tfrecords.sources.nifti import cut, read_volume_file

    try:
        volume, _ = read_volume_file(item.files[0], options, channel=item.channel)
    except DataError as error:
        error.name_file(item.name)
        raise
    except KerassegError:  # of the machine, such as a full disk: the file may be good
        raise
    except Exception as error:  # one bad file must not stop the others
        raise DataError("cannot be read", path=item.name, found=f"{type(error).__name__}: {error}") from error
    chosen = _plane(volume.voxels.shape, plane, usual, item.name)
    planes, spacing = cut(volume, chosen)
    window = intensity_window(volume.voxels, rule)
    slices = (RawSlice(np.ascontiguousarray(image), window, spacing) for image in planes)
    thickness = float(volume.spacing[("sagittal", "coronal", "axial").index(chosen)])
    return OpenedUnit(len(planes), VolumeLayout(volume.header, chosen), slices, volume.notes, thickness)


def _plane(shape: tuple[int, ...], asked: str | None, usual: str, name: str) -> str:
    """Return the plane of the slices. A volume of one slice has only one plane."""
    from kerasseg_tfrecords.sources.nifti import own_plane

    own = own_plane(shape)
    if asked is not None and own is not None and asked != own:
        raise DataError(
            "the volume has a single slice, in another plane",
            path=name,
            found=own,
            expected=asked,
            remedy="Omit --plane, or predict this file separately.",
            kind="one-slice",
        )
    return own or asked or usual


# --- DICOM series ----------------------------------------------------------------------------------------------------


def _open_series(unit: Unit, rule: IntensityRule, options: SourceOptions) -> OpenedUnit:
    from kerasseg_tfrecords.sources.dicom import read_header

    headers = [read_header(item, options) for item in unit.items]
    affines = tuple(_affine(header) for header in headers)
    layout = SeriesLayout(tuple(item.name for item in unit.items), _even(headers, affines), affines)
    notes = [*_not_a_head(headers[0].body_part)]
    if layout.affine is None and len(headers) > 1:
        notes.append("the slices are not evenly spaced: each has its own mask file")
    thickness = 0.0 if layout.affine is None else float(np.linalg.norm(layout.affine[:3, 2]))

    def slices() -> Iterator[RawSlice]:
        for item in unit.items:
            (only,) = read_item(item, options).slices
            # As in training, where DICOM slices are scaled one by one.
            yield RawSlice(only.image, intensity_window(only.image, rule), only.spacing)

    return OpenedUnit(len(headers), layout, slices(), tuple(notes), thickness)


_MAY_BE_HEAD = re.compile(
    r"head|brain|skull|crani|neuro|face|orbit|sella|pituit|hypophys|kopf|gehirn|schaedel|cerebr|t[eê]te|encephal"
    r"|whole ?body|unknown|other|none|n/a|unspecified"
)
"""Body parts that may show a brain, in several languages, or that are uninformative."""


def _not_a_head(part: str) -> Iterator[str]:
    """Yield a remark if the header of a series says that it shows another part of the body."""
    if part and not _MAY_BE_HEAD.search(part.lower()):
        yield f"the header says that the series shows {one_line(part)[:40]}, not a head: do not rely on its masks"


def _affine(header: Any) -> NDArray[np.float64] | None:
    """Return the affine of a slice, from (column, row, slice) to millimetres (right, front, head)."""
    if header.origin is None or header.axes is None or not all(header.spacing):
        return None
    across, down = np.array(header.axes[:3]), np.array(header.axes[3:])
    normal = np.cross(across, down)
    if abs(np.linalg.norm(normal) - 1) > 1e-2:
        return None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * header.spacing[1], down * header.spacing[0]
    affine[:3, 2] = normal * (header.thickness or 1.0)
    affine[:3, 3] = header.origin
    affine[:2] *= -1  # DICOM axes point to the left and to the back
    return affine


def _even(headers: list[Any], affines: tuple[NDArray[np.float64] | None, ...]) -> NDArray[np.float64] | None:
    """Return the affine of a series as one volume; None if its slices are not evenly spaced."""
    known = [affine for affine in affines if affine is not None]
    if len(known) < len(affines) or len({(h.rows, h.columns) for h in headers}) > 1:
        return None
    first = known[0].copy()
    if len(known) == 1:
        return first
    if any(np.abs(affine[:3, :2] - first[:3, :2]).max() > 1e-3 for affine in known):
        return None
    origins = np.array([affine[:3, 3] for affine in known])
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    expected = origins[0] + np.arange(len(origins))[:, None] * step
    if np.linalg.norm(step) < 1e-3 or np.abs(origins - expected).max() > max(_EVEN, 0.01 * np.linalg.norm(step)):
        return None
    first[:3, 2] = step
    return first
