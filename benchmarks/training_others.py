"""The rest about steps of training: float32 peers, the moderate strategy, fixed costs, and what `--deterministic` costs.

The peers here take half a minute a step and are not the best. Each is compared with our step by itself, so that few
networks are in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.freezing import counted_saving
from benchmarks.measure import rounds_of
from benchmarks.result import Result, compared, show, sized
from benchmarks.training import maker_of, our_step, title
from benchmarks.turns import contenders

PEERS = ("plain Keras, float32", "PyTorch, float32", "PyTorch, float32, channels-last", "PyTorch, bfloat16")
PART = "training_others"


def slow_peers(filters: int, rounds: int) -> list[Result]:
    """Our step against peers that are slower."""
    lines, what = [], title(filters)
    for peer in PEERS:
        with contenders({name: maker_of(filters, name) for name in ("aggressive", peer)}) as running:
            found = rounds_of(running, rounds)
        lines.append(compared(PART, f"aggressive, {what}", peer, found["aggressive"], found[peer]))
        peaks = running["aggressive"].peak, running[peer].peak
        lines.append(sized(PART, f"peak memory, aggressive, {what}", peer, *peaks))
    return lines


def moderate(filters: int, rounds: int) -> Result:
    with contenders({name: maker_of(filters, name) for name in ("moderate", "aggressive")}) as running:
        found = rounds_of(running, rounds)
    ratio = 1 / (1 - counted_saving("moderate"))
    remark = f"counting the multiply-adds that the frozen blocks' backward pass saves gives {ratio:.3f}"
    pair = found["moderate"], found["aggressive"]
    return compared(PART, f"moderate, {title(filters)}", "aggressive", *pair, remark=remark)


def overhead(rounds: int) -> Result:
    """What a step costs beyond arithmetic: a network so small that nothing else is left."""
    makers = {
        "ours": ("benchmarks.training:our_step", 2, "aggressive", 16),
        "theirs": ("benchmarks.training:keras_step", 2, "float32", 16),
    }
    with contenders(makers) as running:
        found = rounds_of(running, 30 * rounds)
    what = "fixed cost of a step (2 filters, 16x16)"
    return compared(PART, what, "plain Keras", found["ours"], found["theirs"], unit="ms", scale=1000)


def determinism(rounds: int) -> Result:
    """The cost of `--deterministic`. It cannot be switched off again: two processes take turns."""
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
        *slow_peers(filters, 1 if quick else 2),
        moderate(filters, 2 if quick else 3),
        overhead(1 if quick else 3),
        determinism(2 if quick else 5),
    ]


if __name__ == "__main__":
    show(results)
