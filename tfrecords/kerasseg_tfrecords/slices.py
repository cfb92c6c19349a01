"""Slices as readers return them, before normalisation and resizing, and the location of their files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One two-dimensional MRI slice and its tumour mask, at native size.

    Attributes:
        image: (height, width) or, in colour, (height, width, 3); in the stored type and range (integer or float), finite,
            and in radiological view if the format states the orientation.
        mask: (height, width) bool, True inside the tumour; None if masks are not read.
        slice_id: Id of the slice, unique within its input.
        source: The file relative to its input, as `outer.zip!inner/1.mat` inside archives, and with `#index` for volumes.
        label: Class name (`meningioma`, `glioma`, `pituitary`, `no_tumor`, ...); "" for data without classes.
        patient: Patient id as read; "" if unknown.
        volume: Id of its volume, unique within its input; "" for a single slice.
        slice_index: Index in the volume, from 0; -1 for a single slice.
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown.
        notes: Decisions of the reader ("the mask had 12 values (0 to 255): cut at 128").

    Example:
        >>> image = np.zeros((48, 40), np.int16)
        >>> one = Slice(image, image > 0, "104", "104.mat", label="glioma", patient="MR040240", spacing=(0.5, 0.5))
        >>> one.label, one.slice_index
        ('glioma', -1)
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_] | None
    slice_id: str
    source: str
    label: str = ""
    patient: str = ""
    volume: str = ""
    slice_index: int = -1
    spacing: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The content of one item: a slice, or the chosen slices of a volume.

    Attributes:
        slices: In the order of their `slice_index`.
        scope: The pixels for the statistics of the intensity rule: the whole volume, or None for single slices, which are
            normalised separately.
        sha256: Hex digest of the bytes that were read (image, then masks), for `splits.csv`.

    Example:
        >>> from kerasseg_tfrecords import SourceOptions, detect, open_tree, read_item
        >>> tree = open_tree("data")
        >>> item = detect(tree).find_items(tree, SourceOptions()).items[0]
        >>> reading = read_item(item, SourceOptions())
        >>> reading.slices[0].image.shape, reading.slices[0].label, reading.scope is None
        ((48, 48), 'meningioma', True)
    """

    slices: tuple[Slice, ...]
    scope: NDArray[Any] | None = field(default=None, repr=False)
    sha256: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A file on disk or inside archives; `sources.tree` reads it.

    Attributes:
        path: The file on disk (the archive, for its members).
        members: Member names, outermost archive first: ("inner.zip", "1.mat"); () for plain files.
        name: Display name, also in `splits.csv`: relative to the input, POSIX slashes, `!` between archives.
    """

    path: Path
    members: tuple[str, ...] = ()
    name: str = ""
