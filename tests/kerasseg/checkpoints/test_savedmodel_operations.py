"""What SavedModels hold beyond layers: attention, stacks, decisions at the end, preprocessing at the start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L  # noqa: N812

from kerasseg.checkpoints.allowed import operation_module
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.operations import RAW, TABLE
from kerasseg.checkpoints.provenance import provenance
from kerasseg.checkpoints.savedmodel.allowed import NETWORK
from kerasseg.checkpoints.savedmodel.open import open_savedmodel
from kerasseg_tfrecords.errors import CheckpointError

pytestmark = pytest.mark.slow

IMAGE = tf.TensorSpec((None, 8, 8, 3), name="x")


def saved(folder: Path, function: Any, **variables: Any) -> tf.Module:
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 4)).astype("f"), name="conv/kernel")
    for name, value in variables.items():
        setattr(module, name, tf.Variable(value, name=f"norm/{name}", trainable=False))
    module.serve = tf.function(lambda x: function(module, x), input_signature=[IMAGE], autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return module


def conv(module: tf.Module, x: Any) -> Any:
    return tf.nn.conv2d(x, module.kernel, 1, "SAME")


def test_both_doors_read_one_table() -> None:
    assert {raw.function for raw in RAW.values()} <= TABLE.keys()
    assert RAW.keys() <= NETWORK
    named = {
        "Argmax",
        "Erf",
        "Isfinite",
        "Matmul",
        "Mod",
        "FloorDivide",
        "Normalize",
        "Stack",
        "Swapaxes",
        "Take",
        "Unstack",
    }
    assert all(operation_module(name) for name in named)


OPERATIONS = {
    "stack": lambda y: tf.reduce_max(tf.stack([y, tf.nn.relu(y)], axis=1), axis=1),
    "matmul": lambda y: tf.matmul(y, y, transpose_b=True),
    "einsum": lambda y: tf.einsum("bhwc,bhvc->bhwv", y, y),
    "l2": lambda y: tf.nn.l2_normalize(y, axis=-1),
    "standardized": tf.image.per_image_standardization,
    "roll": lambda y: tf.roll(tf.roll(y, 1, axis=2), [1, -2], axis=[-1, 1]),
    "channels": lambda y: tf.gather(y, [3, 1, 0, 2], axis=-1) + y[..., ::-1] + tf.reverse(y, [1]),
    "parts": lambda y: tf.concat(tf.unstack(tf.stack(tf.split(y, [1, 3], axis=-1)[1:], 0), axis=0), -1),
    "pooling": lambda y: tf.nn.depth_to_space(tf.nn.max_pool2d(y, 2, 2, "SAME") + tf.nn.avg_pool2d(y, 2, 2, "SAME"), 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_the_original_and_open_again(name: str, tmp_path: Path) -> None:
    module = saved(tmp_path / "m", lambda m, x: OPERATIONS[name](conv(m, x)))
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("f")
    model = open_savedmodel(tmp_path / "m").model
    np.testing.assert_allclose(np.asarray(model(x)), module.serve(x).numpy(), atol=1e-5)
    model.save(tmp_path / "m.keras")
    again = open_checkpoint(tmp_path / "m.keras")
    np.testing.assert_allclose(np.asarray(again(x)), module.serve(x).numpy(), atol=1e-5)
    assert len(again.trainable_variables) == 1


def test_heads_of_an_attention_become_products_that_train(tmp_path: Path) -> None:
    """Kernels of three axes, as Keras 2 writes `MultiHeadAttention`."""
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(0, 0.4, (4, 2, 3)).astype("f") for name in ("query", "key", "value")}
    parts |= {"bias": rng.normal(0, 0.4, (2, 3)).astype("f"), "out": rng.normal(0, 0.4, (2, 3, 5)).astype("f")}

    def attention(m: tf.Module, x: Any) -> Any:
        y = tf.reshape(conv(m, x), (-1, 64, 4))
        q, k, v = (tf.einsum("abc,cde->abde", y, getattr(m, name)) for name in ("query", "key", "value"))
        scores = tf.nn.softmax(tf.einsum("aecd,abcd->acbe", k, (q + m.bias) / 3.0**0.5))
        return tf.reshape(tf.einsum("abcd,cde->abe", tf.einsum("acbe,aecd->abcd", scores, v), m.out), (-1, 8, 8, 5))

    module = saved(tmp_path / "m", attention, **parts)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("f")
    model = open_savedmodel(tmp_path / "m").model
    np.testing.assert_allclose(np.asarray(model(x)), module.serve(x).numpy(), atol=1e-5)
    assert sum(isinstance(layer, L.EinsumDense) for layer in model.layers) == 4
    assert len(model.trainable_variables) == 6


DECISIONS = {
    "argmax": lambda y: tf.argmax(y, -1),
    "argmax with casts": lambda y: tf.cast(tf.argmax(y, axis=3), tf.float32)[..., None],
    "threshold": lambda y: tf.cast(y > 0.5, tf.float32),
    "rounding": tf.round,
    "argmax of Keras 3": lambda y: keras.ops.cast(keras.ops.argmax(y, -1), "uint8"),
    "argmax in one channel for each class": lambda y: tf.one_hot(tf.argmax(y, -1), 4),
    "threshold between two values": lambda y: tf.where(y > 0.5, tf.ones_like(y), tf.zeros_like(y)),
    "threshold in white": lambda y: tf.cast(y >= 0.5, tf.float32) * 255.0,
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_final_decision_is_removed_and_said(name: str, tmp_path: Path) -> None:
    module = saved(tmp_path / "m", lambda m, x: DECISIONS[name](tf.sigmoid(conv(m, x))))
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("f")
    model = open_checkpoint(tmp_path / "m")
    scores = tf.sigmoid(conv(module, x)).numpy()
    np.testing.assert_allclose(np.asarray(model(x)), scores, atol=1e-6)
    record = provenance(model)
    assert record is not None
    assert any(note.startswith(f"the final {name.split()[0]} was removed") for note in record.translated)


def test_a_mask_beside_its_probabilities_is_left_out(tmp_path: Path) -> None:
    def both(m: tf.Module, x: Any) -> dict[str, Any]:
        y = tf.nn.softmax(conv(m, x))
        return {"mask": tf.argmax(y, -1), "probability": y}

    saved(tmp_path / "m", both)
    assert len(open_savedmodel(tmp_path / "m").model.outputs) == 1


PREPROCESSING = {
    "rescaling": lambda _, x: x / 127.5 - 1.0,
    "mean": lambda _, x: x[..., ::-1] - [103.939, 116.779, 123.68],
    "variables": lambda m, x: (x - m.mean) / tf.maximum(tf.sqrt(m.variance), 1e-7),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_becomes_rescaling(name: str, tmp_path: Path) -> None:
    statistics = {"mean": np.float32([90, 100, 110]), "variance": np.float32([900, 1000, 1100])}
    module = saved(tmp_path / "m", lambda m, x: conv(m, PREPROCESSING[name](m, x)), **statistics)
    x = np.random.default_rng(1).uniform(0, 255, (2, 8, 8, 3)).astype("f")
    model = open_savedmodel(tmp_path / "m").model
    np.testing.assert_allclose(np.asarray(model(x)), module.serve(x).numpy(), rtol=1e-4, atol=1e-3)
    kinds = {type(layer) for layer in model.layers}
    assert kinds == {L.InputLayer, L.Rescaling, L.Conv2D}
    assert len(model.trainable_variables) == 1


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    saved(tmp_path / "m", conv, statistics=np.arange(1000, dtype="f"))
    return tmp_path / "m"


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_git_lfs_pointer_is_recognised(name: str, plain: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 31457280\n"
    (plain / name).write_text(pointer)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*31,457,280 bytes.*git lfs pull"):
        open_savedmodel(plain)


def test_a_flipped_byte_is_noticed_wherever_it_is(plain: Path) -> None:
    """Also in a variable that the network does not use."""
    file = plain / "variables" / "variables.data-00000-of-00001"
    whole = file.read_bytes()
    for at in range(0, len(whole), len(whole) // 8):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="are damaged.*checksum"):
            open_savedmodel(plain, compare=False)


@pytest.mark.rest
def test_twenty_thousand_operations_take_seconds(tmp_path: Path) -> None:
    def chain(m: tf.Module, x: Any) -> Any:
        y = conv(m, x)
        for _ in range(5001):
            y = tf.nn.relu(y)
        for _ in range(15_000):
            y = tf.identity(y)
        return y

    saved(tmp_path / "m", chain)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"too large \(found 5,0\d\d steps, expected at most 5,000"):
        open_savedmodel(tmp_path / "m")
    assert time.monotonic() - start < 60
