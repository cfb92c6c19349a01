"""`export --format app` is a whole Space: front matter, requirements, and an app that opens its network with its rule."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import yaml

from exported_runs import RULE, make_run
from kerasseg.app import open_export
from kerasseg.export.export_run import export_model
from kerasseg.prediction.arrays import predict_masks
from kerasseg_tfrecords._version import __version__


def test_a_space_holds_all_that_the_hub_needs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    made = export_model(run, "app", slices=2, license="cc-by-4.0")
    folder = made.folder
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "app.py",
        "metadata.json",
        "model.keras",
        "requirements.txt",
    }
    front, rest = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    facts = yaml.safe_load(front)
    assert (facts["sdk"], facts["app_file"], facts["license"]) == ("gradio", "app.py", "cc-by-4.0")
    assert len(facts["short_description"]) <= 60  # the Hub's limit
    assert facts["colorFrom"] in {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert "Not for clinical use" in rest
    assert (folder / "requirements.txt").read_text() == f"kerasseg[app]=={__version__}\n"
    ast.parse((folder / "app.py").read_text())
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".keras")
    network = open_export(folder)
    assert (network.rule, network.intensity, network.size) == (RULE, "percentile", 32)
    assert [mask.shape for mask in predict_masks(network, [np.arange(4800).reshape(60, 80)])] == [(60, 80)]
