"""Inputs and outputs of functional networks, as their configurations list them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["one_end", "with_bare_ends"]


def one_end(ends: Any) -> Any:
    """`[["image", 0, 0]]` as `["image", 0, 0]`, anything else as it is.

    Keras makes a network of the first that wants its one tensor in a list, warns where it is not in one, and answers with a
    list.

    >>> one_end([["image", 0, 0]]), one_end([["a", 0, 0], ["b", 0, 0]])
    (['image', 0, 0], [['a', 0, 0], ['b', 0, 0]])
    """
    return ends[0] if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list) else ends


def with_bare_ends(config: Mapping[str, Any]) -> dict[str, Any]:
    """A functional network's configuration with its only input and its only output not in lists."""
    inner = config.get("config")
    if not isinstance(inner, dict):
        return dict(config)
    bare = {key: one_end(inner[key]) for key in ("input_layers", "output_layers") if key in inner}
    return {**config, "config": {**inner, **bare}}
