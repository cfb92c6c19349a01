"""Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices.

The names below are the public surface, those of `kerasseg_tfrecords` among them. Each is imported when first used, so that
`import kerasseg` costs next to nothing and touches no device. They stand here three times, and a test holds the three
together: type checkers read imports and a literal `__all__`, and neither tells a running program where a name lives.
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
    from kerasseg.datasets import FetchedDataset, fetch_dataset
    from kerasseg.distances import SurfaceDistances, hd95, surface_distances
    from kerasseg.ensembles import ensemble
    from kerasseg.evaluation.arrays import EvaluationResult, evaluate
    from kerasseg.export import Exported, ExportMetadata, export_model
    from kerasseg.fitting import fit_to_task
    from kerasseg.freezing import FreezeReport, freeze
    from kerasseg.losses import DiceBCELoss, class_weights
    from kerasseg.metrics import ClassScores, DiceScore, IoU, Precision, Recall, SliceScores, SoftDice, slice_scores
    from kerasseg.network import unet
    from kerasseg.optimizers import DecayedAdam, set_l2
    from kerasseg.overlap import dice
    from kerasseg.phantom import phantom_slices, write_phantoms
    from kerasseg.pipeline import EvaluationData, TrainingData, load_split
    from kerasseg.plateau import PlateauRule, PlateauState
    from kerasseg.postprocessing import apply_rule, postprocess
    from kerasseg.report import write_report
    from kerasseg.rule import MaskRule
    from kerasseg.schedule import PlateauSchedule
    from kerasseg.slice_batches import SliceBatches
    from kerasseg.statistics import Interval, bootstrap_interval, paired_interval
    from kerasseg.thresholds import ThresholdSweep, sweep_thresholds
    from kerasseg.training.fine_tune import FineTuned, fine_tune
    from kerasseg_tfrecords import (
        BadInputError,
        DataError,
        IntegrityReport,
        KerassegError,
        Manifest,
        PrepareOptions,
        Problem,
        Reading,
        Record,
        Shares,
        Slice,
        SourceOptions,
        UsageError,
        Verification,
        check_data,
        detect,
        load_manifest,
        open_tree,
        parse_batch,
        prepare,
        read_item,
        read_records,
        restore,
        shard_paths,
        source_for,
        split_by_group,
        split_by_slice,
        verify,
    )
    from kerasseg_tfrecords.errors import CheckpointError

_HOMES = {
    "BadInputError": "kerasseg_tfrecords",
    "Block": "kerasseg.blocks",
    "Blocks": "kerasseg.blocks",
    "CheckpointError": "kerasseg_tfrecords.errors",
    "ClassScores": "kerasseg.metrics",
    "DataError": "kerasseg_tfrecords",
    "DecayedAdam": "kerasseg.optimizers",
    "DiceBCELoss": "kerasseg.losses",
    "DiceScore": "kerasseg.metrics",
    "EvaluationData": "kerasseg.pipeline",
    "EvaluationResult": "kerasseg.evaluation.arrays",
    "FetchedDataset": "kerasseg.datasets",
    "ExportMetadata": "kerasseg.export",
    "Exported": "kerasseg.export",
    "FineTuned": "kerasseg.training.fine_tune",
    "FreezeReport": "kerasseg.freezing",
    "IntegrityReport": "kerasseg_tfrecords",
    "Interval": "kerasseg.statistics",
    "IoU": "kerasseg.metrics",
    "KerassegError": "kerasseg_tfrecords",
    "Manifest": "kerasseg_tfrecords",
    "MaskRule": "kerasseg.rule",
    "PlateauRule": "kerasseg.plateau",
    "PlateauSchedule": "kerasseg.schedule",
    "PlateauState": "kerasseg.plateau",
    "Precision": "kerasseg.metrics",
    "PrepareOptions": "kerasseg_tfrecords",
    "Problem": "kerasseg_tfrecords",
    "Provenance": "kerasseg.checkpoints",
    "Reading": "kerasseg_tfrecords",
    "Recall": "kerasseg.metrics",
    "Record": "kerasseg_tfrecords",
    "SafeAugmentation": "kerasseg.augment",
    "Shares": "kerasseg_tfrecords",
    "Slice": "kerasseg_tfrecords",
    "SliceBatches": "kerasseg.slice_batches",
    "SliceScores": "kerasseg.metrics",
    "SoftDice": "kerasseg.metrics",
    "SourceOptions": "kerasseg_tfrecords",
    "SurfaceDistances": "kerasseg.distances",
    "ThresholdSweep": "kerasseg.thresholds",
    "TrainingData": "kerasseg.pipeline",
    "UsageError": "kerasseg_tfrecords",
    "Verification": "kerasseg_tfrecords",
    "apply_rule": "kerasseg.postprocessing",
    "bootstrap_interval": "kerasseg.statistics",
    "check_data": "kerasseg_tfrecords",
    "class_weights": "kerasseg.losses",
    "detect": "kerasseg_tfrecords",
    "dice": "kerasseg.overlap",
    "ensemble": "kerasseg.ensembles",
    "evaluate": "kerasseg.evaluation.arrays",
    "fetch_dataset": "kerasseg.datasets",
    "export_model": "kerasseg.export",
    "find_blocks": "kerasseg.blocks",
    "fine_tune": "kerasseg.training.fine_tune",
    "fit_to_task": "kerasseg.fitting",
    "freeze": "kerasseg.freezing",
    "hd95": "kerasseg.distances",
    "load_manifest": "kerasseg_tfrecords",
    "load_split": "kerasseg.pipeline",
    "open_checkpoint": "kerasseg.checkpoints",
    "open_tree": "kerasseg_tfrecords",
    "paired_interval": "kerasseg.statistics",
    "phantom_slices": "kerasseg.phantom",
    "parse_batch": "kerasseg_tfrecords",
    "postprocess": "kerasseg.postprocessing",
    "prepare": "kerasseg_tfrecords",
    "provenance": "kerasseg.checkpoints",
    "read_item": "kerasseg_tfrecords",
    "read_records": "kerasseg_tfrecords",
    "restore": "kerasseg_tfrecords",
    "set_l2": "kerasseg.optimizers",
    "shard_paths": "kerasseg_tfrecords",
    "slice_scores": "kerasseg.metrics",
    "source_for": "kerasseg_tfrecords",
    "split_by_group": "kerasseg_tfrecords",
    "split_by_slice": "kerasseg_tfrecords",
    "stratified_batches": "kerasseg.batches",
    "surface_distances": "kerasseg.distances",
    "sweep_thresholds": "kerasseg.thresholds",
    "unet": "kerasseg.network",
    "write_phantoms": "kerasseg.phantom",
    "verify": "kerasseg_tfrecords",
    "write_report": "kerasseg.report",
}

__all__ = [
    "BadInputError",
    "Block",
    "Blocks",
    "CheckpointError",
    "ClassScores",
    "DataError",
    "DecayedAdam",
    "DiceBCELoss",
    "DiceScore",
    "EvaluationData",
    "EvaluationResult",
    "ExportMetadata",
    "Exported",
    "FetchedDataset",
    "FineTuned",
    "FreezeReport",
    "IntegrityReport",
    "Interval",
    "IoU",
    "KerassegError",
    "Manifest",
    "MaskRule",
    "PlateauRule",
    "PlateauSchedule",
    "PlateauState",
    "Precision",
    "PrepareOptions",
    "Problem",
    "Provenance",
    "Reading",
    "Recall",
    "Record",
    "SafeAugmentation",
    "Shares",
    "Slice",
    "SliceBatches",
    "SliceScores",
    "SoftDice",
    "SourceOptions",
    "SurfaceDistances",
    "ThresholdSweep",
    "TrainingData",
    "UsageError",
    "Verification",
    "__version__",
    "apply_rule",
    "bootstrap_interval",
    "check_data",
    "class_weights",
    "detect",
    "dice",
    "ensemble",
    "evaluate",
    "export_model",
    "fetch_dataset",
    "find_blocks",
    "fine_tune",
    "fit_to_task",
    "freeze",
    "hd95",
    "load_manifest",
    "load_split",
    "open_checkpoint",
    "open_tree",
    "paired_interval",
    "parse_batch",
    "phantom_slices",
    "postprocess",
    "prepare",
    "provenance",
    "read_item",
    "read_records",
    "restore",
    "set_l2",
    "shard_paths",
    "slice_scores",
    "source_for",
    "split_by_group",
    "split_by_slice",
    "stratified_batches",
    "surface_distances",
    "sweep_thresholds",
    "unet",
    "verify",
    "write_phantoms",
    "write_report",
]

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one that this gives

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
