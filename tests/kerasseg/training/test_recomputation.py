"""Activations that the backward pass computes again: the same gradients, and nothing that is kept or comes too early."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from kerasseg.training import engine as engine_module
from kerasseg.training.batchnorm import fused_batchnorm
from kerasseg.training.devices import choose_devices
from kerasseg.training.engine import Engine
from kerasseg.training.precision import compute_in
from kerasseg.training.recomputation import recompute_activations
from kerasseg_tfrecords.errors import UsageError

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 16, 16, 3)).astype("float32")
MASKS = (IMAGES[..., :1] > 0.6).astype("float32")


def plain() -> keras.Model:
    return kerasseg.unet((16, 16, 3), filters=4, depth=1, seed=1)


def residual() -> keras.Model:
    """Other activations, dropout, sums of activations, two convolutions on one activation, two outputs of one size."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    for rate in (0.0, 0.3):
        y = keras.layers.LeakyReLU()(keras.layers.BatchNormalization()(x))
        y = keras.layers.Dropout(rate, seed=3)(keras.layers.Conv2D(4, 3, padding="same", activation="elu")(y))
        x = keras.layers.ReLU()(keras.layers.Add()([x, y, keras.layers.Conv2D(4, 1)(y)]))
    x = keras.layers.Concatenate()([x, keras.layers.UpSampling2D()(keras.layers.MaxPooling2D()(x))])
    x = keras.layers.SeparableConv2D(4, 3, padding="same", activation="relu")(x)
    return keras.Model(image, keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x))


def gradients(model: keras.Model, *, again: bool) -> tuple[list[np.ndarray], int, tf.Graph]:
    weights, saved = [v.value for v in model.trainable_variables], []

    @tf.function(jit_compile=False)
    def run(image: Any, mask: Any) -> Any:
        graph = tf.compat.v1.get_default_graph()
        with fused_batchnorm(model), tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(image, training=True) - mask) ** 2)
        first = len(graph.get_operations())
        found = tape.gradient(loss, weights)
        saved.append(recompute_activations(graph, first, smallest=1) if again else 0)
        return found

    keras.utils.set_random_seed(5)
    with tf.device("/CPU:0"):
        found = [gradient.numpy() for gradient in run(IMAGES, MASKS)]
    return found, saved[0], run.get_concrete_function(IMAGES, MASKS).graph


@pytest.mark.parametrize(("make", "precision"), [(plain, "mixed_bfloat16"), (residual, "float32")])
def test_gradients_are_the_same_bit_for_bit(make: Any, precision: str) -> None:
    keras.utils.set_random_seed(2)
    model = make()
    compute_in(model, precision)
    before = [v.numpy() for v in model.variables]  # seeds of dropout included
    kept, nothing, _ = gradients(model, again=False)
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    recomputed, saved, _ = gradients(model, again=True)
    assert nothing == 0
    assert saved > 0
    for one, other in zip(kept, recomputed, strict=True):
        np.testing.assert_array_equal(one, other)


def waits(operation: Any) -> bool:
    """Whether an operation, or one that it repeats before, waits for a gradient."""
    before = (tensor.op for tensor in operation.inputs if "_again" in tensor.op.name)
    return bool(operation.control_inputs) or any(waits(one) for one in before)


def test_the_backward_pass_keeps_one_tensor_per_convolution_and_repeats_nothing_early() -> None:
    _, saved, graph = gradients(plain(), again=True)
    operations = graph.get_operations()
    repeated = [operation for operation in operations if "_again" in operation.name]
    assert repeated
    assert all(map(waits, repeated))
    # A shape is read when the forward pass has computed the tensor, and keeps nothing.
    backward = [o for o in operations if o.name.startswith("gradient_tape") and o.type not in ("Shape", "ShapeN")]
    used = {source.op for operation in backward for source in operation.inputs} - {*backward, *repeated}
    assert "Conv2D" in {operation.type for operation in used}
    assert not {"Relu", "ConcatV2"} & {operation.type for operation in used}
    # In units of a tensor of the first level: ReLU twice in each block, and the skip connection's copy.
    assert saved >= (2 + 2 / 2 + 2 + 1) * 4 * 16 * 16 * 4 * 4


@pytest.mark.rest
@pytest.mark.parametrize("parts", [1, 2])
def test_an_engine_that_saves_memory_trains_the_same_network(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    saved: list[int] = []

    def small(graph: Any, first: int) -> int:
        saved.append(recompute_activations(graph, first, smallest=1))
        return saved[-1]

    monkeypatch.setattr(engine_module, "recompute_activations", small)
    slices = {"weight": np.ones(4, "float32"), "label": np.zeros(4, int), "slice": np.arange(4)}
    weights, devices = [], choose_devices(["CPU:0"], 4)
    for save_memory in (False, True):
        model = plain()
        kerasseg.freeze(model, "conservative")
        adam = kerasseg.DecayedAdam(1e-3)
        engine = Engine(model, adam, devices=devices, batch_size=4, parts=parts, save_memory=save_memory)
        for _ in range(2):
            engine.train_step({"image": IMAGES, "mask": MASKS, **slices})
        weights.append(model.get_weights())
    assert saved
    assert all(saved)
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{"xla": True, "devices": choose_devices(["CPU:0"], 4)}, {"devices": None}])
def test_memory_is_saved_on_a_single_processor_only(options: Any) -> None:
    with pytest.raises(UsageError, match="single processor"):
        Engine(plain(), kerasseg.DecayedAdam(1e-3), batch_size=4, save_memory=True, **options)
