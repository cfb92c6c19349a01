"""Makers of runs to evaluate, without training: a network that calls bright pixels tumour, and a worse one."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from kerasseg.runs.config import Resolved, new_config
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import parse_settings
from kerasseg_tfrecords.records.manifest import load_manifest


def brightness_network(size: int, at: float = 0.6, steep: float = 20.0, channels: int = 1) -> keras.Model:
    """sigmoid(steep * (brightness - at)) at every pixel."""
    inputs = keras.Input((size, size, channels), name="image")
    outputs = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")(inputs)
    model = keras.Model(inputs, outputs, name="brightness")
    model.set_weights([np.full((1, 1, channels, 1), steep / channels, np.float32), np.array([-steep * at], np.float32)])
    return model


def write_run(
    root: Path, shards: Path, *, model: keras.Model | None = None, baseline: keras.Model | None = None
) -> RunDirectory:
    """A run as `kerasseg train` leaves it, but for its history and state.

    Args:
        root: Where.
        shards: That it was trained on.
        model: Best weights; None for a good network.
        baseline: Before training; None for one that finds bright spots alone.
    """
    manifest = load_manifest(shards)
    run = RunDirectory(root)
    root.mkdir(parents=True)
    settings = parse_settings(None, shards=str(shards), checkpoint="brightness.keras", strategy="conservative")
    resolved = Resolved(
        checkpoint="somewhere/brightness.keras",
        provenance=None,
        changes=(),
        precision="float32",
        precision_reason="",
        devices="",
        phases=("conservative",),
        rates=(1e-4,),
        frozen=(),
        parameters=2,
        trained=2,
        steps=1,
        fingerprint=manifest.fingerprint,
        intensity=manifest.intensity,
        size=manifest.size,
        channels=manifest.channels,
        classes=manifest.classes,
        input_channels=1,
        slices={},
    )
    run.write_config(new_config(settings, resolved))
    run.save_model(model or brightness_network(manifest.size), run.model_file)
    run.save_model(baseline or brightness_network(manifest.size, at=0.85), run.baseline_file)
    return run
