"""SavedModels that want to do harm. Each is refused by name before anything of it runs.

That these files are dangerous is shown too: TensorFlow's own loader, or a call of what it loads, leaves the mark that
kerasseg must not leave.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import tensor_bundle_pb2

from kerasseg.checkpoints.allowed import time_limit, words
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.savedmodel.allowed import ELSEWHERE, INITIALISER, NETWORK
from kerasseg_tfrecords.errors import CheckpointError
from tests.savedmodels import add_node, edited, export, network_function


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.backend.clear_session()
    inputs = keras.Input((8, 8, 2))
    x = skip = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3, padding="same")(inputs))
    x = keras.layers.Conv2DTranspose(2, 2, 2)(keras.layers.MaxPooling2D()(x))
    x = keras.layers.UpSampling2D()(keras.layers.Concatenate()([x, skip]))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))
    return export(model, tmp_path_factory.mktemp("honest") / "m")


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "m"))


# -- Written with TensorFlow: what a function does when it is called.


def write_file(mark: Path, x: Any) -> Any:
    with tf.control_dependencies([tf.io.write_file(str(mark), "was here")]):
        return tf.identity(x)


def read_file(mark: Path, x: Any) -> Any:
    # Reading leaves no mark by itself; what was read is written on, as a thief would.
    return write_file(mark, x + tf.cast(tf.strings.length(tf.io.read_file(__file__)), tf.float32))


def python_code(mark: Path, x: Any) -> Any:
    def run(value: np.ndarray) -> np.ndarray:
        mark.write_text("was here")
        return value

    return tf.ensure_shape(tf.numpy_function(run, [x], tf.float32), x.shape)


def print_it(mark: Path, x: Any) -> Any:
    with tf.control_dependencies([tf.print("was here", output_stream=f"file://{mark}")]):
        return tf.identity(x)


def nested(mark: Path, x: Any) -> Any:
    @tf.function
    def inner(y):
        return tf.function(lambda z: write_file(mark, z))(y) * 2.0

    return inner(x)


def branch(mark: Path, x: Any) -> Any:
    return tf.cond(tf.reduce_sum(x) > -1e9, lambda: write_file(mark, x), lambda: x)


def loop(mark: Path, x: Any) -> Any:
    return tf.while_loop(lambda i, _: i < 1, lambda i, y: (i + 1, write_file(mark, y)), [0, x])[1]


def mapped(mark: Path, x: Any) -> Any:
    return tf.map_fn(lambda y: write_file(mark, y), x)


CALLED = {
    "WriteFile": write_file,
    "ReadFile": read_file,
    "PyFunc": python_code,
    "PrintV2": print_it,
    "WriteFile in function": nested,
    "If": branch,
    "While": loop,
    "TensorList": mapped,
}


@pytest.mark.parametrize("name", CALLED)
def test_what_runs_when_the_network_is_called(name: str, tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "m"
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((1, 1, 2, 2)), name="conv2d/kernel")

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 2))], autograph=False)
    def serve(x):
        return tf.nn.conv2d(CALLED[name](mark, x), module.kernel, 1, "SAME")

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures=module.serve)

    with pytest.raises(CheckpointError, match="operations that are not allowed; nothing was run") as caught:
        open_checkpoint(folder)
    assert name.split()[0] in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not mark.exists()

    tf.saved_model.load(str(folder)).signatures["serving_default"](tf.zeros((1, 8, 8, 2)))
    assert mark.exists(), "the file was harmless, so that the test shows nothing"


# -- Written by hand: an operation put where nobody looks.


def string(value: str) -> Callable[[Any], None]:
    def fill(attr: Any) -> None:
        attr.tensor.dtype = tf.string.as_datatype_enum
        attr.tensor.tensor_shape.SetInParent()
        attr.tensor.string_val.append(value.encode())

    return fill


def a_type(dtype: tf.DType) -> Callable[[Any], None]:
    return lambda attr: setattr(attr, "type", dtype.as_datatype_enum)


def plant(nodes: Any, mark: Path, output: str = ":output:0") -> str:
    """`WriteFile` with its constants among the nodes of a function (or, with no `output`, of the main graph)."""
    add_node(nodes, "Const", "evil_name", value=string(str(mark)), dtype=a_type(tf.string))
    add_node(nodes, "Const", "evil_text", value=string("was here"), dtype=a_type(tf.string))
    add_node(nodes, "WriteFile", "evil", [f"evil_name{output}", f"evil_text{output}"])
    return "evil"


def in_the_main_op(graph: Any, mark: Path) -> None:
    plant(graph.graph_def.node, mark, "")
    next(n for n in graph.graph_def.node if n.name == "NoOp").input.append("^evil")


def in_the_legacy_init_op(graph: Any, mark: Path) -> None:
    plant(graph.graph_def.node, mark, "")
    graph.collection_def["legacy_init_op"].node_list.value.append("evil")


def in_the_restore_function(graph: Any, mark: Path) -> None:
    function = next(f for f in graph.graph_def.library.function if "traced_restore" in f.signature.name)
    plant(function.node_def, mark)
    function.control_ret["evil"] = "evil"
    function.signature.control_output.append("evil")


def in_a_function_that_nothing_calls(graph: Any, mark: Path) -> None:
    function = graph.graph_def.library.function.add()
    function.CopyFrom(function_pb2.FunctionDef())
    function.signature.name = "__inference_forgotten_1"
    plant(function.node_def, mark)


def in_a_gradient(graph: Any, mark: Path) -> None:
    in_a_function_that_nothing_calls(graph, mark)
    gradient = graph.graph_def.library.gradient.add()
    gradient.function_name = network_function(graph).signature.name
    gradient.gradient_func = "__inference_forgotten_1"


def in_the_network(graph: Any, mark: Path) -> None:
    function = network_function(graph)
    plant(function.node_def, mark)
    next(n for n in function.node_def if n.op == "MaxPool").input.append("^evil")


def in_the_network_without_any_edge(graph: Any, mark: Path) -> None:
    plant(network_function(graph).node_def, mark)


def beside_everything(graph: Any, mark: Path) -> None:
    plant(graph.graph_def.node, mark, "")


PLANTED = {
    in_the_main_op: "an initialiser",
    in_the_legacy_init_op: "an initialiser",
    in_the_restore_function: "outside the network",
    in_a_function_that_nothing_calls: "outside the network",
    in_a_gradient: "the network",
    in_the_network: "the network",
    in_the_network_without_any_edge: "the network",
    beside_everything: "outside the network",
}


@pytest.mark.parametrize("where", PLANTED, ids=lambda f: f.__name__)
def test_what_stands_where_nobody_looks(where: Callable[[Any, Path], None], copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with edited(copy) as message:
        where(message.meta_graphs[0], mark)
    with pytest.raises(CheckpointError, match=r"WriteFile at 'evil' in .*: it writes a file") as caught:
        open_checkpoint(copy)
    assert PLANTED[where] in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("where", [in_the_main_op, in_the_restore_function], ids=lambda f: f.__name__)
def test_loading_such_a_file_with_tensorflow_does_harm(
    where: Callable[[Any, Path], None], copy: Path, tmp_path: Path
) -> None:
    with edited(copy) as message:
        where(message.meta_graphs[0], tmp_path / "mark")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(copy))
    assert (tmp_path / "mark").exists()


def test_a_lookup_table_that_reads_a_file_is_refused(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")
    module = tf.Module()
    line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    reading = tf.lookup.TextFileInitializer(str(words), tf.string, line, tf.int64, number)
    module.table = tf.lookup.StaticVocabularyTable(reading, 1)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 2))])
    def serve(x):
        return x * 2.0

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    with pytest.raises(CheckpointError, match=r"HashTableV2 at .*an initialiser: it looks words up"):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../../b", "C:\\x", "..\\x"])
def test_assets_that_climb_out_are_refused(name: str, copy: Path) -> None:
    with edited(copy) as message:
        message.meta_graphs[0].asset_file_def.add().filename = name
    with pytest.raises(CheckpointError, match="an asset of the SavedModel is outside its folder"):
        open_checkpoint(copy)


def test_no_list_holds_what_touches_the_world() -> None:
    dangerous = words(
        """
        ReadFile WriteFile MatchingFiles PyFunc PyFuncStateless EagerPyFunc PrintV2 Print Save SaveSlices Restore
        RestoreSlice ImportEvent SummaryWriter TextLineReaderV2 WholeFileReaderV2 TFRecordReaderV2 HashTableV2
        FixedLengthRecordReaderV2 TFRecordDataset TextLineDataset InitializeTableFromTextFileV2
        RemoteCall XlaLaunch XlaCallModule DebugIdentityV2 LoadDataset SaveDataset DecodePng AudioSummary MergeSummary
        WriteSummary Send Recv CollectiveReduceV2 TPUExecute SymbolicGradient CompositeTensorVariantFromComponents
        """
    )
    assert not dangerous & ELSEWHERE
    # Code that adapts a Normalization iterates over a data set; it never runs here, and what makes data sets is refused.
    assert "IteratorGetNext" not in INITIALISER
    # What an initialiser or the network may do neither reads nor writes a checkpoint.
    assert not {"RestoreV2", "SaveV2", "MergeV2Checkpoints", "ShardedFilename"} & INITIALISER
    assert not {"AssignVariableOp", "Assign", "AssignAddVariableOp", "If", "While", "StatelessWhile"} & NETWORK
    assert NETWORK < INITIALISER < ELSEWHERE


# -- Damaged files, and files that declare more than they hold.


def test_a_function_that_calls_itself_is_refused(copy: Path) -> None:
    with edited(copy) as message:
        graph = message.meta_graphs[0]
        function = network_function(graph)
        node = next(n for n in function.node_def if n.op == "MaxPool")
        node.op = "PartitionedCall"
        del node.input[1:]
        node.input.extend(a.name for a in function.signature.input_arg[1:])
        node.attr.clear()
        node.attr["f"].func.name = function.signature.name
    with pytest.raises(CheckpointError, match="calls itself"):
        open_checkpoint(copy)


def test_functions_that_double_at_each_level_are_refused(copy: Path) -> None:
    """Thirty functions of two calls each would be a thousand million operations."""
    with edited(copy) as message:
        library = message.meta_graphs[0].graph_def.library
        for level in range(30):
            function = library.function.add()
            function.signature.name = f"level_{level}"
            argument, result = function.signature.input_arg.add(), function.signature.output_arg.add()
            argument.name, result.name = "x", "y"
            argument.type = result.type = tf.float32.as_datatype_enum
            for i, source in enumerate(["x", "call_0:output:0"]):
                node = add_node(function.node_def, "PartitionedCall" if level else "Relu", f"call_{i}", [source])
                if level:
                    node.attr["f"].func.name = f"level_{level - 1}"
            function.ret["y"] = "call_1:output:0" if level else "call_1:activations:0"
        network = network_function(message.meta_graphs[0])
        node = next(n for n in network.node_def if n.op == "MaxPool")
        node.op = "PartitionedCall"
        node.attr.clear()
        node.attr["f"].func.name = "level_29"
    with pytest.raises(CheckpointError, match="the graph is too large"):
        open_checkpoint(copy)


def test_a_constant_of_a_terabyte_is_refused(copy: Path) -> None:
    with edited(copy) as message:
        network = network_function(message.meta_graphs[0])
        tensor = next(n for n in network.node_def if n.op == "Const").attr["value"].tensor
        for _ in range(3):
            tensor.tensor_shape.dim.add().size = 10_000
    with pytest.raises(CheckpointError, match=r"does not fit its bytes|invalid shape"):
        open_checkpoint(copy)


def test_an_output_of_a_terabyte_is_refused(copy: Path) -> None:
    """Upsampling by 9,999 twice: nothing is computed, the size alone is refused."""
    with edited(copy) as message:
        network = network_function(message.meta_graphs[0])
        for node in network.node_def:
            if node.op == "Const" and "Repeat" in node.name and node.name.endswith("repeats"):
                node.attr["value"].tensor.int_val[:] = [9_999]
    with pytest.raises(CheckpointError, match="its output is too large"):
        open_checkpoint(copy)


def test_a_stride_that_crashes_tensorflow_is_refused(copy: Path) -> None:
    with edited(copy) as message:
        network = network_function(message.meta_graphs[0])
        slices = {n.input[3].partition(":")[0] for n in network.node_def if n.op == "StridedSlice"}
        for node in network.node_def:
            if node.name in slices:
                node.attr["value"].tensor.int_val[:] = [2**31 - 1]
    with pytest.raises(CheckpointError, match="StridedSlice .*has invalid arguments"):
        open_checkpoint(copy)


def tensor(values: Any) -> Callable[[Any], None]:
    return lambda attr: attr.tensor.CopyFrom(tf.make_tensor_proto(values))


def kernel_of(function: Any) -> Any:
    """The first convolution of a function, and the name of its kernel."""
    node = next(n for n in function.node_def if n.op == "Conv2D")
    return node, node.input[1]


def multiplied_by_itself(function: Any) -> str:
    """A kernel that is asked for 2^36 times."""
    _, name = kernel_of(function)
    for step in range(36):
        add_node(function.node_def, "Mul", f"m{step}", [name, name], T=a_type(tf.float32))
        name = f"m{step}:z:0"
    return name


def rows_by_columns(function: Any) -> str:
    """A table of 10^10 numbers from two lists of 10^5."""
    long = np.ones(100_000, np.float32)
    for name, value in (("rows", long[:, None]), ("columns", long[None])):
        add_node(function.node_def, "Const", name, value=tensor(value), dtype=a_type(tf.float32))
    add_node(function.node_def, "Mul", "table", ["rows:output:0", "columns:output:0"], T=a_type(tf.float32))
    return "table:z:0"


def doubled_lists(function: Any) -> str:
    """A list that is joined to itself 40 times."""
    add_node(function.node_def, "Const", "axis", value=tensor(np.int32(0)), dtype=a_type(tf.int32))
    add_node(function.node_def, "Const", "list", value=tensor(np.ones(9, np.int32)), dtype=a_type(tf.int32))
    name = "list:output:0"
    for step in range(40):
        joined = add_node(function.node_def, "ConcatV2", f"j{step}", [name, name, "axis:output:0"], T=a_type(tf.int32))
        joined.attr["N"].i = 2
        name = f"j{step}:output:0"
    return name


def squared_sizes(function: Any) -> str:
    """The image's height, squared 60 times: a number of 2^62 bits."""
    image = function.signature.input_arg[0].name
    shape = add_node(function.node_def, "Shape", "shape", [image], T=a_type(tf.float32), out_type=a_type(tf.int32))
    for name, value in (("one", [1]), ("two", [2])):
        add_node(function.node_def, "Const", name, value=tensor(np.array(value, np.int32)), dtype=a_type(tf.int32))
    where = ["one:output:0", "two:output:0", "one:output:0"]
    height = add_node(function.node_def, "StridedSlice", "height", [f"{shape.name}:output:0", *where])
    height.attr["T"].type = height.attr["Index"].type = tf.int32.as_datatype_enum
    name = "height:output:0"
    for step in range(60):
        add_node(function.node_def, "Mul", f"s{step}", [name, name], T=a_type(tf.int32))
        name = f"s{step}:z:0"
    return name


@pytest.mark.parametrize("amplified", [multiplied_by_itself, rows_by_columns, doubled_lists, squared_sizes])
def test_a_few_operations_cannot_take_all_time_or_memory(amplified: Callable[[Any], str], copy: Path) -> None:
    with edited(copy) as message:
        function = network_function(message.meta_graphs[0])
        name = amplified(function)
        kernel_of(function)[0].input[1] = name
    with pytest.raises(CheckpointError, match="constants that take too long to compute|cannot be rebuilt"):
        open_checkpoint(copy)


@pytest.mark.parametrize("op", ["AddV2", "AddN"])
def test_sums_that_double_at_each_step_are_refused(op: str, copy: Path) -> None:
    """TensorFlow would write out all terms before it runs the network."""
    with edited(copy) as message:
        function = network_function(message.meta_graphs[0])
        (last,) = (node for node in function.node_def if node.op == "Sigmoid")
        name = last.input[0]
        for step in range(17):
            node = add_node(function.node_def, op, f"s{step}", [name, name], T=a_type(tf.float32))
            if op == "AddN":
                node.attr["N"].i = 2
            name = f"s{step}:{'z' if op == 'AddV2' else 'sum'}:0"
        last.input[0] = name
    with pytest.raises(CheckpointError, match="makes a sum of 131,072 terms"):
        open_checkpoint(copy)


@pytest.mark.rest
@pytest.mark.parametrize("op", ["AddV2", "Relu"])
def test_900_steps_in_a_row_are_read(op: str, copy: Path) -> None:
    with edited(copy) as message:
        function = network_function(message.meta_graphs[0])
        add_node(function.node_def, "Const", "two", value=tensor(np.float32(2)), dtype=a_type(tf.float32))
        (last,) = (node for node in function.node_def if node.op == "Sigmoid")
        name = last.input[0]
        for step in range(900):
            inputs = [name] if op == "Relu" else [name, "two:output:0"]
            add_node(function.node_def, op, f"s{step}", inputs, T=a_type(tf.float32))
            name = f"s{step}:{'activations' if op == 'Relu' else 'z'}:0"
        last.input[0] = name
    assert len(open_checkpoint(copy).layers) > 8


def test_a_file_of_empty_operations_is_refused_before_it_fills_the_memory(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes each in the file, a hundred in memory."""

    def write(count: int) -> None:
        graph = b"\n\0" * count
        for field in (b"\x12", b"\x12"):
            graph = field + varint(len(graph)) + graph
        (copy / "saved_model.pb").write_bytes(graph)

    write(1_000_001)
    with pytest.raises(CheckpointError, match="the graph is too large"):
        open_checkpoint(copy)
    monkeypatch.setattr("kerasseg_tfrecords.isolation._limit", 1 << 29)
    write(10_000_000)
    with pytest.raises(CheckpointError, match="memory"):
        open_checkpoint(copy)


def varint(number: int) -> bytes:
    return (bytes([number & 127 | 128]) + varint(number >> 7)) if number > 127 else bytes([number])


def table(entries: list[tuple[int, bytes, bytes]]) -> bytes:
    """An index of variables; each entry has the number of bytes that its name shares with the one before."""

    def block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
        body = b"".join(varint(n) + varint(len(k)) + varint(len(v)) + k + v for n, k, v in entries)
        return body + (1).to_bytes(4, "little") * 2 + bytes(5)

    data = block(entries)
    index = block([(0, b"z", varint(0) + varint(len(data) - 5))])
    handles = varint(0) * 2 + varint(len(data)) + varint(len(index) - 5)
    return data + index + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def test_rebuilding_has_a_time_limit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg.checkpoints.savedmodel.open._SECONDS", 0.01)
    with pytest.raises(CheckpointError, match=r"building the network takes more than 0\.01 s"):
        open_checkpoint(copy)


def test_a_time_limit_is_named_where_a_library_replaces_its_exception() -> None:
    def wait() -> None:
        try:
            while True:
                pass
        except BaseException as error:
            raise ValueError("of a library") from error

    with pytest.raises(CheckpointError, match=r"building the network takes more than 0\.01 s"), time_limit(0.01):
        wait()


def test_a_time_limit_that_is_reached_in_a_finalizer_holds_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Python prints what is raised in a finalizer, a callback of its garbage collector for one, and goes on."""
    ends: list[bool] = []

    class Slow:
        def __del__(self) -> None:
            end = time.thread_time() + 0.5
            while time.thread_time() < end:
                pass
            ends.append(True)

    def build() -> None:
        Slow()
        while True:
            pass

    with pytest.raises(CheckpointError, match=r"building the network takes more than 0\.01 s"), time_limit(0.01):
        build()
    assert not ends, "the limit was reached elsewhere"
    assert not capfd.readouterr().err


def test_names_that_share_their_beginning_cannot_fill_the_memory(copy: Path) -> None:
    """Thousands of names of a megabyte, for a few bytes each; and many of 4,000 bytes."""
    index = copy / "variables" / "variables.index"
    header = (0, b"", b"\x08\x01")
    for length, count in ((1 << 20, 1000), (4000, 10_000)):
        index.write_bytes(table([header, (0, b"a" * length, b""), *[(length, b"b", b"")] * count]))
        with pytest.raises(CheckpointError, match=r"ValueError: (a name of|the names of variables are too long)"):
            open_checkpoint(copy)


def test_texts_beyond_the_bytes_of_a_variable_are_refused(copy: Path) -> None:
    """A table of 60,000 x 60,000 texts in 60,000 bytes; TensorFlow would allocate 86 GB for it."""
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=tf.string.as_datatype_enum, size=60_000)
    for _ in range(2):
        entry.shape.dim.add().size = 60_000
    prefix = copy / "variables" / "variables"
    prefix.with_name("variables.data-00000-of-00001").write_bytes(bytes(60_000))
    prefix.with_name("variables.index").write_bytes(
        table([(0, b"", b"\x08\x01"), (0, b"a", entry.SerializeToString())])
    )
    with pytest.raises(CheckpointError, match="invalid shape"):
        open_checkpoint(copy)


def test_other_numbers_than_in_the_file_are_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a layer were rebuilt wrongly, the comparison would tell, and where it begins."""
    from kerasseg.checkpoints.savedmodel import layers

    rule = layers.WEIGHTED["batch_norm"]
    monkeypatch.setitem(layers.WEIGHTED, "batch_norm", lambda b, node: rule(b, node) * 1.001)
    monkeypatch.setattr("kerasseg.checkpoints.savedmodel.open.WEIGHTED", layers.WEIGHTED)
    with pytest.raises(CheckpointError, match=r"computes different values .* begins at .*batch_normalization"):
        open_checkpoint(copy)


def test_what_is_missing_is_named(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    with pytest.raises(CheckpointError, match="the folder is empty"):
        open_checkpoint(tmp_path / "text")
    (tmp_path / "text" / "saved_model.pbtxt").write_text("")
    with pytest.raises(CheckpointError, match="in text form"):
        open_checkpoint(tmp_path / "text")
    data = copy / "variables" / "variables.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="are cut off"):
        open_checkpoint(copy)
    data.write_bytes(whole[:-40] + bytes(40))
    with pytest.raises(CheckpointError, match="a checksum that does not match"):
        open_checkpoint(copy)
    data.unlink()
    with pytest.raises(CheckpointError, match="values of variables are missing"):
        open_checkpoint(copy)
    shutil.rmtree(copy / "variables")
    with pytest.raises(CheckpointError, match="the variables of the SavedModel are missing"):
        open_checkpoint(copy)


@settings(max_examples=40)
@given(st.floats(0, 0.999), st.sampled_from(["saved_model.pb", "variables/variables.index"]), st.booleans())
def test_cut_files_are_damaged_files(honest: Path, tmp_path_factory: Any, part: float, name: str, empty: bool) -> None:
    folder = Path(shutil.copytree(honest, tmp_path_factory.mktemp("cut") / "m"))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(b"" if empty else data[: int(len(data) * part)])
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@settings(max_examples=60)
@given(st.data())
def test_changed_bytes_are_noticed_or_harmless(honest: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    """No other error than ours, whatever byte is changed."""
    folder = Path(shutil.copytree(honest, tmp_path_factory.mktemp("bytes") / "m"))
    file = folder / data.draw(st.sampled_from(["saved_model.pb", "variables/variables.index"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        open_checkpoint(folder, compare=False)
