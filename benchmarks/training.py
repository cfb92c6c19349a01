"""A step of training against plain Keras and PyTorch, in the precision that is fastest here, with peak memory.

256x256x3, batch 8, 31 million parameters (with `--quick` 1.9). Plain Keras is `model.train_on_batch` on the same network,
with everything trainable, the same loss and Dice as its metric, in the precision that `auto` chooses here. PyTorch is the
same network, layer for layer, with the same loss and optimizer, everything trainable.
Each contender is a process of its own; between its turns it sleeps. Slower peers stand in `benchmarks.training_others`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.freezing import counted_saving
from benchmarks.measure import Cost, rounds_of
from benchmarks.result import Result, Spread, compared, show, sized
from benchmarks.turns import contenders

SIZE, BATCH = 256, 8
STRATEGIES = ("conservative", "moderate", "aggressive")
PYTORCH = (
    "PyTorch, bfloat16, channels-last",
    "PyTorch, bfloat16, channels-last, torch.compile",
)


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
    """What `--precision auto` takes on this machine."""
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
    """One step of `kerasseg train`, traced already."""
    from kerasseg.training.devices import choose_devices
    from kerasseg.training.engine import Engine

    devices, name, data = choose_devices((), BATCH), precision(), batch(size)
    with devices.scope():
        model, adam = _network(filters, strategy, name, size), _optimizer(name)
    engine = Engine(model, adam, devices=devices, batch_size=BATCH, **options)
    engine.train_step(data)
    return lambda: engine.train_step(data)


def keras_step(filters: int, name: str, size: int = SIZE) -> Callable[[], object]:
    """One step of plain Keras, everything trainable, traced already."""
    import kerasseg

    data = batch(size)
    model = _network(filters, "aggressive", name, size)
    model.compile(_optimizer(name), kerasseg.DiceBCELoss(), metrics=[kerasseg.DiceScore(name="dice")])
    model.train_on_batch(data["image"], data["mask"])
    return lambda: model.train_on_batch(data["image"], data["mask"])


def maker_of(filters: int, name: str) -> tuple[Any, ...]:
    """What makes a contender: a strategy, "plain Keras, <precision>" or one of the PyTorch variants."""
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


def steps(filters: int, rounds: int) -> list[Result]:
    """Two strategies against plain Keras and PyTorch in the same precision, time and memory."""
    keras = f"plain Keras, {precision()}"
    names = ("aggressive", "conservative", keras, *PYTORCH)
    with contenders({name: maker_of(filters, name) for name in names}) as running:
        found = rounds_of(running, rounds)
    what = title(filters)
    best = min((name for name in PYTORCH if name in found), key=lambda name: _median(found[name]), default="")
    lines = []
    for strategy in ("aggressive", "conservative"):
        for name in names[2:]:
            if name in found:
                goal, remark = (1.0, "PyTorch's best here") if name == best else (None, "")
                pair = found[strategy], found[name]
                lines.append(compared("training", f"{strategy}, {what}", name, *pair, goal=goal, remark=remark))
    ratio = 1 / (1 - counted_saving("conservative"))
    remark = f"counting the multiply-adds that the frozen blocks' backward pass saves gives {ratio:.3f}"
    pair = found["conservative"], found["aggressive"]
    lines.append(compared("training", f"conservative, {what}", "aggressive", *pair, remark=remark))
    peaks = {name: one.peak for name, one in running.items()}
    lines += [
        sized("training", f"peak memory, aggressive, {what}", name, peaks["aggressive"], peaks[name])
        for name in names[1:]
        if name in peaks
    ]
    return lines


def _median(costs: list[Cost]) -> float:
    return Spread.of([cost.time for cost in costs]).median


def results(*, quick: bool) -> list[Result]:
    return steps(16 if quick else 64, 2 if quick else 3)


if __name__ == "__main__":
    show(results)
