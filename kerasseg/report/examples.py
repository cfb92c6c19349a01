"""Slices to show: the best, the median and the worst of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kerasseg.evaluation.joined import Pictures, SlicePicture
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.schema import StageName
from kerasseg.report.overlays import close_up, outlined, threshold_slider
from kerasseg.report.wording import share
from kerasseg_tfrecords.errors import one_line


@dataclass(frozen=True, slots=True)
class Example:
    """A slice on the page.

    Attributes:
        place: "best", "median" or "worst".
        slice_id: Id of the slice.
        said: Its scores as text.
        whole, near: Pictures of the whole slice and of the close-up.
        slider: A slider for the threshold; "" without probabilities.
    """

    place: str
    slice_id: str
    said: str
    whole: Markup
    near: Markup
    slider: Markup


@dataclass(frozen=True, slots=True)
class Examples:
    """The shown slices of one class."""

    name: str
    slices: tuple[Example, ...]


def choose(rows: Sequence[SliceRow], stage: StageName = "postprocessing") -> list[tuple[str, SliceRow]]:
    """Choose (place, row) of the best, the median and the worst slice by Dice; fewer if there are fewer.

    Slices without tumour in reference and prediction are left out if there are others.

    Args:
        rows: Slices of one class.
        stage: Stage to compare.
    """
    telling = [row for row in rows if row.reference_pixels or row.stage(stage).predicted_pixels] or list(rows)
    # Ties are broken by id, so that the same figures give the same page.
    ordered = sorted(telling, key=lambda row: (-row.stage(stage).dice, row.slice_id))
    if len(ordered) < 3:
        return list(zip(("best", "worst"), ordered, strict=False))
    return [("best", ordered[0]), ("median", ordered[len(ordered) // 2]), ("worst", ordered[-1])]


def examples(
    rows: Sequence[SliceRow], pictures: Pictures, classes: Sequence[str], stage: StageName = "postprocessing"
) -> tuple[Examples, ...]:
    """Return the chosen slices of every class with their pictures.

    Args:
        rows: All slices.
        pictures: Pictures of the slices.
        classes: Class names, in order.
        stage: Stage to show.
    """
    found = []
    for name in classes:
        chosen = choose([row for row in rows if row.label == name], stage)
        if chosen:
            shown = tuple(_example(place, row, stage, pictures.picture(row.slice_id)) for place, row in chosen)
            found.append(Examples(name, shown))
    return tuple(found)


def in_words(row: SliceRow, stage: StageName) -> str:
    """Describe the scores of a slice."""
    scores = row.stage(stage)
    if row.missed(stage):
        return "the tumour was missed, Dice 0"
    if row.false_alarm(stage):
        return "a false alarm on a slice without tumour, Dice 0"
    if not row.reference_pixels:
        return "without tumour, and none was found"
    if math.isnan(scores.hd95):
        return f"Dice {share(scores.dice)}"
    distance = f"{scores.hd95:.1f} pixels" if math.isnan(scores.hd95_mm) else f"{scores.hd95_mm:.1f} mm"
    return f"Dice {share(scores.dice)}, HD95 {distance}"


def _example(place: str, row: SliceRow, stage: StageName, picture: SlicePicture) -> Example:
    said = in_words(row, stage)
    about = f"{place} slice of {row.label}, {said}"
    parts = picture.image, picture.reference, picture.prediction
    return Example(
        place=place,
        slice_id=one_line(row.slice_id),
        said=said,
        whole=outlined(*parts, f"{about}: the whole slice with the outlines of reference and network"),
        near=close_up(*parts, f"{about}: close-up with hits, misses and false alarms"),
        slider=Markup("")
        if picture.probability is None
        else threshold_slider(picture.probability, picture.reference, picture.threshold),
    )
