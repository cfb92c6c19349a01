"""The network that a file of weights belongs to, as the user names it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from kerasseg.checkpoints.allowed import check_config, parse_config, without_training
from kerasseg.checkpoints.blueprint import build, check_size
from kerasseg.checkpoints.translate import translate
from kerasseg.network import unet
from kerasseg_tfrecords.errors import CheckpointError, UsageError

__all__ = ["named_arguments", "read_configuration"]

_HOW = "unet, unet(depth=4, filters=64, ...), a network's JSON file or a checkpoint of the same network"


def named_arguments(architecture: str) -> Mapping[str, Any] | None:
    """The arguments in `unet(depth=4, normalization="group")`; None if the text names no U-Net of kerasseg.

    Values are numbers, texts (with or without quotes) and lists; nothing is evaluated.

    Raises:
        UsageError: If it begins like one and cannot be meant.

    Example:
        >>> named_arguments("unet(depth=3, normalization=group)")
        {'depth': 3, 'normalization': 'group'}
        >>> named_arguments("other.keras") is None
        True
    """
    text = architecture.strip()
    if text == "unet":
        return {}
    if not text.startswith("unet("):
        return None
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("only keyword arguments")
        arguments = {
            str(k.arg): k.value.id if isinstance(k.value, ast.Name) else ast.literal_eval(k.value)
            for k in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the architecture `{text}` cannot be read", found=error, expected=_HOW) from error
    known = inspect.signature(unet).parameters
    if unknown := sorted(set(arguments) - set(known)):
        raise UsageError(f"kerasseg.unet has no argument {', '.join(unknown)}", expected=", ".join(known))
    return arguments


def read_configuration(path: Path, stored: int) -> keras.Model:
    """A network with fresh weights from the JSON file that `model.to_json()` writes, of Keras 2 or 3.

    Args:
        path: The JSON file.
        stored: How many numbers the weights have that it is for; it must not describe a larger network.

    Raises:
        CheckpointError: If it is refused, as for a whole checkpoint.
    """
    try:
        config = without_training(parse_config(path.read_bytes(), path))
    except OSError as error:
        raise CheckpointError("the architecture cannot be read", path=str(path), found=error, expected=_HOW) from error
    if "module" not in config:
        config = translate(config, writer=str(config.get("keras_version", "")), path=path).config
    check_config(config, path)
    check_size(config, stored, path)
    return build(config, path)
