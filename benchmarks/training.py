"""A step of training: the strategies against plain Keras, and what `--deterministic` costs, in turn in one run.

    python -m benchmarks.training [--filters 16] [--rounds 7]

256x256x3, batch 8. Plain Keras is `model.train_on_batch` on the same network with everything trainable, the same loss and
Dice as its metric, in float32 (what stock Keras does) and in the precision that `auto` chooses here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.measure import ROOT, costs, spread

SIZE, BATCH = 256, 8
STRATEGIES = ("conservative", "moderate", "aggressive")


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


def compare(filters: int, rounds: int) -> None:
    """Prints steps of every strategy, ours over those of Keras."""
    name = precision()
    references = {f"Keras, {p}": keras_step(filters, p) for p in dict.fromkeys(("float32", name))}
    ours = {strategy: our_step(filters, strategy) for strategy in STRATEGIES}
    found = [{key: costs(step) for key, step in (references | ours).items()} for _ in range(rounds)]
    print(f"training, {filters} filters, {SIZE}x{SIZE}x3, batch {BATCH}, ours in {name}: time of a step")
    for key in (*references, *ours):
        print(f"  {key}: {statistics.median(one[key][0] for one in found):.2f} s")
        for other in references if key in ours else ():
            print(f"    over {other}: {_ratios([(one[other], one[key]) for one in found])}")


def _ratios(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> str:
    """Second over first."""
    time, processor = ([second[kind] / first[kind] for first, second in pairs] for kind in (0, 1))
    return f"{spread(time)}, in processor time {spread(processor)}"


def overhead(rounds: int) -> None:
    """Prints what a step costs beyond arithmetic: a network so small that nothing else is left."""
    ours, theirs = our_step(2, "aggressive", 16), keras_step(2, "float32", 16)
    pairs = [(costs(theirs), costs(ours)) for _ in range(30 * rounds)]
    print(f"  fixed cost of a step (2 filters, 16x16), ours over Keras': {_ratios(pairs)}")


def determinism(filters: int, rounds: int) -> None:
    """Prints the cost of `--deterministic`. It cannot be switched off again: two processes take turns."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training", "--filters", str(filters), "--serve", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for options in ([], ["--deterministic"])
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        found = [[_ask(process) for process in processes] for _ in range(rounds)]
    finally:
        for process in processes:
            process.communicate()
    print(f"  a step with --deterministic over one without: {_ratios([(a, b) for a, b in found])}")


def _ask(process: subprocess.Popen[str]) -> tuple[float, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    time, processor = process.stdout.readline().split()
    return float(time), float(processor)


def serve(filters: int, *, deterministic: bool) -> None:
    """Does a step for each line it reads, and says how long it took."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    step = our_step(filters, deterministic=deterministic)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(*costs(step), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filters", type=int, default=16, help="16: 1.9 million parameters; 64: 31 million")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--deterministic", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.filters, deterministic=asked.deterministic)
        return
    compare(asked.filters, asked.rounds)
    overhead(asked.rounds)
    determinism(asked.filters, asked.rounds)


if __name__ == "__main__":
    main()
