"""From the files of a unit to slices, one at a time, with the window of the intensity rule.

A volume is held while its slices are taken, and no longer; a series is read a file at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg.prediction.layouts import Layout, PictureLayout, SeriesLayout, VolumeLayout
from kerasseg.prediction.units import Unit
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.intensity import IntensityRule, Window, intensity_window
from kerasseg_tfrecords.sources import read_item
from kerasseg_tfrecords.sources.base import Item, SourceOptions
from kerasseg_tfrecords.sources.tree import read_bytes

__all__ = ["OpenedUnit", "RawSlice", "open_unit"]

_VOLUME = 4  # a volume may have this many times the pixels of the largest image, as in `sources.nifti`
_EVEN = 0.02  # millimetres that gaps between slices may differ by: headers are rounded


@dataclass(frozen=True, slots=True, eq=False)
class RawSlice:
    """A slice as it is stored.

    Attributes:
        image: (height, width) or (height, width, 3).
        window: Of the intensity rule: over the slice, or the volume it belongs to.
        spacing: Millimetres a pixel, rows then columns; (0, 0) where unknown.
    """

    image: NDArray[Any]
    window: Window
    spacing: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class OpenedUnit:
    """A unit that is being read.

    Attributes:
        count: Slices in it.
        layout: How their masks become files.
        slices: Read as they are taken; raises DataError where one cannot be read.
        notes: What had to be decided.
    """

    count: int
    layout: Layout
    slices: Iterator[RawSlice]
    notes: tuple[str, ...] = ()


def open_unit(
    unit: Unit, rule: IntensityRule, options: SourceOptions, plane: str | None, usual: str = "axial"
) -> OpenedUnit:
    """Opens a unit.

    Args:
        unit: What is read.
        rule: For grey levels.
        options: For the readers.
        plane: Of volumes; None for the usual one, and of a volume of one slice the plane in which it lies.
        usual: What the network was trained on.

    Raises:
        DataError: It cannot be read.
    """
    if unit.kind == "volume":
        return _open_volume(unit.items[0], rule, options, plane, usual)
    if unit.kind == "series":
        return _open_series(unit, rule, options)
    (only,) = read_item(unit.items[0], options).slices
    raw = RawSlice(only.image, intensity_window(only.image, rule), only.spacing)
    return OpenedUnit(1, PictureLayout(), iter([raw]), only.notes)


# --- volumes ---------------------------------------------------------------------------------------------------------


def _open_volume(item: Item, rule: IntensityRule, options: SourceOptions, plane: str | None, usual: str) -> OpenedUnit:
    from kerasseg_tfrecords.sources.nifti import cut
    from kerasseg_tfrecords.sources.nifti_file import read_header, read_volume

    limit = _VOLUME * options.max_pixels
    try:
        data = read_bytes(item.files[0], limit=8 * limit)
        header = read_header(data, item.name)
        volume = read_volume(data, item.name, limit)
    except DataError as error:
        error.path = error.path or item.name
        raise
    except Exception as error:  # one bad file must not cost the others
        raise DataError("cannot be read", path=item.name, found=f"{type(error).__name__}: {error}") from error
    del data
    chosen = _plane(volume.voxels.shape, plane, usual, item.name)
    planes = cut(volume, chosen)
    window = intensity_window(volume.voxels, rule)
    notes = () if volume.oriented else ("the header gives no orientation: its axes are a guess",)
    slices = (RawSlice(np.ascontiguousarray(image), window, planes.spacing) for image in planes.slices)
    return OpenedUnit(len(planes.slices), VolumeLayout(header, chosen), slices, notes)


def _plane(shape: tuple[int, ...], asked: str | None, usual: str, name: str) -> str:
    """The plane to cut in. A volume of one slice has one plane: cut across, it would fall into lines."""
    thin = [axis for axis, size in enumerate(shape) if size == 1]
    own = ("sagittal", "coronal", "axial")[thin[0]] if len(thin) == 1 else None
    if asked is not None and own is not None and asked != own:
        raise DataError(
            "a volume of one slice, which lies in another plane",
            path=name,
            found=own,
            expected=asked,
            remedy="Leave out --plane, or predict it by itself.",
            kind="one-slice",
        )
    return own or asked or usual


# --- DICOM series ----------------------------------------------------------------------------------------------------


def _open_series(unit: Unit, rule: IntensityRule, options: SourceOptions) -> OpenedUnit:
    from kerasseg_tfrecords.sources.dicom_file import read_dicom_header
    from kerasseg_tfrecords.sources.sniff import file_limit

    headers = [
        read_dicom_header(read_bytes(item.files[0], limit=file_limit(options)), item.name, options.max_pixels)
        for item in unit.items
    ]
    affines = tuple(_affine(header) for header in headers)
    layout = SeriesLayout(tuple(item.name for item in unit.items), _even(headers, affines), affines)
    notes: tuple[str, ...] = ()
    if layout.affine is None and len(headers) > 1:
        notes = ("its slices do not lie evenly one behind the other: each has a file of its own",)

    def slices() -> Iterator[RawSlice]:
        for item in unit.items:
            (only,) = read_item(item, options).slices
            # As when training: DICOM slices are single ones there, each with its own window.
            yield RawSlice(only.image, intensity_window(only.image, rule), only.spacing)

    return OpenedUnit(len(headers), layout, slices(), notes)


def _affine(header: Any) -> NDArray[np.float64] | None:
    """From (column, row, slice) of one slice to millimetres (right, front, head)."""
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
    affine[:2] *= -1  # DICOM counts to the left and to the back
    return affine


def _even(headers: list[Any], affines: tuple[NDArray[np.float64] | None, ...]) -> NDArray[np.float64] | None:
    """The affine of the series as one volume; None where it is none."""
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
