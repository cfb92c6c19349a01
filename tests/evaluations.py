"""A whole evaluation with every part that `metrics.json` knows, computed from drawn slices, for tests of pages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from factories import blob
from kerasseg.evaluation.bootstrap import bootstrap_interval, paired_interval
from kerasseg.evaluation.joined import SlicePicture
from kerasseg.evaluation.per_slice import STAGES, SliceRow, StageScores
from kerasseg.evaluation.schema import (
    Calibration,
    Evaluation,
    Figures,
    Mean,
    NetworkFigures,
    Robustness,
    RobustnessCurve,
    SecondReader,
    Speed,
    SplitFacts,
    Stage,
    Target,
)
from kerasseg.postprocessing import MaskRule

CLASSES = ("meningioma", "glioma", "pituitary")
HOSTILE = '<script>document.title="taken"</script><img src=x onerror=alert(1)>&"\''


class Slices:
    """Drawn slices with wrong masks that are more wrong for higher numbers; implements `Pictures`."""

    def __init__(self, count: int = 18, size: int = 48) -> None:
        self.shown: dict[str, SlicePicture] = {}
        rng = np.random.default_rng(0)
        for i in range(count):
            image, mask = blob(i, size)
            grey = np.clip(image / 16, 0, 255).astype(np.uint8)[..., None]
            prediction = np.roll(mask, (i // 4, i // 3), (0, 1))
            if i == count - 1:
                prediction = np.zeros_like(mask)
            elif i % 5 == 1:
                prediction = prediction | (rng.random(mask.shape) < 0.001)
            self.shown[HOSTILE if i == 0 else f"data/{i}.mat"] = SlicePicture(grey, mask, prediction)

    def picture(self, slice_id: str) -> SlicePicture:
        return self.shown[slice_id]

    def rows(self, shift: float = 0.0) -> list[SliceRow]:
        """One for each; `shift` is added to Dice (and cut off at 0 and 1), for another network on the same slices."""
        found = []
        for i, (name, shown) in enumerate(self.shown.items()):
            scores = _scores(shown.reference, shown.prediction, shift * (1 + (i % 3)) / 2)
            raw = dataclasses.replace(scores, dice=max(scores.dice - 0.05, 0.0))
            patient = f"p{i // 2}"
            size = shown.reference.shape
            found.append(
                SliceRow(
                    slice_id=name,
                    patient=patient,
                    group=patient,
                    volume="",
                    label=CLASSES[i % 3],
                    height=size[0],
                    width=size[1],
                    spacing_rows=0.5,
                    spacing_columns=0.5,
                    reference_pixels=int(shown.reference.sum()),
                    raw=raw,
                    threshold=scores,
                    postprocessing=scores,
                )
            )
        return found


def _scores(reference: NDArray[np.bool_], prediction: NDArray[np.bool_], shift: float) -> StageScores:
    both, total = int((reference & prediction).sum()), int(reference.sum() + prediction.sum())
    dice = min(max(2 * both / total + shift, 0.0), 1.0) if total else 1.0
    found = int(prediction.sum())
    return StageScores(
        predicted_pixels=found,
        overlap_pixels=both,
        dice=dice,
        iou=dice / (2 - dice),
        precision=both / found if found else 0.0,
        recall=both / int(reference.sum()),
        hd95=4.0 - 3 * dice if found else math.nan,
        asd=2.0 - dice if found else math.nan,
        baseline_dice=max(dice - 0.1, 0.0),
    )


def mean_of(values: Sequence[float], groups: Sequence[str]) -> Mean:
    found = bootstrap_interval(values, groups, resamples=200)
    return _mean(found)


def _mean(found: object) -> Mean:
    def plain(name: str) -> float | None:
        value = float(getattr(found, name))
        return value if math.isfinite(value) else None

    return Mean(
        mean=plain("estimate"),
        low=plain("low"),
        high=plain("high"),
        slices=int(getattr(found, "slices")),  # noqa: B009
        patients=int(getattr(found, "groups")),  # noqa: B009
    )


def _figures(rows: Sequence[SliceRow], stage: str, baseline: bool) -> Figures:
    groups = [row.group for row in rows]

    def value(row: SliceRow, name: str) -> float:
        scores = getattr(row, stage)
        if baseline:
            return scores.baseline_dice if name.startswith("dice") else getattr(scores, name) * 0.9
        return getattr(scores, "dice" if name == "dice_tumour" else name)  # type: ignore[no-any-return]

    names = ("dice", "dice_tumour", "iou", "precision", "recall", "hd95", "asd")
    return Figures(
        slices=len(rows),
        patients=len(set(groups)),
        with_tumour=sum(row.reference_pixels > 0 for row in rows),
        missed=sum(row.missed() for row in rows),
        untouched=sum(row.postprocessing.overlap_pixels == 0 for row in rows),
        empty=0,
        false_alarms=0,
        measures={name: mean_of([value(row, name) for row in rows], groups) for name in names},
    )


def _network(rows: Sequence[SliceRow], baseline: bool = False) -> NetworkFigures:
    chosen = 0.31 if baseline else 0.42
    rules = (MaskRule(), MaskRule(threshold=chosen), MaskRule(threshold=chosen, min_diameter=0.02, fill_holes=True))
    half = len(rows) // 2
    small = sorted(rows, key=lambda row: row.reference_pixels)
    return NetworkFigures(
        stages=tuple(
            Stage(
                name=name,
                rule=rule,
                all=_figures(rows, name, baseline),
                classes={c: _figures([r for r in rows if r.label == c], name, baseline) for c in CLASSES},
                sizes={
                    "smaller half": _figures(small[:half], name, baseline),
                    "larger half": _figures(small[half:], name, baseline),
                },
            )
            for name, rule in zip(STAGES, rules, strict=True)
        )
    )


def evaluation(rows: Sequence[SliceRow], *, whole: bool = True) -> Evaluation:
    """Figures over the rows; with `whole` False only what every evaluation has."""
    groups = [row.group for row in rows]
    network = _network(rows)
    gains = {
        name: _mean(
            paired_interval(
                [getattr(r, name).baseline_dice for r in rows],
                [getattr(r, name).dice for r in rows],
                groups,
                resamples=200,
            )
        )
        for name in STAGES
    }
    dice = network.stages[2].all.measures["dice"]
    grades = (1.0, 2.0, 3.0, 4.0, 5.0)
    clean = dice.mean or 0.0
    curve = tuple(clean * (1 - 0.05 * g) for g in grades)
    bins = np.linspace(0, 1, 11)
    middles = tuple((bins[:-1] + 0.05).tolist())
    return Evaluation(
        kerasseg="0.0.1",
        software={"keras": "3.15.1", "numpy": "2.4.0"},
        created="2026-01-02T03:04:05+00:00",
        run="runs/a",
        run_id="0123456789abcdef",
        network="unet-tiny, conservative",
        shards="shards",
        split="test",
        resolution="native",
        threshold="auto",
        classes=CLASSES,
        final="postprocessing",
        model=network,
        baseline=_network(rows, baseline=True) if whole else None,
        gain=gains if whole else {},
        gain_classes=dict.fromkeys(CLASSES, gains["postprocessing"]) if whole else {},
        tuning_gain=gains["raw"],
        targets=(
            Target(name="Dice", goal=0.3, stretch=False, value=dice, verdict="met", reached=True),
            Target(name="Dice", goal=clean, stretch=True, value=dice, verdict="open", reached=True),
            Target(name="Dice of glioma", goal=0.99, stretch=False, value=dice, verdict="missed", reached=False),
        ),
        calibration=Calibration(
            edges=tuple(bins.tolist()),
            predicted=(*middles[:9], None),
            observed=(*(m**1.3 for m in middles[:9]), None),
            pixels=(100,) * 9 + (0,),
            error=0.043,
        )
        if whole
        else None,
        speed=Speed(
            slices_per_second={"1": 8.2, "8": 14.0},
            milliseconds_a_slice={"1": 122.0, "8": 71.4},
            baseline_slices_per_second={"1": 8.1, "8": 14.1},
            baseline_milliseconds_a_slice={"1": 123.5, "8": 70.9},
            device="CPU, 2 cores",
        )
        if whole
        else None,
        robustness=Robustness(
            seed=0,
            clean=clean,
            curves=tuple(
                RobustnessCurve(name=name, grades=grades, dice=curve, kept=0.85)
                for name in ("rician_noise", "bias_field", "ghosting", "motion_blur")
            ),
            kept=0.85,
        )
        if whole
        else None,
        second_reader=SecondReader(
            source="second/",
            slices=10,
            without=8,
            agreement=mean_of([0.9, 0.8, 0.85], ["a", "b", "c"]),
            agreement_classes={},
            network=dice,
            network_second=dice,
        )
        if whole
        else None,
        data=SplitFacts(
            split_by="patient",
            seed=42,
            shares="80/10/10",
            patients_on_both_sides=0,
            slices_without_patient=0,
            intensity="minmax",
            size=48,
            fingerprint="f" * 64,
        ),
        test_looks=3,
        warnings=("Only 9 patients.",) if whole else (),
    )
