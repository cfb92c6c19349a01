"""Check raw data slice by slice, before any conversion (`kerasseg verify --data`).

| kind              | level   | meaning                                                                           |
| ----------------- | ------- | --------------------------------------------------------------------------------- |
| `unreadable` ...  | error   | refused by the reader: damaged, too large, unknown label, missing partner, ...    |
| `empty-image`     | error   | no pixels, or not (height, width) or (height, width, 3)                           |
| `not-finite`      | error   | NaN or infinite values                                                            |
| `constant-image`  | error   | all pixels are equal                                                              |
| `size-mismatch`   | error   | image and mask differ in size                                                     |
| `duplicate-id`    | error   | two slices of one input have the same id                                          |
| `mask-outside`    | warning | most of the mask is on dark background: shifted, flipped, or of another slice     |
| `large-mask`      | warning | the mask is larger than a tumour: inverted, or a brain mask                       |
| `empty-mask`      | warning | a single slice of a tumour class without tumour                                   |
| `mask-in-healthy` | warning | a slice of the class `no_tumor` with tumour                                       |
| `no-tumour`       | warning | no mask of the whole data set holds a tumour                                      |

Errors stop `prepare` (with `--skip-bad`, it skips the slice); warnings should be checked by a person.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.cluster import choose_pool
from kerasseg_tfrecords.errors import BadInputError, DataError, Problem
from kerasseg_tfrecords.slices import Slice
from kerasseg_tfrecords.sources import find_items, read_item
from kerasseg_tfrecords.sources.base import Item, LeftOut, NotASlice, SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree
from kerasseg_tfrecords.storage import local_copy, url_of
from kerasseg_tfrecords.text import count, without_credentials

if TYPE_CHECKING:
    from distributed import Client

LARGE_MASK = 0.4
"""Share of the image above which a mask gets a warning. The largest tumour of the figshare set covers 10 %."""
OUTSIDE_MASK = 0.5
"""Share of the mask on background above which it gets a warning."""
BACKGROUND = 0.2
"""Pixels below this fraction of the way from the image's minimum to its mean are background. Air in MR is far below it, and
the brightest pixels of a head slice hardly change its mean."""


def check_slice(slice_: Slice) -> tuple[Problem, ...]:
    """Check one slice for problems that its reader accepts; return errors, then warnings.

    Example:
        >>> image = np.zeros((8, 8), np.int16)
        >>> [problem.kind for problem in check_slice(Slice(image, None, "1", "1.mat"))]
        ['constant-image']
    """
    name, image, mask = slice_.source, slice_.image, slice_.mask
    fault = _image_fault(image, name)
    problems = [] if fault is None else [fault]
    if mask is not None and mask.shape != image.shape[:2]:
        found, expected = " x ".join(map(str, mask.shape)), " x ".join(map(str, image.shape[:2]))
        message = (
            f"mask and image differ in size (found {found}, expected {expected}). Pair the image with its own mask"
        )
        problems.append(Problem(name, "size-mismatch", message))
    if mask is not None and not problems:
        problems += _mask_warnings(slice_, image, mask)
    return tuple(problems)


def _image_fault(image: NDArray[Any], name: str) -> Problem | None:
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] != 3):
        shape = " x ".join(map(str, image.shape)) or "one value"
        return Problem(
            name, "empty-image", f"not an image (found {shape}, expected height x width or height x width x 3)"
        )
    low, high = image.min(), image.max()
    # Minimum and maximum are NaN if any pixel is: a good image needs no further pass.
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(image)))
        message = f"the image has NaN or infinite values ({count(bad, 'pixel')}). Correct the file"
        return Problem(name, "not-finite", message)
    if low == high:
        return Problem(name, "constant-image", f"all pixels of the image have the same value (found {low})")
    return None


def _mask_warnings(slice_: Slice, image: NDArray[Any], mask: NDArray[np.bool_]) -> list[Problem]:
    name = slice_.source
    area = int(np.count_nonzero(mask))
    if area == 0:
        # A volume has slices above and below its tumour; a single slice of a tumour class should show one.
        if slice_.label in {"", "no_tumor"} or slice_.volume:
            return []
        message = f"the mask is empty, but the class is {slice_.label}"
        return [Problem(name, "empty-mask", message, "warning")]
    problems: list[Problem] = []
    if slice_.label == "no_tumor":
        message = f"the class is no_tumor, but the mask marks {count(area, 'pixel')}"
        problems.append(Problem(name, "mask-in-healthy", message, "warning"))
    if area > LARGE_MASK * mask.size:
        message = f"the mask covers {area / mask.size:.0%} of the image. It may be inverted, or a mask of the brain"
        problems.append(Problem(name, "large-mask", message, "warning"))
    outside = _share_on_background(image, mask, area)
    if outside > OUTSIDE_MASK:
        message = f"{outside:.0%} of the mask is on background. It may be shifted, flipped, or belong to another slice"
        problems.append(Problem(name, "mask-outside", message, "warning"))
    return problems


def _share_on_background(image: NDArray[Any], mask: NDArray[np.bool_], area: int) -> float:
    grey = image if image.ndim == 2 else image.max(axis=2)
    sample = grey[::4, ::4] if min(grey.shape) >= 64 else grey  # enough for the mean
    low = float(grey.min())
    with np.errstate(over="ignore"):
        mean = float(sample.mean(dtype=np.float64))
    if not math.isfinite(mean):  # the sum of very large values overflows
        mean = float((sample / sample.size).sum(dtype=np.float64))
    level = low + BACKGROUND * (mean - low)
    # A whole number keeps the comparison in the image's own type, ten times as fast as in float64.
    dark = grey <= (math.floor(level) if grey.dtype.kind in "iu" else level)
    return int(np.count_nonzero(dark & mask)) / area


@dataclass(frozen=True, slots=True)
class ItemCheck:
    """Result of checking one item; holds no pixels.

    Attributes:
        slices: (id, label, patient) of each readable slice.
        with_tumour: Number of slices with tumour.
        problems: Errors and warnings.
        left_out: The item, if it is not a slice.
    """

    slices: tuple[tuple[str, str, str], ...] = ()
    with_tumour: int = 0
    problems: tuple[Problem, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def check_item(item: Item, options: SourceOptions) -> ItemCheck:
    """Read one item and check its slices; never raises for the content of the item."""
    try:
        reading = read_item(item, options)
    except NotASlice as reason:
        return ItemCheck(left_out=(LeftOut(item.name, reason.what),))
    except DataError as error:
        return _bad_item(item, error)
    return ItemCheck(
        tuple((piece.slice_id, piece.label, piece.patient) for piece in reading.slices),
        sum(piece.mask is not None and bool(piece.mask.any()) for piece in reading.slices),
        tuple(problem for piece in reading.slices for problem in check_slice(piece)),
    )


def _bad_item(item: Item, error: DataError) -> ItemCheck:
    return ItemCheck(problems=(Problem.of(error, item.name),))


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """Result of `check_data`, in the order of the inputs and their items.

    Attributes:
        inputs: (path, format) of each input; the format is "" if not recognised.
        items: Number of items (files, pairs, volumes), including bad ones.
        slices: Number of readable slices.
        with_tumour: Number of slices with tumour.
        labels: Number of slices of each class ("" without classes).
        patients: Number of known patient ids.
        slices_without_patient: Number of slices without a known patient.
        problems: Everything of level "error".
        warnings: Everything of level "warning".
        left_out: Files that are not slices, with the reason.
        notes: Notes of the readers on whole inputs.

    Example:
        >>> report = check_data(["data"])
        >>> report.ok, report.inputs, report.slices, report.patients
        (True, (('data', 'figshare'),), 36, 18)
    """

    inputs: tuple[tuple[str, str], ...]
    items: int
    slices: int
    with_tumour: int
    labels: dict[str, int]
    patients: int
    slices_without_patient: int
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if there are no errors and at least one slice, regardless of warnings."""
        return not self.problems and self.slices > 0


def check_data(
    paths: Sequence[Path | str],
    *,
    format_name: str | None = None,
    options: SourceOptions | None = None,
    jobs: int = 1,
    cluster: Client | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IntegrityReport:
    """Read every slice of raw data and report all problems.

    Args:
        paths: Folders, files and zips, or URLs, as for `prepare`.
        format_name: "figshare", "pairs", ...; None detects it for each input.
        options: Options of the readers.
        jobs: Number of worker processes.
        cluster: Dask client of a cluster whose workers read instead; they must see local `paths`.
        progress: Called as `progress(done, total)` after each item, over all inputs.

    Returns:
        The report. An input that cannot be opened or recognised is one of its problems.

    Example:
        >>> report = check_data(["no-such-folder"])
        >>> report.ok, report.problems[0].kind
        (False, 'missing-file')
    """
    options = options or SourceOptions()
    names = [without_credentials(url_of(path) or str(path)) for path in paths]
    copies = [local_copy(path) for path in paths]
    given = copies if cluster is None else [path.absolute() for path in copies]
    inputs: list[tuple[str, str]] = []
    work: list[tuple[str, Item]] = []
    problems: list[Problem] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    slices: list[tuple[str, str]] = []
    with_tumour = 0
    homes: dict[tuple[str, str], str] = {}
    with choose_pool(jobs, cluster, reads=[path for path in given if path.exists()], inputs=paths) as pool:
        for path, shown in zip(given, names, strict=True):
            try:
                listing = find_items(open_tree(path), options, format_name)
            except DataError as error:
                inputs.append((shown, ""))
                problems += error.problems if isinstance(error, BadInputError) else [Problem.of(error, shown)]
                continue
            inputs.append((shown, listing.items[0].format if listing.items else format_name or ""))
            work += [(shown, item) for item in listing.items]
            problems += listing.problems
            left_out += listing.left_out
            notes += listing.notes
        checks = pool.map(partial(check_item, options=options), [item for _, item in work], batch=8, crashed=_bad_item)
        for done, ((shown, item), check) in enumerate(zip(work, checks, strict=True), start=1):
            problems += check.problems
            left_out += check.left_out
            with_tumour += check.with_tumour
            for slice_id, label, patient in check.slices:
                slices.append((label, patient))
                first = homes.setdefault((shown, slice_id), item.name)
                if first != item.name:
                    message = f"{first} has the same slice id {slice_id!r}. Rename one of them"
                    problems.append(Problem(item.name, "duplicate-id", message))
            if progress is not None:
                progress(done, len(work))
    if slices and not with_tumour:
        message = "no mask holds a tumour. Check that the masks belong to the images and are not all black"
        problems.append(Problem(", ".join(shown for shown, _ in inputs), "no-tumour", message, "warning"))
    return IntegrityReport(
        inputs=tuple(inputs),
        items=len(work),
        slices=len(slices),
        with_tumour=with_tumour,
        labels=dict(sorted(Counter(label for label, _ in slices).items())),
        patients=len({patient for _, patient in slices if patient}),
        slices_without_patient=sum(not patient for _, patient in slices),
        problems=tuple(problem for problem in problems if problem.level == "error"),
        warnings=tuple(problem for problem in problems if problem.level == "warning"),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )
