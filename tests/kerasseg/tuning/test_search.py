"""The rule that tuning finds: against trying everything, on predictions whose best rule is known, and on odd ones."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from kerasseg import MaskRule, apply_rule
from kerasseg.evaluation.bootstrap import bootstrap_interval, paired_interval
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.tuning.scoring import RuleSearch, hold
from kerasseg.tuning.search import tune
from kerasseg.tuning.threshold_file import Tuned
from kerasseg_tfrecords.errors import DataError, UsageError

SIZE = 48
CLASSES = ["glioma", "meningioma"]


def scene(
    count: int = 24, *, inside: float = 0.9, specks: float | None = None, holes: bool = False, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A round tumour a slice with probability `inside`, on request with specks far away, or a hole within."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    probabilities, masks = np.full((count, SIZE, SIZE), 0.02, np.float32), np.zeros((count, SIZE, SIZE), bool)
    for i in range(count):
        y, x = rng.integers(12, 24, 2)
        distance = np.hypot(rows - y, columns - x)
        masks[i] = distance < rng.integers(5, 9)
        probabilities[i][masks[i]] = inside
        if specks is not None:
            probabilities[i, 40:42, 40:42] = specks
        if holes:
            probabilities[i][distance < 2] = 0.02
    return probabilities, masks


def predictions(pair: tuple[NDArray[np.float32], NDArray[np.bool_]], **more: Any) -> ArrayPredictions:
    count = len(pair[0])
    options: dict[str, Any] = {
        "labels": np.arange(count) % 2,
        "groups": [str(i // 2) for i in range(count)],
        "classes": CLASSES,
    } | more
    return ArrayPredictions(*pair, **options)


def dice(found: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    sizes = int(found.sum()) + int(mask.sum())
    return 2 * int((found & mask).sum()) / sizes if sizes else 1.0


def mean_by_hand(pair: tuple[NDArray[np.float32], NDArray[np.bool_]], rule: MaskRule) -> float:
    return float(np.mean([dice(apply_rule(p, rule), m) for p, m in zip(*pair, strict=True)]))


def kept(tuned: Tuned) -> list[str]:
    return [step.name for step in tuned.steps if step.kept]


def test_a_threshold_that_is_too_high_comes_down_as_far_as_it_must() -> None:
    pair = scene(inside=0.35)
    tuned = tune(predictions(pair))
    assert tuned.rule == MaskRule(threshold=0.35)
    assert (tuned.raw.mean, tuned.dice.mean) == (0, 1)
    assert (tuned.threshold_low, tuned.threshold_high) == (0.35, 0.35)
    assert (tuned.flat_low, tuned.flat_high) == (0.021, 0.35)
    assert kept(tuned) == ["raw", "threshold"]
    assert [step.name for step in tuned.steps][2:] == [
        "min_diameter",
        "close_radius",
        "fill_holes",
        "keep_largest",
        "open_radius",
    ]


def test_what_is_good_stays_at_a_half() -> None:
    tuned = tune(predictions(scene()))
    assert tuned.rule == MaskRule()
    assert tuned.steps[1].reason == "0.5 is the best"
    assert all(step.reason for step in tuned.steps[1:])
    assert (tuned.gain.mean, tuned.slices, tuned.patients, tuned.width) == (0, 24, 12, SIZE)


def test_specks_are_removed_and_the_threshold_may_follow() -> None:
    """Specks are likelier than tumours: no threshold alone is right, and with their removal a lower one is."""
    pair = scene(inside=0.3, specks=0.6)
    tuned = tune(predictions(pair))
    assert tuned.rule.min_diameter > 0
    assert tuned.rule.threshold == 0.3
    assert tuned.dice.mean == 1
    step = next(step for step in tuned.steps if step.name == "min_diameter")
    assert step.dice is not None
    assert step.gain == pytest.approx(1 - mean_by_hand(pair, MaskRule(threshold=0.3)))


def test_holes_are_filled() -> None:
    pair = scene(holes=True)
    tuned = tune(predictions(pair))
    assert "fill_holes" in kept(tuned) or "close_radius" in kept(tuned)
    assert tuned.dice.mean > mean_by_hand(pair, MaskRule()) + 0.01


def test_a_step_by_which_a_class_loses_is_not_kept() -> None:
    """The specks of one class are tumours of the other, and of no other size."""
    probabilities, masks = scene(specks=0.9)
    masks[1::2, 40:42, 40:42] = True
    pair = probabilities, masks
    assert mean_by_hand(pair, MaskRule()) < 1
    tuned = tune(predictions(pair))
    for step in tuned.steps:
        if step.name in ("min_diameter", "keep_largest", "open_radius"):
            assert not step.kept
    # The same specks in more slices of one class than the other: the mean gains by removing them, one class loses.
    tuned = tune(predictions(pair, labels=np.arange(24) % 6 == 1))
    assert not {"min_diameter", "keep_largest"} & set(kept(tuned))


def test_a_gain_of_the_mean_at_the_cost_of_a_class_is_named() -> None:
    probabilities, masks = scene(specks=0.9)
    labels = (np.arange(24) % 4 == 1).astype(int)
    masks[labels == 1, 40:42, 40:42] = True
    tuned = tune(predictions((probabilities, masks), labels=labels))
    step = next(step for step in tuned.steps if step.name == "keep_largest")
    assert step.gain is not None
    assert step.gain > 0.005
    assert step.reason.startswith("meningioma loses 0.0")
    assert not tuned.rule.postprocesses


def test_the_figures_are_those_of_a_plain_computation() -> None:
    """Mean, intervals and curve, from masks made one by one."""
    rng = np.random.default_rng(3)
    probabilities, masks = scene(inside=0.6, specks=0.4)
    probabilities = np.clip(probabilities + rng.normal(0, 0.15, probabilities.shape), 0, 1).astype(np.float32)
    pair = probabilities, masks
    tuned = tune(predictions(pair), per_class=True)
    names = [CLASSES[i % 2] for i in range(24)]
    groups = [str(i // 2) for i in range(24)]
    raw = [dice(p >= np.float32(0.5), m) for p, m in zip(*pair, strict=True)]
    final = [dice(apply_rule(p, tuned.rule, n), m) for p, m, n in zip(*pair, names, strict=True)]
    assert np.mean(final) > np.mean(raw) + 0.05
    for found, expected in (
        (tuned.raw, bootstrap_interval(raw, groups)),
        (tuned.dice, bootstrap_interval(final, groups)),
        (tuned.gain, paired_interval(raw, final, groups)),
    ):
        assert found.mean == pytest.approx(expected.estimate)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    for k in (99, 499, 700):
        assert tuned.curve.dice[k] == pytest.approx(
            mean_by_hand(pair, MaskRule(threshold=tuned.curve.thresholds[k])), abs=1e-6
        )
    for step in tuned.steps:
        means = [dice(apply_rule(p, step.rule, n), m) for p, m, n in zip(*pair, names, strict=True)]
        assert step.dice == pytest.approx(np.mean(means))
        assert step.classes == pytest.approx({CLASSES[i]: np.mean(means[i::2]) for i in range(2)})
    assert tuned.curve_with_steps is not None
    at = tuned.curve_with_steps.thresholds.index(tuned.rule.threshold)
    one_for_all = tuned.rule.model_copy(update={"class_thresholds": {}})
    assert tuned.curve_with_steps.dice[at] == pytest.approx(mean_by_hand(pair, one_for_all), abs=1e-6)


def test_no_class_is_worse_after_postprocessing_than_before() -> None:
    """nnU-Net's rule, for the whole of the steps, on noise of several kinds."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        probabilities, masks = scene(inside=0.6, specks=0.7, holes=True, seed=seed)
        probabilities = np.clip(probabilities + rng.normal(0, 0.2, probabilities.shape), 0, 1).astype(np.float32)
        tuned = tune(predictions((probabilities, masks)))
        before, after = tuned.steps[1] if tuned.steps[1].kept else tuned.steps[0], tuned.steps
        last = [step for step in after if step.kept][-1]
        assert last.dice is not None
        assert before.dice is not None
        assert last.dice > before.dice
        assert all(last.classes[name] >= before.classes[name] - 1e-9 for name in CLASSES)
        assert tuned.rule == last.rule


def test_the_same_slices_give_the_same_rule_whatever_the_threads() -> None:
    rng = np.random.default_rng(0)
    probabilities, masks = scene(40, inside=0.5, specks=0.5)
    probabilities = np.clip(probabilities + rng.normal(0, 0.2, probabilities.shape), 0, 1).astype(np.float32)
    one = tune(predictions((probabilities, masks)), jobs=1)
    assert one.model_dump() == tune(predictions((probabilities, masks)), jobs=3).model_dump()


def test_a_threshold_for_each_class() -> None:
    probabilities, masks = scene(inside=0.3)
    probabilities[1::2][masks[1::2]] = 0.8
    probabilities[1::2][~masks[1::2]] = 0.6  # more than the other class's tumours
    pair = probabilities, masks
    alone = tune(predictions(pair))
    tuned = tune(predictions(pair), per_class=True)
    assert alone.dice.mean is not None
    assert alone.dice.mean < 0.7
    assert tuned.dice.mean == 1
    assert tuned.rule.threshold_for("glioma") <= 0.3
    assert 0.6 < tuned.rule.threshold_for("meningioma") <= 0.8
    assert kept(tuned)[-1] == "class_thresholds"
    assert tune(predictions(scene()), per_class=True).rule.class_thresholds == {}


def test_a_hopeless_rule_is_given_up_early_and_a_good_one_never() -> None:
    pair = scene(90)
    given = predictions(pair)
    held = hold(given, np.arange(90), np.arange(90), "native", 0.001)
    with RuleSearch(held, 2) as search:
        standing = search.dice(MaskRule())
        assert standing.tolist() == [1.0] * 90
        assert search.race(MaskRule(threshold=0.95), standing) is None
        same = search.race(MaskRule(threshold=0.6), standing)
        assert same is not None
        assert same.tolist() == standing.tolist()
        # Never given up: fewer slices than say anything.
        few = hold(given, np.arange(9), np.arange(90), "native", 0.001)
    with RuleSearch(few, 2) as search:
        assert search.race(MaskRule(threshold=0.95), np.ones(9)) is not None


@pytest.mark.parametrize("pixels", [1, 20_000, 1 << 18])
def test_slices_together_score_as_each_alone(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise up to the edges, so that steps would reach the next slice if they could; at 250 pixels gaps are closed."""
    monkeypatch.setattr("kerasseg.tuning.scoring._STRIP", pixels)
    rng = np.random.default_rng(pixels)
    shapes = [(24, 250), (250, 24), (40, 130), (SIZE, SIZE), (1, 1)] * 5
    blurred = [cv2.GaussianBlur(rng.random(shape), (0, 0), rng.uniform(0.3, 2)) for shape in shapes]
    maps = [np.clip(0.5 + rng.uniform(1, 6) * (noise - noise.mean()), 0, 1).astype(np.float32) for noise in blurred]
    maps[7][:] = 0
    given = predictions((maps, [p > 0.3 + 0.3 * rng.random(p.shape) for p in maps]))  # type: ignore[arg-type]
    every, changed = np.arange(len(maps)), 0
    with RuleSearch(hold(given, every, every, "native", 0.3), 2) as search:
        for _ in range(25):
            length, on = rng.choice([0.0, 0.008], 2).tolist(), rng.integers(0, 2, 2).astype(bool).tolist()
            rule = MaskRule(
                threshold=float(rng.choice([0.3, 0.5, 0.7])),
                class_thresholds={"glioma": 0.6} if rng.random() < 0.2 else {},
                min_diameter=float(rng.choice([0, 0.05, 0.2])),
                close_radius=length[0],
                fill_holes=on[0],
                keep_largest=on[1],
                open_radius=length[1],
            )
            names = [CLASSES[label] for label in given.labels]
            masks = [apply_rule(p, rule, name) for p, name in zip(maps, names, strict=True)]
            alone = [dice(mask, given.case(i).mask) for i, mask in enumerate(masks)]
            assert search.fresh(rule, given.classes).tolist() == alone
            if not rule.class_thresholds:
                assert search.dice(rule).tolist() == alone
            changed += alone != search.dice(rule.without_postprocessing(), given.classes).tolist()
    assert changed > 12


def test_slices_of_several_sizes_have_lengths_of_their_own() -> None:
    """Specks of 4 pixels in slices of 48, and of 16 pixels in the same slices at 96."""
    probabilities, masks = scene(12, specks=0.9)
    large = [p.repeat(2, 0).repeat(2, 1) for p in probabilities], [m.repeat(2, 0).repeat(2, 1) for m in masks]
    both = ArrayPredictions([*probabilities, *large[0]], [*masks, *large[1]])
    tuned = tune(both)
    assert tuned.rule.min_diameter or tuned.rule.keep_largest
    assert tuned.dice.mean == 1
    assert tuned.width == 72


def test_of_very_many_slices_post_processing_sees_some_and_the_figures_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg.tuning.search._SEARCHED", 9)
    pair = scene(40, inside=0.3, specks=0.6)
    tuned = tune(predictions(pair))
    assert 0 < tuned.searched <= 18 < tuned.slices == 40
    assert tuned.rule.min_diameter > 0
    assert tuned.dice.mean == pytest.approx(mean_by_hand(pair, tuned.rule))
    assert tuned.dice.slices == 40


# --- odd predictions ------------------------------------------------------------------------------------------------------


def test_no_tumour_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no slice has a tumour"):
        tune(ArrayPredictions(np.full((3, 8, 8), 0.4), np.zeros((3, 8, 8))))


def test_no_slice_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no slice"):
        tune(ArrayPredictions([], []))


@pytest.mark.parametrize(
    ("value", "note"),
    [(0.0, "The network finds no tumour"), (0.0004, "finds no tumour"), (0.7, "for every pixel")],
)
def test_constant_predictions_keep_a_half_and_are_named(value: float, note: str) -> None:
    masks = scene(6)[1]
    masks[3] = False
    tuned = tune(ArrayPredictions(np.full(masks.shape, value), masks), per_class=True)
    assert tuned.rule == MaskRule()
    assert note in tuned.notes[0]
    assert tuned.steps[1].reason == "all are the same"
    assert tuned.gain.mean == 0


def test_probabilities_that_never_reach_a_half_are_named() -> None:
    notes = tune(predictions(scene(inside=0.35))).notes
    assert "No probability reaches 0.5 (the highest is 0.35)" in notes[0]


def test_one_patient_gives_a_rule_without_intervals() -> None:
    alone = predictions(scene(4, inside=0.4), groups=["a"] * 4)
    tuned = tune(alone, force=True)
    assert tuned.rule.threshold == 0.4
    assert (tuned.threshold_low, tuned.dice.low) == (None, None)
    assert tuned.decision.startswith("The rule was kept with --force")
    assert tune(alone).rule == MaskRule()


# --- whether a rule is kept -----------------------------------------------------------------------------------------------


def test_with_fewer_than_eight_patients_the_rule_stays_and_the_other_is_shown() -> None:
    for patients, few in ((7, True), (8, False)):
        pair = scene(16, inside=0.35)
        found = tune(predictions(pair, groups=[str(i % patients) for i in range(16)]))
        assert found.tumour_patients == patients
        assert (found.rule == MaskRule()) == few
        assert (found.candidate == MaskRule(threshold=0.35)) == few
        assert (found.gain.mean == 0) == few
        assert all(step.reason for step in found.steps[1:]) == few
        if few:
            assert found.decision == (
                "Threshold 0.5 without post-processing is used: the validation split has 7 patients with tumours, and a "
                "rule needs at least 8; the rule would have been threshold 0.35 (+1.000 Dice on the validation slices)."
            )
            assert found.candidate_gain is not None
            assert found.candidate_gain.mean == 1
        else:
            assert found.decision == ""


def test_patients_without_tumours_do_not_count() -> None:
    probabilities, masks = scene(24, inside=0.35)
    masks[8:] = False
    probabilities[8:] = 0.02
    found = tune(predictions((probabilities, masks)))  # 12 patients, of whom 4 have tumours
    assert (found.patients, found.tumour_patients, found.rule) == (12, 4, MaskRule())


def test_a_gain_within_noise_is_not_kept_and_force_keeps_it() -> None:
    """One patient of ten gains much by a lower threshold, the others lose a little."""
    probabilities, masks = scene(20)
    for i in range(20):
        edge = ~masks[i] & (cv2.dilate(masks[i].astype(np.uint8), np.ones((3, 3))) > 0)
        probabilities[i][edge] = 0.4
    probabilities[:4][masks[:4]] = 0.4
    pair = probabilities, masks
    found = tune(predictions(pair))
    assert mean_by_hand(pair, MaskRule(threshold=0.4)) > mean_by_hand(pair, MaskRule()) + 0.01
    assert found.rule == MaskRule()
    assert found.steps[1].reason == "within noise"
    forced = tune(predictions(pair), force=True)
    assert forced.forced is True


def test_evidence_is_read_again_with_and_without_the_decision() -> None:
    found = tune(predictions(scene(6, inside=0.35)))
    assert Tuned.model_validate_json(found.model_dump_json()) == found
    plain = found.model_copy(update=dict.fromkeys(("tumour_patients", "forced", "candidate", "candidate_gain")))
    assert "candidate" not in plain.model_dump_json()
    assert Tuned.model_validate_json(plain.model_dump_json()).decision == ""


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"resamples": 0}])
def test_options_that_cannot_be_used_are_said(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="invalid options of tuning"):
        tune(predictions(scene(4)), **options)
