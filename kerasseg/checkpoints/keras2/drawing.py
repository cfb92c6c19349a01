"""Shapes in a network that is described by a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from kerasseg.checkpoints.allowed import build

__all__ = ["output_shape"]


def output_shape(config: Mapping[str, Any], path: object) -> tuple[int | None, ...]:
    """The output shape of a network, found without allocating its weights.

    As in `allowed.check_size`, the thread ends with Keras' list of variables without memory.

    Args:
        config: A configuration that has passed `check_config`.
        path: The checkpoint, for messages.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_output_shape, config, path).result()


def _output_shape(config: Mapping[str, Any], path: object) -> tuple[int | None, ...]:
    with keras.StatelessScope(initialize_variables=False):
        return tuple(build(config, path).output_shape)
