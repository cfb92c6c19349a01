"""Writing SavedModels for the tests, honest and other ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tensorflow.core.protobuf import saved_model_pb2


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Weights that make mistakes visible: no zero bias, no statistics of 0 and 1; small enough that nothing explodes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if not str(variable.dtype).startswith(("float", "bfloat")):
            continue
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.6, 1.4, shape)
        elif len(shape) > 1:
            value = rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
        else:
            value = rng.normal(0, 0.3, shape)
        variable.assign(value)
    return model


def export(model: keras.Model, folder: Path, seed: int = 0) -> Path:
    """`model.export` with random weights."""
    randomise(model, seed).export(str(folder), verbose=False)
    return folder


def images(model: keras.Model, size: int = 32, seed: int = 7) -> Any:
    """Random inputs for a model, other than those that opening compares on."""
    rng = np.random.default_rng(seed)
    made = []
    for tensor in model.inputs:
        shape = (2, *(size if n is None else n for n in tensor.shape[1:]))
        whole = str(tensor.dtype) == "uint8"
        made.append(rng.integers(0, 256, shape).astype("uint8") if whole else rng.normal(0, 1, shape).astype("float32"))
    return made[0] if len(made) == 1 else made


def outputs(model: keras.Model, values: Any) -> list[np.ndarray]:
    found = model(values, training=False)
    if isinstance(found, dict):
        found = [found[name] for name in sorted(found)]
    return [np.asarray(t, np.float32) for t in (found if isinstance(found, (list, tuple)) else [found])]


def trainable(model: keras.Model) -> dict[tuple[str, ...], np.ndarray]:
    """Trainable weights by layer and role, whatever model the layer is nested in."""
    found = {tuple(v.path.split("/")[-2:]): np.asarray(v, np.float32) for v in model.trainable_variables}
    assert len(found) == len(model.trainable_variables)
    return found


def all_weights(model: keras.Model) -> dict[tuple[str, ...], np.ndarray]:
    """All weights that matter for predictions."""
    return {
        tuple(v.path.split("/")[-2:]): np.asarray(v, np.float32)
        for v in model.weights
        if "seed_generator" not in v.path
    }


@contextmanager
def edited(folder: Path) -> Iterator[Any]:
    """The `SavedModel` message of a folder; what is done to it is written back."""
    message = saved_model_pb2.SavedModel()
    file = folder / "saved_model.pb"
    message.ParseFromString(file.read_bytes())
    yield message
    file.write_bytes(message.SerializeToString())


def network_function(meta_graph: Any) -> Any:
    """The function that holds the network: the one with most operations that is neither saving nor restoring."""
    functions = meta_graph.graph_def.library.function
    return max((f for f in functions if "traced" not in f.signature.name), key=lambda f: len(f.node_def))


def add_node(nodes: Any, op: str, name: str, inputs: Any = (), **attrs: Callable[[Any], None]) -> Any:
    """A node in a graph or a function; `attrs` fill in each `AttrValue`."""
    node = nodes.add()
    node.op, node.name = op, name
    node.input.extend(inputs)
    for key, fill in attrs.items():
        fill(node.attr[key])
    return node
