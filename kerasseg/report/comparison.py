"""`compare-A-B.html`: two runs on the same slices, with pictures of the slices that changed most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kerasseg.evaluation.compare import Comparison, Difference
from kerasseg.evaluation.joined import Pictures
from kerasseg.report.charts import Span, interval_chart
from kerasseg.report.overlays import close_up, outlined
from kerasseg.report.page import write_page
from kerasseg.report.wording import SPLITS, Cell, Table, cell, gain_cell, share
from kerasseg_tfrecords.errors import one_line
from kerasseg_tfrecords.text import count


@dataclass(frozen=True, slots=True)
class _Changed:
    """A slice on the page, before and after."""

    slice_id: str
    said: str
    whole: Markup
    before: Markup
    after: Markup


def write_comparison(comparison: Comparison, pictures: tuple[Pictures, Pictures] | None, path: Path | str) -> None:
    """Write the page of a comparison: one self-contained HTML file."""
    sets: Mapping[str, Difference] = {"all slices": comparison.all, **comparison.classes}
    context: dict[str, Any] = {
        "title": f"{comparison.second} (B) compared with {comparison.first} (A)",
        "subtitle": f"The same {SPLITS.get(comparison.split, comparison.split)} slices, paired.",
        "created": "",
        "first": comparison.first,
        "second": comparison.second,
        "difference": gain_cell(comparison.all.dice),
        "verdict": comparison.verdict,
        "score": _score(comparison.all),
        "over": f"Over {count(comparison.all.dice.slices, 'slice')} of "
        f"{count(comparison.all.dice.patients, 'patient')}; the interval is over patients.",
        "remarks": comparison.remarks,
        "chart": _chart(comparison, sets),
        "table": _table(comparison, sets),
        "changed": []
        if pictures is None
        else [_changed(comparison, i, pictures) for i in range(len(comparison.changed))],
        "changed_table": _changed_table(comparison),
    }
    write_page(Path(path), "comparison.html.j2", context)


def _score(difference: Difference) -> str:
    return (
        f"{count(difference.wins, 'slice')} better, {difference.losses:,} worse, {difference.ties:,} the same; "
        f"tumours missed: {difference.missed_first:,} by A, {difference.missed_second:,} by B."
    )


def _table(comparison: Comparison, sets: Mapping[str, Difference]) -> Table:
    metric = comparison.all.in_mm
    rows = tuple(
        (
            Cell(name, f"{count(found.dice.slices, 'slice')}, {count(found.dice.patients, 'patient')}"),
            cell(found.first),
            cell(found.second),
            gain_cell(found.dice),
            Cell(f"{found.wins:,} / {found.losses:,} / {found.ties:,}"),
            Cell(f"{found.missed_first:,} / {found.missed_second:,}"),
            Cell(share((found.hd95_mm if metric else found.hd95).mean, 1, sign=True)),
        )
        for name, found in sets.items()
    )
    columns = ("Slices", comparison.first, comparison.second, "Difference, paired", "Better / worse / same")
    return Table(
        "Mean Dice of both runs, final stage",
        (*columns, "Missed, A / B", f"HD95 difference, {'mm' if metric else 'pixels'}"),
        rows,
        f"Small figures: {100 * comparison.confidence:g} % interval over patients. HD95 is a distance: below 0 is better.",
    )


def _chart(comparison: Comparison, sets: Mapping[str, Difference]) -> Markup:
    rows = [(name, [Span(found.dice.mean, found.dice.low, found.dice.high)]) for name, found in sets.items()]
    said = "; ".join(f"{name}: {share(spans[0].value, sign=True)}" for name, spans in rows)
    return interval_chart(
        rows,
        (comparison.second,),
        describe=f"Difference in Dice, {comparison.second} minus {comparison.first}. {said}.",
        x_label="difference in Dice; right of 0 is better",
        zero=True,
    )


def _changed_table(comparison: Comparison) -> Table:
    rows = tuple(
        (
            Cell(one_line(change.slice_id), change.label),
            Cell(share(change.first)),
            Cell(share(change.second)),
            Cell(share(change.dice, sign=True)),
        )
        for change in comparison.changed
    )
    return Table("Dice of the slices that changed most", ("Slice", comparison.first, comparison.second, "Change"), rows)


def _changed(comparison: Comparison, number: int, pictures: tuple[Pictures, Pictures]) -> _Changed:
    change = comparison.changed[number]
    before, after = (source.picture(change.slice_id) for source in pictures)
    around = before.reference | before.prediction | after.prediction
    said = f"Dice {share(change.first)} to {share(change.second)} ({share(change.dice, sign=True)}), {change.label}"
    about = f"slice {one_line(change.slice_id)}"
    return _Changed(
        slice_id=one_line(change.slice_id),
        said=said,
        whole=outlined(
            after.image, after.reference, after.prediction, f"{about}, whole, with the outlines of {comparison.second}"
        ),
        before=close_up(
            before.image, before.reference, before.prediction, f"{about}, close-up, {comparison.first}", around=around
        ),
        after=close_up(
            after.image, after.reference, after.prediction, f"{about}, close-up, {comparison.second}", around=around
        ),
    )
