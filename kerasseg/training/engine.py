"""Compiled training steps and validation passes, on one or more devices, in whole batches or in parts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from kerasseg.losses import DiceBCELoss
from kerasseg.metrics import slice_scores
from kerasseg.training.batchnorm import batch_statistics, batchnorms, fused_batchnorm
from kerasseg.training.devices import Devices, more_parts, out_of_memory, synchronized_batchnorm
from kerasseg.training.events import Message
from kerasseg.training.recomputation import recompute_activations
from kerasseg.training.state import SliceTable
from kerasseg_tfrecords.errors import KerassegError, UsageError

_COLUMNS = ("slice", "label", "loss", "dice", "soft_dice", "iou", "precision", "recall", "tumour")
_AVERAGED_STEPS = "average/steps"
_WHOLE = {"slice": np.int64, "label": np.int64}


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """Result of a training step.

    Attributes:
        loss: Mean over the global batch, weighted by class, L2 included; NaN if the network diverged.
        dice: (batch,) Dice at 0.5 of each augmented slice, in training mode, before the weights are updated.
        slices: (batch,) slice numbers.
    """

    loss: float
    dice: NDArray[np.float32]
    slices: NDArray[np.int64]


class Engine:
    """Train and evaluate a network step by step.

    The loss is the sum of weight * loss over the global batch, divided by the batch size, plus L2: the loss of `model.fit`,
    on any number of devices. If a step runs out of memory, it has no effect and the batch is divided into 2, 4, ... parts,
    whose gradients are summed. Only BatchNorm differs then, since it measures parts instead of batches.

    Args:
        model: A built network with probabilities (batch, height, width, 1), created under `devices.scope()`.
        optimizer: Optimizer created in the same scope; a `LossScaleOptimizer` under float16.
        loss: Loss with one value per slice; other axes of the result of `call` are averaged.
        devices: Devices to run on; None for TensorFlow's default.
        batch_size: Slices in a global batch.
        parts: Number of parts that a batch is divided into from the start.
        ema: Decay of a moving average of the weights, (0, 1); None keeps none.
        xla: Whether to compile with XLA, which needs a single device; None: only on a single GPU.
        deterministic: Do not use XLA by default.
        save_memory: Compute activations again in the backward pass instead of keeping them, on a single processor. Results
            stay the same.
        on_message: Called when a batch is divided or XLA is turned off.

    Attributes:
        parts: Current number of parts.

    Raises:
        UsageError: XLA under a strategy, a batch that cannot be divided into parts, or `save_memory` on other devices.

    Example:
        >>> import kerasseg
        >>> from kerasseg.training.devices import choose_devices
        >>> model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
        >>> engine = Engine(model, kerasseg.DecayedAdam(1e-3), devices=choose_devices(["CPU:0"], 2), batch_size=2)
        >>> image, mask = np.ones((2, 16, 16, 1), "float32"), np.ones((2, 16, 16, 1), "float32")
        >>> batch = {"image": image, "mask": mask, "weight": np.ones(2, "float32")}
        >>> result = engine.train_step(batch | {"label": np.zeros(2, int), "slice": np.arange(2)})
        >>> result.slices.tolist(), result.dice.shape
        ([0, 1], (2,))
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: keras.losses.Loss | None = None,
        *,
        devices: Devices | None = None,
        batch_size: int,
        parts: int = 1,
        ema: float | None = None,
        xla: bool | None = None,
        deterministic: bool = False,
        save_memory: bool = False,
        on_message: Callable[[Message], None] | None = None,
    ) -> None:
        self.model, self.loss = model, DiceBCELoss() if loss is None else loss
        self._devices = Devices(None, None, "default") if devices is None else devices
        self._strategy = self._devices.distribution
        self.batch_size = batch_size
        self._share = batch_size // self._devices.replicas
        if xla and self._strategy is not None:
            raise UsageError("XLA does not work under a strategy of several devices", remedy="Leave --xla out.")
        if self._share % parts:
            raise UsageError(
                "a batch cannot be divided into these parts", found=parts, expected=f"a divisor of {self._share}"
            )
        if save_memory and (xla or not (self._devices.device or "").startswith("/CPU")):
            raise UsageError(
                "save_memory needs a single processor, without XLA",
                found=f"{self._devices.description}, XLA" if xla else self._devices.description,
                remedy="Leave it out. Where a GPU's memory is short, batches are divided.",
            )
        self._save_memory = save_memory
        self._xla = (self._devices.gpu and self._strategy is None and not deterministic) if xla is None else xla
        self._xla_asked = bool(xla)
        self._tell = on_message or (lambda _: None)
        self.parts = parts
        self._evaluation_parts = 1
        self._ema = ema
        self._average: list[Any] = []
        self._averaged_steps = 0
        self.rebuild(optimizer)
        self.restart_average()

    @property
    def rate(self) -> float:
        return float(self.optimizer.learning_rate)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; the optimizer keeps its averages."""
        with self._devices.scope():
            self.optimizer.learning_rate = rate

    def rebuild(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Use a new optimizer for the weights that are trainable now."""
        self.optimizer = optimizer
        self._trained = list(self.model.trainable_variables)
        synchronized_batchnorm(self.model, self._devices.replicas)
        with self._devices.scope():
            optimizer.build(self._trained)
        # What a forward pass changes: BatchNorm statistics and the seeds of dropout.
        self._moving = [v for v in self.model.variables if not v.trainable]
        self._accumulated: list[Any] | None = None
        self._compile()

    # --- training ------------------------------------------------------------------------------------------------------

    def batches(self, data: Any, epoch: int, start_step: int = 0) -> Iterable[Mapping[str, Any]]:
        """Return batches of an epoch from a step on, distributed over the devices."""
        return self._spread(lambda context: data.epoch(epoch, start_step, input_context=context))

    def train_step(self, batch: Mapping[str, Any]) -> StepResult:
        while True:
            # One call: dozens of small reads would cost as much as starting the step. It copies nothing until memory is
            # written to.
            before = self._run(self._read_moving) if self._strategy is None else self._moving_values()
            try:
                rows = self._whole(batch) if self.parts == 1 else self._in_parts(batch)
            except tf.errors.OpError as error:
                if self._without_xla(error):
                    continue
                if not out_of_memory(error):
                    raise
                self._assign(self._moving, before)
                self._halve(error)
                continue
            self._update_average()
            return StepResult(
                loss=float(rows[:, 1].sum() / self.batch_size + rows[0, 3]),
                dice=rows[:, 2].astype(np.float32),
                slices=rows[:, 0].astype(np.int64),
            )

    def _whole(self, batch: Mapping[str, Any]) -> NDArray[np.float64]:
        return self._collect(self._run(self._train_function, batch))

    def _in_parts(self, batch: Mapping[str, Any]) -> NDArray[np.float64]:
        if self._accumulated is None:
            self._make_accumulators()
        for total in self._accumulated or []:
            total.assign(tf.zeros_like(total))
        # One call each: within one function TensorFlow could run the parts in parallel and need memory for all of them.
        parts = [self._collect(self._run(self._part_function, batch, tf.constant(k))) for k in range(self.parts)]
        self._run(self._apply_function)
        rows = np.concatenate(parts)
        rows[:, 3] = sum(part[0, 3] for part in parts)
        return rows

    def _halve(self, error: Exception) -> None:
        more = more_parts(self.parts, self._share)
        if self._devices.worker[1] > 1:
            raise KerassegError(
                "out of memory on one of several machines",
                found=f"batches of {self.batch_size}",
                remedy="Start again with a smaller --batch-size, or --precision mixed_bfloat16.",
            ) from error
        if more is None:
            raise KerassegError(
                "out of memory even with one slice at a time",
                remedy="Prepare smaller slices (kerasseg prepare --size 128), or use a smaller network.",
            ) from error
        self.parts = more
        fits = self.batch_size // more
        text = f"Out of memory: each batch of {self.batch_size} is now computed in {more} parts of {fits}."
        self._tell(Message("note", f"batch-in-{more}-parts", text))
        self._compile()

    def recalibrate(self, data: Any, steps: int, after_batch: Callable[[], None] = lambda: None) -> None:
        """Replace the statistics of all BatchNorm layers by their means over training batches, without gradients.

        Known as precise BatchNorm (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576).

        Args:
            data: As for `batches`; its first epoch is used.
            steps: Maximum number of batches.
            after_batch: Called after each batch; if it raises, the statistics stay as they were.
        """
        statistics = [v for layer in batchnorms(self.model) for v in (layer.moving_mean, layer.moving_variance)]
        if not statistics:
            raise UsageError("the network has no BatchNorm layer to recalibrate", remedy="Leave recalibration out.")
        values = [np.array(ops.convert_to_numpy(v)) for v in statistics]
        sums, count = [np.zeros(v.shape) for v in values], 0
        try:
            with batch_statistics(self.model):
                # Without a result TensorFlow would prune the forward pass.
                measure = tf.function(lambda batch: tf.reduce_mean(self.model(batch["image"], training=False)))
                for batch in itertools.islice(iter(self.batches(data, 0)), steps):
                    self._run(measure, batch)
                    count += 1
                    sums = [total + ops.convert_to_numpy(v) for total, v in zip(sums, statistics, strict=True)]
                    after_batch()
            values = [(total / count).astype(np.float32) for total in sums]
        finally:
            self._assign(statistics, values)

    # --- moving average of the weights ---------------------------------------------------------------------------------

    def restart_average(self) -> None:
        """Restart the moving average from the current weights."""
        if self._ema is None:
            return
        self._averaged_steps = 0
        values = [ops.convert_to_numpy(v) for v in self._averages()]
        if self._average:
            self._assign(self._average, values)
            return
        with self._devices.scope():
            self._average = [
                tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.MEAN) for value in values
            ]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the averaged weights and BatchNorm statistics while the block runs."""
        variables = self._averages()
        raw = [np.array(ops.convert_to_numpy(v)) for v in variables]
        self._assign(variables, [average.numpy() for average in self._average])
        try:
            yield
        finally:
            self._assign(variables, raw)

    def _averages(self) -> list[Any]:
        """Return the variables that are averaged: weights and BatchNorm statistics, without dropout seeds."""
        return [v for v in self.model.variables if keras.backend.is_float_dtype(v.dtype)]

    def _update_average(self) -> None:
        if self._ema is None:
            return
        # A young average decays faster; otherwise short epochs would be validated with the initial weights.
        decay = min(self._ema, (1 + self._averaged_steps) / (10 + self._averaged_steps))
        self._averaged_steps += 1
        self._run(self._average_function, tf.constant(1 - decay, tf.float32))

    # --- validation ----------------------------------------------------------------------------------------------------

    def evaluate(self, data: Any, on_batch: Callable[[int, int, SliceTable], None] | None = None) -> SliceTable:
        """Score every slice in inference mode.

        Args:
            data: `EvaluationData` with labels and `pad`, or an object with `dataset` and `steps`.
            on_batch: Called with (step from 1, steps, scores of the batch).

        Returns:
            The same table on every machine, without padding slices.

        Raises:
            KerassegError: Out of memory with a single slice.
        """
        tables = []
        for step, batch in enumerate(self._spread(lambda context: data.dataset(input_context=context)), 1):
            table = SliceTable.joined([_table(self._evaluate_batch(batch))])
            tables.append(table)
            if on_batch is not None:
                on_batch(step, data.steps, table)
        return SliceTable.joined(tables)

    def _evaluate_batch(self, batch: Mapping[str, Any]) -> NDArray[np.float64]:
        while True:
            parts = self._evaluation_parts
            try:
                return np.concatenate(
                    [self._collect(self._run(self._evaluate_function, batch, tf.constant(k))) for k in range(parts)]
                )
            except tf.errors.OpError as error:
                more = more_parts(parts, self._share)
                if not out_of_memory(error) or more is None or self._devices.worker[1] > 1:
                    raise
                self._evaluation_parts = more
                self._compile()

    # --- state for resuming ------------------------------------------------------------------------------------

    def variables(self) -> dict[str, NDArray[Any]]:
        """Copy weights, BatchNorm statistics, dropout seeds, optimizer variables and moving averages by unique names."""
        found = {name: np.array(ops.convert_to_numpy(v)) for name, v in self._named().items()}
        return found if self._ema is None else found | {_AVERAGED_STEPS: np.array(self._averaged_steps)}

    def restore(self, variables: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `variables` returned.

        Raises:
            KerassegError: The variables belong to another network or optimizer.
        """
        named, variables = self._named(), dict(variables)
        if self._ema is not None:
            self._averaged_steps = int(variables.pop(_AVERAGED_STEPS, 0))
        missing, foreign = sorted(set(named) - set(variables)), sorted(set(variables) - set(named))
        shapes = [name for name in set(named) & set(variables) if tuple(named[name].shape) != variables[name].shape]
        if missing or foreign or shapes:
            raise KerassegError(
                "the saved state belongs to another network",
                found=f"{len(foreign)} unknown, {len(missing)} missing, {len(shapes)} of another shape",
                expected=f"{len(named)} variables",
            )
        self._assign(list(named.values()), [variables[name] for name in named])

    def _named(self) -> dict[str, Any]:
        named = {
            f"{kind}/{i:04d}/{v.name}": v
            for kind, owner in (("model", self.model), ("optimizer", self.optimizer))
            for i, v in enumerate(owner.variables)
        }
        return named | {f"average/{i:04d}": v for i, v in enumerate(self._average)}

    # --- compiled functions ----------------------------------------------------------------------------------------------

    def _compile(self) -> None:
        """Create the compiled functions; repeated whenever something changes that a trace has fixed."""
        parts, compiled = self.parts, {"jit_compile": True} if self._xla else {"jit_compile": False}

        def whole(batch: Mapping[str, Any]) -> Any:
            gradients, rows = self._gradients(batch, 1)
            self._move(gradients)
            return rows

        def part(batch: Mapping[str, Any], k: Any) -> Any:
            gradients, rows = self._gradients(self._cut(batch, k, parts), parts)
            for total, gradient in zip(self._accumulated or [], gradients, strict=True):
                total.assign_add(gradient)
            return rows

        def apply() -> None:
            self._move([tf.convert_to_tensor(total) for total in self._accumulated or []])

        def evaluate(batch: Mapping[str, Any], k: Any) -> Any:
            piece = self._cut(batch, k, self._evaluation_parts)
            predicted = self.model(piece["image"], training=False)
            scores = slice_scores(piece["mask"], predicted)
            values = (self._loss_values(piece["mask"], predicted), *(getattr(scores, n) for n in _COLUMNS[3:]))
            return self._rows(piece, ("slice", "label"), values)

        def average(share: Any) -> None:
            # In this form the average of a frozen weight equals the weight exactly.
            for mean, variable in zip(self._average, self._averages(), strict=True):
                mean.assign_add(tf.cast(share, mean.dtype) * (variable.value - mean))

        self._read_moving = tf.function(lambda: [tf.identity(v.value) for v in self._moving])
        self._train_function = tf.function(whole, **compiled)
        self._part_function = tf.function(part, **compiled)
        self._apply_function = tf.function(apply, **compiled)
        self._average_function = tf.function(average, jit_compile=False)
        self._evaluate_function = tf.function(evaluate, **compiled)

    def _fuses(self) -> bool:
        """Return whether BatchNorm uses TensorFlow's fused kernel.

        Only in bfloat16, whose rounding is far coarser than the kernel's error of 1e-5: in float32 two devices must give
        the same result as one.
        """
        if self._devices.gpu or self._devices.replicas > 1:
            return False
        return any(layer.compute_dtype == "bfloat16" for layer in batchnorms(self.model))

    def _gradients(self, batch: Mapping[str, Any], parts: int) -> tuple[list[Any], Any]:
        """Return this device's gradients, and rows (slice, weighted loss, Dice, L2)."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in self._trained])
            with fused_batchnorm(self.model) if self._fuses() else contextlib.nullcontext():
                predicted = self.model(batch["image"], training=True)
            values = self._loss_values(batch["mask"], predicted) * ops.cast(batch["weight"], "float32")
            other = ops.cast(sum(self.model.losses) if self.model.losses else 0.0, "float32")
            share = other / (self._devices.replicas * parts)
            total = ops.sum(values) / self.batch_size + share
            scaled = self.optimizer.scale_loss(total)
        graph = tf.compat.v1.get_default_graph()
        forward = len(graph.get_operations())
        gradients = tape.gradient(scaled, [v.value for v in self._trained])
        if self._save_memory:
            recompute_activations(graph, forward)
        gradients = [
            tf.zeros_like(v.value) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, self._trained, strict=True)
        ]
        dice = slice_scores(batch["mask"], predicted).dice
        whole = ops.broadcast_to(share * self._devices.replicas, ops.shape(dice))
        return gradients, self._rows(batch, ("slice",), (values, dice, whole))

    def _loss_values(self, mask: Any, predicted: Any) -> Any:
        values = ops.cast(self.loss.call(mask, ops.cast(predicted, "float32")), "float32")
        return ops.mean(values, axis=tuple(range(1, len(values.shape)))) if len(values.shape) > 1 else values

    def _move(self, gradients: list[Any]) -> None:
        # Wait for all gradients: if memory runs out in the last one, no weight may have been updated yet.
        with tf.control_dependencies(gradients):
            self.optimizer.apply(gradients, self._trained)

    def _rows(self, batch: Mapping[str, Any], whole: tuple[str, ...], values: tuple[Any, ...]) -> Any:
        """Stack columns as float64: slice numbers need more digits than float32 has."""
        columns = [tf.cast(batch[name], tf.float64) for name in whole] + [tf.cast(v, tf.float64) for v in values]
        rows = tf.stack(columns, axis=1)
        if self._devices.worker[1] == 1:
            return rows
        # Outside the function TensorFlow would compile the gathering each time.
        return tf.distribute.get_replica_context().all_gather(rows, axis=0)

    def _cut(self, batch: Mapping[str, Any], k: Any, parts: int) -> Mapping[str, Any]:
        if parts == 1:
            return batch
        size = self._share // parts
        pieces = {name: tensor[k * size : (k + 1) * size] for name, tensor in batch.items()}
        return {name: tf.ensure_shape(piece, (size, *piece.shape[1:])) for name, piece in pieces.items()}

    def _make_accumulators(self) -> None:
        with self._devices.scope():
            self._accumulated = [
                tf.Variable(
                    tf.zeros(v.shape, v.dtype),
                    trainable=False,
                    # Each device sums its own; the optimizer sums over devices.
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for v in self._trained
            ]

    # --- devices ---------------------------------------------------------------------------------------------------------

    def _spread(self, dataset: Callable[[Any], tf.data.Dataset]) -> Iterable[Mapping[str, Any]]:
        return dataset(None) if self._strategy is None else self._shares(dataset)

    def _shares(self, dataset: Callable[[Any], tf.data.Dataset]) -> Iterator[Mapping[str, Any]]:
        """Return batches of this machine, each device with its part.

        The strategy's own distributed datasets synchronize all machines before each batch, and stall for half a minute
        when a loop leaves them early.
        """
        number, machines = self._devices.worker
        here = self._devices.replicas // machines
        parts = iter(dataset(tf.distribute.InputContext(machines, number, self._devices.replicas)))
        while group := list(itertools.islice(parts, here)):

            def part(context: Any, group: list[Mapping[str, Any]] = group) -> Mapping[str, Any]:
                return group[context.replica_id_in_sync_group - number * here]

            yield self._strategy.experimental_distribute_values_from_function(part)

    def _run(self, function: Any, *args: Any) -> Any:
        if self._strategy is None:
            with self._devices.scope():
                return function(*args)
        return self._strategy.run(function, args=args)

    def _collect(self, rows: Any) -> NDArray[np.float64]:
        """Collect the rows of all devices in the order of the global batch."""
        if self._strategy is None:
            return np.asarray(rows.numpy())
        found = [r.numpy() for r in self._strategy.experimental_local_results(rows)]
        # With several machines each device already has the rows of all.
        return np.concatenate(found) if self._devices.worker[1] == 1 else np.asarray(found[0])

    def _moving_values(self) -> list[Any]:
        return [ops.convert_to_numpy(v) for v in self._moving]

    def _assign(self, variables: list[Any], values: list[Any]) -> None:
        with self._devices.scope():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _without_xla(self, error: Exception) -> bool:
        """Fall back if XLA was chosen by default and cannot compile this network."""
        if not self._xla or self._xla_asked or out_of_memory(error):
            return False
        if not isinstance(
            error, tf.errors.InvalidArgumentError | tf.errors.UnimplementedError | tf.errors.InternalError
        ):
            return False
        self._xla = False
        self._tell(Message("note", "no-xla", "XLA cannot compile this network; training continues without it."))
        self._compile()
        return True


def _table(rows: NDArray[np.float64]) -> SliceTable:
    columns: dict[str, Any] = {name: rows[:, i].astype(_WHOLE.get(name, np.float32)) for i, name in enumerate(_COLUMNS)}
    return SliceTable(**columns)
