"""`export --format app` is a whole Space: front matter, requirements, and an app that opens its network with its rule."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import kerasseg.app
from exported_runs import RULE, make_run
from kerasseg.app import open_export
from kerasseg.export.export_run import export_model
from kerasseg.prediction.arrays import predict_masks
from kerasseg_tfrecords._version import __version__


def test_a_space_holds_all_that_the_hub_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".keras")
    network = open_export(folder)
    assert (network.rule, network.intensity, network.size) == (RULE, "percentile", 32)
    assert network.precision == "float32"
    assert "in float32, on 2 validation slices" in rest
    assert [mask.shape for mask in predict_masks(network, [np.arange(4800).reshape(60, 80)])] == [(60, 80)]

    class Blocks:
        """Gradio's page, not served."""

        def launch(self, **_: object) -> tuple[None, str, None]:
            return None, "http://127.0.0.1:7860/", None

        def block_thread(self) -> None:
            assert capsys.readouterr().out == "http://127.0.0.1:7860/  (Ctrl-C ends it)\n"

    monkeypatch.setattr(kerasseg.app, "build_page", lambda *_, **__: Blocks())
    monkeypatch.setattr(kerasseg.app, "_gradio", SimpleNamespace)
    monkeypatch.setattr(kerasseg.app, "_options", lambda _: {})
    runpy.run_path(str(folder / "app.py"))
