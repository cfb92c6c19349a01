"""Start and resume training runs: shards, checkpoint, devices, run directory and training loop.

The command line calls `train` and `resume`; `kerasseg.fine_tune` passes a network and slices in memory to the same
`TrainingSession`. The loop itself is in `kerasseg.training.trainer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg.catalogue import DEFAULT_CHECKPOINT, offline_choices, settings_for
from kerasseg.checkpoints.open import open_checkpoint, reopen
from kerasseg.checkpoints.provenance import copy_provenance, provenance, without_folders
from kerasseg.checkpoints.variants import is_assumed, settle_variant
from kerasseg.data.batches import EvaluationBatches
from kerasseg.interrupts import StopFlag, stop_on_signals
from kerasseg.losses import DiceBCELoss
from kerasseg.models.adapt import fit_to_task
from kerasseg.models.layers import fresh_part
from kerasseg.models.unet import unet
from kerasseg.runs.config import Resolved, manifest_of, new_config
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import TrainSettings
from kerasseg.runs.state import StateStore
from kerasseg.training.batchnorm import momenta, pace, with_momenta
from kerasseg.training.cluster import patience
from kerasseg.training.data import Task, examples_of, task_from_shards
from kerasseg.training.devices import (
    Devices,
    agree,
    choose_devices,
    compute_capability,
    enable_determinism,
    out_of_memory,
    peak_memory_mb,
    plain_batchnorm,
    return_freed_memory,
)
from kerasseg.training.diagnostics import check_intensity, few_slices_message
from kerasseg.training.engine import Engine
from kerasseg.training.events import Ended, Message, Observer
from kerasseg.training.precision import PrecisionChoice, as_float32, choose_precision, compute_in
from kerasseg.training.recorder import VARIABLES, NullRecorder, Recorder, RunRecorder, log_to, validation_csv
from kerasseg.training.state import Progress
from kerasseg.training.strategies import phases_of
from kerasseg.training.tensorboard import EventWriter
from kerasseg.training.tracking import Tracker, TrackerEntry, begin_tracking, parse_trackers, trackers_of
from kerasseg.training.trainer import Plan, Trainer
from kerasseg_tfrecords.errors import CheckpointError, DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import check_utf8, write_atomically
from kerasseg_tfrecords.records.manifest import Manifest, load_manifest
from kerasseg_tfrecords.storage import absolute
from kerasseg_tfrecords.text import without_credentials

_LOSS_OF_PRECISION = 0.002
"""Largest loss of Dice on the untouched network for which a faster precision is used."""

_NODES = re.compile(r"\{\{.*?\}\}")
_EMPTY_WORDS = ("Graph execution error", "Detected at node", "File ", "<stack traces unavailable>", "node ")


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A float32 network that fits the task, and its origin."""

    model: keras.Model
    source: str | None
    changes: tuple[str, ...]


def train(
    settings: TrainSettings,
    out: Path | str | None = None,
    observers: Iterable[Observer] = (),
    *,
    track: Iterable[str] = (),
    latest: bool = True,
) -> tuple[Ended, RunDirectory | None]:
    """Train into a new run directory.

    With `TF_CONFIG` set, call it on each of several machines. Only the chief (worker 0) writes files and calls observers.

    Args:
        settings: Settings of the run.
        out: Folder of the run; None for `runs/<date-time-strategy>`.
        observers: Functions that receive events.
        track: Trackers to send the run to: "mlflow", "mlflow:URI", "wandb". A resumed run keeps them.
        latest: Whether later commands use this run by default.

    Returns:
        The end of the run, and its directory (None on machines that do not write).

    Raises:
        KerassegError: Shards, checkpoint, devices or options are invalid, the loss became NaN, or memory or disk space ran
            out. Saved states stay intact.
    """
    if out is not None:
        RunDirectory.check_free(Path(out))
    trackers = parse_trackers(track)
    settings = with_absolute_paths(settings)
    manifest = load_manifest(settings.shards)
    watching = tuple(observers)
    with _machines(settings, manifest, watching) as devices:
        with devices.scope():
            network = _open(settings, manifest)
        settings = with_strategy(settings, network.model, watching)
        task = task_from_shards(settings, manifest, _input_channels(network.model), devices.worker)
        session = TrainingSession(settings, task, devices, network, watching)
        # Invalid shards, blocks and options are found before anything is written.
        session.load()
        if not devices.chief:
            return session.begin(None), None
        return in_new_run(session, None if out is None else Path(out), trackers, latest=latest)


def in_new_run(
    session: TrainingSession, out: Path | None, trackers: Sequence[TrackerEntry] = (), *, latest: bool = True
) -> tuple[Ended, RunDirectory]:
    """Train into a new run directory."""
    model, settings = session.network.model, session.settings
    run = RunDirectory.create(out, settings.strategy)
    without_folders(model)  # `config.json` keeps the whole path
    with run.locked():
        with as_saved(model):
            run.save_model(model, run.baseline_file)
        run.write_config(new_config(settings, session.resolved))
        begin_tracking(run, trackers)
        if latest:
            run.point_latest()
        return session.begin(run), run


def resume(
    run: RunDirectory, observers: Iterable[Observer] = (), *, shards: Path | str | None = None
) -> tuple[Ended, RunDirectory | None]:
    """Resume a run from its last saved state; the result is that of an uninterrupted run.

    The devices may differ from those the run started on. Several machines must all be able to read the run directory; only
    the chief writes.

    Args:
        run: The run.
        observers: Functions that receive events.
        shards: New location of the run's shards; None if they have not moved.

    Raises:
        UsageError: The run has finished.
        KerassegError: As `train`; or another process trains in the run, or the shards differ.
    """
    config = run.config()
    settings = config.settings if shards is None else config.settings.model_copy(update={"shards": str(shards)})
    manifest = manifest_of(config, shards)
    if not run.baseline_file.is_file():
        raise DataError(
            "the baseline network of the run is missing",
            path=run.baseline_file,
            remedy="Restore the file, or start a new run.",
        )
    with (
        _machines(settings, manifest, observers) as devices,
        run.locked() if devices.chief else contextlib.nullcontext(),
    ):
        saved = StateStore(run.state_folder).newest()
        progress = None if saved is None else Progress.from_saved(saved.facts, saved.arrays)
        if progress is not None and progress.finished:
            raise UsageError(
                "this run has already finished",
                path=run.root,
                found=progress.text,
                remedy=f"To train further, start a new run from its weights: --checkpoint {run.model_file}",
            )
        with devices.scope():
            model = reopen(run.baseline_file)
        network = Network(model, config.resolved.checkpoint, config.resolved.changes)
        task = task_from_shards(settings, manifest, _input_channels(model), devices.worker)
        session = TrainingSession(settings, task, devices, network, tuple(observers))
        session.load(PrecisionChoice(config.resolved.precision, config.resolved.precision_reason))
        written = run if devices.chief else None
        # Before the chief trains and saves, so that all machines have read the same state.
        agree(devices, {"the saved state": "none" if saved is None else str(saved.generation)})
        if saved is None or progress is None:
            return session.begin(written), written
        for sentence in saved.skipped:
            session.say(Message("warning", "damaged-state", sentence))
        variables = {n.removeprefix(VARIABLES): a for n, a in saved.arrays.items() if n.startswith(VARIABLES)}
        best = open_checkpoint(run.best_file(progress.best_tag)).get_weights() if any(progress.best) else None
        return session.begin(written, (progress, variables, best)), written


@contextlib.contextmanager
def _machines(settings: TrainSettings, manifest: Manifest, observers: Iterable[Observer]) -> Iterator[Devices]:
    """Yield the devices to train on, and translate errors of TensorFlow while the block runs."""
    told = os.environ.get("TF_CONFIG")
    if told:
        for observer in observers:
            text = f"Waiting for the other machines in TF_CONFIG, at most {patience():g} s."
            observer(Message("note", "waiting", text))
    devices = None
    try:
        if settings.save_memory:
            return_freed_memory()
        devices = choose_devices(settings.devices, settings.batch_size)
        # Paths may differ between machines.
        options = settings.model_dump_json(exclude={"shards", "checkpoint", "cache", "memory_budget"})
        agree(devices, {"the options": options, "the shards": manifest.fingerprint})
        if not devices.chief:
            text = f"{devices.description}. Worker 0 shows the progress and writes the run."
            for observer in observers:
                observer(Message("note", "worker", text))
        _seed(settings)
        yield devices
    except tf.errors.OpError as error:
        raise _translated(error, several=bool(told) if devices is None else devices.worker[1] > 1) from error


class TrainingSession:
    """The part of one process in a training run."""

    def __init__(
        self,
        settings: TrainSettings,
        task: Task,
        devices: Devices,
        network: Network,
        observers: tuple[Observer, ...],
        loss: keras.losses.Loss | None = None,
    ) -> None:
        self._loss = DiceBCELoss(**settings.loss.model_dump()) if loss is None else loss
        self.settings, self.task, self.devices, self.network = settings, task, devices, network
        self.trainer: Trainer | None = None
        self.observers: tuple[Observer, ...] = observers if devices.chief else ()
        self.flag = StopFlag()

    def say(self, message: Message) -> None:
        for observer in self.observers:
            observer(message)

    def load(self, precision: PrecisionChoice | None = None) -> None:
        """Freeze the network and choose the precision; nothing is written."""
        settings, task, model = self.settings, self.task, self.network.model
        self.phases = phases_of(settings, model)
        planned = [phase for phase in self.phases if phase.when != "far" and not phase.recalibrates]
        report = planned[0].freeze(model)
        choice = self._precision() if precision is None else precision
        record = provenance(model)
        # Baseline and best weights are saved as float32, see `as_saved`.
        compute_in(model, choice.name)
        self.resolved = Resolved(
            checkpoint=self.network.source,
            provenance=None if record is None else record.to_json(),
            changes=self.network.changes,
            precision=choice.name,
            precision_reason=choice.reason,
            devices=self.devices.description,
            phases=tuple(phase.strategy for phase in planned),
            rates=tuple(phase.rule.rate for phase in planned),
            frozen=report.frozen_blocks,
            parameters=report.parameters,
            trained=report.trained,
            steps=min(task.training.steps, settings.steps or task.training.steps),
            fingerprint=task.fingerprint,
            intensity=task.intensity,
            size=task.size,
            channels=task.channels,
            classes=task.validation.classes,
            input_channels=_input_channels(model),
            slices={split: dict(counts) for split, counts in task.counts.items()},
        )

    def begin(self, run: RunDirectory | None, saved: tuple[Progress, Any, Any] | None = None) -> Ended:
        """Train to the end; Ctrl-C and SIGTERM take effect at the end of a step.

        Args:
            run: Run directory to write; None if another machine writes it.
            saved: Arguments of `Trainer.restore`; None for a fresh start.
        """
        model = self.network.model
        if self.task.intensity:
            # Networks saved from here on were trained on these grey levels, whatever the checkpoint recorded.
            copy_provenance(model, model, intensity=self.task.intensity)
        own = momenta(model)
        with with_momenta(model, pace(own, self.resolved.steps, self.settings.batchnorm_momentum)):
            return self._begin(run, saved, own)

    def _begin(
        self, run: RunDirectory | None, saved: tuple[Progress, Any, Any] | None, own: tuple[float, ...]
    ) -> Ended:
        settings = self.settings

        @contextlib.contextmanager
        def as_it_came(model: keras.Model) -> Iterator[None]:
            with with_momenta(model, own), as_saved(model):
                yield

        recorder: Recorder = NullRecorder()
        if run is not None:
            recorder = RunRecorder(run, as_it_came, None if saved is None else saved[0].best_tag)
            events = EventWriter(run.events_folder, examples_of(self.task, settings.seed), self._predict, self.say)
            trackers = [tracker.report_to(self.say) for tracker in trackers_of(run)]
            self.observers = (*self.observers, log_to(run), events, *trackers)
        if saved is None:
            self._first_words()
        few = few_slices_message(settings.strategy, self.resolved.slices["train"])
        plan = Plan(
            phases=self.phases,
            epochs=settings.epochs,
            steps=settings.steps,
            guard=settings.guard,
            cautions=() if few is None else (few,),
            ema=settings.ema is not None,
            save_every=settings.save_every,
            scales_loss=self.resolved.precision == "mixed_float16",
            title=f"{settings.strategy}, {_short(self.network.source) or _unnamed(settings)}",
            facts=tuple(_facts(self.resolved, settings, run).items()),
        )
        self.trainer = trainer = Trainer(
            self.network.model,
            self._engine,
            self.task.training,
            self.task.validation,
            plan,
            recorder,
            self.observers,
            scope=self.devices.scope,
            interrupted=lambda: self.flag(),
            memory=lambda: peak_memory_mb(self.devices),
        )
        if saved is not None:
            trainer.restore(*saved)
        agree(self.devices, {"the checkpoint's weights": _digest(self.network.model)})
        if self.devices.worker[1] > 1:
            # Several machines cannot stop at different steps, so a signal ends the process.
            return self._run(trainer, run)

        def first(name: str) -> None:
            text = f"{name}: finishing this step and saving. Press again to stop at once without saving."
            self.say(Message("note", "interrupt", text))

        with stop_on_signals(first) as self.flag:
            return self._run(trainer, run)

    def _run(self, trainer: Trainer, run: RunDirectory | None) -> Ended:
        try:
            ended = trainer.run()
        except BaseException:
            for observer in self.observers:
                if isinstance(observer, Tracker):
                    observer.fail()
            raise
        progress = trainer.progress
        if run is not None and progress.first_table is not None and progress.best_table is not None:
            text = validation_csv(self.task.rows, progress.first_table, progress.best_table)
            write_atomically(run.validation_file, text)
        return ended

    # --- parts -----------------------------------------------------------------------------------------------------------

    def _precision(self) -> PrecisionChoice:
        """Choose the fastest precision that does not cost the untouched network Dice."""
        choice = choose_precision(
            self.settings.precision, gpu=self.devices.gpu, capability=compute_capability() if self.devices.gpu else None
        )
        if self.settings.precision != "auto":
            return choice
        agree(self.devices, {f"--precision auto ({choice.name} here)": choice.name})
        if choice.name == "float32":
            return choice
        model, scores = self.network.model, []
        for name in ("float32", choice.name):
            compute_in(model, name)
            with self.devices.scope():
                optimizer = keras.optimizers.SGD(0.0)
            engine = self._engine(model, optimizer, 1)
            scores.append(engine.evaluate(self.task.validation.data).mean("dice"))
        if scores[1] >= scores[0] - _LOSS_OF_PRECISION:
            return choice
        text = f"{choice.name} cost {scores[0] - scores[1]:.4f} of Dice before training"
        return PrecisionChoice("float32", text)

    def _engine(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, parts: int) -> Engine:
        return Engine(
            model,
            optimizer,
            self._loss,
            devices=self.devices,
            batch_size=self.settings.batch_size,
            parts=parts,
            ema=self.settings.ema,
            xla=self.settings.xla,
            deterministic=self.settings.deterministic,
            save_memory=self.settings.save_memory,
            on_message=self.say,
        )

    def _predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a few slices, outside of compiled steps."""
        with self.devices.scope():
            return np.asarray(keras.ops.convert_to_numpy(self.network.model(images, training=False)))

    def _first_words(self) -> None:
        if self.network.source is not None and self.settings.strategy != "scratch":
            recorded = None if self.resolved.provenance is None else self.resolved.provenance["intensity"]
            unknown = check_intensity(self.task.intensity, recorded, checkpoint=self.network.source)
            if unknown is not None:
                self.say(unknown)


# --- the network ---------------------------------------------------------------------------------------------------------


def _open(settings: TrainSettings, manifest: Manifest) -> Network:
    """Open the checkpoint and fit it to the shards; "scratch" resets the weights."""
    source = settings.checkpoint
    if settings.encoder is not None:
        return _on_encoder(settings, manifest)
    if source is None and settings.strategy == "scratch":
        size = manifest.size
        arguments: dict[str, Any] = {"input_shape": (size, size, manifest.channels), "seed": settings.seed}
        try:
            return Network(unet(**(arguments | settings.network)), None, ())
        except TypeError as error:
            raise UsageError("the network cannot be built", found=str(error), expected="arguments of unet") from None
    if source is None:
        default = settings_for(os.environ.get("KERASSEG_CHECKPOINT") or DEFAULT_CHECKPOINT)
        source = default["checkpoint"]
        if source is None:
            return _on_encoder(settings.model_copy(update=default), manifest)
    if settings.network:
        raise UsageError(
            "filters and depth apply only to networks with fresh weights",
            found=", ".join(settings.network),
            remedy="Leave them out, or use --strategy scratch without --checkpoint.",
        )
    try:
        model = open_checkpoint(source, architecture=settings.architecture)
    except CheckpointError as error:
        if settings.checkpoint is not None:
            raise
        raise CheckpointError(
            "no checkpoint was given, and the default one cannot be downloaded",
            path=source,
            found=error.found or error.what,
            remedy="Give one: --checkpoint FILE (.keras, .h5 or a SavedModel folder) or a name that kerasseg checkpoints "
            f"lists; KERASSEG_CHECKPOINT sets another default. {offline_choices()}",
        ) from error
    named = without_credentials(str(source))
    compared: tuple[str, ...] = ()
    if is_assumed(model):
        images, masks = _tumour_slices(settings, int(model.inputs[0].shape[-1]))
        model, compared = settle_variant(model, images, masks)
    if settings.strategy != "scratch":
        record = provenance(model)
        # Refused before anything is written.
        check_intensity(manifest.intensity, None if record is None else record.intensity, checkpoint=named)
    fitted = fit_to_task(model, size=manifest.size, channels=manifest.channels, head=settings.head, seed=settings.seed)
    if settings.strategy == "scratch":
        fresh = keras.models.clone_model(fitted.model)
        return Network(fresh, named, (*compared, *fitted.changes, "all weights are fresh"))
    return Network(fitted.model, named, (*compared, *fitted.changes))


def _on_encoder(settings: TrainSettings, manifest: Manifest) -> Network:
    """Create a U-Net with a fresh decoder on a pretrained encoder, which is recorded in the changes."""
    weights = settings.encoder_weights or "imagenet"
    arguments: dict[str, Any] = {
        "input_shape": (manifest.size, manifest.size, manifest.channels),
        "seed": settings.seed,
        "encoder": settings.encoder,
        "encoder_weights": None if settings.strategy == "scratch" else weights,
    }
    try:
        model = unet(**(arguments | settings.network))
    except TypeError as error:
        raise UsageError("the network cannot be built", found=str(error), expected="arguments of unet") from None
    named = "fresh weights" if settings.strategy == "scratch" else f"weights {_short(without_credentials(weights))}"
    return Network(model, None, (f"encoder {settings.encoder} with {named}, fresh decoder",))


def with_strategy(settings: TrainSettings, model: keras.Model, observers: Iterable[Observer]) -> TrainSettings:
    """Return the settings, with two-stage training if no strategy was given and decoder or head are fresh."""
    part = fresh_part(model)
    if part is None or "strategy" in settings.model_fields_set or settings.freeze:
        return settings
    text = (
        f"The {part} has fresh weights: training has two stages, first the decoder with a frozen encoder, then strategy "
        "conservative. To train in one stage, give a strategy."
    )
    for observer in observers:
        observer(Message("note", "two-stage", text))
    return settings.model_copy(update={"strategy": "two-stage"})


def _tumour_slices(settings: TrainSettings, channels: int, count: int = 8) -> tuple[NDArray[Any], NDArray[Any]]:
    data = EvaluationBatches(settings.shards, "train", channels=channels, batch_size=16, cache="none", check=False)
    images: list[NDArray[Any]] = []
    masks: list[NDArray[Any]] = []
    for batch in (data.batch(step) for step in range(data.steps)):
        there = batch.mask.any(axis=(1, 2, 3))
        images += list(batch.image[there])
        masks += list(batch.mask[there])
        if len(images) >= count:
            break
    if not images:
        return batch.image[:count], batch.mask[:count]
    return np.stack(images[:count]), np.stack(masks[:count])


@contextlib.contextmanager
def as_saved(model: keras.Model) -> Iterator[None]:
    """Give the network the form to save while the block runs: float32, with BatchNorm for one device."""
    with plain_batchnorm(model), as_float32(model):
        yield


def with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Make paths absolute, so that a run can be resumed, tuned and evaluated from any folder."""
    full = {"shards": absolute(settings.shards)}
    if settings.checkpoint is not None and Path(settings.checkpoint).exists():
        full["checkpoint"] = str(Path(settings.checkpoint).absolute())
    if settings.encoder_weights is not None and Path(settings.encoder_weights).exists():
        full["encoder_weights"] = str(Path(settings.encoder_weights).absolute())
    for path in full.values():
        check_utf8(path)
    return settings.model_copy(update=full)


# --- helpers -------------------------------------------------------------------------------------------------------------


def _seed(settings: TrainSettings) -> None:
    """Seed Keras' global generators for fresh weights and dropout; order and augmentation have their own."""
    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        enable_determinism()


def _input_channels(model: keras.Model) -> int:
    return int(model.inputs[0].shape[-1])


def _short(source: str | None) -> str | None:
    return None if source is None else source.rstrip("/").rsplit("/", 1)[-1]


def _unnamed(settings: TrainSettings) -> str:
    """Describe a network without a checkpoint."""
    if settings.encoder is not None:
        return f"{settings.encoder} encoder"
    return "fresh weights" if settings.strategy == "scratch" else "the network as it was given"


def _facts(resolved: Resolved, settings: TrainSettings, run: RunDirectory | None) -> dict[str, str]:
    """Return facts to show before training starts, in order."""
    train, val = (sum(resolved.slices[split].values()) for split in ("train", "val"))
    facts = {
        "checkpoint": resolved.checkpoint or _unnamed(settings),
        "strategy": " then ".join(resolved.phases),
        "frozen": ", ".join(resolved.frozen) or "nothing",
        "trained": f"{resolved.trained:,} of {resolved.parameters:,} parameters",
        "slices": f"{train:,} for training, {val:,} for validation",
        "batches": f"{resolved.steps:,} of {settings.batch_size} slices per epoch",
        "rate": "; then ".join(
            f"{rate:g}, {_schedule(settings, phase, rate)}"
            for phase, rate in zip(resolved.phases, resolved.rates, strict=True)
        ),
        "precision": f"{resolved.precision}: {resolved.precision_reason}",
        "device": resolved.devices,
        "run": "written by worker 0" if run is None else str(run.root),
    }
    return facts | ({"adapted": "; ".join(resolved.changes)} if resolved.changes else {})


def _schedule(settings: TrainSettings, phase: str, first: float) -> str:
    """Describe the schedule of the learning rate."""
    if phase == "decoder":
        return "constant until the decoder has caught up"
    if settings.schedule_of(phase) == "cosine":
        return "cosine to 0 after a warm-up" if settings.schedule.warmup else "cosine to 0"
    # The rate never rises: stages at or above the initial rate are skipped.
    stages = [f"{rate:g} after {epochs} flat epochs" for epochs, rate in settings.schedule.stages if rate < first]
    return ", ".join(stages) or "never lowered"


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _translated(error: tf.errors.OpError, *, several: bool) -> KerassegError:
    found = _gist(error)
    if out_of_memory(error):
        return KerassegError(
            "out of memory",
            found=found,
            remedy="Use a smaller --batch-size, --precision mixed_bfloat16, or smaller slices (kerasseg prepare --size).",
        )
    if several:
        return KerassegError(
            "another machine of this run stopped answering",
            found=found,
            remedy="Its own output shows the reason. Once all machines are back, resume from the last saved state with "
            "kerasseg train --resume on each of them.",
        )
    return KerassegError(
        "TensorFlow failed",
        found=found,
        remedy="Resume from the last saved state: kerasseg train --resume. --debug shows the whole message.",
    )


def _gist(error: tf.errors.OpError) -> str:
    """Return the first informative line, without names of nodes."""
    lines = [_NODES.sub("", line).strip() for line in str(error.message or "").splitlines()]
    telling = [line for line in lines if line and not line.startswith(_EMPTY_WORDS)]
    return telling[0][:200] if telling else type(error).__name__
