"""More about training steps: float32 peers, the moderate strategy, fixed costs, and the cost of `--deterministic`.

These peers take up to half a minute per step and are not the fastest. They run in three groups, so that few networks are in
memory at once: PyTorch frees the memory of a step, TensorFlow does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.measure import rounds_of
from benchmarks.result import Result, compared, show, sized
from benchmarks.training import our_step, precision, race, saved_by, title
from benchmarks.turns import contenders

KERAS = "plain Keras, float32"
PYTORCH = ("PyTorch, float32", "PyTorch, float32, channels-last", "PyTorch, bfloat16")
PART = "training_others"


def slow_peers(filters: int, rounds: int, peers: Sequence[str]) -> list[Result]:
    """Compare our step with slower peers."""
    lines, what = [], title(filters)
    found = race(filters, ("aggressive", *peers), rounds)
    for peer in found.costs:
        if peer in peers:
            lines.append(compared(PART, f"aggressive, {what}", peer, found.costs["aggressive"], found.costs[peer]))
            lines.append(
                sized(PART, f"peak memory, aggressive, {what}", peer, found.peak["aggressive"], found.peak[peer])
            )
    return lines


def overhead(rounds: int) -> Result:
    """Measure the fixed cost of a step, with a network so small that nothing else is left."""
    makers = {
        "ours": ("benchmarks.training:our_step", 2, "aggressive", 16),
        "theirs": ("benchmarks.training:keras_step", 2, precision(), 16),
    }
    with contenders(makers) as running:
        found = rounds_of(running, 30 * rounds)
    what = "fixed cost of a step (2 filters, 16x16)"
    return compared(PART, what, "plain Keras", found["ours"], found["theirs"], unit="ms", scale=1000)


def determinism(rounds: int) -> Result:
    """Measure the cost of `--deterministic` in two processes, since it cannot be switched off again."""
    makers = {name: ("benchmarks.training_others:seeded_step", 16, name == "with") for name in ("without", "with")}
    with contenders(makers) as running:
        found = rounds_of(running, rounds)
    what = "step of 1.9 million parameters with --deterministic"
    return compared(PART, what, "without", found["with"], found["without"])


def seeded_step(filters: int, deterministic: bool) -> Callable[[], object]:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return our_step(filters, deterministic=deterministic)


def results(*, quick: bool) -> list[Result]:
    filters = 16 if quick else 64
    return [
        *slow_peers(filters, 1 if quick else 2, PYTORCH),
        *slow_peers(filters, 1 if quick else 2, [KERAS]),
        saved_by("moderate", race(filters, ("moderate", "aggressive"), 2 if quick else 3), PART, title(filters)),
        overhead(1 if quick else 3),
        determinism(2 if quick else 5),
    ]


if __name__ == "__main__":
    show(results)
