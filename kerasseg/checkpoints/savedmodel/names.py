"""Names of rebuilt layers: those of their variables, else those in the graph."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kerasseg.checkpoints.savedmodel.graph import scope

__all__ = ["Names", "clean"]

_LONGEST = 100

# Scopes that TensorFlow's own functions open within the scope of a layer.
_INNER = frozenset({"Gelu", "LogSigmoid", "Repeat", "Tensordot", "batchnorm", "clip_by_value", "moments", "resize"})


def clean(text: str) -> str:
    """Return a name that is valid for Keras, file formats and terminals.

    >>> clean("block 1/conv:0")
    'block_1_conv_0'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:_LONGEST].strip("_")


class Names:
    """Gives each layer a unique name.

    Args:
        prefixes: Paths of all layers that have variables, for instance `conv2d_19` or `backbone/stem_conv`.
        scopes: (path in the graph, prefix of the variables) of nodes with variables, to detect whether the writer numbered
            scopes again, as Keras 3 does (`conv2d_19` writes in `functional_1/conv2d_19_1`).
    """

    def __init__(self, prefixes: Iterable[str], scopes: Iterable[tuple[str, str]]) -> None:
        self._used: set[str] = set()
        paths = sorted(set(prefixes))
        last = [p.rpartition("/")[2] for p in paths]
        self._by_prefix = {p: short if last.count(short) == 1 else p for p, short in zip(paths, last, strict=True)}
        pairs = [(s.rpartition("/")[2], p.rpartition("/")[2]) for s, p in scopes if s]
        self._numbered = bool(pairs) and all(re.fullmatch(re.escape(p) + r"_\d+", s) for s, p in pairs)
        # Names of variables are reserved, whatever the order of the layers.
        self._reserved = {clean(n) for n in self._by_prefix.values()}

    def for_variables(self, prefix: str) -> str | None:
        """Return the name of the layer of variables with this prefix."""
        name = clean(self._by_prefix.get(prefix, prefix))
        return self._free(name, reserved=False) if name else None

    def for_node(self, name: str, default: str) -> str:
        """Return the name of a layer without variables, from its node's name."""
        path = scope(name)
        while "/" in path and re.sub(r"_\d+$", "", path.rpartition("/")[2]) in _INNER:
            path = scope(path)
        layer = path.rpartition("/")[2]
        if self._numbered:
            layer = re.sub(r"_\d+$", "", layer)
        return self._free(clean(layer) or default, reserved=True)

    def _free(self, name: str, *, reserved: bool) -> str:
        taken = self._used | self._reserved if reserved else self._used
        free, number = name, 0
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        self._used.add(free)
        return free
