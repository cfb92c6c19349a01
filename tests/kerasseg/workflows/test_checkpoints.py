"""Ranking untouched networks on validation: figures, verdicts, and candidates that cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from factories import write_figshare
from kerasseg.workflows.checkpoints import Ranking, rank_checkpoints
from kerasseg_cli.app import app
from kerasseg_tfrecords import prepare, read_records
from kerasseg_tfrecords.records.manifest import PrepareOptions


def prepared(folder: Path, patients: int) -> Path:
    options = PrepareOptions(size=32, split="60/20/20")
    prepare(write_figshare(folder / "raw", patients, slices_each=2, size=48), folder / "shards", options, jobs=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("many"), 40)


def network(path: Path, gain: float, offset: float) -> Path:
    """sigmoid(gain * intensity + offset): marks what is bright."""
    image = keras.Input((32, 32, 1))
    layer = keras.layers.Conv2D(1, 1, activation="sigmoid", name="head")
    model = keras.Model(image, layer(image))
    layer.set_weights([np.full((1, 1, 1, 1), gain, "float32"), np.full(1, offset, "float32")])
    model.save(path)
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("networks")
    broken = folder / "broken.keras"
    broken.write_bytes(b"PK\x03\x04 not a zip")
    bright = network(folder / "bright.keras", 100, -60)
    nothing = network(folder / "nothing.keras", 0, -9)
    return {path.stem: str(path) for path in (bright, nothing, broken)}


def expected(shards: Path, limit: float) -> float:
    """Mean Dice of `image >= limit`, by hand."""
    scores = []
    for record in read_records(shards, ("val",)):
        found = record.image[..., 0] / 255 >= limit
        both, total = (found & record.mask).sum(), found.sum() + record.mask.sum()
        scores.append(2 * both / total if total else 1.0)
    return float(np.mean(scores))


def test_the_better_network_comes_first_with_its_dice(shards: Path, networks: dict[str, str]) -> None:
    told: list[str] = []
    found = rank_checkpoints(
        shards, [networks["nothing"], networks["bright"]], batch_size=5, progress=lambda name, *_: told.append(name)
    )
    best, worst = found.candidates
    assert (best.name, worst.name) == (networks["bright"], networks["nothing"])
    assert best.dice.estimate == pytest.approx(expected(shards, 0.6), abs=1e-6)
    assert worst.dice.estimate == pytest.approx(expected(shards, 2), abs=1e-6)
    assert worst.behind is not None
    assert worst.behind.estimate == pytest.approx(best.dice.estimate - worst.dice.estimate)
    assert best.behind is None
    assert worst.behind.above_zero
    assert f"{best.name} is the best start" in found.verdict
    assert set(told) == {best.name, worst.name}


def test_equal_networks_differ_by_nothing(shards: Path, networks: dict[str, str], tmp_path: Path) -> None:
    twin = str(network(tmp_path / "twin.keras", 100, -60))
    assert "No clear difference" in rank_checkpoints(shards, [networks["bright"], twin]).verdict


def test_a_broken_candidate_costs_the_others_nothing(shards: Path, networks: dict[str, str]) -> None:
    found = rank_checkpoints(shards, [networks["broken"], networks["bright"], "no-such.keras", "vgg16"])
    assert [c.name for c in found.candidates] == [networks["bright"]]
    assert [u.name for u in found.unmeasured] == [networks["broken"], "no-such.keras", "vgg16"]
    assert "fresh weights" in found.unmeasured[2].reason
    assert "only candidate" in found.verdict


def test_few_patients_give_no_verdict(tmp_path: Path, networks: dict[str, str]) -> None:
    found = rank_checkpoints(prepared(tmp_path, 12), [networks["bright"], networks["nothing"]])
    assert found.patients < 5
    assert "too few for a conclusion" in found.verdict
    assert found.to_json()["candidates"][0]["dice"]["low"] is None


def typed(*words: object) -> Any:
    return CliRunner().invoke(app, ["checkpoints", *map(str, words)], env={"COLUMNS": "120", "NO_COLOR": "1"})


def test_the_command_ranks(shards: Path, networks: dict[str, str]) -> None:
    done = typed(networks["nothing"], networks["bright"], "--evaluate", shards)
    assert done.exit_code == 0, done.output
    assert done.stdout.index("bright.keras") < done.stdout.index("nothing.keras")
    assert f"Next: kerasseg train --shards {shards} --checkpoint {networks['bright']}" in done.stdout


def test_a_named_candidate_that_fails_shows_in_the_exit_code(shards: Path, networks: dict[str, str]) -> None:
    done = typed(networks["broken"], networks["bright"], "--evaluate", shards, "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert [one["name"] for one in document["unmeasured"]] == [networks["broken"]]
    assert len(document["candidates"]) == 1


def test_the_whole_list_without_a_network(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's network cannot be fetched; encoders have nothing to measure: an error that says what to do."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("KERASSEG_CHECKPOINT", raising=False)
    done = typed("--evaluate", shards)
    assert done.exit_code == 1
    assert "recipe: the file cannot be fetched" in done.stderr.replace("\n", " ")
    assert "kerasseg checkpoints FILE --evaluate" in done.stderr


def test_nothing_measured_says_so() -> None:
    assert Ranking((), (), 0, 0).verdict == "No candidate could be measured."


def test_the_command_lists_and_describes() -> None:
    listed = typed()
    assert listed.exit_code == 0
    assert "kerasseg train --checkpoint NAME" in listed.stdout
    facts = typed("mobilenetv2")
    assert "https://arxiv.org/abs/1801.04381" in facts.stdout
    assert "licence" in facts.stdout
    every = json.loads(typed("--json").stdout)
    assert {"name", "licence", "overlap", "available"} <= set(every[0])
    assert "Did you mean 'vgg16'" in typed("vgg-16").stderr
    assert typed("nets/unet.keras").exit_code == 2


@pytest.mark.rest
def test_training_takes_a_name(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of the list becomes the encoder; where its weights cannot be had, the error says what works offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    from keras.src.utils import file_utils

    def get_file(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    done = CliRunner().invoke(app, ["train", "--shards", str(shards), "--checkpoint", "mobilenetv3small"])
    assert done.exit_code == 1
    assert "ImageNet weights of mobilenetv3small cannot be downloaded" in done.stderr
    assert "--strategy scratch" in done.stderr
    scratch = ("--strategy", "scratch", "--epochs", "0", "--precision", "float32", "--out", "run")
    done = CliRunner().invoke(app, ["train", "--shards", str(shards), "--checkpoint", "mobilenetv3small", *scratch])
    assert done.exit_code == 0, done.stderr
    settings = json.loads(Path("run/config.json").read_text())["settings"]
    assert (settings["encoder"], settings["checkpoint"]) == ("mobilenetv3small", None)


def test_completion_offers_the_names() -> None:
    from kerasseg_cli.completion import starting_points

    assert ("densenet121", "image classification") in starting_points("dense")
    assert len(starting_points("")) > 10
