"""Freezing: what is frozen keeps every bit through a real fit, everything else moves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from children import Children
from kerasseg.models.freezing import BlockReport, freeze
from kerasseg.models.unet import unet
from kerasseg.recipe import STRATEGIES, frozen_encoder_blocks
from kerasseg_tfrecords.errors import UsageError

BLOCKS = ["encoder_1", "encoder_2", "encoder_3", "encoder_4", "bottleneck"]
BLOCKS += ["decoder_4", "decoder_3", "decoder_2", "decoder_1", "head"]


def small(**options: Any) -> keras.Model:
    return unet((16, 16, 3), **{"filters": 4, "depth": 2, "seed": 0, **options})


def data(samples: int = 8) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((samples, 16, 16, 3), "float32")
    return x, (x.mean(-1, keepdims=True) > 0.5).astype("float32")


def snapshot(model: keras.Model) -> dict[str, np.ndarray]:
    """All weights by their path; random seeds are no weights."""
    return {v.path: np.array(keras.ops.convert_to_numpy(v)) for v in model.weights}


def changed(before: dict[str, np.ndarray], model: keras.Model) -> set[str]:
    after = snapshot(model)
    return {path for path, value in before.items() if value.tobytes() != after[path].tobytes()}


def train(model: keras.Model, epochs: int = 3) -> list[float]:
    x, y = data()
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", jit_compile=False)
    losses: list[float] = model.fit(x, y, batch_size=4, epochs=epochs, verbose=0).history["loss"]
    return losses


# --- which blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("conservative", {"encoder_1", "encoder_2"}), ("moderate", {"encoder_1"}), ("aggressive", set())],
)
def test_strategies_on_four_encoder_blocks(strategy: str, expected: set[str]) -> None:
    report = freeze(unet((16, 16, 3), filters=2), strategy)
    assert [block.name for block in report.blocks] == BLOCKS
    assert set(report.frozen_blocks) == expected
    assert {block.name for block in report.blocks if block.state == "trained"} == set(BLOCKS) - expected


@given(st.integers(1, 40))
def test_strategies_on_any_number_of_encoder_blocks(n: int) -> None:
    conservative, moderate, aggressive = (frozen_encoder_blocks(strategy, n) for strategy in STRATEGIES)
    assert n >= conservative >= moderate > aggressive == 0
    assert conservative == 1 or conservative in (n / 2, (n - 1) / 2)
    assert moderate == 1 or moderate * 4 <= n < (moderate + 1) * 4


def test_one_encoder_block_is_frozen_by_both_strategies_that_freeze() -> None:
    model = small(depth=1)
    assert freeze(model, "conservative").frozen_blocks == freeze(model, "moderate").frozen_blocks == ("encoder_1",)


def test_globs_over_blocks_and_layers() -> None:
    model = small()
    assert freeze(model, ["encoder_1", "decoder_*"]).frozen_blocks == ("encoder_1", "decoder_2", "decoder_1")
    assert freeze(model, "head").frozen_blocks == ("head",)
    report = freeze(model, ["bottleneck_conv_1", "*_norm_2", "image"][:2])
    assert report.frozen_blocks == ()
    assert {name for block in report.blocks for name in block.frozen_layers} == {
        "bottleneck_conv_1",
        *(f"{block}_norm_2" for block in ("encoder_1", "encoder_2", "bottleneck", "decoder_2", "decoder_1")),
    }
    assert {block.state for block in report.blocks if block.name != "head"} == {"partly trained"}


def test_everything_may_be_frozen() -> None:
    report = freeze(small(), ["*"])
    assert report.trained == 0
    assert {block.state for block in report.blocks} == {"frozen"}


def test_the_call_does_not_depend_on_what_was_frozen_before() -> None:
    model, fresh = small(), small()
    for what in ("conservative", ["decoder_1"], ["encoder_1_conv_1", "head"], ["*"], "aggressive", "moderate"):
        report, expected = freeze(model, what), freeze(fresh, what)
        assert [v.trainable for v in model.weights] == [v.trainable for v in fresh.weights]
        assert (report.blocks, report.trained) == (expected.blocks, expected.trained)
        assert freeze(model, what).blocks == report.blocks
        freeze(fresh, "aggressive")


def test_single_weights_that_were_held_are_thawed() -> None:
    # On the TensorFlow backend `layer.trainable = True` is ignored where the layer is trainable already.
    model = small()
    model.get_layer("head").kernel.trainable = False
    assert freeze(model, "aggressive").trained == sum(
        int(np.prod(v.shape)) for v in model.weights if "moving" not in v.path
    )


@pytest.mark.slow
def test_a_model_that_was_saved_frozen_is_thawed_and_says_so(tmp_path: Path) -> None:
    model = small()
    freeze(model, ["encoder_*"])
    model.save(tmp_path / "frozen.keras")
    opened = keras.saving.load_model(tmp_path / "frozen.keras")
    report = freeze(opened, "moderate")
    assert report.frozen_blocks == ("encoder_1",)
    assert report.thawed == tuple(f"encoder_2_{layer}" for layer in ("conv_1", "norm_1", "conv_2", "norm_2"))
    assert "now trained, frozen before: encoder_2_conv_1" in str(report)
    before = snapshot(opened)
    train(opened)
    assert changed(before, opened) == {path for path in before if not path.startswith("encoder_1")}


# --- what is said --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("agressive", r"no block or layer matches 'agressive' .*Did you mean 'aggressive'\?"),
        (
            ["encoder_3"],
            r"matches 'encoder_3' .*a block \(encoder_1, encoder_2, bottleneck, decoder_2, decoder_1, head\)",
        ),
        (["encoder_1", "conv2d_19"], r"no block or layer matches 'conv2d_19'"),
        (["ENCODER_1"], r"no block or layer matches 'ENCODER_1'"),
        (["conservative", "head"], r"'conservative' is a strategy, which cannot be combined with other names"),
        (["bottlneck"], r"Did you mean 'bottleneck'\?"),
        (
            ["encoder_1_act_*"],
            r"'encoder_1_act_\*' freezes nothing: .*without weights.*found encoder_1_act_1, encoder_1_act_2",
        ),
        (["head", "image"], r"'image' freezes nothing"),
        ([], r"no block or layer is named"),
    ],
)
def test_a_pattern_that_freezes_nothing_is_an_error_and_changes_nothing(what: Any, says: str) -> None:
    model = small()
    freeze(model, ["decoder_1"])
    before = [v.trainable for v in model.weights]
    with pytest.raises(UsageError, match=says):
        freeze(model, what)
    assert [v.trainable for v in model.weights] == before


def test_the_report_counts_what_the_optimizer_will_move() -> None:
    model = small()
    for what in STRATEGIES:
        report = freeze(model, what)
        assert report.trained == sum(int(np.prod(v.shape)) for v in model.trainable_weights)
        assert report.trained == sum(block.trained for block in report.blocks)
        assert report.parameters == model.count_params() == sum(block.parameters for block in report.blocks)
        moving = [v for v in model.weights if "moving" in v.path]
        frozen = sum(2 * 2 * 4 * 2**k for k in range(len(report.frozen_blocks)))
        assert sum(block.statistics for block in report.blocks) == sum(v.shape[0] for v in moving) - frozen


def test_the_table() -> None:
    assert str(freeze(small(), "conservative")).splitlines() == [
        "block       parameters  trained",
        "encoder_1          284        0  frozen",
        "encoder_2          928      896  trained",
        "bottleneck       3,584    3,520  trained",
        "decoder_2        2,312    2,280  trained",
        "decoder_1          596      580  trained",
        "head                 5        5  trained",
        "total            7,709    7,281",
        "BatchNorm: 2 of 10 layers keep their statistics",
    ]
    assert "BatchNorm" not in str(freeze(small(normalization="instance"), "conservative"))


def test_a_block_without_weights_is_neither_frozen_nor_trained() -> None:
    assert BlockReport("decoder_1", 0, 0, 0).state == "no weights"


# --- what training does --------------------------------------------------------------------------------------------------


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize(
    ("normalization", "what"),
    [
        ("batch", "conservative"),
        ("batch", ["encoder_1", "decoder_*"]),
        ("group", ["bottleneck"]),
        ("instance", "conservative"),
        ("none", ["decoder_1", "head"]),
    ],
)
def test_frozen_blocks_keep_every_bit_and_all_others_change(normalization: str, what: Any) -> None:
    model = small(normalization=normalization, dropout=0.1, depth=2 if normalization == "batch" else 1)
    report = freeze(model, what)
    before = snapshot(model)
    losses = train(model)
    still = {path for path in before if path.startswith(report.frozen_blocks)}
    assert still
    assert changed(before, model) == set(before) - still
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_frozen_block_runs_in_inference_mode() -> None:
    model = small()
    x, _ = data()
    train(model, epochs=1)  # statistics that differ from those of a batch
    freeze(model, "moderate")
    block = keras.Model(model.input, model.get_layer("encoder_1_act_2").output)
    np.testing.assert_array_equal(np.asarray(block(x, training=True)), np.asarray(block(x, training=False)))
    freeze(model, "aggressive")
    assert (np.asarray(block(x, training=True)) != np.asarray(block(x, training=False))).any()


@pytest.mark.slow
def test_freeze_batchnorm_holds_all_of_them_and_trains_the_rest() -> None:
    model = small()
    report = freeze(model, "moderate", freeze_batchnorm=True)
    assert (report.held_batchnorm, report.batchnorm) == (10, 10)
    assert report.frozen_blocks == ("encoder_1",)
    assert {block.state for block in report.blocks} == {"frozen", "trained"}
    assert sum(block.statistics for block in report.blocks) == 0
    before = snapshot(model)
    train(model)
    still = {path for path in before if path.startswith("encoder_1") or "_norm_" in path}
    assert changed(before, model) == set(before) - still


@pytest.mark.slow
def test_a_traced_training_step_does_not_go_on_training_what_is_frozen() -> None:
    model = small()
    x, y = data()
    model.compile("sgd", "binary_crossentropy", jit_compile=False)
    model.fit(x, y, verbose=0)
    report = freeze(model, "conservative")
    assert report.recompile
    assert "compile it again" in str(report)
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert changed(before, model) == {path for path in before if not path.startswith("encoder_1_")}
    assert not freeze(small(), "conservative").recompile


def test_a_layer_that_two_blocks_share_is_frozen_in_both_and_counted_once() -> None:
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    image = keras.Input((16, 16, 4), name="image")
    skip = shared(image)
    x = layers.MaxPooling2D(2, name="encoder_1_pool")(skip)
    x = layers.Conv2D(8, 3, padding="same", name="bottleneck_conv")(x)
    x = layers.UpSampling2D(2, name="decoder_1_up")(x)
    x = layers.Conv2D(4, 1, name="decoder_1_conv")(layers.Concatenate(name="decoder_1_concat")([x, skip]))
    model = keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="head")(shared(x)))
    report = freeze(model, ["shared"])
    assert report.parameters == model.count_params()
    assert report.parameters - report.trained == shared.count_params()


def nested(inner: keras.Model) -> keras.Model:
    image = keras.Input((16, 16, 3), name="pixels")
    return keras.Model(image, inner(layers.Rescaling(1 / 255, name="scale")(image)), name="outer")


@pytest.mark.slow
def test_blocks_inside_of_a_nested_model_are_frozen() -> None:
    model = nested(small())
    report = freeze(model, "conservative")
    assert report.frozen_blocks == ("encoder_1",)
    before = snapshot(model)
    train(model)
    still = {path for path in before if "encoder_1_" in path}
    assert len(still) == 10
    assert changed(before, model) == set(before) - still
    # One layer by its path, the whole nested model by its name, and back.
    assert freeze(model, ["unet/bottleneck_conv_?"]).blocks == freeze(model, ["bottleneck_conv_?"]).blocks
    assert freeze(model, ["unet"]).trained == 0
    assert freeze(model, ["unet"]).held_batchnorm == 10
    assert freeze(model, "aggressive").held_batchnorm == 0


def with_layer(layer: keras.layers.Layer) -> keras.Model:
    """A U-Net of depth 1 whose encoder block is `layer`."""
    image = keras.Input((16, 16, 3), name="image")
    skip = layer(image)
    x = layers.MaxPooling2D(2, name="encoder_1_pool")(skip)
    x = layers.Conv2D(8, 3, padding="same", name="bottleneck_conv")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="decoder_1_up")(x)
    x = layers.Conv2D(4, 3, padding="same", name="decoder_1_conv")(
        layers.Concatenate(name="decoder_1_concat")([x, skip])
    )
    return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="head")(x))


class Drifting(layers.Layer):
    """Counts the images it has seen, frozen or not: what `freeze` cannot hold."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1],), initializer="ones", name="kernel")
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.seen.assign_add(1.0)
        return x * self.kernel


@pytest.mark.parametrize(
    "restless",
    [
        lambda: layers.SpectralNormalization(layers.Conv2D(4, 3, padding="same"), name="encoder_1_spectral"),
        lambda: Drifting(name="encoder_1_drifting"),
    ],
)
def test_a_layer_that_changes_though_frozen_is_refused_and_left_as_it_was(restless: Any) -> None:
    model = with_layer(restless())
    before = snapshot(model)
    flags = [v.trainable for v in model.weights]
    with pytest.raises(
        UsageError, match=r"layer 'encoder_1_(spectral|drifting)' cannot be frozen: .* changes its state"
    ):
        freeze(model, "conservative")
    assert not changed(before, model)
    assert [v.trainable for v in model.weights] == flags
    assert freeze(model, ["decoder_1"]).frozen_blocks == ("decoder_1",)


@pytest.mark.parametrize(
    "calm",
    [
        lambda: layers.TimeDistributed(layers.Conv1D(4, 3, padding="same"), name="encoder_1_each"),
        lambda: keras.Sequential(
            [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()], name="encoder_1_in"
        ),
    ],
)
def test_layers_around_layers_are_frozen(calm: Any) -> None:
    layer = calm()
    model = with_layer(layer)
    freeze(model, [layer.name])
    before = snapshot(model)
    still = {v.path for v in layer.weights}
    train(model, epochs=2)
    assert changed(before, model) == set(before) - still


def test_a_layer_with_fixed_statistics_keeps_still_and_is_nothing_to_freeze() -> None:
    image = keras.Input((16, 16, 3), name="pixels")
    scaled = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3], name="scaled")(image)
    model = keras.Model(image, small()(scaled))
    with pytest.raises(UsageError, match="'scaled' freezes nothing"):
        freeze(model, ["scaled"])
    assert freeze(model, ["*"]).trained == 0


REPLICAS = """
import json, sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras  # noqa: E402 - the devices must be cut before Keras looks at them
from kerasseg import freeze, unet

class PerSampleLoss(keras.losses.Loss):  # one value a sample: a scalar would be counted once for each replica
    def call(self, y, p):
        return keras.ops.mean(keras.losses.binary_crossentropy(y, p), axis=(1, 2))

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
x = np.random.default_rng(0).random((8, 16, 16, 3), "float32")
y = (x.mean(-1, keepdims=True) > 0.5).astype("float32")
found = {}
for held in (False, True):
    with strategy.scope():
        model = unet((16, 16, 3), filters=4, depth=1, seed=0)
        report = freeze(model, "conservative", freeze_batchnorm=held)
        model.compile(keras.optimizers.Adam(1e-2), PerSampleLoss(), jit_compile=False)
    before = {v.path: np.array(v) for v in model.weights}
    copies = lambda v: v.value.values  # one for each replica
    assert all(len(copies(v)) == 2 for v in model.weights)
    losses = model.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
    still = [
        path for path, value, v in ((v.path, before[v.path], v) for v in model.weights)
        if all(copy.numpy().tobytes() == value.tobytes() for copy in copies(v))
    ]
    found[str(held)] = {"losses": losses, "all": list(before), "still": still, "frozen": report.frozen_blocks}
print(json.dumps(found))
"""


@pytest.mark.rest
@pytest.mark.slow
def test_frozen_blocks_keep_every_bit_on_two_replicas(tmp_path: Path) -> None:
    child = Children(tmp_path).python(REPLICAS)
    assert child.returncode == 0, child.stderr[-2000:]
    for held, found in json.loads(child.stdout.splitlines()[-1]).items():
        assert found["frozen"] == ["encoder_1"]
        expected = {p for p in found["all"] if p.startswith("encoder_1_") or (held == "True" and "_norm_" in p)}
        assert set(found["still"]) == expected
        assert found["losses"][-1] < found["losses"][0]


ON_JAX = """
import sys
import keras, numpy as np
from kerasseg import freeze, unet
assert keras.backend.backend() == "jax"
x = np.random.default_rng(0).random((8, 16, 16, 3), "float32")
y = (x.mean(-1, keepdims=True) > 0.5).astype("float32")
model = unet((16, 16, 3), filters=4, depth=2, seed=0)
for what in (["*"], "aggressive", "conservative"):
    report = freeze(model, what)
assert report.frozen_blocks == ("encoder_1",)
before = {v.path: np.array(v) for v in model.weights}
model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy")
losses = model.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
still = {v.path for v in model.weights if np.array(v).tobytes() == before[v.path].tobytes()}
assert still == {path for path in before if path.startswith("encoder_1_")}, still
assert losses[-1] < losses[0]
assert "tensorflow" not in sys.modules
"""


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed (pip install jax jaxlib)")
def test_on_the_jax_backend_frozen_blocks_keep_every_bit_too(python: str, child_environment: dict[str, str]) -> None:
    environment = {**child_environment, "KERAS_BACKEND": "jax"}
    child = subprocess.run([python, "-c", ON_JAX], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]


# --- checkpoints of other people -----------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_a_published_checkpoint_is_frozen_by_block_and_by_its_own_layer_names(real: Path) -> None:
    path = real / "checkpoints" / "unet-lgg.keras"
    model = keras.saving.load_model(path, compile=False)
    report = freeze(model, "conservative")
    assert report.frozen_blocks == ("encoder_1", "encoder_2")
    assert report.blocks[0].frozen_layers == ("conv2d", "batch_normalization", "conv2d_1", "batch_normalization_1")
    by_name = freeze(model, ["conv2d", "conv2d_[1-3]", "batch_normalization", "batch_normalization_[1-3]"])
    assert by_name.blocks == report.blocks
    before = snapshot(model)
    x = np.random.default_rng(0).random((2, 256, 256, 3), "float32")
    model.compile("sgd", "binary_crossentropy", jit_compile=False)
    model.fit(x, (x[..., :1] > 0.5).astype("float32"), batch_size=1, verbose=0)
    names = [name for block in by_name.blocks[:2] for name in block.frozen_layers]
    still = {v.path for name in names for v in model.get_layer(name).weights}
    # BatchNorm subtracts what a bias in front of it adds: the gradient of these is rounding noise, and may be 0.
    cancelled = {path for path in before if path.startswith("conv2d_") and path.endswith("/bias")} - {"conv2d_18/bias"}
    cancelled = {path for path in cancelled if "transpose" not in path}
    moved = changed(before, model)
    assert moved.isdisjoint(still)
    assert set(before) - still - cancelled <= moved
