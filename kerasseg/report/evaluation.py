"""`report.html` of an evaluation: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerasseg.evaluation.joined import Pictures
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.schema import Evaluation, Mean
from kerasseg.report import sections
from kerasseg.report.examples import examples
from kerasseg.report.page import write_page
from kerasseg.report.sections import ThresholdCurve
from kerasseg.report.wording import (
    SPLITS,
    Table,
    cell,
    count,
    gain_sentence,
    goals,
    misses,
    rule_in_words,
    share,
)

__all__ = ["write_report"]


def write_report(
    evaluation: Evaluation,
    rows: Sequence[SliceRow],
    pictures: Pictures | None,
    path: Path | str,
    *,
    threshold_curve: ThresholdCurve | None = None,
) -> None:
    """Writes the page of an evaluation: one HTML file that needs nothing from elsewhere.

    Args:
        evaluation: All figures.
        rows: One for each slice, final stage of the network; the best, median and worst are chosen from them.
        pictures: Where their pictures come from; None for a page without.
        path: The file; an existing one is replaced.
        threshold_curve: What tune-threshold found on validation; None leaves the chart out.

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
    return {
        "title": f"{evaluation.network} on the {split} slices",
        "subtitle": f"{evaluation.run or 'A network without a run'}, {_date(evaluation.created)}.",
        "created": _date(evaluation.created),
        "confidence": f"{100 * evaluation.confidence:g} %",
        "dice": cell(final.all.measures["dice"]),
        "over": _over(evaluation),
        "sentences": _sentences(evaluation),
        "goals": goals(evaluation),
        "warnings": evaluation.warnings,
        "stages": sections.stage_table(evaluation),
        "rule": f"{_sentence(rule_in_words(final.rule))}.",
        "tuning": _tuning(evaluation.tuning_gain),
        "measures": sections.measure_table(evaluation),
        "groups": _groups(evaluation),
        "examples": () if pictures is None else examples(rows, pictures, evaluation.classes, evaluation.final),
        "threshold": None if curve is None else sections.threshold_chart(curve),
        "calibration": None if calibration is None else sections.calibration_chart(calibration),
        "calibration_error": None if calibration is None else share(calibration.error),
        "robustness": None if robustness is None else sections.robustness_charts(robustness),
        "robustness_said": None
        if robustness is None
        else f"The same slices under corruption that scanners produce (seed {robustness.seed}). Over all of it "
        f"{sections.percent(robustness.kept)} of clean Dice is kept. Below, mean Dice over the grade; 0 is clean.",
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
        f"Mean over {count(figures.slices, 'slice')} of {count(figures.patients, 'patient')}, each measured for itself, "
        f"at {at}; the interval is over patients."
    )


def _sentences(evaluation: Evaluation) -> list[str]:
    final = evaluation.final_stage()
    over = "the checkpoint before training, in the same stage"
    said = [gain_sentence(evaluation.gain.get(evaluation.final), over), misses(final.all)]
    if final.all.patients < 10:
        said.append(f"Only {count(final.all.patients, 'patient')}: the true interval is wider.")
    return [sentence for sentence in said if sentence]


def _tuning(gain: Mean | None) -> str:
    return gain_sentence(gain, "0.5 without post-processing")


def _groups(evaluation: Evaluation) -> list[tuple[str, Any, Table, str]]:
    found = []
    headings = {
        "classes": ("By class", "A class with few patients has a wide interval."),
        "sizes": ("By size of the tumour", "Small tumours cost Dice first: a pixel more or less weighs more."),
    }
    for kind, (heading, said) in headings.items():
        table = sections.group_table(evaluation, kind)
        if table is not None:
            found.append((heading, sections.group_chart(evaluation, kind), table, said))
    return found


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    data = evaluation.data
    by = {"patient": "by patient", "id": "by id as it stands", "slice": "by slice, without regard to patients"}
    sides = data.patients_on_both_sides
    leak = f"{count(sides, 'patient')} with slices in more than one split" if sides else "no patient on both sides"
    if data.slices_without_patient:
        leak += f"; {count(data.slices_without_patient, 'slice')} without a patient, for which this cannot be said"
    facts = [
        ("Network", evaluation.network),
        ("Run", f"{evaluation.run or 'none'}{f' ({evaluation.run_id[:12]})' if evaluation.run_id else ''}"),
        ("Data", f"{evaluation.shards}, {SPLITS[evaluation.split]} slices; fingerprint {data.fingerprint[:12]}"),
        ("Split", f"{data.shares}, {by.get(data.split_by, data.split_by)}, seed {data.seed}"),
        ("Leaks", leak),
    ]
    if data.overlap_with_training is not None:
        facts.append(("Overlap", f"{count(data.overlap_with_training, 'slice')} that the training data hold too"))
    facts += [
        ("Looks at the test split", _looks(evaluation)),
        ("Slices", f"{data.size} x {data.size} pixels for the network, intensity {data.intensity}"),
        ("Threshold asked for", evaluation.threshold),
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
        return f"{looks:,} so far, not for this page"
    if looks <= 1:
        return "1: this is the first"
    return f"{looks:,}, this one included. Each look invites a choice that fits the test slices."


def _limits(evaluation: Evaluation) -> list[str]:
    """What the figures do not say."""
    limits = [
        "Not for clinical use: a research tool, not a medical device, and not examined as one.",
        "The figures hold for slices like these: other scanners, sequences, ages or tumours may give others.",
        "The reference is what people drew. Where they would disagree, so may the network without being wrong.",
        "The interval is over patients drawn anew from these; it knows nothing of other hospitals.",
    ]
    if evaluation.split in ("train", "val"):
        limits.insert(
            1, f"The {SPLITS[evaluation.split]} slices took part in making the network: the figures flatter it."
        )
    if evaluation.data.split_by == "slice" or evaluation.data.patients_on_both_sides:
        limits.insert(1, "Slices of one head stand in several splits: the figures are too good.")
    return limits


def _date(created: str) -> str:
    return created[:10]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
