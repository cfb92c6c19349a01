"""Score every slice at every stage, from probabilities to the final mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.per_slice import STAGES, SliceRow, StageScores
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.schema import StageName
from kerasseg.evaluation.surface_distances import surface_distances
from kerasseg.postprocessing import MaskRule, apply_rule

Progress = Callable[[int, int], None]


def stage_rules(rule: MaskRule, final: StageName = "postprocessing") -> dict[StageName, MaskRule]:
    """Return the rule of each stage up to the final one.

    Example:
        >>> list(stage_rules(MaskRule(threshold=0.4, fill_holes=True)).values())
        [MaskRule(threshold=0.5), MaskRule(threshold=0.4), MaskRule(threshold=0.4, fill_holes=True)]
    """
    rules: dict[StageName, MaskRule] = {
        "raw": MaskRule(),
        "threshold": rule.without_postprocessing(),
        "postprocessing": rule,
    }
    return {name: rules[name] for name in STAGES[: STAGES.index(final) + 1]}


def score_slices(
    predictions: Predictions,
    rules: Mapping[StageName, MaskRule],
    *,
    resolution: Resolution = "native",
    progress: Progress | None = None,
) -> list[SliceRow]:
    """Score every slice at every stage.

    Example:
        >>> from kerasseg.evaluation.predictions import ArrayPredictions
        >>> mask = np.zeros((1, 8, 8), bool); mask[0, 2:6, 2:6] = True
        >>> rows = score_slices(ArrayPredictions(mask * 0.4, mask), stage_rules(MaskRule(threshold=0.3)))
        >>> rows[0].raw.dice, rows[0].threshold.dice, rows[0].missed("raw")
        (0.0, 1.0, True)
    """
    rows = []
    for number in range(len(predictions)):
        case = predictions.case(number, resolution)
        probability = predictions.probability(number, resolution)
        label = predictions.classes[case.label]
        scores: dict[StageName, StageScores] = {}
        known: dict[str, StageScores] = {}
        for stage in STAGES:
            if stage in rules:
                rule = rules[stage]
                key = rule.model_dump_json()
                if key not in known:
                    known[key] = mask_scores(apply_rule(probability, rule, label), case.mask, case.spacing)
                last = known[key]
            scores[stage] = last
        height, width = case.mask.shape
        rows.append(
            SliceRow(
                slice_id=case.slice_id,
                patient=case.patient,
                group=case.group,
                volume=case.volume,
                label=label,
                height=height,
                width=width,
                spacing_rows=case.spacing[0],
                spacing_columns=case.spacing[1],
                reference_pixels=int(np.count_nonzero(case.mask)),
                raw=scores["raw"],
                threshold=scores["threshold"],
                postprocessing=scores["postprocessing"],
            )
        )
        if progress is not None:
            progress(number + 1, len(predictions))
    return rows


def mask_scores(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, float] = (0.0, 0.0)
) -> StageScores:
    """Score one mask against its reference.

    Args:
        prediction: (height, width) bool.
        reference: The same shape.
        spacing: Millimetres per pixel, rows then columns; 0 if unknown.

    Example:
        >>> mask = np.eye(4, dtype=bool)
        >>> mask_scores(mask, mask).dice, mask_scores(np.zeros_like(mask), mask).dice
        (1.0, 0.0)
    """
    predicted = int(np.count_nonzero(prediction))
    true = int(np.count_nonzero(reference))
    overlap = int(np.count_nonzero(prediction & reference))
    hd95 = asd = hd95_mm = asd_mm = math.nan
    if predicted and true:
        pixels = surface_distances(prediction, reference)
        hd95, asd = pixels.hd95, pixels.assd
        if spacing[0] > 0 and spacing[1] > 0:
            metric = surface_distances(prediction, reference, spacing)
            hd95_mm, asd_mm = metric.hd95, metric.assd
    return StageScores(
        predicted_pixels=predicted,
        overlap_pixels=overlap,
        dice=_share(2 * overlap, predicted + true, predicted + true),
        iou=_share(overlap, predicted + true - overlap, predicted + true),
        precision=_share(overlap, predicted, predicted + true),
        recall=_share(overlap, true, predicted + true),
        hd95=hd95,
        asd=asd,
        hd95_mm=hd95_mm,
        asd_mm=asd_mm,
    )


def mask_dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks; 1 if both are empty.

    >>> mask_dice(np.array([[True, True]]), np.array([[True, False]]))
    0.6666666666666666
    """
    both = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return _share(2 * int(np.count_nonzero(prediction & reference)), both, both)


def with_baseline(rows: Sequence[SliceRow], baseline: Sequence[SliceRow]) -> list[SliceRow]:
    """Return the rows of a network with the Dice of the baseline, whose rows are in the same order."""
    joined = []
    for row, other in zip(rows, baseline, strict=True):
        stages = {name: replace(row.stage(name), baseline_dice=other.stage(name).dice) for name in STAGES}
        joined.append(
            replace(row, raw=stages["raw"], threshold=stages["threshold"], postprocessing=stages["postprocessing"])
        )
    return joined


def _share(above: int, below: int, either: int) -> float:
    """Return the quotient; 1 if both masks are empty, 0 if one is."""
    return 1.0 if not either else above / below if below else 0.0
