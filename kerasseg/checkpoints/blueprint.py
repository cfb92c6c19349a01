"""How large a network would be, found out without building it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import keras

from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["build", "check_size"]


def check_size(config: Mapping[str, Any], stored: int, path: object) -> None:
    """Refuse a configuration that describes a larger network than the file has numbers for.

    The network is drawn up with variables that have a shape and no memory. Keras keeps the list of such variables by
    thread; the thread that draws ends here, and with it the list, so nothing will ever allocate them.

    Args:
        config: A configuration that has passed `check_config`.
        stored: How many numbers the file holds.
        path: The checkpoint, for the message.

    Raises:
        CheckpointError: If the network is larger than the file, or cannot be drawn up at all.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        declared = thread.submit(_count, config, path).result()
    if declared > stored:
        raise CheckpointError(
            "the network that it describes is larger than the weights that it holds",
            path=str(path),
            found=f"{stored} numbers",
            expected=f"{declared}",
            remedy="The file is incomplete or made to exhaust memory.",
        )


def _count(config: Mapping[str, Any], path: object) -> int:
    with keras.StatelessScope(initialize_variables=False):
        model = build(config, path)
        total = 0
        for weight in model.weights:
            size = 1
            for n in weight.shape:
                size *= int(n)
            total += size
    return total


def build(config: Mapping[str, Any], path: object) -> keras.Model:
    """The network of a configuration that has passed `check_config`, in safe mode.

    Raises:
        CheckpointError: If Keras cannot make a network of it.
    """
    try:
        model = keras.saving.deserialize_keras_object(deepcopy(dict(config)), safe_mode=True)
    except Exception as error:  # Keras raises whatever its layers raise
        raise CheckpointError(
            "Keras cannot build the network that it describes",
            path=str(path),
            found=f"{type(error).__name__}: {_first_sentence(error)}",
        ) from error
    if not isinstance(model, keras.Model):
        raise CheckpointError("it describes no network", path=str(path), found=type(model).__name__)
    if not model.built:
        raise CheckpointError(
            "the network has no input shape",
            path=str(path),
            expected="a sequential network with its input, or a functional one",
            remedy="Call the network on data once before saving it.",
        )
    return model


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
