"""The graph, signature, writer and assets of a SavedModel."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from kerasseg.checkpoints.savedmodel import NETWORK_SIGNATURE
from kerasseg.checkpoints.savedmodel.messages import type_name
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Signature", "Slot", "check_assets", "choose_graph", "choose_signature", "frozen_variables", "keras_outputs"]
__all__ += ["writer_of"]

_PREFERRED = (NETWORK_SIGNATURE, "serving_default", "serve")
_MAX_METADATA = 64 << 20


@dataclass(frozen=True, slots=True)
class Slot:
    """One input or output: its name in the main graph (`serving_default_x:0`), type (`float32`) and shape.

    The shape has None for sizes that are not fixed, and is None if the rank is unknown.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Signature:
    """A way to call the network, for instance `serving_default`, with inputs and outputs by name."""

    name: str
    inputs: Mapping[str, Slot]
    outputs: Mapping[str, Slot]


def choose_graph(saved_model: Any) -> Any:
    """Return the MetaGraph for inference."""
    graphs = list(saved_model.meta_graphs)
    if not graphs:
        raise CheckpointError("the SavedModel is empty: it holds no graph")
    for tags in ({"serve"}, {"serve", "gpu"}, set()):
        for graph in graphs:
            if set(graph.meta_info_def.tags) == tags:
                return graph
    if len(graphs) == 1:
        return graphs[0]
    found = [sorted(g.meta_info_def.tags) for g in graphs]
    what = "the SavedModel holds several graphs and none for inference"
    raise CheckpointError(what, found=found, expected="['serve']")


def choose_signature(meta_graph: Any) -> Signature:
    """Return the signature for predictions."""
    usable = {
        name: message
        for name, message in sorted(meta_graph.signature_def.items())
        if not name.startswith("__") and message.inputs and message.outputs
    }
    name = next((n for n in _PREFERRED if n in usable), next(iter(usable)) if len(usable) == 1 else None)
    if name is None and not usable:
        found = "weights without a network, as Keras 2 writes with save_traces=False"
        remedy = "Save the model again with model.export(path), or as a .keras file"
        raise CheckpointError("the SavedModel has no signature to call", found=found, remedy=remedy)
    if name is None:
        raise CheckpointError(
            "the SavedModel has several signatures",
            found=", ".join(usable),
            expected=" or ".join(_PREFERRED[1:]),
            remedy="Save it with only the required signature: signatures={'serving_default': ...}",
        )
    message = usable[name]
    inputs = {k: _slot(name, k, v) for k, v in sorted(message.inputs.items())}
    outputs = {k: _slot(name, k, v) for k, v in sorted(message.outputs.items(), key=lambda i: _natural(i[0]))}
    return Signature(name, inputs, outputs)


def _slot(signature: str, name: str, info: Any) -> Slot:
    if info.WhichOneof("encoding") != "name":
        raise CheckpointError(f"{name!r} of signature {signature!r} is sparse or composite", expected="a plain tensor")
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(None if d.size < 0 else int(d.size) for d in shape.dim)
    return Slot(info.name, type_name(info.dtype), sizes)


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort `output_10` after `output_9`."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", text)]


def writer_of(meta_graph: Any, folder: Path) -> str:
    """Describe the writer of a SavedModel, for instance `Keras 3 export (TensorFlow 2.21.0)`."""
    version = meta_graph.meta_info_def.tensorflow_version
    suffix = f" (TensorFlow {version})" if version else ""
    objects = meta_graph.object_graph_def.nodes
    if (folder / "keras_metadata.pb").is_file() or any("tf_keras" in n.user_object.identifier for n in objects):
        return f"Keras 2 SavedModel{suffix}"
    if objects and {"_all_variables", "_misc_assets"} & {c.local_name for c in objects[0].children}:
        return f"Keras 3 export{suffix}"
    kind = "TensorFlow 1 SavedModel" if version.startswith("1.") or not objects else "TensorFlow SavedModel"
    return f"{kind}{suffix}"


def frozen_variables(meta_graph: Any) -> frozenset[str]:
    """Return the names of variables that Keras listed as not trainable, including moving statistics."""
    nodes = meta_graph.object_graph_def.nodes
    lists = {c.local_name: c.node_id for c in nodes[0].children} if nodes else {}
    if not {"variables", "trainable_variables"} <= lists.keys():
        return frozenset()

    def members(name: str) -> set[int]:
        return {c.node_id for c in nodes[lists[name]].children}

    fixed = [nodes[i] for i in members("variables") - members("trainable_variables")]
    return frozenset(n.variable.name.removesuffix(":0") for n in fixed if n.WhichOneof("kind") == "variable")


def check_assets(meta_graph: Any) -> None:
    """Refuse assets with a path outside their folder. Assets are never opened."""
    for name in (a.filename for a in meta_graph.asset_file_def):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            what = "an asset of the SavedModel is outside its folder"
            raise CheckpointError(what, found=name, expected="a file name")


def keras_outputs(folder: Path) -> tuple[str, ...]:
    """Return the order of a Keras 2 model's outputs, by layer, from `keras_metadata.pb`; empty if it is not stored.

    The signature of a SavedModel names its outputs without an order. The file is searched for the JSON configuration of
    the model, which is read only as data.
    """
    path = folder / "keras_metadata.pb"
    if not path.is_file() or path.stat().st_size > _MAX_METADATA:
        return ()
    for text in _texts(path.read_bytes()):
        try:
            return tuple(str(layer[0]) for layer in json.loads(text)["config"]["output_layers"])
        except (ValueError, TypeError, IndexError, KeyError, RecursionError):
            continue  # not a network
    return ()


def _texts(data: bytes) -> list[bytes]:
    """Return field 5 (`metadata`) of each node of a `SavedMetadata` message, which only Keras 2 defines."""

    def fields(message: bytes, number: int) -> list[bytes]:
        parsed = Empty()
        parsed.ParseFromString(message)
        wanted = [f for f in UnknownFieldSet(parsed) if (f.field_number, f.wire_type) == (number, 2)]
        return [f.data for f in wanted]

    try:
        return [text for node in fields(data, 1) for text in fields(node, 5)]
    except DecodeError:
        return []
