"""Convert masks to binary masks by one documented rule, with notes on its decisions."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.images import Picture

_MAX_LABEL = 31  # whole numbers up to here are labels, larger ones grey levels
_FEW = 8  # largest number of levels besides 0 that may be regions
_NEAR = 8  # levels within 1/8 of black or white are noise
_DARK = 64  # smallest maximum of a lossy mask: below, a 0/1 mask cannot be distinguished from noise
_MAX_GREY_SHARE = 0.25  # a mask with more grey pixels is a picture
_MAX_TUMOUR_SHARE = 0.5  # a mask with more tumour is probably inverted
_MAX_COLOURS = 32  # a mask with more colours is a picture


def binarise(
    values: NDArray[Any],
    name: str,
    *,
    foreground: tuple[int, ...] | None = None,
    lossy: bool = False,
    regions: bool = False,
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Find the tumour pixels of a mask.

    The first rule that applies to a mask with the largest value `M`:

    1. All pixels are 0: no tumour.
    2. One value besides 0 (0/1, 0/255, 0/128, ...): all other pixels are tumour. If `foreground` is given and the value may
       be a label (31 or less), rule 3 applies instead.
    3. Whole numbers up to 31 (0/1/2/4): labels. Those in `foreground` are tumour, or all but 0 if it is None.
    4. At most 8 levels besides 0, not all near black (below `M/8`) or white (above `7M/8`), one of which fills 3 x 3 pixels
       or is in `foreground`: regions drawn in shades of grey. Those in `foreground` are tumour, or all but 0.
    5. Other grey levels come from JPEG (1-7 and 248-255) or resizing (soft edges): values above `M/2` are tumour.

    For JPEG masks only rules 1, 2 and 5 apply, and a maximum below 64 is refused.

    Args:
        values: (height, width), any real type.
        name: File name for messages.
        foreground: Label values of tumour, for rules 3 and 4.
        lossy: Whether the mask was stored as JPEG.
        regions: Whether other masks of the data set have regions in shades of grey, for rule 4.

    Returns:
        (height, width) bool; notes on decisions, none for plain 0/1, 0/255 and 0/65535 masks.

    Raises:
        DataError: Not a mask: NaN, negative values, no background, mostly grey, or too dark a JPEG.

    Example:
        >>> noisy = np.array([[0, 3, 5], [250, 255, 252]], np.uint8)
        >>> mask, notes = binarise(noisy, "a.png")
        >>> mask.astype(int).tolist(), notes
        ([[0, 0, 0], [1, 1, 1]], ('the mask had 6 values (0 to 255): cut at 128',))
    """
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("the mask has NaN or infinite values", path=name, kind="not-finite")
    levels = _levels(values)
    top = levels[-1].item()
    if levels[0] < 0:
        found = levels[0].item()
        raise DataError("the mask has negative values", path=name, found=found, expected="0 or more", kind="bad-mask")
    if top == 0:
        return np.zeros(values.shape, np.bool_), ()
    nonzero = levels[levels > 0]
    if len(levels) == 1 or (levels[0] != 0 and _has_no_background(levels, lossy)):
        raise DataError(
            "the mask has no background",
            path=name,
            found=f"lowest value {_number(levels[0])}, highest {_number(top)}",
            expected="0 outside the tumour",
            remedy="Check that this is a mask, and that it is not inverted",
            kind="bad-mask",
        )
    if len(nonzero) == 1 and levels[0] == 0 and not (lossy and top < _DARK):
        # If the user names labels, a mask with only one of them is still a mask of labels.
        if not lossy and foreground is not None and (top <= _MAX_LABEL or max(foreground, default=0) > _MAX_LABEL):
            return _labels(values, nonzero, foreground)
        odd = f"the mask had the values 0 and {_number(top)}: {_number(top)} is tumour"
        return _checked(values > 0, () if top in {1, 255, 65535} else (odd,))
    whole = values.dtype.kind in "iu" or bool((levels == np.rint(levels)).all())
    near = bool(((levels <= top / _NEAR) | (levels >= top - top / _NEAR)).all())
    if not lossy and whole:
        shades = levels[0] == 0 and not near and len(nonzero) <= _FEW
        named = foreground is not None and bool(np.isin(nonzero, foreground).any())
        if top <= _MAX_LABEL or (shades and (named or regions or has_grey_regions(values))):
            return _labels(values, nonzero, foreground)
    return _grey_levels(values, levels, name, lossy)


def _levels(values: NDArray[Any]) -> NDArray[Any]:
    """Return the distinct values, ascending; counting is ten times as fast as `np.unique` for the usual types."""
    if values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(values.ravel())).astype(values.dtype)
    return np.unique(values)


def has_grey_regions(values: NDArray[Any]) -> bool:
    """Whether a mask has few grey levels, one of which fills 3 x 3 pixels (the levels of soft edges form lines)."""
    levels = _levels(values)
    top = levels[-1]
    middle = levels[(levels > top / _NEAR) & (levels < top - top / _NEAR)]
    if levels[0] != 0 or len(levels) > _FEW + 1:
        return False
    square = np.ones((3, 3), np.uint8)
    return any(bool(cv2.erode((values == level).astype(np.uint8), square, borderValue=0).any()) for level in middle)


def _has_no_background(levels: NDArray[Any], lossy: bool) -> bool:
    """Whether even the lowest level is tumour: labels from 1, or only bright grey levels."""
    top = levels[-1]
    return bool(not lossy and top <= _MAX_LABEL) or bool(levels[0] > top / _NEAR)


def _labels(
    values: NDArray[Any], nonzero: NDArray[Any], foreground: tuple[int, ...] | None
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    found = ", ".join(_number(value) for value in nonzero)
    if foreground is None:
        return _checked(values > 0, (f"the mask had the labels {found}: all of them are tumour",))
    wanted = ", ".join(str(value) for value in foreground)
    return _checked(np.isin(values, foreground), (f"the mask had the labels {found}: {wanted} are tumour",))


def _grey_levels(
    values: NDArray[Any], levels: NDArray[Any], name: str, lossy: bool
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    top = levels[-1].item()
    if lossy and top < _DARK:
        raise DataError(
            "the mask is a JPEG that is nearly black",
            path=name,
            found=f"no value above {_number(top)}",
            expected="tumour near white",
            remedy="Save masks as PNG: in JPEG, a 0/1 mask cannot be distinguished from noise",
            kind="bad-mask",
        )
    grey = np.count_nonzero((values > top / _NEAR) & (values < top - top / _NEAR)) / values.size
    if grey > _MAX_GREY_SHARE:
        raise DataError(
            "not a mask",
            path=name,
            found=f"{grey:.0%} of its pixels are grey",
            expected="black outside the tumour and white inside",
            remedy="Check that image and mask are not exchanged",
            kind="bad-mask",
        )
    cut = (top + 1) / 2 if values.dtype.kind in "iu" else top / 2
    note = f"the mask had {len(levels)} values ({_number(levels[0])} to {_number(top)}): cut at {_number(cut)}"
    return _checked(values >= cut, (note,))


def _checked(mask: NDArray[np.bool_], notes: tuple[str, ...]) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    share = float(mask.mean())
    if share > _MAX_TUMOUR_SHARE:
        notes = (*notes, f"the mask covers {share:.0%} of the image; is it inverted?")
    return mask, notes


def _number(value: float) -> str:
    return f"{value:g}"


def mask_of_picture(
    picture: Picture, name: str, *, foreground: tuple[int, ...] | None = None, regions: bool = False
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Find the tumour pixels of a mask that was stored as a picture; arguments and results as in `binarise`.

    Palette indices are labels. Of a colour mask, the brightest channel counts; with `foreground`, its colours must be those
    of PASCAL VOC (128, 0, 0 is label 1) or use one channel only. Transparent pixels are background; if all pixels have the
    same colour, the opacity is the mask. If a TIFF declares 0 as white, the polarity with less tumour is used, since many
    programs set that tag by mistake.

    Raises:
        DataError: As `binarise`, or `foreground` is given and the colours are not labels.
    """
    values, notes = _values(picture, name, foreground)
    if picture.alpha is not None:
        if (values == values.flat[0]).all():
            values = picture.alpha
        else:
            values = np.where(picture.alpha > 0, values, 0).astype(values.dtype)
        notes = (*notes, "the mask had transparent pixels: they are background")
    if picture.white_is_zero and values.dtype.kind == "u":
        values = values if values.max() == 0 else _less_tumour(values)
        notes = (*notes, "the mask declares 0 as white: the polarity with less tumour is used")
    mask, more = binarise(values, name, foreground=foreground, lossy=picture.lossy, regions=regions)
    return mask, notes + more


def _less_tumour(shown: NDArray[Any]) -> NDArray[Any]:
    stored = np.iinfo(shown.dtype).max - shown
    return stored if np.count_nonzero(stored) < np.count_nonzero(shown) else shown


def _values(picture: Picture, name: str, foreground: tuple[int, ...] | None) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return one value per pixel: label, grey level, or brightest channel."""
    pixels = picture.pixels
    black = pixels.reshape(pixels.shape[0], pixels.shape[1], -1).max(axis=2) == 0
    # Not labels: a palette in another order (black is not the first colour), or of greys for soft edges.
    labelled = picture.indices is not None and (pixels.ndim == 3 or has_grey_regions(pixels))
    if picture.indices is not None and labelled and not bool((black & (picture.indices > 0)).any()):
        return picture.indices, ()
    if pixels.ndim == 2:
        return pixels, ()
    if foreground is not None and (labels := _colour_labels(pixels, black, name)) is not None:
        return labels, ("the colours of the mask were read as labels",)
    return pixels.max(axis=2), ("the mask was in colour: its brightest channel is used",)


def _colour_labels(pixels: NDArray[Any], black: NDArray[np.bool_], name: str) -> NDArray[Any] | None:
    """Convert colours to labels; None if there is only one colour besides black."""
    codes = pixels[~black].astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])
    found = np.unique(codes)
    if len(found) < 2:
        return None
    used = [channel for channel in range(3) if pixels[..., channel].any()]
    if len(used) == 1:
        return np.asarray(pixels[..., used[0]])
    colours = [tuple(int(code) >> shift & 0xFFFF for shift in (32, 16, 0)) for code in found[: _MAX_COLOURS + 1]]
    voc = [_voc_colour(label) for label in range(256)]
    if len(colours) > _MAX_COLOURS or any(colour not in voc for colour in colours):
        shown = ", ".join(map(str, colours[:4])) + (", ..." if len(colours) > 4 else "")
        raise DataError(
            "the colours of the mask are not labels, which --foreground needs",
            path=name,
            found=f"the colours {shown}",
            expected="grey values, a palette, or the colours of PASCAL VOC",
            remedy="Save the labels as grey values, or omit --foreground to count every colour",
            kind="bad-mask",
        )
    labels = np.zeros(black.shape, np.uint8)
    labels[~black] = np.array([voc.index(colour) for colour in colours], np.uint8)[np.searchsorted(found, codes)]
    return labels


def _voc_colour(label: int) -> tuple[int, ...]:
    """Return the colour of a label in PASCAL VOC: bits 0, 3, 6 of the label are the high bits of red, and so on."""
    return tuple(sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))
