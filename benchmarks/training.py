"""A training step compared with plain Keras and PyTorch, in the fastest precision of this machine, with peak memory.

256x256x3, batch 8, 31 million parameters (with `--quick` 1.9). Plain Keras is `model.train_on_batch` on the same network,
with everything trainable, the same loss, Dice as its metric, and the precision that `auto` chooses. PyTorch has the same
network, layer for layer, with the same loss and optimizer, everything trainable. Each contender is a process that sleeps
between its turns. They run in two groups, which need 10 GB each. Slower peers are in `benchmarks.training_others`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.freezing import counted_saving
from benchmarks.measure import Cost, rounds_of
from benchmarks.result import Result, Spread, compared, show, sized
from benchmarks.turns import contenders

SIZE, BATCH = 256, 8
PYTORCH = (
    "PyTorch, bfloat16, channels-last",
    "PyTorch, bfloat16, channels-last, torch.compile",
)

SAVING = "aggressive, --save-memory"


def batch(size: int = SIZE) -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).random((BATCH, size, size, 3), "float32")
    return {
        "image": image,
        "mask": (image[..., :1] > 0.9).astype("float32"),
        "weight": np.ones(BATCH, "float32"),
        "label": np.zeros(BATCH, np.int64),
        "slice": np.arange(BATCH),
    }


def precision() -> str:
    """Return what `--precision auto` chooses on this machine, or what the variable BENCH_PRECISION says."""
    if forced := os.environ.get("BENCH_PRECISION"):
        return forced
    from kerasseg.training.devices import choose_devices, compute_capability
    from kerasseg.training.precision import choose_precision

    gpu = choose_devices((), BATCH).gpu
    return choose_precision("auto", gpu=gpu, capability=compute_capability() if gpu else None).name


def _network(filters: int, strategy: str, name: str, size: int) -> Any:
    import kerasseg
    from kerasseg.training.precision import compute_in

    model = kerasseg.unet((size, size, 3), filters=filters, seed=0)
    kerasseg.freeze(model, strategy)
    compute_in(model, name)
    return model


def _optimizer(name: str) -> Any:
    import keras

    import kerasseg

    adam = kerasseg.DecayedAdam(1e-4, 1e-5)
    return keras.optimizers.LossScaleOptimizer(adam) if name == "mixed_float16" else adam


def our_step(filters: int, strategy: str = "conservative", size: int = SIZE, **options: Any) -> Callable[[], object]:
    """Return one step of `kerasseg train`; the first call traces it. `strategy` may end in ", --save-memory"."""
    from kerasseg.training.devices import choose_devices, return_freed_memory
    from kerasseg.training.engine import Engine

    strategy, _, saving = strategy.partition(", ")
    if saving:
        return_freed_memory()
    devices, name, data = choose_devices((), BATCH), precision(), batch(size)
    with devices.scope():
        model, adam = _network(filters, strategy, name, size), _optimizer(name)
    engine = Engine(model, adam, devices=devices, batch_size=BATCH, save_memory=bool(saving), **options)
    return lambda: engine.train_step(data)


def keras_step(filters: int, name: str, size: int = SIZE) -> Callable[[], object]:
    """Return one step of plain Keras, everything trainable; the first call traces it."""
    import kerasseg

    data = batch(size)
    model = _network(filters, "aggressive", name, size)
    model.compile(_optimizer(name), kerasseg.DiceBCELoss(), metrics=[kerasseg.DiceScore(name="dice")])
    return lambda: model.train_on_batch(data["image"], data["mask"])


def maker_of(filters: int, name: str) -> tuple[Any, ...]:
    """Return the maker of a contender: a strategy, "plain Keras, <precision>" or one of the PyTorch variants."""
    if name.startswith("plain Keras"):
        return "benchmarks.training:keras_step", filters, name.removeprefix("plain Keras, ")
    if name.startswith("PyTorch"):
        layout = "channels-last" if "channels-last" in name else "contiguous"
        options = "bfloat16" in name, "torch.compile" in name
        return "benchmarks.peers.pytorch:step", filters, layout, *options, SIZE, BATCH
    return "benchmarks.training:our_step", filters, name


def title(filters: int) -> str:
    size = {64: "31 million", 16: "1.9 million"}.get(filters, "few")
    return f"step of {size} parameters, {precision()}"


@dataclass(frozen=True, slots=True)
class Race:
    """Measurements of contenders that took turns.

    Attributes:
        costs: Name -> cost of each round.
        base: Name -> peak memory in MB before the first step.
        peak: Name -> peak memory in MB at the end.
    """

    costs: dict[str, list[Cost]]
    base: dict[str, float]
    peak: dict[str, float]


def race(filters: int, names: Sequence[str], rounds: int, once: Collection[str] = ()) -> Race:
    """Measure steps in turn; `once` as in `rounds_of`."""
    with contenders({name: maker_of(filters, name) for name in names}) as running:
        found = rounds_of(running, rounds, once)
    return Race(
        found,
        {name: one.base for name, one in running.items()},
        {name: one.peak for name, one in running.items()},
    )


def memory(part: str, race: Race, peer: str, what: str) -> list[Result]:
    """Compare the peak memory of the aggressive strategy with a peer's, in total and by part."""
    ours = "aggressive"
    sizes = {
        "peak memory": race.peak,
        "of it libraries and weights, before the first step": race.base,
        "of it added by training": {name: race.peak[name] - race.base[name] for name in race.peak},
    }
    return [sized(part, f"{size}, {ours}, {what}", peer, found[ours], found[peer]) for size, found in sizes.items()]


def saved_by(strategy: str, race: Race, part: str, what: str) -> Result:
    """Compare a strategy that freezes blocks with one that freezes none, and with the counted saving."""
    ratio = 1 / (1 - counted_saving(strategy))
    remark = f"counting the multiply-adds that the frozen blocks' backward pass saves gives {ratio:.3f}"
    return compared(
        part, f"{strategy}, {what}", "aggressive", race.costs[strategy], race.costs["aggressive"], remark=remark
    )


def against(part: str, race: Race, peers: Sequence[str], what: str) -> list[Result]:
    """Compare the steps of both strategies with those of PyTorch; the fastest of its variants is the goal."""
    best = min(peers, key=lambda name: _median(race.costs[name]), default="")
    lines = []
    for strategy in ("aggressive", "conservative"):
        for name in peers:
            goal, remark = (1.0, "fastest PyTorch variant here") if name == best else (None, "")
            pair = race.costs[strategy], race.costs[name]
            lines.append(compared(part, f"{strategy}, {what}", name, *pair, goal=goal, remark=remark))
    lines.append(saved_by("conservative", race, part, what))
    for name in peers:
        lines += memory(part, race, name, what)
    return lines


def results(*, quick: bool) -> list[Result]:
    filters, rounds = (16, 2) if quick else (64, 3)
    what, keras = title(filters), f"plain Keras, {precision()}"
    first = race(filters, ("aggressive", "conservative", *PYTORCH), rounds)
    second = race(filters, ("aggressive", SAVING, keras), rounds)
    pair = second.costs["aggressive"], second.costs[keras]
    lines = [compared("training", f"aggressive, {what}", keras, *pair)]
    lines += memory("training", second, keras, what)
    there = [name for name in PYTORCH if name in first.costs]
    lines += against("training", first, there, what)
    peaks = first.peak["aggressive"], first.peak["conservative"]
    lines.append(sized("training", f"peak memory, aggressive, {what}", "conservative", *peaks))
    pair = second.costs[SAVING], second.costs["aggressive"]
    lines.append(compared("training", f"{SAVING}, {what}", "without", *pair, goal=0))
    for name, peak in {"without": second.peak["aggressive"], **{name: first.peak[name] for name in there}}.items():
        lines.append(sized("training", f"peak memory with --save-memory, {what}", name, second.peak[SAVING], peak))
    return lines


def _median(costs: list[Cost]) -> float:
    return Spread.of([cost.time for cost in costs]).median


if __name__ == "__main__":
    show(results)
