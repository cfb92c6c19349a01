"""Scores of slices and the figures made of them, against a plain re-computation that shares no code with them."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

from kerasseg.evaluation.calibration import calibrate
from kerasseg.evaluation.figures import (
    Resampling,
    clusters,
    gain_classes,
    gains,
    network_figures,
    size_groups,
    tuning_gain,
)
from kerasseg.evaluation.joined import JoinedPredictions
from kerasseg.evaluation.per_slice import STAGES, SliceRow, read_csv, to_csv
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.evaluation.schema import MEASURES, Mean, Stage
from kerasseg.evaluation.scoring import mask_scores, score_slices, stage_rules, with_baseline
from kerasseg.evaluation.targets import Goal, judge, parse_goal, targets_of, usual_goals
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords.errors import DataError, UsageError

CLASSES = ("meningioma", "glioma", "pituitary")
RULE = MaskRule(threshold=0.4, keep_largest=True)
FEW = Resampling(resamples=300)


def drawn(seed: int = 0, count: int = 24, noise: float = 0.45) -> ArrayPredictions:
    """Slices of one size with tumours, some empty; probabilities that find them more or less; patients of three slices."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:20]
    masks, probabilities = [], []
    layout = np.random.default_rng(99)
    for i in range(count):
        row, column, radius = layout.uniform(6, 16), layout.uniform(6, 14), layout.uniform(1.5, 5)
        mask = ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2) & (i % 8 != 3)
        shift = np.roll(mask, (int(rng.integers(-1, 2)), int(rng.integers(-1, 2))), (0, 1))
        probability = np.clip(rng.uniform(0.1, 0.5) * shift + noise * rng.random(mask.shape), 0, 1)
        masks.append(mask)
        probabilities.append(probability * (i % 11 != 5))  # some are missed altogether
    labels = np.arange(count) % 3
    groups = [f"p{i // 3}" for i in range(count)]
    return ArrayPredictions(np.array(probabilities), np.array(masks), labels, groups, CLASSES, spacing=(0.5, 0.8))


@pytest.fixture(scope="module")
def rows() -> list[SliceRow]:
    network = score_slices(drawn(), stage_rules(RULE))
    return with_baseline(network, score_slices(drawn(7, noise=0.6), stage_rules(MaskRule(threshold=0.6))))


# --- a plain re-computation ---------------------------------------------------------------------------------------------


def plain_border(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def plain_distances(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[float, float]:
    """HD95 and average surface distance from all pairs of border pixels."""
    one, two = plain_border(a) * np.array(spacing), plain_border(b) * np.array(spacing)
    apart = np.sqrt(((one[:, None] - two[None]) ** 2).sum(-1))
    there, back = apart.min(1), apart.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


def plain_largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 8-connected object, by flooding."""
    best: set[tuple[int, int]] = set()
    left = set(map(tuple, np.argwhere(mask).tolist()))
    while left:
        todo = [left.pop()]
        part = set(todo)
        while todo:
            row, column = todo.pop()
            for near in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    part.add(near)
                    todo.append(near)
        best = part if len(part) > len(best) else best
    out = np.zeros_like(mask)
    for row, column in best:
        out[row, column] = True
    return out


def plain_interval(
    values: list[float], people: list[str], name: str = ""
) -> tuple[float | None, float | None, float | None]:
    """Cluster-robust interval over patients (CR2, Satterthwaite), from (patients x patients) matrices."""
    kept = [(v, p) for v, p in zip(values, people, strict=True) if not math.isnan(v)]
    names = sorted({p for _, p in kept})
    if not kept:
        return None, None, None
    mean = sum(v for v, _ in kept) / len(kept)
    if len(names) < 5:
        return mean, None, None
    parts = [[v for v, p in kept if p == one] for one in names]
    share = np.array([len(part) for part in parts]) / len(kept)
    own = np.array([np.mean(part) for part in parts])
    residual = np.eye(len(names)) - np.outer(np.ones(len(names)), share)
    form = residual.T @ np.diag(share**2 / (1 - share)) @ residual
    freedom = np.trace(form) ** 2 / np.trace(form @ form)
    reach = float(student.ppf(0.975, freedom) * np.sqrt(own @ form @ own))
    low, high = mean - reach, mean + reach
    if name:  # a measure, not a difference
        low, high = max(low, 0.0), high if "hd95" in name or "asd" in name else min(high, 1.0)
    return mean, low, high


def plain_scores(predictions: ArrayPredictions, final: bool) -> list[dict[str, float]]:
    found = []
    for i in range(len(predictions)):
        true = predictions.case(i).mask
        mask = predictions.probability(i) >= np.float32(0.4 if final else 0.5)
        mask = plain_largest(mask) if final else mask
        both, either = (mask & true).sum(), (mask | true).sum()
        sizes = mask.sum() + true.sum()
        scores = {
            "dice": 2 * both / sizes if sizes else 1.0,
            "iou": both / either if either else 1.0,
            "precision": (both / mask.sum() if mask.any() else 0.0) if either else 1.0,
            "recall": (both / true.sum() if true.any() else 0.0) if either else 1.0,
        }
        scores["dice_tumour"] = scores["dice"] if either else math.nan
        scores |= dict.fromkeys(("hd95", "asd", "hd95_mm", "asd_mm", "hd95_with_misses"), math.nan)
        if mask.any() and true.any():
            scores["hd95"], scores["asd"] = plain_distances(mask, true, (1, 1))
            scores["hd95_mm"], scores["asd_mm"] = plain_distances(mask, true, (0.5, 0.8))
            scores["hd95_with_misses"] = scores["hd95"]
        elif either:
            scores["hd95_with_misses"] = math.hypot(24, 20)
        found.append(scores)
    return found


def same(mean: Mean, expected: tuple[float | None, float | None, float | None]) -> bool:
    found = (mean.mean, mean.low, mean.high)
    if [value is None for value in found] != [value is None for value in expected]:
        return False
    return all(x == pytest.approx(y, abs=1e-9) for x, y in zip(found, expected, strict=True) if x is not None)


@pytest.mark.parametrize("stage", ["raw", "postprocessing"])
def test_all_figures_are_those_of_a_plain_computation(stage: str) -> None:
    predictions = drawn()
    people = [predictions.case(i).patient for i in range(len(predictions))]
    expected = plain_scores(predictions, final=stage == "postprocessing")
    rows = score_slices(predictions, stage_rules(RULE))
    found = next(s for s in network_figures(rows, CLASSES, stage_rules(RULE), FEW).stages if s.name == stage)
    sets = [(found.all, list(range(len(rows))))]
    sets += [(found.classes[name], [i for i in range(len(rows)) if i % 3 == k]) for k, name in enumerate(CLASSES)]
    for figures, members in sets:
        assert (figures.slices, figures.patients) == (len(members), 8)
        for name in MEASURES:
            values = [expected[i][name] for i in members]
            assert same(figures.measures[name], plain_interval(values, [people[i] for i in members], name)), name
    empty = [i for i in range(len(rows)) if i % 8 == 3]
    assert found.all.empty == len(empty)
    assert found.all.with_tumour == len(rows) - len(empty)
    assert found.all.false_alarms == sum(expected[i]["dice"] == 0 for i in empty)
    touched = [i for i in range(len(rows)) if i not in empty and expected[i]["dice"] > 0]
    assert found.all.untouched == found.all.with_tumour - len(touched)


def test_gains_are_paired(rows: list[SliceRow]) -> None:
    people = [row.patient for row in rows]
    difference = [row.dice - row.postprocessing.baseline_dice for row in rows]
    assert same(gains(rows, STAGES, FEW)["postprocessing"], plain_interval(difference, people))
    glioma = [i for i, row in enumerate(rows) if row.label == "glioma"]
    expected = plain_interval([difference[i] for i in glioma], [people[i] for i in glioma])
    assert same(gain_classes(rows, CLASSES, "postprocessing", FEW)["glioma"], expected)
    tuned = [row.dice - row.raw.dice for row in rows]
    assert same(tuning_gain(rows, "postprocessing", FEW), plain_interval(tuned, people))


# --- edge cases -----------------------------------------------------------------------------------------------------------


def test_the_table_of_empty_masks() -> None:
    empty, full = np.zeros((6, 8), bool), np.ones((6, 8), bool)
    both, miss, alarm = mask_scores(empty, empty), mask_scores(empty, full), mask_scores(full, empty)
    for scores, value in ((both, 1.0), (miss, 0.0), (alarm, 0.0)):
        assert (scores.dice, scores.iou, scores.precision, scores.recall) == (value,) * 4
        assert math.isnan(scores.hd95)
        assert math.isnan(scores.asd_mm)


def test_millimetres_only_where_they_are_known(rows: list[SliceRow]) -> None:
    mask = np.eye(8, dtype=bool)
    moved = np.roll(mask, 2, 0)
    assert math.isnan(mask_scores(moved, mask).hd95_mm)
    assert mask_scores(moved, mask, (2.0, 2.0)).hd95_mm == 2 * mask_scores(moved, mask).hd95


def test_a_missed_tumour_stays_in_dice_and_leaves_distances_with_a_count() -> None:
    masks = np.zeros((4, 8, 8), bool)
    masks[:, 2:5, 2:5] = True
    probabilities = masks.astype(float)
    probabilities[3] = 0
    rows = score_slices(ArrayPredictions(probabilities, masks), stage_rules(MaskRule()))
    figures = network_figures(rows, ("all",), stage_rules(MaskRule()), FEW).stages[0].all
    assert figures.measures["dice"].mean == 0.75
    assert (figures.missed, figures.measures["hd95"].slices, figures.measures["hd95"].mean) == (1, 3, 0.0)
    assert figures.measures["hd95_with_misses"].mean == pytest.approx(math.hypot(8, 8) / 4)
    assert figures.measures["hd95_mm"].mean is None


def test_one_patient_has_no_interval() -> None:
    masks = np.ones((3, 4, 4), bool)
    rows = score_slices(ArrayPredictions(masks, masks, groups=["p"] * 3), stage_rules(MaskRule()))
    dice = network_figures(rows, ("all",), {"raw": MaskRule()}).stages[0].all.measures["dice"]
    assert (dice.mean, dice.low, dice.high, dice.patients) == (1.0, None, None, 1)


def test_a_stage_that_is_not_asked_for_is_the_last_one() -> None:
    rows = score_slices(drawn(), stage_rules(MaskRule(threshold=0.4), "threshold"))
    assert all(row.postprocessing == row.threshold for row in rows)
    assert any(row.threshold != row.raw for row in rows)


def test_a_threshold_for_each_class_is_used_for_its_class() -> None:
    masks = np.ones((2, 4, 4), bool)
    predictions = ArrayPredictions(0.3 * masks, masks, [0, 1], classes=("a", "b"))
    rows = score_slices(predictions, stage_rules(MaskRule(class_thresholds={"a": 0.2})))
    assert [row.dice for row in rows] == [1.0, 0.0]


def test_volumes_are_pooled_within(rows: list[SliceRow]) -> None:
    named = [replace(row, volume=f"v{i // 6}", patient="", group=f"v{i // 6}") for i, row in enumerate(rows)]
    volumes = network_figures(named, CLASSES, stage_rules(RULE), FEW).stages[-1].volumes
    assert volumes is not None
    pooled = []
    for start in range(0, len(named), 6):
        part = named[start : start + 6]
        overlap = sum(row.postprocessing.overlap_pixels for row in part)
        pooled.append(2 * overlap / sum(row.predicted_pixels + row.reference_pixels for row in part))
    assert volumes.mean == pytest.approx(np.mean(pooled))
    assert volumes.slices == 4
    assert network_figures(rows, CLASSES, stage_rules(RULE), FEW).stages[-1].volumes is None


def test_thirds_by_size_hold_every_tumour_once(rows: list[SliceRow]) -> None:
    groups = size_groups(rows)
    assert len(groups) == 3
    assert all("mm" in name for name in groups)
    total = sum(chosen.astype(int) for chosen in groups.values())
    assert total.tolist() == [int(row.reference_pixels > 0) for row in rows]
    sizes = [max(rows[i].reference_pixels for i in np.flatnonzero(chosen)) for chosen in groups.values()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("width", "unit"), [(20, "pixels"), (30, "% of the width")])
def test_sizes_without_spacing(rows: list[SliceRow], width: int, unit: str) -> None:
    changed = [replace(row, spacing_rows=0.0) for row in rows]
    changed[1] = replace(changed[1], width=width)
    assert all(unit in name for name in size_groups(changed))


def test_sizes_of_none_and_of_equal_tumours(rows: list[SliceRow]) -> None:
    assert size_groups([replace(row, reference_pixels=0) for row in rows]) == {}
    assert len(size_groups([replace(row, reference_pixels=9) for row in rows])) == 1


def test_clusters_join_ids_and_groups(rows: list[SliceRow]) -> None:
    ids = [("a", "g"), ("b", "g"), ("b", ""), ("c", "h"), ("", "h"), ("", "")]
    made = [replace(rows[0], patient=p, group=g) for p, g in ids]
    assert clusters(made).tolist() == [0, 0, 0, 1, 1, 2]


def test_rows_survive_the_file(rows: list[SliceRow], tmp_path: Path) -> None:
    odd = [replace(rows[0], slice_id='a,"b\n', patient="ä"), *rows[1:]]
    to_csv(odd, tmp_path / "per_slice.csv")
    again = read_csv(tmp_path / "per_slice.csv")
    # NaN is not equal to itself; its text is.
    assert [repr(row) for row in again] == [repr(row) for row in odd]


@pytest.mark.parametrize("damage", ["slice_id,dice\na,1\n", None])
def test_files_that_hold_no_rows(rows: list[SliceRow], tmp_path: Path, damage: str | None) -> None:
    path = tmp_path / "per_slice.csv"
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(DataError, match="table of slice scores"):
        read_csv(path)
    to_csv(rows, path)
    path.write_text(path.read_text().replace(",24,20,", ",x,20,", 1))
    with pytest.raises(DataError, match="damaged"):
        read_csv(path)


def test_joined_predictions_are_the_parts_in_order() -> None:
    one, two = drawn(count=5), drawn(1, count=4)
    joined = JoinedPredictions([one, two])
    assert len(joined) == 9
    assert np.array_equal(joined.probability(6), two.probability(1))
    assert np.array_equal(joined.case(4).mask, one.case(4).mask)
    assert joined.labels.tolist() == [*one.labels.tolist(), *two.labels.tolist()]


# --- calibration ----------------------------------------------------------------------------------------------------------


def test_calibration_is_that_of_a_plain_computation() -> None:
    predictions = drawn()
    found = calibrate(predictions, bins=10)
    values, truth = [], []
    for i in range(len(predictions)):
        mask, probability = predictions.case(i).mask, predictions.probability(i)
        for row, column in np.argwhere(np.ones_like(mask)) if mask.any() else ():
            inside = np.argwhere(mask)
            wide = math.ceil(0.1 * 24)
            low, high = inside.min(0) - wide, inside.max(0) + wide
            if low[0] <= row <= high[0] and low[1] <= column <= high[1]:
                values.append(float(probability[row, column]))
                truth.append(bool(mask[row, column]))
    bins = np.minimum((np.array(values) * 10).astype(int), 9)
    error = 0.0
    for k in range(10):
        there = bins == k
        assert found.pixels[k] == there.sum()
        if there.any():
            said, was = np.mean(np.array(values)[there]), np.mean(np.array(truth)[there])
            assert (found.predicted[k], found.observed[k]) == pytest.approx((said, was))
            error += abs(said - was) * there.mean()
    assert found.error == pytest.approx(error)


def test_calibration_without_tumour_says_nothing() -> None:
    found = calibrate(ArrayPredictions(np.zeros((2, 8, 8)), np.zeros((2, 8, 8))))
    assert found.error is None
    assert set(found.observed) == {None}


@pytest.mark.parametrize(
    "name", ["=1+1", "@SUM(A1)", "'=x", "+49a", "-3+4", " =a", "plain", "it's", "＝cmd|' /C calc'!A0"]
)
def test_names_are_no_formulas_in_a_spreadsheet_and_come_back(rows: list[SliceRow], name: str, tmp_path: Path) -> None:
    named = [replace(rows[0], slice_id=name, patient=name, group="", label=name)]
    to_csv(named, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as stream:
        (cells,) = csv.DictReader(stream)
    assert not any(cells[column].lstrip().startswith(tuple("=+-@＝")) for column in ("slice_id", "patient", "label"))
    assert repr(read_csv(tmp_path / "x.csv")) == repr(named)


# --- targets --------------------------------------------------------------------------------------------------------------


def over(low: float | None, high: float | None, clear: bool | None, patients: int = 9) -> Mean:
    value = None if low is None or high is None else (low + high) / 2
    return Mean(mean=value, low=low, high=high, slices=9, patients=patients, clear=clear)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (over(0.01, 0.05, True), "met"),
        (over(0.01, 0.05, False), "open"),  # the sign-flip test does not agree
        (over(-0.01, 0.05, False), "open"),
        (over(-0.05, -0.01, True), "missed"),
        (over(-0.05, -0.01, True, patients=4), "open"),
        (over(None, None, None), "open"),
    ],
)
def test_a_verdict_needs_interval_test_and_patients(difference: Mean, verdict: str) -> None:
    assert judge(difference) == verdict


def test_targets_are_judged_for_all_and_by_class(rows: list[SliceRow]) -> None:
    stage: Stage = network_figures(rows, CLASSES, stage_rules(RULE), FEW).stages[-1]
    targets = targets_of(stage, usual_goals(CLASSES), rows)
    assert [(t.name, t.goal, t.stretch) for t in targets[:4]] == [
        ("Dice (stated baseline)", 0.8657, False),
        ("Dice", 0.92, False),
        ("Dice", 0.95, True),
        ("Dice of meningioma", 0.9, False),
    ]
    assert all(t.value == stage.classes["glioma"].measures["dice"] for t in targets if "glioma" in t.name)
    assert len(usual_goals(("all",))) == 3
    reached = targets_of(stage, [Goal(None, 0.01)], rows)[0]
    assert (reached.verdict, reached.reached) == ("met", True)
    with pytest.raises(UsageError, match="unknown class"):
        targets_of(stage, [Goal("gliom", 0.9)], rows)


@pytest.mark.parametrize(("text", "goal"), [("0.92", 0.92), ("92%", 0.92), ("glioma=0.9", 0.9), ("a=b=0.5", 0.5)])
def test_goals_as_typed(text: str, goal: float) -> None:
    assert parse_goal(text).goal == pytest.approx(goal)


@pytest.mark.parametrize("text", ["", "92", "0", "nan", "glioma", "-0.1"])
def test_goals_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--target"):
        parse_goal(text)
