"""`report.html` of an evaluation: the verdict first, then the evidence, then the best, median and worst slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kerasseg.evaluation.bootstrap import FEWEST_PATIENTS
from kerasseg.evaluation.joined import Pictures, SlicePicture
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.schema import Evaluation, Mean, StageName
from kerasseg.postprocessing import rule_in_words
from kerasseg.report import sections
from kerasseg.report.overlays import close_up, outlined, threshold_slider
from kerasseg.report.page import write_page
from kerasseg.report.sections import ThresholdCurve
from kerasseg.report.wording import SPLITS, Table, cell, gain_sentence, goals, misses, share
from kerasseg_tfrecords.errors import one_line
from kerasseg_tfrecords.text import count


@dataclass(frozen=True, slots=True)
class Example:
    """A slice on the page."""

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
    """Return the chosen slices of every class with their pictures."""
    found = []
    for name in classes:
        chosen = choose([row for row in rows if row.label == name], stage)
        if chosen:
            shown = tuple(_example(place, row, stage, pictures.picture(row.slice_id)) for place, row in chosen)
            found.append(Examples(name, shown))
    return tuple(found)


def in_words(row: SliceRow, stage: StageName) -> str:
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


def write_report(
    evaluation: Evaluation,
    rows: Sequence[SliceRow],
    pictures: Pictures | None,
    path: Path | str,
    *,
    threshold_curve: ThresholdCurve | None = None,
) -> None:
    """Write the page of an evaluation: one self-contained HTML file.

    Args:
        evaluation: All figures.
        rows: Scores of each slice; the best, median and worst are chosen from them.
        pictures: Pictures of the slices; None for a page without pictures.
        path: The file; an existing one is replaced.
        threshold_curve: Curve of tune-threshold on validation; None leaves the chart out.

    Raises:
        KerassegError: The file cannot be written.

    Example:
        >>> import numpy as np
        >>> import kerasseg
        >>> images = np.random.default_rng(0).random((4, 16, 16, 1), "float32")
        >>> done = kerasseg.evaluate(kerasseg.unet((16, 16, 1), filters=2, depth=1), images, images > 0.5)
        >>> write_report(done.figures, done.rows, None, "report.html")
        >>> Path("report.html").read_text()[:15]
        '<!doctype html>'
    """
    write_page(Path(path), "evaluation.html.j2", _context(evaluation, rows, pictures, threshold_curve))


def _context(
    evaluation: Evaluation, rows: Sequence[SliceRow], pictures: Pictures | None, curve: ThresholdCurve | None
) -> dict[str, Any]:
    final = evaluation.final_stage()
    split = SPLITS[evaluation.split]
    robustness, calibration = evaluation.robustness, evaluation.calibration
    second, speed = evaluation.second_reader, evaluation.speed
    shown = () if pictures is None else examples(rows, pictures, evaluation.classes, evaluation.final)
    data_set = evaluation.shards.rsplit("/", 1)[-1] or "Arrays"
    return {
        "title": f"{data_set}, {split} slices, {_date(evaluation.created)}",
        "subtitle": f"{evaluation.network}{f'. Run {evaluation.run}' if evaluation.run else ''}.",
        "created": _date(evaluation.created),
        "confidence": f"{100 * evaluation.confidence:g} %",
        "dice": cell(final.all.measures["dice"]),
        "over": _over(evaluation),
        "sentences": _sentences(evaluation, rows),
        "decision": evaluation.rule_decision,
        "goals": goals(evaluation),
        "warnings": evaluation.warnings,
        "stages": sections.stage_table(evaluation),
        "rule": f"{_sentence(rule_in_words(final.rule))}.",
        "tuning": _tuning(evaluation.tuning_gain),
        "measures": sections.measure_table(evaluation),
        "groups": _groups(evaluation),
        "strip": sections.slice_chart(rows, evaluation.classes, evaluation.final),
        "examples": shown,
        "script": any(slice_.slider for example in shown for slice_ in example.slices),
        "threshold": None if curve is None else sections.threshold_chart(curve),
        "calibration": None if calibration is None else sections.calibration_chart(calibration),
        "calibration_error": None if calibration is None else share(calibration.error),
        "robustness": None if robustness is None else sections.robustness_charts(robustness),
        "robustness_said": None
        if robustness is None
        else f"The same slices under corruptions that scanners produce (seed {robustness.seed}). Over all of them "
        f"{sections.percent(robustness.kept)} of clean Dice is kept. Below, mean Dice by grade; 0 is clean.",
        "robustness_table": None if robustness is None else sections.robustness_table(robustness),
        "reader": None if second is None else sections.reader_chart(second),
        "reader_source": None if second is None else second.source,
        "reader_table": None if second is None else sections.reader_table(second),
        "speed": None if speed is None else sections.speed_table(speed),
        "facts": _facts(evaluation),
        "limits": _limits(evaluation),
    }


def _over(evaluation: Evaluation) -> str:
    figures = evaluation.final_stage().all
    at = "their own size" if evaluation.resolution == "native" else "the network's size"
    return (
        f"Mean over {count(figures.slices, 'slice')} of {count(figures.patients, 'patient')} at {at}; the interval is over "
        "patients."
    )


def _sentences(evaluation: Evaluation, rows: Sequence[SliceRow]) -> list[str]:
    final = evaluation.final_stage()
    if not final.all.with_tumour:
        return ["No evaluated slice has a tumour: there is no verdict.", misses(final.all)]
    half = sum(row.reference_pixels > 0 and row.stage(evaluation.final).dice > 0.5 for row in rows) if rows else None
    gain = evaluation.gain.get(evaluation.final)
    said = [gain_sentence(gain, "the checkpoint before training", evaluation.confidence), misses(final.all, half)]
    if final.all.patients < FEWEST_PATIENTS:
        said.append(f"{count(final.all.patients, 'patient')}: too few for intervals.")
    return [sentence for sentence in said if sentence]


def _tuning(gain: Mean | None) -> str:
    if gain is not None and gain.mean == gain.low == gain.high == 0:
        return ""  # no rule was kept: the masks are those of 0.5
    return gain_sentence(gain, "0.5 without post-processing")


def _groups(evaluation: Evaluation) -> list[tuple[str, Any, Table, str]]:
    found = []
    headings = {
        "classes": ("By class", f"No interval is shown for fewer than {FEWEST_PATIENTS} patients."),
        "sizes": (
            "By size of the tumour",
            "Thirds of the tumours by diameter. In small tumours each pixel weighs more.",
        ),
    }
    for kind, (heading, said) in headings.items():
        table = sections.group_table(evaluation, kind)
        if table is not None:
            found.append((heading, sections.group_chart(evaluation, kind), table, said))
    return found


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    data = evaluation.data
    by = {"patient": "by patient", "id": "by patient id", "slice": "by slice, whatever the patient"}
    sides = data.patients_on_both_sides
    leak = (
        f"{count(sides, 'patient')} with slices in more than one split"
        if sides
        else "no patient in more than one split"
    )
    if data.slices_without_patient:
        leak += (
            f"; {count(data.slices_without_patient, 'slice')} of unknown patients, for which leaks cannot be excluded"
        )
    facts = [
        ("Network", evaluation.network),
        ("Run", f"{evaluation.run or 'none'}{f' ({evaluation.run_id[:12]})' if evaluation.run_id else ''}"),
        ("Data", f"{evaluation.shards}, {SPLITS[evaluation.split]} slices; fingerprint {data.fingerprint[:12]}"),
        ("Split", f"{data.shares}, {by.get(data.split_by, data.split_by)}, seed {data.seed}"),
        ("Leaks", leak),
    ]
    if data.overlap_with_training is not None:
        facts.append(("Overlap", f"{count(data.overlap_with_training, 'slice')} also in the training data"))
    facts += [
        ("Evaluations of the test split", _looks(evaluation)),
        ("Slices", f"{data.size} x {data.size} pixels for the network, intensity {data.intensity}"),
        ("Threshold option", evaluation.threshold),
        ("Flip averaging", "yes" if evaluation.flip_average else "no"),
        *([("Precision", evaluation.precision)] if evaluation.precision else []),
        (
            "Versions",
            ", ".join(f"{n} {v}" for n, v in {"kerasseg": evaluation.kerasseg, **evaluation.software}.items()),
        ),
        ("Written", evaluation.created),
    ]
    return facts


def _looks(evaluation: Evaluation) -> str:
    looks = evaluation.test_looks
    if evaluation.split in ("train", "val"):
        return f"{looks:,}; this page does not use the test split"
    if looks <= 1:
        return "1: this is the first"
    return f"{looks:,}, including this one. Choices made with test figures in view make later test figures too good."


def _limits(evaluation: Evaluation) -> list[str]:
    limits = [
        "Not for clinical use: this is a research tool and not a medical device.",
        "The figures apply to slices like these; other scanners, sequences, ages or tumours may give other figures.",
        "The reference was drawn by people. Where experts disagree, the network may differ without being wrong.",
        "The interval describes patients like these; it does not extend to other hospitals.",
    ]
    if evaluation.split in ("train", "val"):
        limits.insert(
            1, f"The network was trained or chosen on the {SPLITS[evaluation.split]} slices: the figures are too good."
        )
    if evaluation.data.split_by == "slice" or evaluation.data.patients_on_both_sides:
        limits.insert(1, "Slices of one patient are in several splits: the figures are too good.")
    return limits


def _date(created: str) -> str:
    return created[:10]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
