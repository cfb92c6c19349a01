"""`kerasseg.fine_tune`: the recipe for a network in memory, with slices in shards, arrays or `tf.data`."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import keras
import numpy as np

from kerasseg.checkpoints.provenance import provenance
from kerasseg.data.arrays import ArraySlices
from kerasseg.data.augmentation import COLUMNS, SafeAugmentation
from kerasseg.data.tf_data import EvaluationData, TrainingData
from kerasseg.models.heads import read_output
from kerasseg.models.input_scaling import read_input_scaling
from kerasseg.models.layers import mark_fresh, trainable_restored, with_inner
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import Precision, Strategy, TrainSettings, parse_settings
from kerasseg.training.data import Task, count, no_tumour, shard_rows, task_from_shards, training_data, validation_data
from kerasseg.training.devices import Devices, choose_devices, enable_determinism
from kerasseg.training.diagnostics import check_intensity
from kerasseg.training.events import Ended, Event, Message, Observer
from kerasseg.training.tf_datasets import DatasetTraining, DatasetValidation, explained, is_dataset
from kerasseg.training.trainer import Validation
from kerasseg.workflows.train import Network, TrainingSession, in_new_run, with_strategy
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.records.manifest import load_manifest

_LOG = logging.getLogger("kerasseg")

_COMPOSES = ("batch_size", "balance", "augmentation", "class_weight", "train_on_positives", "cache", "memory_budget")
"""Settings for composing batches from slices; data that come as batches ignore them."""

_OF_FILES = ("cache", "memory_budget")
"""Settings for caching shards; arrays ignore them."""


class Recipe(TypedDict, total=False):
    """Options of `fine_tune`; `TrainSettings` describes, validates and gives defaults for each.

    `loss` can also be a Keras loss with at least one value per slice, `augmentation` a `SafeAugmentation`.
    """

    freeze: Sequence[str]
    freeze_batchnorm: bool
    batchnorm_momentum: float | None
    learning_rate: float | None
    weight_decay: float
    l2: float
    clipnorm: float | None
    epochs: int
    steps: int | None
    batch_size: int
    loss: Mapping[str, float] | keras.losses.Loss
    schedule: Mapping[str, Any]
    balance: Literal["proportional", "balanced"]
    augmentation: Mapping[str, float] | SafeAugmentation | None
    class_weight: Literal["balanced"] | Mapping[str, float] | None
    train_on_positives: bool
    guard: bool
    ema: float | None
    encoder_rate_factor: float | None
    recalibrate_batchnorm: bool
    seed: int
    precision: Precision
    devices: Sequence[str]
    deterministic: bool
    xla: bool | None
    save_memory: bool
    save_every: int | None
    cache: Literal["auto", "memory", "disk", "none"]
    memory_budget: int


@dataclass(frozen=True, slots=True)
class FineTuned(Ended):
    """Result of `fine_tune`: the attributes of `Ended`, and how the network was trained.

    Attributes:
        frozen: Names of the blocks that were frozen at first.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".
        devices: Description of the devices.
        run: The run directory, if there is one.

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
        >>> images = np.random.default_rng(0).random((8, 16, 16, 1), "float32")
        >>> slices = (images, images > 0.7)
        >>> done = kerasseg.fine_tune(model, slices, slices, epochs=0, batch_size=4, precision="float32")
        >>> done.first == done.best, done.precision, done.run is None
        (True, 'float32', True)
    """

    frozen: tuple[str, ...] = ()
    precision: str = ""
    devices: str = ""
    run: RunDirectory | None = None

    def __str__(self) -> str:
        """Text such as `Dice 0.712 -> 0.745 in epoch 4, gain 0.033 (95 % 0.012 to 0.051); all 20 epochs are done`."""
        where = f"in epoch {self.best.epoch}" if self.best.epoch else "as it was: no epoch gained"
        gain = f", gain {self.gain}" if self.gain is not None and self.best.epoch else ""
        return f"Dice {self.first.val_dice:.3f} -> {self.best.val_dice:.3f} {where}{gain}; {self.text}"


def fine_tune(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    *,
    strategy: Strategy | None = None,
    out: Path | str | None = None,
    observers: Iterable[Observer] = (),
    **options: Unpack[Recipe],
) -> FineTuned:
    """Fine-tune a network as `kerasseg train` does, and leave the best weights in it.

    The untouched network is evaluated first; if no epoch is better, it stays as it was. In any case, Ctrl-C and errors
    included, the model ends with the best weights so far and its original dtype policies, `trainable` flags and
    regularizers. It does not have to be compiled.

    Slices can be

    - a shard directory, whose splits train and val are used; `validation` can then be left out;
    - `TrainingData` and `EvaluationData`, with their own batch size, balance, augmentation and seed;
    - arrays `(images, masks)`, `(images, masks, labels)` or `(images, masks, labels, groups)`: (n, height, width, channels)
      float in [0, 1] or uint8; (n, height, width, 1) of 0 and 1; (n,) classes, names or numbers, or None; (n,) patients;
    - a `tf.data.Dataset` of batches `(image, mask)` or `(image, mask, weight)`, or of dictionaries with these names and
      `label`, with shapes and ranges as above. It is iterated once per epoch; training drops a smaller last batch.
      Validation must be finite.

    Without labels there is one class, "all". Without groups each slice counts as a patient, and the interval of the gain
    is too narrow if patients have several slices.

    Args:
        model: A U-Net: one input (batch, height, width, channels), one output of probabilities (batch, height, width, 1).
            `kerasseg.fit_to_task` makes one of most networks.
        train: Slices to train on.
        validation: Slices for the schedule and the choice of the best weights. Never use those of the final test.
        strategy: "conservative", "moderate", "aggressive", "progressive", "two-stage", "auto"; "scratch" trains
            everything, at a rate for fresh weights. None is "conservative", or "two-stage" where
            `kerasseg.unet(encoder=...)` or `kerasseg.fit_to_task` gave the network a fresh decoder or head.
        out: Folder for a run directory, which `kerasseg evaluate` and `kerasseg train --resume` take. Needs a shard
            directory.
        observers: Functions that receive events, see `kerasseg.training.events`. Without any, notes and warnings go to the
            logger "kerasseg".
        **options: The recipe, see `Recipe` and `TrainSettings`: learning_rate > 0 (1e-4), epochs >= 0 (20), batch_size >= 1
            (8), schedule, loss, l2 and weight_decay >= 0, guard, precision, devices, seed, ... `deterministic` affects the
            whole process.

    Returns:
        History, epoch 0, best epoch, gain with its interval over patients, gains by class.

    Raises:
        UsageError: The network, the slices or an option are invalid, or an option has no effect on these data.
        DataError: Slices are missing, damaged or out of range, or validation has no tumour.
        BrokenTrainingError: The loss became NaN or infinite.
        KerassegError: Out of memory with a single slice, or the run directory cannot be written.

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
        >>> images = np.random.default_rng(0).random((12, 16, 16, 1), "float32")
        >>> slices = (images, images > 0.7, ["glioma", "meningioma"] * 6)
        >>> done = kerasseg.fine_tune(model, slices, slices, epochs=1, batch_size=4, precision="float32")
        >>> [row.epoch for row in done.history], done.frozen, done.best.val_dice >= done.first.val_dice
        ([0, 1], ('encoder_1',), True)
    """
    train, validation = _as_given(train, validation)
    loss = _own_loss(options, out)
    asked: dict[str, Any] = {name: value for name, value in options.items() if loss is None or name != "loss"}
    settings = _settings(strategy, train, asked, out)
    channels = _check_model(model)
    if os.environ.get("TF_CONFIG"):
        raise UsageError(
            "fine_tune trains on one machine, but TF_CONFIG names several",
            remedy="Unset it, or use kerasseg train, which trains on several.",
        )
    task = _task(train, validation, settings, channels)
    _check_size(model, task)
    # Data that come as batches have their own batch size.
    settings = settings.model_copy(update={"batch_size": task.training.batch_size})
    devices = choose_devices(settings.devices, settings.batch_size)
    if settings.deterministic:
        enable_determinism()
    with _on_devices(model, devices) as twin, _as_it_came(twin):
        told = tuple(observers) or (_to_log,)
        settings = with_strategy(settings, model, told)
        session = TrainingSession(settings, task, devices, Network(twin, None, ()), told, loss)
        run = None
        try:
            session.load()
            with explained():
                if out is None:
                    ended = session.begin(None)
                else:
                    ended, run = in_new_run(session, Path(out))
        finally:
            if session.trainer is not None:
                session.trainer.back_to_best()
                if any(session.trainer.progress.best):
                    mark_fresh(model, None)
    values = {field.name: getattr(ended, field.name) for field in fields(Ended)}
    resolved = session.resolved
    return FineTuned(**values, frozen=resolved.frozen, precision=resolved.precision, devices=resolved.devices, run=run)


# --- what was given ------------------------------------------------------------------------------------------------------


def _as_given(train: Any, validation: Any) -> tuple[Any, Any]:
    """Check the kinds of both arguments, and convert arrays."""
    if validation is None and isinstance(train, str | Path):
        validation = train
    given = (_arrays(train, "training slices"), _arrays(validation, "validation slices"))
    for what, value, kinds in (
        ("train", given[0], (str, Path, TrainingData, ArraySlices)),
        ("validation", given[1], (str, Path, EvaluationData, ArraySlices)),
    ):
        if not isinstance(value, kinds) and not is_dataset(value):
            own = "TrainingData" if what == "train" else "EvaluationData"
            raise UsageError(
                f"{what} cannot be used",
                found=type(value).__name__,
                expected=f"a shard directory, {own}, (images, masks[, labels[, groups]]), or a tf.data.Dataset of batches",
            )
    return given


def _arrays(value: Any, name: str) -> Any:
    if not isinstance(value, tuple | list):
        return value
    if not 2 <= len(value) <= 4:
        raise UsageError(
            f"{name} cannot be used",
            found=f"{len(value)} arrays",
            expected="images and masks, then labels and groups, if there are any",
        )
    images, masks, labels, groups = (*value, None, None)[:4]
    return ArraySlices(images, masks, labels, groups, name)


def _settings(strategy: str | None, train: Any, options: dict[str, Any], out: Path | str | None) -> TrainSettings:
    foreign = sorted(set(options) - set(Recipe.__annotations__))
    if foreign:
        raise UsageError(
            f"unknown option {foreign[0]!r}", expected="one of " + ", ".join(sorted(Recipe.__annotations__))
        )
    decided = () if isinstance(train, str | Path) else _OF_FILES if isinstance(train, ArraySlices) else _COMPOSES
    lost = [name for name in decided if name in options]
    if lost:
        raise UsageError(
            f"{lost[0]} has no effect here",
            found=f"train is {_kind(train)}",
            remedy="Leave it out; batches are composed already." if decided == _COMPOSES else "Leave it out.",
        )
    amounts = options.get("augmentation")
    if isinstance(amounts, SafeAugmentation):
        options["augmentation"] = {name: getattr(amounts, name) for name in COLUMNS}
    if isinstance(train, str | Path):
        options["shards"] = str(train)
    if out is not None:
        if not isinstance(train, str | Path):
            raise UsageError(
                "a run directory needs a shard directory, so that the run can be resumed",
                found=f"train is {_kind(train)}",
                remedy="Leave out= out and save the model yourself, or write shards with kerasseg.prepare.",
            )
        # The network as passed, from which this run can be repeated.
        options["checkpoint"] = str(RunDirectory(Path(out)).baseline_file)
    for name in ("freeze", "devices"):
        if isinstance(options.get(name), str):
            options[name] = (options[name],)
        elif name in options:
            options[name] = tuple(options[name])
    return parse_settings(None, **({} if strategy is None else {"strategy": strategy}), **options)


def _own_loss(options: Mapping[str, Any], out: Path | str | None) -> keras.losses.Loss | None:
    """Return the loss object; None if the loss is given by its arguments."""
    loss = options.get("loss")
    if not isinstance(loss, keras.losses.Loss):
        return None
    if out is not None:
        raise UsageError(
            "a run directory keeps the arguments of the loss, not the loss",
            found=type(loss).__name__,
            expected="loss={...}: arguments of DiceBCELoss",
        )
    if not len(loss.call(np.zeros((2, 8, 8, 1), "float32"), np.full((2, 8, 8, 1), 0.5, "float32")).shape):
        raise UsageError(
            "the loss returns one value per batch",
            found=type(loss).__name__,
            expected="one value per slice",
            remedy="keras.losses.Dice(axis=(1, 2, 3)) and kerasseg.DiceBCELoss return one value per slice.",
        )
    return loss


def _kind(train: Any) -> str:
    return "arrays" if isinstance(train, ArraySlices) else f"a {type(train).__name__}"


def _task(train: Any, validation: Any, settings: TrainSettings, channels: int) -> Task:
    if isinstance(train, str | Path):
        manifest = load_manifest(train)
        if isinstance(validation, str | Path) and Path(validation).resolve() == Path(train).resolve():
            return task_from_shards(settings, manifest, channels, (0, 1))
        if settings.checkpoint is not None:
            raise UsageError(
                "a run directory keeps one shard directory", remedy="Leave out either validation= or out=."
            )
    training = _training(train, settings, channels)
    data, rows, groups, tumour = _validation(validation, training.batch_size, settings, channels)
    if not tumour:
        raise no_tumour(str(validation) if isinstance(validation, str | Path) else None)
    classes = _classes(data)
    if isinstance(training, TrainingData):
        names = training.slices.classes
        counts = {"train": count(training.labels[training.numbers], names)}
    else:
        counts = {"train": {"all": training.count}}
    counts["val"] = count(data.labels, classes)
    shape = training.slices.shape or (0, 0, 0)
    task = Task(training, Validation(data, classes, groups), counts, rows, size=shape[0] or 0, channels=shape[2] or 0)
    if isinstance(training, TrainingData) and not isinstance(training.slices, ArraySlices):
        return task.of(training.manifest)
    return task


def _training(train: Any, settings: TrainSettings, channels: int) -> Any:
    if is_dataset(train):
        return DatasetTraining(train, channels, settings.steps)
    if isinstance(train, TrainingData):
        if train.channels != channels:
            raise _other_channels("train", train.channels, channels)
        mine = copy.copy(train)
        mine.with_labels = True
        return mine
    return training_data(train, settings, channels)


def _validation(
    validation: Any, batch_size: int, settings: TrainSettings, channels: int
) -> tuple[Any, Sequence[tuple[str, str, str, str]], Any, bool]:
    """Open validation data; return also their rows (from shards), their patients and whether any slice has a tumour."""
    if is_dataset(validation):
        data = DatasetValidation(validation, channels, batch_size)
        return data, (), np.full(len(data.labels), ""), data.has_tumour
    if isinstance(validation, EvaluationData):
        if not isinstance(validation.slices, ArraySlices) and validation.slices.split == "test":
            raise UsageError(
                "the test split must not be used for validation", found='EvaluationData(..., "test")', expected='"val"'
            )
        if validation.channels != channels:
            raise _other_channels("validation", validation.channels, channels)
        own = copy.copy(validation)
        own.with_labels = own.pad = True
        own.batch_size, own.steps = batch_size, -(-len(own.slices) // batch_size)
    else:
        own = validation_data(validation, settings, channels, batch_size)
    tumour = bool(own.slices.with_tumour().any())
    if isinstance(own.slices, ArraySlices):
        return own, (), own.slices.groups, tumour
    rows = shard_rows(own)
    return own, rows, np.array([group for _, _, group, _ in rows]), tumour


def _classes(data: Any) -> tuple[str, ...]:
    if isinstance(data, EvaluationData):
        return data.slices.classes
    if not data.labels.any():
        return ("all",)
    return tuple(str(i) for i in range(int(data.labels.max()) + 1))


def _other_channels(what: str, found: int, expected: int) -> UsageError:
    return UsageError(
        f"{what} has a different number of channels than the network",
        found=found,
        expected=expected,
        remedy=f"Make it with channels={expected}.",
    )


# --- the network ---------------------------------------------------------------------------------------------------------


def _check_model(model: keras.Model) -> int:
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise UsageError(
            "not a network that can be fine-tuned",
            found=type(model).__name__,
            expected="a keras.Model with an Input (functional or Sequential)",
        )
    output = read_output(model)
    kinds = {"logits": "logits", "tanh": "values from -1 to 1", "softmax": "probabilities of several classes"}
    found = kinds.get(output.kind) or (f"{output.channels} channels" if output.channels != 1 else None)
    if output.others:
        found = f"{1 + len(output.others)} outputs"
    if found:
        raise UsageError(
            "the output of the network is not one probability per pixel",
            found=found,
            expected="(batch, height, width, 1) after a sigmoid",
            remedy="kerasseg.fit_to_task(model, size=..., channels=...).model has such an output.",
        )
    scaling = read_input_scaling(model)
    if scaling is not None:
        raise UsageError(
            "the network rescales its input, but slices have values in 0..1",
            found=f"a network for {scaling}",
            remedy="kerasseg.fit_to_task(model).model takes 0..1.",
        )
    return int(model.inputs[0].shape[-1])


def _check_size(model: keras.Model, task: Task) -> None:
    height, width, channels = model.inputs[0].shape[1:4]
    for what, data in (("training", task.training), ("validation", task.validation.data)):
        shape = (data.slices if hasattr(data, "slices") else data).shape
        if shape is None:
            continue
        sizes = [(own, theirs) for own, theirs in zip((height, width), shape, strict=False) if own and theirs]
        if any(own != theirs for own, theirs in sizes):
            raise UsageError(
                f"the {what} slices have a different size than the network",
                found=f"{shape[0]} x {shape[1]}",
                expected=f"{height} x {width}",
                remedy="kerasseg.fit_to_task(model, size=...).model takes another size, where the network allows it.",
            )
        if shape[2] not in (None, 1, channels):
            raise UsageError(
                f"the {what} slices have a different number of channels than the network",
                found=shape[2],
                expected=f"{channels}, or 1 to be repeated",
            )
    if task.intensity:
        record = provenance(model)
        if record is not None:
            check_intensity(task.intensity, record.intensity, checkpoint=model.name)


@contextmanager
def _on_devices(model: keras.Model, devices: Devices) -> Iterator[keras.Model]:
    """Yield the network itself, or with several devices a copy that is created on them."""
    if devices.replicas == 1:
        yield model
        return
    with devices.scope():
        twin = keras.models.clone_model(model)
    _copy_variables(model, twin)
    try:
        yield twin
    finally:
        _copy_variables(twin, model)


def _copy_variables(source: keras.Model, target: keras.Model) -> None:
    """Copy all variables, dropout seeds included."""
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(keras.ops.convert_to_numpy(old))


@contextmanager
def _as_it_came(model: keras.Model) -> Iterator[None]:
    """Restore dtype policies, `trainable` flags and regularizers after the block."""
    layers = [(layer, layer.dtype_policy) for layer in with_inner([model])]
    norms = [(layer, layer.synchronized) for layer, _ in layers if hasattr(layer, "synchronized")]
    variables = [(v, getattr(v, "regularizer", None)) for v in model.variables]
    try:
        with trainable_restored(model):
            yield
    finally:
        for layer, policy in layers:
            if layer.dtype_policy is not policy:
                layer.dtype_policy = policy
        for layer, synchronized in norms:
            layer.synchronized = synchronized
        for variable, regularizer in variables:
            variable.regularizer = regularizer


def _to_log(event: Event) -> None:
    if isinstance(event, Message):
        _LOG.log(logging.WARNING if event.level == "warning" else logging.INFO, event.text)
