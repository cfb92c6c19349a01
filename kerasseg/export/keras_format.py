"""`--format keras`: the network as a `.keras` file, to be opened, trained on and evaluated again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.export.serving import Network
from kerasseg.runs.directory import RunDirectory

__all__ = ["FILE", "open_keras_export", "write_keras"]

FILE = "model.keras"


def write_keras(model: keras.Model, folder: Path) -> None:
    """Writes the file; its provenance goes along.

    Raises:
        KerassegError: It cannot be written.
    """
    RunDirectory(folder).save_model(model, folder / FILE)


def open_keras_export(folder: Path) -> Network:
    """Opens it as anybody would, by Keras alone."""
    model = keras.saving.load_model(folder / FILE, compile=False)

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = keras.ops.convert_to_numpy(model(images, training=False))
        return {"probability": np.asarray(found, np.float32)[..., 0]}

    return call
