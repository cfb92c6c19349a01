"""Savings of frozen blocks in a training step, as a count of multiply-adds; `benchmarks.training` measures seconds.

A frozen block still runs forward. It saves the gradients of its weights, and those of its input if no block before it is
trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.result import Result, show, sized


def multiply_adds(model: object) -> tuple[int, int]:
    """Count the multiply-adds of the convolutions for one image, forward and backward, with the current freezing."""
    from kerasseg.models.graph import flatten

    forward = backward = 0
    trained_before: list[bool] = []
    for step in flatten(model).nodes:
        layer = step.layer
        trained = layer is not None and any(v.trainable for v in layer.weights)
        behind = any(trained_before[p] for p in step.parents)
        trained_before.append(trained or behind)
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        # A transposed convolution applies its kernel once per input pixel.
        shape = step.incoming[0] if "Transpose" in type(layer).__name__ else step.shape
        once = math.prod(kernel.shape) * shape[1] * shape[2]
        forward += once
        backward += once * (trained + behind)
    return forward, backward


def counted_saving(strategy: str | Sequence[str], model: object = None) -> float:
    """Return the share of a step's multiply-adds that a strategy saves; of the default network if none is given."""
    import kerasseg

    model = kerasseg.unet() if model is None else model
    kerasseg.freeze(model, "aggressive")
    forward, backward = multiply_adds(model)
    kerasseg.freeze(model, strategy)
    return (backward - multiply_adds(model)[1]) / (forward + backward)


def results(*, quick: bool) -> list[Result]:  # noqa: ARG001
    import kerasseg

    model = kerasseg.unet()
    kerasseg.freeze(model, "aggressive")
    whole = sum(multiply_adds(model)) / 1e9
    lines = []
    for strategy in ("moderate", "conservative", ["encoder_*"], ["encoder_*", "bottleneck"]):
        trained = kerasseg.freeze(model, strategy).trained
        saved = counted_saving(strategy, model)
        name = strategy if isinstance(strategy, str) else "frozen: " + ", ".join(strategy)
        remark = f"trains {trained / 1e6:.1f} M weights, saves {saved:.1%} of a step"
        unit = "G multiply-adds per slice"
        lines.append(
            sized("freezing", f"{name}, counted", "aggressive", whole * (1 - saved), whole, unit=unit, remark=remark)
        )
    return lines


if __name__ == "__main__":
    show(results)
