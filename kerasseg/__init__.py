"""Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices.

The names below are the public surface. Each is imported when first used, so that `import kerasseg` costs next to nothing
and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kerasseg_tfrecords._version import __version__

if TYPE_CHECKING:
    from kerasseg.augment import SafeAugmentation
    from kerasseg.batches import stratified_batches
    from kerasseg.blocks import Block, Blocks, find_blocks
    from kerasseg.checkpoints import Provenance, open_checkpoint, provenance
    from kerasseg.distances import SurfaceDistances, hd95, surface_distances
    from kerasseg.ensembles import ensemble
    from kerasseg.evaluation.arrays import EvaluationResult, evaluate
    from kerasseg.fitting import fit_to_task
    from kerasseg.folding import fold_batchnorm
    from kerasseg.freezing import FreezeReport, freeze
    from kerasseg.losses import DiceBCELoss, class_weights
    from kerasseg.metrics import ClassScores, DiceScore, IoU, Precision, Recall, SliceScores, SoftDice, slice_scores
    from kerasseg.network import unet
    from kerasseg.optimizers import DecayedAdam, set_l2
    from kerasseg.overlap import dice
    from kerasseg.pipeline import EvaluationData, TrainingData, load_split
    from kerasseg.plateau import PlateauRule, PlateauState
    from kerasseg.postprocessing import apply_rule, postprocess
    from kerasseg.prediction.arrays import predict_masks
    from kerasseg.prediction.files import PredictionReport, predict_files
    from kerasseg.report import write_report
    from kerasseg.rule import MaskRule
    from kerasseg.schedule import PlateauSchedule
    from kerasseg.slice_batches import SliceBatches
    from kerasseg.statistics import Interval, bootstrap_interval, paired_interval
    from kerasseg.thresholds import ThresholdSweep, sweep_thresholds
    from kerasseg.training.fine_tune import FineTuned, fine_tune

_HOMES = {
    "Block": "kerasseg.blocks",
    "Blocks": "kerasseg.blocks",
    "ClassScores": "kerasseg.metrics",
    "DecayedAdam": "kerasseg.optimizers",
    "DiceBCELoss": "kerasseg.losses",
    "DiceScore": "kerasseg.metrics",
    "EvaluationData": "kerasseg.pipeline",
    "EvaluationResult": "kerasseg.evaluation.arrays",
    "FineTuned": "kerasseg.training.fine_tune",
    "FreezeReport": "kerasseg.freezing",
    "Interval": "kerasseg.statistics",
    "IoU": "kerasseg.metrics",
    "MaskRule": "kerasseg.rule",
    "PlateauRule": "kerasseg.plateau",
    "PlateauSchedule": "kerasseg.schedule",
    "PlateauState": "kerasseg.plateau",
    "Precision": "kerasseg.metrics",
    "PredictionReport": "kerasseg.prediction.files",
    "Provenance": "kerasseg.checkpoints",
    "Recall": "kerasseg.metrics",
    "SafeAugmentation": "kerasseg.augment",
    "SliceBatches": "kerasseg.slice_batches",
    "SliceScores": "kerasseg.metrics",
    "SoftDice": "kerasseg.metrics",
    "SurfaceDistances": "kerasseg.distances",
    "ThresholdSweep": "kerasseg.thresholds",
    "TrainingData": "kerasseg.pipeline",
    "apply_rule": "kerasseg.postprocessing",
    "bootstrap_interval": "kerasseg.statistics",
    "class_weights": "kerasseg.losses",
    "dice": "kerasseg.overlap",
    "ensemble": "kerasseg.ensembles",
    "evaluate": "kerasseg.evaluation.arrays",
    "find_blocks": "kerasseg.blocks",
    "fine_tune": "kerasseg.training.fine_tune",
    "fit_to_task": "kerasseg.fitting",
    "fold_batchnorm": "kerasseg.folding",
    "freeze": "kerasseg.freezing",
    "hd95": "kerasseg.distances",
    "load_split": "kerasseg.pipeline",
    "open_checkpoint": "kerasseg.checkpoints",
    "paired_interval": "kerasseg.statistics",
    "postprocess": "kerasseg.postprocessing",
    "predict_files": "kerasseg.prediction.files",
    "predict_masks": "kerasseg.prediction.arrays",
    "provenance": "kerasseg.checkpoints",
    "set_l2": "kerasseg.optimizers",
    "slice_scores": "kerasseg.metrics",
    "stratified_batches": "kerasseg.batches",
    "surface_distances": "kerasseg.distances",
    "sweep_thresholds": "kerasseg.thresholds",
    "unet": "kerasseg.network",
    "write_report": "kerasseg.report",
}

__all__ = [
    "Block",
    "Blocks",
    "ClassScores",
    "DecayedAdam",
    "DiceBCELoss",
    "DiceScore",
    "EvaluationData",
    "EvaluationResult",
    "FineTuned",
    "FreezeReport",
    "Interval",
    "IoU",
    "MaskRule",
    "PlateauRule",
    "PlateauSchedule",
    "PlateauState",
    "Precision",
    "PredictionReport",
    "Provenance",
    "Recall",
    "SafeAugmentation",
    "SliceBatches",
    "SliceScores",
    "SoftDice",
    "SurfaceDistances",
    "ThresholdSweep",
    "TrainingData",
    "__version__",
    "apply_rule",
    "bootstrap_interval",
    "class_weights",
    "dice",
    "ensemble",
    "evaluate",
    "find_blocks",
    "fine_tune",
    "fit_to_task",
    "fold_batchnorm",
    "freeze",
    "hd95",
    "load_split",
    "open_checkpoint",
    "paired_interval",
    "postprocess",
    "predict_files",
    "predict_masks",
    "provenance",
    "set_l2",
    "slice_scores",
    "stratified_batches",
    "surface_distances",
    "sweep_thresholds",
    "unet",
    "write_report",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'kerasseg' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
