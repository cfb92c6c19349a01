"""What the processor gives, and the share of it that training and prediction reach.

The bound is the fastest 3x3 convolution of the network's own shapes, alone in TensorFlow (oneDNN): a network that did
nothing but convolve at that rate would take the counted operations divided by it. "Convolutions alone" are all
convolutions of the network, each at its own rate. What a step takes beyond them is spent on normalisation, activations,
pooling, concatenation, loss and optimizer. All take turns in one run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.freezing import multiply_adds
from benchmarks.measure import Cost, costs, rounds_of
from benchmarks.result import Result, compared, show
from benchmarks.training import BATCH, SIZE, precision
from benchmarks.turns import contenders

PART = "roofline"
GOAL = 0.6
BOUND = "the fastest convolution"
ALONE = "its convolutions alone"


@dataclass(frozen=True)
class Layer:
    """A convolution of the network.

    Attributes:
        transposed: Whether it is a transposed convolution.
        incoming, outgoing: Shapes (batch, rows, columns, channels).
        kernel: Shape of the kernel.
        stride: Stride.
        first: Whether its input is the image, whose gradient nobody needs.
        kind: "float32" or "bfloat16".
    """

    transposed: bool
    incoming: tuple[int, ...]
    outgoing: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    first: bool
    kind: str

    @property
    def operations(self) -> int:
        """Floating-point operations of the forward pass."""
        shape = self.incoming if self.transposed else self.outgoing
        return 2 * BATCH * int(np.prod(self.kernel)) * shape[1] * shape[2]

    @property
    def title(self) -> str:
        before, after = self.kernel[2:]
        return f"3x3 convolution, {before} to {after} channels at {self.incoming[1]}x{self.incoming[2]}, {self.kind}"

    @cached_property
    def _arrays(self) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        shapes = self.incoming, self.kernel, self.outgoing
        return tuple(tf.cast(tf.random.stateless_normal(shape, [0, 1]), self.kind) for shape in shapes)

    @cached_property
    def _compute(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        import tensorflow as tf

        def convolve(x: Any, kernel: Any) -> Any:
            if self.transposed:
                return tf.nn.conv2d_transpose(x, kernel, self.outgoing, self.stride)
            return tf.nn.conv2d(x, kernel, self.stride, "SAME")

        def gradients(x: Any, kernel: Any, change: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = convolve(x, kernel)
            return tape.gradient(y, [kernel] if self.first else [x, kernel], change)

        return tf.function(convolve), tf.function(gradients)

    def forward(self) -> None:
        """Convolve once."""
        x, kernel, _ = self._arrays
        self._compute[0](x, kernel)

    def backward(self) -> None:
        """Compute the gradients of the kernel and of the input once."""
        self._compute[1](*self._arrays)


def layers_of(filters: int, kind: str) -> list[Layer]:
    """Return the convolutions of the default U-Net."""
    import kerasseg
    from kerasseg.models.graph import flatten

    found: list[Layer] = []
    for step in flatten(kerasseg.unet((SIZE, SIZE, 3), filters=filters, seed=0)).nodes:
        kernel = getattr(step.layer, "kernel", None)
        if kernel is None:
            continue
        incoming, outgoing = (BATCH, *step.incoming[0][1:]), (BATCH, *step.shape[1:])
        transposed = "Transpose" in type(step.layer).__name__
        shape = tuple(int(n) for n in kernel.shape)
        found.append(Layer(transposed, incoming, outgoing, shape, int(step.layer.strides[0]), not found, kind))
    return found


def predictor(filters: int, name: str) -> Callable[[], object]:
    """Return the prediction of one batch, as `kerasseg predict` does it."""
    import kerasseg
    from kerasseg.prediction.predictor import open_network

    model = kerasseg.unet((SIZE, SIZE, 3), filters=filters, seed=0)
    network = open_network(model, threshold=0.5, intensity="minmax", precision=name, batch_size=BATCH)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    return lambda: network.probabilities(images)


def operations(filters: int, strategy: str) -> tuple[float, float]:
    """Return the floating-point operations of a batch, forward and backward."""
    import kerasseg

    model = kerasseg.unet((SIZE, SIZE, 3), filters=filters, seed=0)
    kerasseg.freeze(model, strategy)
    forward, backward = multiply_adds(model)
    return 2.0 * BATCH * forward, 2.0 * BATCH * backward


def triad(threads: int, megabytes: int) -> Callable[[], object]:
    """Return a = b + 3 c over arrays of that size, block by block so that only the three arrays cross the memory bus."""
    a, b, c = (np.ones(megabytes * 2**20 // 4, np.float32) for _ in range(3))
    block, pool = 1 << 15, ThreadPoolExecutor(threads)

    def part(number: int) -> None:
        for start in range(number * block, len(a), threads * block):
            end = start + block
            np.multiply(c[start:end], np.float32(3), out=a[start:end])
            np.add(a[start:end], b[start:end], out=a[start:end])

    return lambda: list(pool.map(part, range(threads)))


def memory(megabytes: int, rounds: int) -> Result:
    cores = os.cpu_count() or 1
    both = {"all": triad(cores, megabytes), "one": triad(1, megabytes)}
    found = rounds_of({name: lambda a=action: costs(a) for name, action in both.items()}, rounds)
    moved = 3 * megabytes / 1024
    pair = [[Cost(cost.time / moved, 0) for cost in found[name]] for name in ("all", "one")]
    what = f"memory, a = b + 3 c, {cores} threads"
    return compared(PART, what, "one thread", *pair, slices=1, unit="GB/s")


def results(*, quick: bool) -> list[Result]:
    import tensorflow as tf

    filters, rounds = (16, 2) if quick else (64, 3)
    tf.get_logger().setLevel("ERROR")  # each layer is one function, which is no retracing
    trained = "bfloat16" if "bfloat16" in precision() else "float32"
    kinds = ["float32"] + ["bfloat16"] * (trained == "bfloat16")
    convolutions = {kind: layers_of(filters, kind) for kind in kinds}
    actions: dict[str, Callable[[], Cost]] = {}
    for kind, layers in convolutions.items():
        for number, layer in enumerate(layers):
            for way in ("forward", "backward") if kind == trained else ("forward",):
                act = getattr(layer, way)
                act()  # traces the graph
                actions[f"{kind} {way} {number}"] = lambda act=act: costs(act)
    policies = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
    makers = {f"predict {kind}": ("benchmarks.roofline:predictor", filters, policies[kind]) for kind in kinds}
    makers |= {f"train {s}": ("benchmarks.training:our_step", filters, s) for s in ("aggressive", "conservative")}
    with contenders(makers) as running:
        found = rounds_of(actions | running, rounds)

    def alone(kind: str, ways: tuple[str, ...]) -> list[Cost]:
        each = [found[f"{kind} {way} {n}"] for way in ways for n in range(len(convolutions[kind]))]
        return [Cost(sum(cost.time for cost in one), 0) for one in zip(*each, strict=True)]

    lines = [memory(64 if quick else 512, rounds)]
    rates = {}
    for kind, layers in convolutions.items():
        whole = {n: layer for n, layer in enumerate(layers) if layer.kernel[:2] == (3, 3) and not layer.first}
        each = {n: [one.operations / c.time for c in found[f"{kind} forward {n}"]] for n, one in whole.items()}
        rates[kind] = [max(speeds) for speeds in zip(*each.values(), strict=True)]
        fast = [Cost(1e9 / rate, 0) for rate in rates[kind]]
        for n in {layer: n for n, layer in whole.items()}.values():
            ours = [Cost(1e9 / rate, 0) for rate in each[n]]
            lines.append(compared(PART, whole[n].title, BOUND, ours, fast, slices=1, unit="GFLOP/s", goal=0.0))
    size = "31 million" if filters == 64 else "1.9 million"
    for name in running:
        what, kind = name.split()
        training = what == "train"
        forward, backward = operations(filters, kind if training else "aggressive")
        kind = trained if training else kind
        total, ways = (forward + backward, ("forward", "backward")) if training else (forward, ("forward",))
        title = f"step, {name.split()[1]}" if training else "prediction"
        title = f"{title}, {size} parameters, {kind}"
        remark = f"{total / 1e9:,.0f} G operations a batch of {BATCH}"
        bound = [Cost(total / rate, 0) for rate in rates[kind]]
        lines.append(compared(PART, title, BOUND, found[name], bound, goal=GOAL, remark=remark))
        if name != "train conservative":
            lines.append(compared(PART, title, ALONE, found[name], alone(kind, ways), goal=0.0))
    return lines


if __name__ == "__main__":
    show(results)
