"""What a reader gives: slices as they are stored, before any normalisation or resizing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reading", "Slice"]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One two-dimensional MRI slice and its tumour mask, at native size.

    Attributes:
        image: Grey (height, width) or colour (height, width, 3), in the stored type and range (integer or float). Upright
            as a radiologist sees it where the format tells; finite.
        mask: (height, width) bool, True inside the tumour; None where masks were not asked for.
        slice_id: Name of the slice, unique within its input.
        source: Where it was read: the file relative to its input, `outer.zip!inner/1.mat` inside archives; volumes add
            `#index`.
        label: Class name (`meningioma`, `glioma`, `pituitary`, `no_tumor`, ...); "" where the data set has no classes.
        patient: Patient id as read; "" where unknown.
        volume: Id of the volume that the slice belongs to, unique within its input; "" where it is a single slice.
        slice_index: Place in the volume, counted from 0; -1 where it is a single slice.
        spacing: Millimetres a pixel, rows then columns; (0, 0) where unknown.
        notes: What the reader had to decide, for the report ("mask had 12 values, cut at 128").

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
    """What one item of a source holds: a slice, or the chosen slices of a volume.

    Attributes:
        slices: In the order of their `slice_index`.
        scope: The pixels over which the intensity rule takes its statistics: the whole volume for slices of a volume,
            None for single slices (each is then normalised by itself).
        sha256: Hex digest of the bytes that were read (image then mask file), for `splits.csv`.

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
