"""A network of four numbers and an engine that moves them without TensorFlow: for tests of what is around a step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from kerasseg.callbacks import PlateauRule
from kerasseg.runs.history import EpochRow
from kerasseg.training.engine import StepResult
from kerasseg.training.events import Event, Message
from kerasseg.training.state import Progress, SliceTable
from kerasseg.training.strategies import Phase
from kerasseg.training.trainer import Plan, Trainer, Validation

CLASSES = ("glioma", "meningioma")
SLICES = 12
GROUPS = np.array([f"patient {i // 2}" for i in range(SLICES)])
SPREAD = np.linspace(-0.01, 0.01, SLICES)
"""Slices differ a little, so that a mean is no accident."""


class Killed(BaseException):
    """`kill -9`, as far as a process can do that to itself."""


class FakeNetwork:
    """Four weights."""

    def __init__(self) -> None:
        self.weights = np.array([0.5, -0.25, 0.125, 1.0])
        self.thawed = 0

    def get_weights(self) -> list[np.ndarray]:
        return [self.weights.copy()]

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        self.weights = weights[0].copy()


@dataclass
class FakeOptimizer:
    rate: float
    momentum: float = 0.0


@dataclass(frozen=True)
class FakePhase:
    """A `Phase` whose freezing is noted down."""

    strategy: str = "conservative"
    rule: PlateauRule = field(default_factory=lambda: PlateauRule(1e-4))
    warmup: float | None = None
    continues: bool = False
    limit: int | None = None
    watch: str = "dice"
    when: str = "always"
    recalibrates: bool = False

    rate = Phase.rate

    def freeze(self, model: FakeNetwork, thawed: int = 0) -> Any:
        model.thawed = thawed
        return SimpleNamespace(frozen_blocks=tuple(f"encoder_{i + 1}" for i in range(self.rule.thaws - thawed)))

    def optimizer(self, model: FakeNetwork, rate: float, *, scales_loss: bool = False) -> FakeOptimizer:
        return FakeOptimizer(rate)


class FakeEngine:
    """Moves weights by numbers that follow from step, rate and momentum alone; Dice is scripted, or follows from them.

    Args:
        model, optimizer, parts: As the trainer gives them.
        script: Mean Dice of each validation in turn; None: from the weights.
    """

    def __init__(
        self, model: FakeNetwork, optimizer: FakeOptimizer, parts: int, script: Iterator[float] | None
    ) -> None:
        self.model, self.parts, self.script = model, parts, script
        self.calls: list[tuple[str, Any]] = []
        self.losses: dict[int, float] = {}
        self.train_dice: Iterator[float] | None = None
        self.steps = 0
        self.rebuild(optimizer)
        self.restart_average()

    def restart_average(self) -> None:
        self.average = self.model.weights.copy()

    def recalibrate(self, data: Any, steps: int, after_batch: Callable[[], None]) -> None:
        after_batch()
        # Statistics follow from weights and data alone: computing them again gives the same.
        self.model.weights = np.array([*self.model.weights[:3], 1.3])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        raw, self.model.weights = self.model.weights, self.average.copy()
        try:
            yield
        finally:
            self.model.weights = raw

    def set_rate(self, rate: float) -> None:
        self.optimizer.rate = rate
        self.calls.append(("rate", rate))

    def rebuild(self, optimizer: FakeOptimizer) -> None:
        self.optimizer = optimizer
        self.calls.append(("rebuild", optimizer.rate))

    def batches(self, data: Any, epoch: int, start_step: int = 0) -> Iterator[tuple[int, int]]:
        return ((epoch, step) for step in range(start_step, data.steps))

    def train_step(self, batch: tuple[int, int]) -> StepResult:
        epoch, step = batch
        self.steps += 1
        push = np.random.default_rng((epoch, step)).normal(0, 1, 4)
        self.optimizer.momentum = 0.9 * self.optimizer.momentum + push.sum()
        movable = np.arange(4) <= 2 + self.model.thawed
        self.model.weights = self.model.weights + movable * 1e3 * self.optimizer.rate * (
            push + 0.1 * self.optimizer.momentum
        )
        self.average += 0.2 * (self.model.weights - self.average)
        loss = self.losses.get(self.steps, float(np.abs(push).mean()))
        dice = 0.5 if self.train_dice is None else next(self.train_dice)
        return StepResult(loss, np.full(4, dice, np.float32), np.arange(4) + 4 * step)

    def evaluate(self, data: Any, on_batch: Callable[[int, int, SliceTable], None]) -> SliceTable:
        mean = 0.5 + 0.4 * np.sin(self.model.weights.sum()) if self.script is None else next(self.script)
        whole = table(mean)
        for k in range(2):
            part = {name: column[k * 6 : k * 6 + 6] for name, column in whole.arrays().items()}
            on_batch(k + 1, 2, SliceTable(**part))
        return whole

    def variables(self) -> dict[str, np.ndarray]:
        return {
            "model/weights": self.model.weights.copy(),
            "average": self.average.copy(),
            "momentum": np.array(self.optimizer.momentum),
            "rate": np.array(self.optimizer.rate),
        }

    def restore(self, variables: Mapping[str, np.ndarray]) -> None:
        self.model.weights = variables["model/weights"].copy()
        self.average = variables["average"].copy()
        self.optimizer.momentum, self.optimizer.rate = float(variables["momentum"]), float(variables["rate"])


def table(dice: float | np.ndarray) -> SliceTable:
    """A table with this mean Dice."""
    column = np.asarray(dice + SPREAD, np.float32)
    numbers = np.arange(SLICES)
    return SliceTable(numbers, numbers % 2, 1 - column, *([column] * 5), np.ones(SLICES, np.float32))


class MemoryRecorder:
    """Keeps what a run directory keeps, as it would come back from there: through JSON, by value."""

    def __init__(self, hook: Callable[[str], None] = lambda _: None) -> None:
        self.hook = hook
        self.best: dict[str, list[np.ndarray]] = {}
        self.state: tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]] | None = None
        self.saves: list[tuple[int, int]] = []

    def keep_best(self, tag: str, model: Any) -> None:
        self.hook("before best")
        self.best[tag] = model.get_weights()
        self.hook("after best")

    def save(self, progress: Progress, variables: Mapping[str, np.ndarray]) -> None:
        self.hook("before save")
        assert progress.best_tag in self.best, "the state names weights that were not kept"
        copies = {name: array.copy() for name, array in variables.items()}
        self.state = (json.dumps(progress.facts(), allow_nan=False), progress.arrays(), copies)
        self.saves.append((progress.epoch, progress.sums.steps))
        self.hook("after save")

    def write_history(self, history: Any) -> None:
        self.hook("history")

    def saved(self) -> tuple[Progress, dict[str, np.ndarray], list[np.ndarray] | None] | None:
        if self.state is None:
            return None
        facts, arrays, variables = self.state
        progress = Progress.from_saved(json.loads(facts), arrays)
        return progress, variables, self.best[progress.best_tag] if any(progress.best) else None


@dataclass
class Fake:
    """A trainer with all its fakes.

    Attributes:
        told: Events but for steps.
    """

    trainer: Trainer
    network: FakeNetwork
    recorder: MemoryRecorder
    told: list[Event]

    @property
    def engine(self) -> FakeEngine:
        engine: FakeEngine = self.trainer._engine
        return engine

    @property
    def messages(self) -> list[Message]:
        return [event for event in self.told if isinstance(event, Message)]


def fake(
    script: Sequence[float] | None = None,
    phases: Sequence[FakePhase] = (FakePhase(),),
    *,
    epochs: int = 20,
    recorder: MemoryRecorder | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    observer: Callable[[Event], None] = lambda _: None,
    on_engine: Callable[[FakeEngine], None] = lambda _: None,
    **plan: Any,
) -> Fake:
    """A trainer of 3 steps an epoch on a network of four numbers.

    Args:
        script: Validation Dice, epoch 0 first, all phases in a row; None: from the weights.
        phases: See `Plan`.
        epochs: See `Plan`.
        recorder: A fresh one by default.
        interrupted, observer: See `Trainer`.
        on_engine: Told each engine that is made.
        **plan: More of `Plan`.
    """
    network, told = FakeNetwork(), list[Event]()
    recorder = MemoryRecorder() if recorder is None else recorder
    values = None if script is None else iter(script)

    def make(model: Any, optimizer: Any, parts: int) -> FakeEngine:
        engine = FakeEngine(model, optimizer, parts, values)
        on_engine(engine)
        return engine

    def listen(event: Event) -> None:
        if type(event).__name__ != "Step":
            told.append(event)
        observer(event)

    names = SimpleNamespace(slice_ids=lambda numbers: [f"slice-{n}.mat" for n in numbers.tolist()])
    training = SimpleNamespace(steps=3, batch_size=4, slices=names)
    trainer = Trainer(
        network,
        make,
        training,
        Validation(None, CLASSES, GROUPS),
        Plan(tuple(phases), epochs, **plan),
        recorder,
        [listen],
        scope=contextlib.nullcontext,
        interrupted=interrupted,
    )
    return Fake(trainer, network, recorder, told)


def row(epoch: int, val_dice: float = 0.7, **changes: Any) -> EpochRow:
    """A line of a history, as a real one looks."""
    values: dict[str, Any] = {
        "phase": "conservative",
        "epoch": epoch,
        "learning_rate": 1e-4,
        "loss": float("nan") if epoch == 0 else 0.4 / epoch,
        "dice": float("nan") if epoch == 0 else 0.75,
        "val_loss": 0.4,
        "val_dice": val_dice,
        "val_soft_dice": val_dice - 0.01,
        "val_iou": val_dice - 0.1,
        "val_precision": 0.8,
        "val_recall": 0.75,
        "val_dice_tumour": val_dice,
        "classes": {name: val_dice + 0.01 * i for i, name in enumerate(CLASSES)},
        "seconds": 83.4,
        "slices_per_second": float("nan") if epoch == 0 else 12.5,
        "memory_mb": 2300.0,
    }
    return EpochRow(**(values | changes))
