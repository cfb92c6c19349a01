"""The U-Net: its shape, names, numbers, and that it needs neither TensorFlow nor kerasseg once it is saved."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasseg
from kerasseg.models.unet import unet
from kerasseg_tfrecords.errors import UsageError

SMALL = {"filters": 4, "depth": 2}


def plain_parameters(widths: list[int], channels: int, norm_values: int, bias: int) -> int:
    """Counted with pencil and paper: kernels, biases, `norm_values` numbers a filter for each normalisation."""
    total, came = 0, channels
    for width in widths:
        total += 9 * came * width + 9 * width * width + 2 * width * (bias + norm_values)
        came = width
    for width in reversed(widths[:-1]):
        total += 4 * came * width + width  # up
        total += 9 * 2 * width * width + 9 * width * width + 2 * width * (bias + norm_values)
        came = width
    return total + came + 1


def test_the_default_is_the_classic_network_of_31_million() -> None:
    model = kerasseg.unet()
    assert model.input_shape == (None, 256, 256, 3)
    assert model.output_shape == (None, 256, 256, 1)
    assert model.count_params() == plain_parameters([64, 128, 256, 512, 1024], 3, norm_values=4, bias=0) == 31_049_409
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == 31_037_633


@pytest.mark.parametrize(("normalization", "values", "bias"), [("group", 2, 1), ("instance", 2, 0), ("none", 0, 1)])
def test_parameters_of_each_normalization(normalization: str, values: int, bias: int) -> None:
    model = unet((32, 32, 1), normalization=normalization, **SMALL)  # type: ignore[arg-type]
    assert model.count_params() == plain_parameters([4, 8, 16], 1, values, bias)


def test_names_carry_their_block_and_do_not_depend_on_what_was_built_before() -> None:
    first, second = unet((32, 32, 3), dropout=0.1, **SMALL), unet((32, 32, 3), dropout=0.1, **SMALL)
    names = [layer.name for layer in first.layers]
    assert names == [layer.name for layer in second.layers]
    assert names == [
        "image",
        *[f"encoder_1_{n}" for n in ("conv_1", "norm_1", "act_1", "conv_2", "norm_2", "act_2", "pool")],
        *[f"encoder_2_{n}" for n in ("conv_1", "norm_1", "act_1", "conv_2", "norm_2", "act_2", "drop", "pool")],
        *[f"bottleneck_{n}" for n in ("conv_1", "norm_1", "act_1", "conv_2", "norm_2", "act_2", "drop")],
        *[f"decoder_2_{n}" for n in ("up", "concat", "conv_1", "norm_1", "act_1", "conv_2", "norm_2", "act_2")],
        *[f"decoder_1_{n}" for n in ("up", "concat", "conv_1", "norm_1", "act_1", "conv_2", "norm_2", "act_2")],
        "head",
    ]
    assert [w.path for w in first.weights] == [w.path for w in second.weights]


def test_a_decoder_stands_at_the_scale_of_its_encoder() -> None:
    model = unet((64, 32, 3), filters=4, depth=3)
    for level in (1, 2, 3):
        encoder, decoder = (model.get_layer(f"{side}_{level}_act_2").output.shape for side in ("encoder", "decoder"))
        assert encoder == decoder == (None, 64 // 2 ** (level - 1), 32 // 2 ** (level - 1), 4 * 2 ** (level - 1))
    assert model.get_layer("bottleneck_act_2").output.shape == (None, 8, 4, 32)


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_a_network_without_size_takes_every_size_that_halves(upsampling: str) -> None:
    model = unet((None, None, 3), upsampling=upsampling, **SMALL)  # type: ignore[arg-type]
    for height, width in ((4, 4), (12, 20), (32, 8)):
        assert model(np.zeros((2, height, width, 3), "float32")).shape == (2, height, width, 1)


def test_filters_by_level() -> None:
    model = unet((16, 16, 3), filters=(3, 5, 7), depth=2)
    assert [model.get_layer(f"{block}_conv_2").filters for block in ("encoder_1", "encoder_2", "bottleneck")] == [
        3,
        5,
        7,
    ]


def test_group_normalization_has_sixteen_channels_a_group_where_that_divides() -> None:
    def groups(filters: int) -> int:
        return int(
            unet((4, 4, 1), normalization="group", depth=1, filters=filters).get_layer("encoder_1_norm_1").groups
        )

    assert [groups(filters) for filters in (4, 16, 24, 32, 40, 64)] == [1, 1, 1, 2, 2, 4]


def test_instance_normalization_is_the_plain_formula() -> None:
    model = unet((8, 8, 2), normalization="instance", depth=1, filters=3)
    layer = model.get_layer("encoder_1_norm_1")
    x = np.random.default_rng(0).normal(2, 3, (2, 8, 8, 3)).astype("float32")
    plain = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + layer.epsilon)
    np.testing.assert_allclose(np.asarray(layer(x)), plain, atol=1e-5)


def test_several_classes_are_a_softmax() -> None:
    out = np.asarray(unet((16, 16, 3), classes=4, **SMALL)(np.random.default_rng(0).random((1, 16, 16, 3), "float32")))
    assert out.shape == (1, 16, 16, 4)
    np.testing.assert_allclose(out.sum(-1), 1, atol=1e-6)


def test_the_head_computes_in_float32_under_mixed_precision() -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = unet((16, 16, 3), **SMALL)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("encoder_1_conv_1").compute_dtype == "bfloat16"
    assert model.get_layer("head").compute_dtype == "float32"
    out = np.asarray(model(np.random.default_rng(0).random((1, 16, 16, 3), "float32")))
    assert out.dtype == np.float32
    # Rounded to bfloat16 the 16 lowest bits would all be zero.
    assert (out.view(np.uint32) & 0xFFFF).any()


def test_a_seed_repeats_the_weights_and_no_two_layers_share_them() -> None:
    first, again, other = (unet((16, 16, 3), seed=seed, dropout=0.5, **SMALL) for seed in (1, 1, 2))
    for a, b in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    kernels = [(a, b) for a, b in zip(first.weights, other.weights, strict=True) if a.name == "kernel"]
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in kernels)
    one, two = (np.asarray(first.get_layer(f"{block}_1_conv_2").kernel) for block in ("encoder", "decoder"))
    assert one.shape == two.shape
    assert (one != two).any()
    x = np.ones((1, 16, 16, 3), "float32")
    np.testing.assert_array_equal(np.asarray(first(x, training=True)), np.asarray(again(x, training=True)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_shape": (250, 256, 3)}, r"height of 250 cannot be halved 4 times .*multiple of 16.*Take 240 or 256"),
        ({"input_shape": (256, 8, 3)}, r"width of 8 cannot be halved.*Take 16"),
        ({"input_shape": (256, 256)}, r"input_shape is not the shape of an image"),
        ({"input_shape": (256, 256, None)}, r"input_shape is not the shape of an image"),
        ({"input_shape": (256, 256, 0)}, r"the image has no channels"),
        ({"depth": 0}, r"depth is not a number of encoder blocks"),
        ({"classes": 0}, r"classes is not a number"),
        ({"filters": 0}, r"filters are not integers"),
        ({"filters": (4, 8)}, r"filters do not match the depth.*one number, or 5"),
        ({"normalization": "layer"}, r"unknown normalization 'layer' \(expected batch or group or instance or none\)"),
        ({"upsampling": "nearest"}, r"unknown upsampling 'nearest'"),
        ({"dropout": 1.0}, r"dropout is not a fraction"),
        ({"dropout": "0.1"}, r"dropout is not a fraction \(found 0\.1"),
        ({"dropout": True}, r"dropout is not a fraction"),
        ({"input_shape": 256}, r"input_shape is not the shape of an image"),
        ({"filters": True}, r"filters do not match the depth"),
        ({"bias": "no"}, r"bias is not a truth value \(found no"),
        ({"seed": "one"}, r"seed is not an integer"),
        ({"name": "a/b"}, r"name is not a valid model name"),
        ({"name": 5}, r"name is not a valid model name"),
        ({"decoder_filters": 8}, r"need an encoder"),
        ({"encoder": "vgg17"}, r"unknown encoder 'vgg17' \(expected vgg16, "),
        ({"encoder": "vgg16", "depth": 3}, r"depth and filters belong to the plain U-Net"),
        ({"activation": "rulu"}, r"unknown activation 'rulu'"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        unet(**arguments)  # type: ignore[arg-type]


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("variant", [{}, {"normalization": "instance", "upsampling": "bilinear", "dropout": 0.2}])
def test_a_saved_network_opens_where_kerasseg_is_not_imported(
    variant: dict[str, object], tmp_path: Path, python: str, child_environment: dict[str, str]
) -> None:
    model = unet((16, 16, 3), seed=0, **SMALL, **variant)  # type: ignore[arg-type]
    model.save(tmp_path / "unet.keras")
    x = np.random.default_rng(0).random((2, 16, 16, 3), "float32")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.saving.load_model('unet.keras')\n"
        "np.save('y.npy', np.asarray(model(np.load('x.npy'))))\n"
        "assert not [name for name in sys.modules if name.startswith('kerasseg')]\n"
    )
    environment = {k: v for k, v in child_environment.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.asarray(model(x)), atol=1e-6)


ON_JAX = """
import sys
import keras, numpy as np
from kerasseg.models.unet import unet
assert keras.backend.backend() == "jax"
x = np.random.default_rng(0).random((4, 16, 16, 3), "float32")
given = np.load("weights.npz")
for variant in sys.argv[1:]:
    normalization, upsampling = variant.split("-")
    model = unet((16, 16, 3), filters=4, depth=1, normalization=normalization, upsampling=upsampling)
    for weight in model.weights:
        weight.assign(given[f"{variant}/{weight.path}"])
    np.save(f"{variant}.npy", model.predict(x, verbose=0))
model = unet((None, None, 3), filters=4, depth=1, dropout=0.1, seed=3)
model.compile("adam", "binary_crossentropy")
loss = model.fit(x, (x[..., :1] > 0.5).astype("float32"), epochs=5, verbose=0).history["loss"]
assert loss[-1] < loss[0], loss
assert "tensorflow" not in sys.modules
"""


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed (pip install jax jaxlib)")
def test_on_the_jax_backend_it_gives_the_same_numbers_and_trains(
    tmp_path: Path, python: str, child_environment: dict[str, str]
) -> None:
    x = np.random.default_rng(0).random((4, 16, 16, 3), "float32")
    weights, expected = {}, {}
    for variant in ("batch-transposed", "group-bilinear", "instance-transposed", "none-bilinear"):
        normalization, upsampling = variant.split("-")
        # One level has every kind of layer: what JAX compiles takes its time.
        model = unet((16, 16, 3), filters=4, depth=1, normalization=normalization, upsampling=upsampling)  # type: ignore[arg-type]
        weights |= {f"{variant}/{weight.path}": np.asarray(weight) for weight in model.weights}
        expected[variant] = np.asarray(model(x))
    np.savez(tmp_path / "weights.npz", **weights)
    environment = {**child_environment, "KERAS_BACKEND": "jax"}
    subprocess.run(
        [python, "-c", ON_JAX, *expected], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    for variant, values in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{variant}.npy"), values, atol=1e-5)
