"""What each reader of checkpoints hands back to `open_checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass

import keras

__all__ = ["OpenedModel"]


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, opened.

    Attributes:
        model: The network, uncompiled, of native Keras 3 layers wherever Keras has one.
        writer: What wrote the checkpoint, for instance `Keras 2.3.1`.
        kind: What the checkpoint is, for instance `Keras 2 HDF5`.
        translated: What had to be translated, one sentence each.
        largest_difference: The largest absolute difference between original and opened network on random input; None
            where the original was not run.
    """

    model: keras.Model
    writer: str
    kind: str
    translated: tuple[str, ...] = ()
    largest_difference: float | None = None
