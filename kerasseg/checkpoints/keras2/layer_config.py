"""The representation in which Keras 2 layers are translated to Keras 3, and walks over the configurations of both.

An `OldLayer` has a name, class, configuration and calls, with every tensor as a `Ref`. A rule turns it into a list of
`NewLayer`: the first takes its place, each later one follows the one before, and references to the old layer become
references to the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kerasseg.checkpoints.operations import Ref, Untranslatable

#: Makes the weights of the new layer, in its order, from those of the old one by name.
Adapter = Callable[[Mapping[str, Any]], list[Any]]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a layer, with tensors as `Ref`s."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OldLayer:
    """A layer as described by the old file."""

    name: str
    class_name: str
    config: dict[str, Any]
    calls: tuple[Call, ...]

    @property
    def call(self) -> Call:
        """The only call, or the first of several that agree in their keyword arguments."""
        if any(c.kwargs != self.calls[0].kwargs for c in self.calls):
            raise Untranslatable("it is called several times with different arguments")
        return self.calls[0]


@dataclass(frozen=True)
class NewLayer:
    """A layer for Keras 3. `calls` is None if it follows the layer before it in the list."""

    class_name: str
    config: dict[str, Any]
    module: str = "keras.layers"
    registered_name: str | None = None
    calls: tuple[Call, ...] | None = None
    adapter: Adapter | None = None

    @property
    def name(self) -> str:
        return str(self.config["name"])


def native(old: OldLayer, class_name: str, **config: Any) -> NewLayer:
    """Return a Keras layer in the place of `old`: same name, dtype and calls, without keyword arguments."""
    # SpatialDropout layers are the only ones that refuse `trainable` in Keras 3.
    kept = ("dtype",) if class_name.startswith("SpatialDropout") else ("trainable", "dtype")
    base: dict[str, Any] = {k: old.config[k] for k in kept if k in old.config}
    calls = tuple(dataclasses.replace(c, kwargs={}) for c in old.calls)
    return NewLayer(class_name, {"name": old.name, **base, **config}, calls=calls)


def after(first: NewLayer, suffix: str, class_name: str, **config: Any) -> NewLayer:
    base = {"dtype": first.config["dtype"]} if "dtype" in first.config else {}
    return NewLayer(class_name, {"name": f"{first.name}_{suffix}", **base, **config})


def parse_call(node: Any, names: frozenset[str]) -> Call:
    """Parse an inbound node of Keras 2: `[["conv", 0, 0, {}], ...]`, or for an operation `["conv", 0, 0, {"y": 2.0}]`."""
    unknown = "its inputs are not described in a known way"

    def value(v: Any) -> Any:
        if _is_ref(v, names):
            return Ref(v[0], v[1], v[2])
        return [value(w) for w in v] if isinstance(v, list) else v

    try:
        if isinstance(node[0], str):  # an operation: one tensor or constant, the rest as keywords
            kwargs = node[3] if len(node) > 3 else {}
            first = node[2] if node[0] == "_CONSTANT_VALUE" else Ref(node[0], node[1], node[2])
            return Call((first,), {k: value(v) for k, v in kwargs.items() if k != "name"})
        tensors = [item[2] if item[0] == "_CONSTANT_VALUE" else Ref(*item[:3]) for item in node]
        kwargs = {k: value(v) for item in node if len(item) > 3 for k, v in item[3].items()}
        kwargs = {k: v for k, v in kwargs.items() if k != "name" and not (k == "mask" and v is None)}
        if not all(isinstance(t.layer, str) and isinstance(t.node, int) for t in tensors if isinstance(t, Ref)):
            raise Untranslatable(unknown)
        return Call((tensors[0] if len(tensors) == 1 else tensors,), kwargs)
    except (TypeError, IndexError, KeyError, AttributeError) as error:
        raise Untranslatable(unknown) from error


def _is_ref(v: Any, names: frozenset[str]) -> bool:
    listed = isinstance(v, Sequence) and not isinstance(v, str) and len(v) in {3, 4}
    return listed and isinstance(v[0], str) and v[0] in names and all(isinstance(n, int) for n in v[1:3])


def map_refs(value: Any, change: Callable[[Ref], Any]) -> Any:
    """Return an argument of a call with every `Ref` changed, also in lists."""
    if isinstance(value, Ref):
        return change(value)
    return [map_refs(v, change) for v in value] if isinstance(value, list) else value


def entry_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a layer."""
    return str(entry["name"] if "name" in entry else entry["config"]["name"])


def histories(value: Any) -> Iterator[list[Any]]:
    """Yield the `[layer, node, tensor]` reference of every tensor in a call of Keras 3, in order."""
    if isinstance(value, Mapping) and isinstance(value.get("keras_history"), list):
        yield value["keras_history"]
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from histories(inner)


def map_ends(value: Any, change: Callable[[list[Any]], list[Any]]) -> Any:
    """Return the input or output list of a network with every `[layer, node, tensor]` changed."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: map_ends(v, change) for k, v in value.items()}
    return [map_ends(v, change) for v in value]


def ends(value: Any) -> list[list[Any]]:
    """Return every `[layer, node, tensor]` in the input or output list of a network."""
    found: list[list[Any]] = []
    map_ends(value, lambda end: found.append(end) or end)  # type: ignore[func-returns-value]
    return found
