"""The parts under opening a SavedModel, each against something independent."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.protobuf import tensor_bundle_pb2

import kerasseg
from kerasseg.checkpoints.savedmodel.allowed import NETWORK
from kerasseg.checkpoints.savedmodel.arithmetic import Budget, Dim, evaluate
from kerasseg.checkpoints.savedmodel.bundle import read_index
from kerasseg.checkpoints.savedmodel.fuse_norms import Root, expand
from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor
from kerasseg.checkpoints.savedmodel.layers import WEIGHTED
from kerasseg.checkpoints.savedmodel.messages import constant, operation
from kerasseg.checkpoints.savedmodel.parity import difference
from kerasseg.checkpoints.savedmodel.patterns import View
from kerasseg.checkpoints.savedmodel.rebuild import Names
from kerasseg.checkpoints.savedmodel.shaping import PLAIN
from kerasseg.checkpoints.savedmodel.signatures import keras_outputs
from kerasseg_tfrecords.errors import CheckpointError

HEADER, ENTRY = tensor_bundle_pb2.BundleHeaderProto, tensor_bundle_pb2.BundleEntryProto


# -- Lists that must agree with each other.


def test_everything_that_is_rebuilt_is_allowed() -> None:
    made_here = {op for op in {**PLAIN, **WEIGHTED} if op[0].islower()}
    assert set(PLAIN) | set(WEIGHTED) <= NETWORK | made_here
    assert not set(PLAIN) & set(WEIGHTED)


def test_tensorflow_defines_every_operation_of_a_network() -> None:
    """Numbers of inputs and outputs are checked against these definitions."""
    assert [op for op in NETWORK if operation(op) is None] == []


# -- Constants.


@given(
    st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool", "float16", "bfloat16"]),
    st.lists(st.integers(0, 3), max_size=4),
    st.booleans(),
)
def test_constants_are_what_tensorflow_reads(dtype: str, shape: list[int], same: bool) -> None:
    values = np.random.default_rng(0).integers(0, 2 if same else 100, shape)
    values = np.zeros(shape) if same else values
    tensor = tf.cast(values, dtype)
    np.testing.assert_array_equal(
        constant(tf.make_tensor_proto(np.asarray(tensor.numpy()), dtype, shape), "x"),
        tf.cast(tensor, "float64").numpy(),
    )


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=3), st.integers(3, 20))
def test_the_last_number_stands_for_those_that_follow(given_: list[float], count: int) -> None:
    message = tf.compat.v1.TensorShape([count])
    proto = tf.make_tensor_proto(0.0)
    proto.tensor_shape.CopyFrom(message.as_proto())
    proto.float_val[:] = given_
    np.testing.assert_array_equal(constant(proto, "x"), tf.make_ndarray(proto))


# -- The index of variables.


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
    return body + struct.pack("<II", 0, 1) + b"\0" + b"\0\0\0\0"


def write_index(prefix: Path, entries: dict[str, bytes], shards: int = 1) -> None:
    """A table as TensorFlow writes it, with one block and without checksums."""
    header = HEADER(num_shards=shards)
    data = block([(b"", header.SerializeToString()), *((k.encode(), v) for k, v in sorted(entries.items()))])
    meta = block([])
    index = block([(b"~", varint(0) + varint(len(data) - 5))])
    footer = varint(len(data)) + varint(len(meta) - 5) + varint(len(data) + len(meta)) + varint(len(index) - 5)
    magic = bytes.fromhex("57fb808b247547db")
    prefix.with_name(prefix.name + ".index").write_bytes(data + meta + index + footer.ljust(40, b"\0") + magic)


def entry(shape: list[int], size: int, offset: int = 0, dtype: int = 1, shard: int = 0) -> bytes:
    message = ENTRY(dtype=dtype, size=size, offset=offset, shard_id=shard)
    for n in shape:
        message.shape.dim.add().size = n
    return message.SerializeToString()


def test_the_index_is_what_tensorflow_reads(tmp_path: Path) -> None:
    """Enough variables for several blocks of the table."""
    names = {f"layer_{i}_{'x' * (i % 30)}": tf.Variable(tf.zeros((i % 4, i % 7))) for i in range(600)}
    prefix = Path(tf.train.Checkpoint(**names).write(str(tmp_path / "variables")))
    found = {k: list(v.shape) for k, v in read_index(prefix).items() if v.dtype != "string"}
    assert found == {k: v for k, v in tf.train.list_variables(str(prefix)) if k != "_CHECKPOINTABLE_OBJECT_GRAPH"}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"a": entry([2, 3], 24)}, None),
        ({"a": entry([1 << 20, 1 << 20], 24)}, "invalid shape"),
        ({"a": entry([1 << 62, 1 << 62, 4], 24)}, "invalid shape"),
        ({"a": entry([-1], 24)}, "invalid shape"),
        ({"a": entry([0, 1 << 40], 24)}, "invalid shape"),
        ({"a": entry([1] * 20, 4)}, "invalid shape"),
        ({"a": entry([250], 1000)}, "cut off"),
        ({"a": entry([6], 24, offset=90)}, "cut off"),
        ({"a": entry([6], 24, offset=-8)}, "cut off"),
        ({"a": entry([6], 24, shard=3)}, "damaged"),
        ({"a": entry([24], 96), "b": entry([24], 96), "c": entry([1], 4)}, "overlap"),
    ],
)
def test_shapes_are_held_against_the_bytes(entries: dict[str, bytes], words: str | None, tmp_path: Path) -> None:
    prefix = tmp_path / "variables"
    (tmp_path / "variables.data-00000-of-00001").write_bytes(bytes(100))
    write_index(prefix, entries)
    if words is None:
        assert read_index(prefix)["a"].shape == (2, 3)
    else:
        with pytest.raises(CheckpointError, match=words):
            read_index(prefix)


@given(st.binary(max_size=200), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_any_bytes_are_read_or_refused(tmp_path_factory, body: bytes, start: int, length: int) -> None:
    prefix = tmp_path_factory.mktemp("any") / "variables"
    footer = varint(0) + varint(0) + varint(start % 300) + varint(length % 300)
    data = body + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    prefix.with_name("variables.index").write_bytes(data)
    with contextlib.suppress(CheckpointError):
        read_index(prefix)


# -- Sizes.


def node(op: str, **attrs) -> Node:
    return Node("n", op, attrs=attrs)


def test_sizes_that_are_not_known_yet_are_carried_along() -> None:
    shape = np.array([Dim("x", 0), Dim("x", 1), 8, 3], dtype=object)
    (rows,) = evaluate(
        node("StridedSlice", shrink_axis_mask=1), [shape, np.array([1]), np.array([2]), np.array([1])], Budget()
    )
    (twice,) = evaluate(node("Mul"), [rows, np.array(2)], Budget())
    (packed,) = evaluate(node("Pack"), [twice, np.array(16)], Budget())
    assert packed.tolist() == [Dim("x", 1, 2), 16]
    assert evaluate(node("FloorDiv"), [rows, np.array(2)], Budget()) is None
    assert evaluate(node("Mul"), [rows, rows], Budget()) is None


@pytest.mark.parametrize("op", ["Fill", "BroadcastTo"])
def test_no_constant_is_computed_that_is_absurdly_large(op: str) -> None:
    shape, one = np.array([1 << 20, 1 << 20]), np.array(1.0)
    assert evaluate(node(op), [shape, one] if op == "Fill" else [one, shape], Budget()) is None
    assert evaluate(node("Tile"), [np.zeros(1 << 10), np.array([1 << 20])], Budget()) is None
    assert evaluate(node("Range"), [np.array(0), np.array(1 << 40), np.array(1)], Budget()) is None


STRIDED = st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.sampled_from([1, 2, -1]))


@given(st.lists(STRIDED, min_size=1, max_size=2), *[st.integers(0, 3)] * 3)
def test_strided_slices_are_those_of_tensorflow(parts, begin_mask: int, end_mask: int, shrink: int) -> None:
    x = np.arange(35).reshape(5, 7)
    begin, end, strides = (np.array(v) for v in zip(*parts, strict=True))
    masks = {"begin_mask": begin_mask, "end_mask": end_mask, "shrink_axis_mask": shrink}
    try:
        theirs = tf.strided_slice(x, begin, end, strides, **masks).numpy()
    except (tf.errors.InvalidArgumentError, ValueError):
        return
    np.testing.assert_array_equal(
        evaluate(node("StridedSlice", **masks), [x, begin, end, strides], Budget())[0], theirs
    )


# -- Graphs.


def graph_of(*nodes: Node) -> Graph:
    return Graph({n.key: n for n in nodes}, {}, {"y": Tensor(nodes[-1].key)})


def test_a_graph_deeper_than_the_stack_is_sorted() -> None:
    nodes = [Node("0", "Placeholder"), *(Node(str(i), "Relu", (Tensor(str(i - 1)),)) for i in range(1, 20_000))]
    assert list(graph_of(*reversed(nodes[:-1]), nodes[-1]).live().nodes) == [str(i) for i in range(20_000)]
    with pytest.raises(ValueError, match="cycle"):
        graph_of(Node("a", "Relu", (Tensor("b"),)), Node("b", "Relu", (Tensor("a"),))).live()


SPELLINGS = [
    "r=Rsqrt v; w=Mul r gamma; a=Mul x w; m=Mul mean w; s=Sub beta m; y=AddV2 a s",
    "r=Rsqrt v; d=Sub x mean; a=Mul d r; b=Mul gamma a; y=Add beta b",
    "q=Sqrt v; d=Sub x mean; a=RealDiv d q; b=Mul a gamma; y=BiasAdd b beta",
    "r=Rsqrt v; w=Mul r gamma; n=Neg mean; m=Mul n w; a=Mul w x; s=AddV2 m beta; y=AddV2 a s",
]


def spelled(text: str) -> Graph:
    """gamma * (x - mean) / sqrt(variance + e) + beta, in one of many spellings."""
    nodes = [Node(k, "VarHandleOp", attrs={"shape": (4,)}) for k in ("gamma", "beta", "mean", "variance")]
    nodes += [Node("x", "Placeholder"), Node("e", "Const", attrs={"value": np.float32(1e-3).reshape(())})]
    for part in f"v=AddV2 variance e; {text}".split("; "):
        key, _, rest = part.partition("=")
        op, *inputs = rest.split()
        nodes.append(Node(key, op, tuple(Tensor(i) for i in inputs)))
    return graph_of(*nodes)


@pytest.mark.parametrize("text", SPELLINGS)
def test_spellings_of_a_normalisation_are_one_polynomial(text: str) -> None:
    found = {
        frozenset("root" if isinstance(f, Root) else f.node for f in factors): number
        for factors, number in expand(View(spelled(text)), Tensor("y")).items()
    }
    assert found == {
        frozenset({"x", "gamma", "root"}): 1.0,
        frozenset({"mean", "gamma", "root"}): -1.0,
        frozenset({"beta"}): 1.0,
    }


# -- Names, and what is known of outputs.


def test_layers_are_called_as_people_know_them() -> None:
    names = Names(["conv2d_19", "a/stem", "b/stem", "a/deep/other"], [("f_1/conv2d_19_1", "conv2d_19")])
    assert names.for_variables("conv2d_19") == "conv2d_19"
    assert names.for_variables("conv2d_19") == "conv2d_19_1"
    assert names.for_variables("a/stem") == "a_stem"
    assert names.for_variables("a/deep/other") == "other"
    assert names.for_node("f_1/max_pooling2d_3_1/MaxPool2d", "x") == "max_pooling2d_3"
    assert names.for_node("f_1/up_1/resize/ResizeBilinear", "x") == "up"
    assert names.for_node("Relu", "relu") == "relu"
    # A name that a layer with variables has is kept for it, whoever comes first.
    assert Names(["head"], []).for_node("f/head/Relu", "x") == "head_1"


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"\n\x05*\x03{]}", b"\n\x07*\x05[1,2]", b"\n\x04*\x02{}"])
def test_metadata_that_is_damaged_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "keras_metadata.pb").write_bytes(content)
    assert keras_outputs(tmp_path) == ()


def test_the_order_of_outputs_comes_from_the_metadata(tmp_path: Path) -> None:
    text = b'{"config": {"output_layers": [["seg", 0, 0], ["aux", 0, 0]]}}'
    node_ = b"*" + varint(len(text)) + text
    (tmp_path / "keras_metadata.pb").write_bytes(b"\n" + varint(len(node_)) + node_)
    assert keras_outputs(tmp_path) == ("seg", "aux")


def test_differences_are_measured_against_large_values() -> None:
    big, small = np.full((2, 2), 1e6, np.float32), np.array([0.5, np.nan], np.float32)
    found = difference([big, small], [big + 1, small + np.float32(1e-6)], 2)
    assert found.outputs == pytest.approx(1.0)
    assert found.relative == pytest.approx(1e-6, rel=0.1)
    assert difference([small], [np.array([0.5, 0.5], np.float32)], 1).relative == np.inf
    assert difference([big], [big[:1]], 1).relative == np.inf
    assert not difference([np.zeros(5)], [np.zeros(5)], 1).varies


def test_a_path_that_tensorflow_takes_for_a_pattern(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    folder = tmp_path / "a [b]" / "export"
    model.export(str(tmp_path / "plain"), verbose=False)
    folder.parent.mkdir()
    (tmp_path / "plain").rename(folder)
    image = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    opened = kerasseg.open_checkpoint(folder)
    np.testing.assert_allclose(opened(image), model(image), atol=1e-6)
