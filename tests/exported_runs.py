"""A run with a small U-Net that finds blobs, and a rule, for exports."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from evaluated_runs import write_run
from factories import write_figshare
from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.threshold_file import Curve, NetworkRule, ThresholdFile, TuningStep, network_sha256, save_threshold
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.intensity import IntensityRule
from kerasseg_tfrecords.records.manifest import PrepareOptions

SIZE = 32
RULE = MaskRule(threshold=0.4, min_diameter=0.1, fill_holes=True)


def make_run(folder: Path, intensity: IntensityRule = "percentile") -> RunDirectory:
    """`folder/runs/first` on `folder/shards`: 45 grey slices of 48 x 48, stored as 32 x 32, a network with 3 channels."""
    options = PrepareOptions(size=SIZE, split="60/20/20", intensity=intensity)
    prepare(write_figshare(folder / "raw", patients=15, slices_each=3, size=48), folder / "shards", options, jobs=1)
    run = write_run(folder / "runs" / "first", folder / "shards", model=blob_network())
    (folder / "runs" / "latest").write_text("first\n")
    set_rule(run, RULE)
    return run


def blob_network() -> keras.Model:
    """A U-Net of one level whose weights are set by hand: it finds what is bright, with some of the neighbourhood."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    grey = keras.layers.Conv2D(1, 1, name="grey")(image)
    normed = keras.layers.BatchNormalization(name="norm")(grey)
    skip = keras.layers.ReLU(name="act")(normed)
    low = keras.layers.MaxPooling2D(name="pool")(skip)
    up = keras.layers.Conv2DTranspose(1, 2, strides=2, name="up")(low)
    both = keras.layers.Concatenate(name="concat")([skip, up])
    model = keras.Model(image, keras.layers.Conv2D(1, 1, activation="sigmoid", name="head")(both))
    model.get_layer("grey").set_weights([np.full((1, 1, 3, 1), 1 / 3), np.zeros(1)])
    model.get_layer("norm").set_weights([np.ones(1), np.zeros(1), np.full(1, 0.1), np.ones(1)])
    model.get_layer("up").set_weights([np.ones((2, 2, 1, 1)), np.zeros(1)])
    model.get_layer("head").set_weights([np.full((1, 1, 2, 1), 12.0), np.full(1, -9.0)])
    return model


def set_rule(run: RunDirectory, rule: MaskRule) -> None:
    """A `threshold.json` as if tuning had found `rule`."""
    some = Mean(mean=0.5, low=0.4, high=0.6, slices=9, patients=3)
    config = run.config().resolved

    def tuned(network: Path) -> NetworkRule:
        return NetworkRule(
            rule=rule,
            resolution="native",
            slices=9,
            patients=3,
            searched=9,
            raw=some,
            dice=some,
            gain=some,
            confidence=0.95,
            best=rule.threshold,
            threshold_low=None,
            threshold_high=None,
            flat_low=rule.threshold,
            flat_high=rule.threshold,
            curve=Curve(thresholds=(), dice=()),
            steps=(TuningStep(name="raw", rule=rule, dice=0.5, gain=None, classes={}, kept=True),),
            width=48,
            network=network.name,
            sha256=network_sha256(network),
        )

    file = ThresholdFile(
        shards="shards",
        fingerprint=config.fingerprint,
        classes=config.classes,
        model=tuned(run.model_file),
        baseline=tuned(run.baseline_file),
    )
    save_threshold(run, file)
