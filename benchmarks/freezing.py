"""What freezing saves of a training step: multiply-adds counted, and seconds measured in turn.

A frozen block is still run forward. It saves the gradients of its weights, and those of its input where nothing that is
trained stands before it.
"""

from __future__ import annotations

import math

from benchmarks.measure import in_turn, spread


def multiply_adds(model: object) -> tuple[int, int]:
    """Multiply-adds of the convolutions for one image: forward, and backward as the model is frozen."""
    from kerasseg.graph import flatten

    forward = backward = 0
    trained_before: list[bool] = []
    for step in flatten(model).steps:
        layer = step.layer
        trained = layer is not None and any(v.trainable for v in layer.weights)
        behind = any(trained_before[p] for p in step.parents)
        trained_before.append(trained or behind)
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        # A transposed convolution uses its kernel once for each pixel of its input.
        shape = step.incoming[0] if "Transpose" in type(layer).__name__ else step.shape
        once = math.prod(kernel.shape) * shape[1] * shape[2]
        forward += once
        backward += once * (trained + behind)
    return forward, backward


def main() -> None:
    import keras
    import numpy as np

    import kerasseg

    model = kerasseg.unet()
    kerasseg.freeze(model, "aggressive")
    forward, backward = multiply_adds(model)
    print(
        f"31-million-parameter U-Net, 256x256x3: {forward / 1e9:.1f} G multiply-adds forward, {backward / 1e9:.1f} back"
    )
    for strategy in ("aggressive", "moderate", "conservative", ["encoder_*"], ["encoder_*", "bottleneck"]):
        report = kerasseg.freeze(model, strategy)
        _, less = multiply_adds(model)
        saved = (backward - less) / (forward + backward)
        name = strategy if isinstance(strategy, str) else " + ".join(strategy)
        print(f"  {name:24} trains {report.trained / 1e6:5.1f} M weights, saves {saved:6.1%} of a step (counted)")

    x = np.random.default_rng(0).random((4, 128, 128, 3), "float32")
    y = (x[..., :1] > 0.5).astype("float32")
    steps = {}
    for strategy in ("aggressive", "conservative"):
        small = kerasseg.unet((128, 128, 3), filters=16, seed=0)
        kerasseg.freeze(small, strategy)
        small.compile(keras.optimizers.Adam(1e-5), "binary_crossentropy", jit_compile=False)
        small.train_on_batch(x, y)
        steps[strategy] = small
    rounds = in_turn(
        lambda: steps["aggressive"].train_on_batch(x, y), lambda: steps["conservative"].train_on_batch(x, y), 15
    )
    ratios = [b / a for a, b in rounds]
    print(f"16 filters, 128x128, batch 4: step with conservative freezing to step without: {spread(ratios)}")


if __name__ == "__main__":
    main()
