"""Is a data set what it says it is? Checked slice by slice before any conversion (`kerasseg verify --data`).

| kind              | level   | what it means                                                                     |
| ----------------- | ------- | --------------------------------------------------------------------------------- |
| `unreadable` ...  | error   | the reader refused it: damaged, too large, unknown label, missing partner, ...    |
| `empty-image`     | error   | no pixels, or not (height, width) or (height, width, 3)                           |
| `not-finite`      | error   | NaN or infinite values                                                            |
| `constant-image`  | error   | all pixels are equal: no intensity rule can map it, and there is nothing to see   |
| `size-mismatch`   | error   | the mask has another size than the image                                          |
| `duplicate-id`    | error   | two slices of one input have the same id                                          |
| `mask-outside`    | warning | most of the mask lies on dark background: shifted, flipped, or of another slice   |
| `large-mask`      | warning | the mask covers more of the image than a tumour does: inverted, or a brain mask   |
| `empty-mask`      | warning | a single slice of a tumour class without tumour                                   |
| `mask-in-healthy` | warning | a slice of the class `no_tumor` with tumour                                       |

Errors stop `prepare` (or cost the slice, with `--skip-bad`); warnings are for somebody to look at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import BadInputError, DataError, Problem
from kerasseg_tfrecords.slices import Slice
from kerasseg_tfrecords.sources import find_items, open_tree, read_item
from kerasseg_tfrecords.sources.base import Item, LeftOut, NotASlice, SourceOptions
from kerasseg_tfrecords.workers import ordered_map

__all__ = ["IntegrityReport", "ItemCheck", "check_data", "check_item", "check_slice"]

LARGE_MASK = 0.4
"""Share of the image above which a mask is remarked on. The largest tumour of the figshare set covers a tenth of it."""
OUTSIDE_MASK = 0.5
"""Share of the mask on background above which it is remarked on."""
BACKGROUND = 0.2
"""Background is what lies below this fraction of the way from the image's minimum to its mean. Air is far below it in MR,
and so robustly: the mean of a head slice moves little with its brightest pixels."""


def check_slice(slice_: Slice) -> tuple[Problem, ...]:
    """What is wrong with one slice, beyond what its reader refuses. Pure; costs a small part of reading.

    Args:
        slice_: As read; its arrays may have any memory order.

    Returns:
        Errors first (at most one of them about the image), then warnings; () for a good slice.

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
        return Problem(name, "empty-image", f"not an image (found {shape}, expected height x width, or x 3 in colour)")
    low, high = image.min(), image.max()
    # Minimum and maximum are NaN where any pixel is, so that whole numbers and good floats need no pass of their own.
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(image)))
        message = f"the image holds NaN or infinite values (found {count} pixels). Replace them where the file was made"
        return Problem(name, "not-finite", message)
    if low == high:
        return Problem(
            name, "constant-image", f"all pixels of the image are equal (found {low}); there is nothing to see"
        )
    return None


def _mask_warnings(slice_: Slice, image: NDArray[Any], mask: NDArray[np.bool_]) -> list[Problem]:
    name = slice_.source
    area = int(np.count_nonzero(mask))
    if area == 0:
        # Volumes hold slices above and below their tumour; a single slice of a tumour class should show one.
        if slice_.label in {"", "no_tumor"} or slice_.volume:
            return []
        message = f"the mask is empty, though the class is {slice_.label}"
        return [Problem(name, "empty-mask", message, "warning")]
    problems: list[Problem] = []
    if slice_.label == "no_tumor":
        message = f"the class is no_tumor, though the mask marks {area} pixels"
        problems.append(Problem(name, "mask-in-healthy", message, "warning"))
    if area > LARGE_MASK * mask.size:
        message = f"the mask covers {area / mask.size:.0%} of the image. Is it inverted, or a mask of the brain?"
        problems.append(Problem(name, "large-mask", message, "warning"))
    outside = _share_on_background(image, mask, area)
    if outside > OUTSIDE_MASK:
        message = f"{outside:.0%} of the mask lies on background. Is it shifted, flipped, or of another slice?"
        problems.append(Problem(name, "mask-outside", message, "warning"))
    return problems


def _share_on_background(image: NDArray[Any], mask: NDArray[np.bool_], area: int) -> float:
    grey = image if image.ndim == 2 else image.max(axis=2)
    # Every fourth row and column tell the mean of a slice well enough.
    sample = grey[::4, ::4] if min(grey.shape) >= 64 else grey
    low = float(grey.min())
    level = low + BACKGROUND * (float(sample.mean(dtype=np.float64)) - low)
    # A whole number keeps the comparison in the image's own type, which is ten times as fast as in float64.
    dark = grey <= (math.floor(level) if grey.dtype.kind in "iu" else level)
    return int(np.count_nonzero(dark & mask)) / area


@dataclass(frozen=True, slots=True)
class ItemCheck:
    """What came of reading one item. Small: no pixels.

    Attributes:
        name: The item.
        slices: (id, label, patient) of each slice that could be read.
        problems: Errors and warnings.
        left_out: Set where the item is no slice.
    """

    name: str
    slices: tuple[tuple[str, str, str], ...] = ()
    problems: tuple[Problem, ...] = ()
    left_out: LeftOut | None = None


def check_item(item: Item, options: SourceOptions) -> ItemCheck:
    """Reads one item and checks its slices; never raises for what the item holds."""
    try:
        reading = read_item(item, options)
    except NotASlice as reason:
        return ItemCheck(item.name, left_out=LeftOut(item.name, reason.what))
    except DataError as error:
        return ItemCheck(item.name, problems=(Problem.of(error, item.name),))
    problems = tuple(problem for piece in reading.slices for problem in check_slice(piece))
    return ItemCheck(
        item.name, tuple((piece.slice_id, piece.label, piece.patient) for piece in reading.slices), problems
    )


def _crashed(item: Item) -> ItemCheck:
    message = "reading it ended the process. The file is damaged, or the memory was not enough for it"
    return ItemCheck(item.name, problems=(Problem(item.name, "crashed", message),))


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """What `check_data` found, in the order of the inputs and of the items in them.

    Attributes:
        inputs: (path, format) of each input; the format is "" where none was recognised.
        items: Items that were read (files, pairs, volumes), bad ones among them.
        slices: Slices that could be read.
        labels: Slices of each class ("" where there are no classes).
        patients: Known patient ids.
        slices_without_patient: Slices whose patient is not known.
        problems: Everything of level "error".
        warnings: Everything of level "warning".
        left_out: Files that are no slices, with the reason.
        notes: What the readers remarked about whole inputs.

    Example:
        >>> report = check_data(["data"])
        >>> report.ok, report.inputs, report.slices, report.patients
        (True, (('data', 'figshare'),), 36, 18)
    """

    inputs: tuple[tuple[str, str], ...]
    items: int
    slices: int
    labels: dict[str, int]
    patients: int
    slices_without_patient: int
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when there are no errors and at least one slice; warnings do not count."""
        return not self.problems and self.slices > 0


def check_data(
    paths: Sequence[Path | str],
    *,
    format_name: str | None = None,
    options: SourceOptions | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> IntegrityReport:
    """Reads every slice of raw data and reports all that is wrong, before anything is converted.

    Memory does not grow with the number of slices, but for one short id each and what is reported.

    Args:
        paths: Folders, files and zips, as `prepare` takes them.
        format_name: "figshare", "pairs", ...; None detects it for each input.
        options: How to read; defaults as in `SourceOptions`.
        jobs: Processes; 1 reads in this one.
        progress: Called as `progress(done, total)` after each item, over all inputs.

    Returns:
        The report. An input that cannot be opened or recognised is a problem in it like any other.

    Example:
        >>> report = check_data(["no-such-folder"])
        >>> report.ok, report.problems[0].kind
        (False, 'missing-file')
    """
    options = options or SourceOptions()
    tally = _Tally()
    work = [(shown, item) for path in paths for shown, item in tally.listed(Path(path), format_name, options)]
    items = [item for _, item in work]
    checks = ordered_map(partial(check_item, options=options), items, jobs=jobs, crashed=_crashed)
    for done, ((shown, _), check) in enumerate(zip(work, checks, strict=True), start=1):
        tally.add(shown, check)
        if progress is not None:
            progress(done, len(work))
    return tally.report(len(work))


class _Tally:
    """Sums up checks as they come."""

    def __init__(self) -> None:
        self.inputs: list[tuple[str, str]] = []
        self.problems: list[Problem] = []
        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []
        self.labels: Counter[str] = Counter()
        self.patients: set[str] = set()
        self.without_patient = 0
        self.slices = 0
        self.homes: dict[tuple[str, str], str] = {}

    def listed(self, path: Path, format_name: str | None, options: SourceOptions) -> Iterator[tuple[str, Item]]:
        """The items of one input, each with the input's name; what is wrong with the input is noted."""
        shown = str(path)
        try:
            listing = find_items(open_tree(path), options, format_name)
        except BadInputError as error:
            self.inputs.append((shown, ""))
            self.problems += error.problems
            return
        except DataError as error:
            self.inputs.append((shown, ""))
            self.problems.append(Problem.of(error, shown))
            return
        self.inputs.append((shown, listing.items[0].format if listing.items else format_name or ""))
        self.problems += listing.problems
        self.left_out += listing.left_out
        self.notes += listing.notes
        for item in listing.items:
            yield shown, item

    def add(self, shown: str, check: ItemCheck) -> None:
        self.problems += check.problems
        if check.left_out is not None:
            self.left_out.append(check.left_out)
        for slice_id, label, patient in check.slices:
            first = self.homes.setdefault((shown, slice_id), check.name)
            if first != check.name:
                message = f"its slice id {slice_id!r} is also that of {first}. Rename one of them"
                self.problems.append(Problem(check.name, "duplicate-id", message))
            self.slices += 1
            self.labels[label] += 1
            if patient:
                self.patients.add(patient)
            else:
                self.without_patient += 1

    def report(self, items: int) -> IntegrityReport:
        return IntegrityReport(
            inputs=tuple(self.inputs),
            items=items,
            slices=self.slices,
            labels=dict(sorted(self.labels.items())),
            patients=len(self.patients),
            slices_without_patient=self.without_patient,
            problems=_of_level(self.problems, "error"),
            warnings=_of_level(self.problems, "warning"),
            left_out=tuple(self.left_out),
            notes=tuple(self.notes),
        )


def _of_level(problems: Iterable[Problem], level: str) -> tuple[Problem, ...]:
    return tuple(problem for problem in problems if problem.level == level)
