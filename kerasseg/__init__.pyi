from kerasseg.callbacks import (
    PlateauRule as PlateauRule,
)
from kerasseg.callbacks import (
    PlateauSchedule as PlateauSchedule,
)
from kerasseg.callbacks import (
    PlateauState as PlateauState,
)
from kerasseg.checkpoints.open import open_checkpoint as open_checkpoint
from kerasseg.checkpoints.provenance import Provenance as Provenance
from kerasseg.checkpoints.provenance import provenance as provenance
from kerasseg.data.augmentation import SafeAugmentation as SafeAugmentation
from kerasseg.data.published import FetchedDataset as FetchedDataset
from kerasseg.data.published import fetch_dataset as fetch_dataset
from kerasseg.data.py_dataset import SliceBatches as SliceBatches
from kerasseg.data.sampling import stratified_batches as stratified_batches
from kerasseg.data.tf_data import (
    EvaluationData as EvaluationData,
)
from kerasseg.data.tf_data import (
    TrainingData as TrainingData,
)
from kerasseg.data.tf_data import (
    load_split as load_split,
)
from kerasseg.evaluation.arrays import EvaluationResult as EvaluationResult
from kerasseg.evaluation.arrays import evaluate as evaluate
from kerasseg.evaluation.bootstrap import (
    Interval as Interval,
)
from kerasseg.evaluation.bootstrap import (
    bootstrap_interval as bootstrap_interval,
)
from kerasseg.evaluation.bootstrap import (
    paired_interval as paired_interval,
)
from kerasseg.evaluation.overlap import dice as dice
from kerasseg.evaluation.surface_distances import (
    SurfaceDistances as SurfaceDistances,
)
from kerasseg.evaluation.surface_distances import (
    hd95 as hd95,
)
from kerasseg.evaluation.surface_distances import (
    surface_distances as surface_distances,
)
from kerasseg.export.export_run import Exported as Exported
from kerasseg.export.export_run import export_model as export_model
from kerasseg.export.schema import ExportMetadata as ExportMetadata
from kerasseg.losses import DiceBCELoss as DiceBCELoss
from kerasseg.losses import class_weights as class_weights
from kerasseg.metrics import (
    ClassScores as ClassScores,
)
from kerasseg.metrics import (
    DiceScore as DiceScore,
)
from kerasseg.metrics import (
    IoU as IoU,
)
from kerasseg.metrics import (
    Precision as Precision,
)
from kerasseg.metrics import (
    Recall as Recall,
)
from kerasseg.metrics import (
    SliceScores as SliceScores,
)
from kerasseg.metrics import (
    SoftDice as SoftDice,
)
from kerasseg.metrics import (
    slice_scores as slice_scores,
)
from kerasseg.models.adapt import fit_to_task as fit_to_task
from kerasseg.models.blocks import Block as Block
from kerasseg.models.blocks import Blocks as Blocks
from kerasseg.models.blocks import find_blocks as find_blocks
from kerasseg.models.ensemble import ensemble as ensemble
from kerasseg.models.folding import fold_batchnorm as fold_batchnorm
from kerasseg.models.freezing import FreezeReport as FreezeReport
from kerasseg.models.freezing import freeze as freeze
from kerasseg.models.unet import unet as unet
from kerasseg.optimizers import DecayedAdam as DecayedAdam
from kerasseg.optimizers import set_l2 as set_l2
from kerasseg.phantom.files import write_phantoms as write_phantoms
from kerasseg.phantom.slices import phantom_slices as phantom_slices
from kerasseg.postprocessing import MaskRule as MaskRule
from kerasseg.postprocessing import apply_rule as apply_rule
from kerasseg.postprocessing import postprocess as postprocess
from kerasseg.prediction.arrays import predict_masks as predict_masks
from kerasseg.report.evaluation import write_report as write_report
from kerasseg.training.events import Observer as Observer
from kerasseg.tuning.thresholds import ThresholdSweep as ThresholdSweep
from kerasseg.tuning.thresholds import sweep_thresholds as sweep_thresholds
from kerasseg.workflows.fine_tune import FineTuned as FineTuned
from kerasseg.workflows.fine_tune import fine_tune as fine_tune
from kerasseg.workflows.predict import PredictionReport as PredictionReport
from kerasseg.workflows.predict import predict_files as predict_files
from kerasseg_tfrecords import (
    BadInputError as BadInputError,
)
from kerasseg_tfrecords import (
    DataError as DataError,
)
from kerasseg_tfrecords import (
    IntegrityReport as IntegrityReport,
)
from kerasseg_tfrecords import (
    KerassegError as KerassegError,
)
from kerasseg_tfrecords import (
    Manifest as Manifest,
)
from kerasseg_tfrecords import (
    PrepareOptions as PrepareOptions,
)
from kerasseg_tfrecords import (
    Problem as Problem,
)
from kerasseg_tfrecords import (
    Reading as Reading,
)
from kerasseg_tfrecords import (
    Record as Record,
)
from kerasseg_tfrecords import (
    Shares as Shares,
)
from kerasseg_tfrecords import (
    Slice as Slice,
)
from kerasseg_tfrecords import (
    SourceOptions as SourceOptions,
)
from kerasseg_tfrecords import (
    UsageError as UsageError,
)
from kerasseg_tfrecords import (
    Verification as Verification,
)
from kerasseg_tfrecords import (
    check_data as check_data,
)
from kerasseg_tfrecords import (
    detect as detect,
)
from kerasseg_tfrecords import (
    load_manifest as load_manifest,
)
from kerasseg_tfrecords import (
    open_tree as open_tree,
)
from kerasseg_tfrecords import (
    parse_batch as parse_batch,
)
from kerasseg_tfrecords import (
    prepare as prepare,
)
from kerasseg_tfrecords import (
    read_item as read_item,
)
from kerasseg_tfrecords import (
    read_records as read_records,
)
from kerasseg_tfrecords import (
    restore as restore,
)
from kerasseg_tfrecords import (
    shard_paths as shard_paths,
)
from kerasseg_tfrecords import (
    source_for as source_for,
)
from kerasseg_tfrecords import (
    split_by_group as split_by_group,
)
from kerasseg_tfrecords import (
    split_by_slice as split_by_slice,
)
from kerasseg_tfrecords import (
    verify as verify,
)
from kerasseg_tfrecords.errors import CheckpointError as CheckpointError

__version__: str
