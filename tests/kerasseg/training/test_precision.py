"""What is computed in: the choice, networks that are told it, and what is saved, which is float32."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import kerasseg
from kerasseg.models.layers import all_layers
from kerasseg.runs.settings import TrainSettings
from kerasseg.training.devices import Devices
from kerasseg.training.precision import (
    PrecisionChoice,
    as_float32,
    choose_precision,
    compute_in,
    processor_has_bfloat16,
)
from kerasseg.workflows import train as session
from kerasseg.workflows.train import as_saved
from kerasseg_tfrecords.errors import UsageError

MIXED = ["mixed_bfloat16", "mixed_float16"]


# ---------------------------------------------------------------------------
# The choice
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "capability", "bfloat16", "expected"),
    [
        (True, (10, 0), False, "mixed_bfloat16"),
        (True, (9, 0), False, "mixed_bfloat16"),
        (True, (8, 0), False, "mixed_bfloat16"),
        (True, (7, 5), True, "mixed_float16"),  # a T4; what the processor has does not matter
        (True, (7, 0), False, "mixed_float16"),
        (True, (6, 1), True, "float32"),
        (True, None, True, "float32"),
        (False, None, True, "mixed_bfloat16"),
        (False, None, False, "float32"),
    ],
)
def test_auto(gpu: bool, capability: tuple[int, int] | None, bfloat16: bool, expected: str) -> None:
    choice = choose_precision("auto", gpu=gpu, capability=capability, bfloat16=bfloat16)
    assert choice.name == expected
    assert "GPU" in choice.reason if gpu else "processor" in choice.reason


@pytest.mark.parametrize("name", ["float32", *MIXED])
def test_what_is_asked_for_is_taken(name: str) -> None:
    assert choose_precision(name, gpu=False, bfloat16=False) == PrecisionChoice(name, "as requested")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown precision 'float64' \(expected auto, float32"):
        choose_precision("float64", gpu=False)
    with pytest.raises(UsageError, match=r"unknown precision 'auto' \(expected float32"):
        compute_in(network(), "auto")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx512f avx512_bf16 avx512_vnni", True),
        ("fpu amx_bf16 amx_tile amx_int8", True),
        ("fpu sse2 avx512f avx512_vnni", False),
        ("fpu amx_tile amx_int8", False),
        ("fpu not_avx512_bf16x", False),
        ("", False),
    ],
)
def test_what_a_processor_tells(tmp_path: Path, flags: str, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n")
    assert processor_has_bfloat16(file) is expected


def test_a_processor_that_tells_nothing_has_none(tmp_path: Path) -> None:
    assert processor_has_bfloat16(tmp_path / "missing") is False


# ---------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------


def network() -> keras.Model:
    return kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)


@pytest.mark.parametrize(("precision", "computed"), [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
def test_layers_compute_in_it_but_weights_and_head_are_float32(precision: str, computed: str) -> None:
    model = network()
    image = np.random.default_rng(0).random((2, 16, 16, 1)).astype("float32")
    before, expected = model.get_weights(), keras.ops.convert_to_numpy(model(image))
    compute_in(model, precision)

    assert {str(v.dtype) for v in model.weights} == {"float32"}
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    head = model.get_layer("head")
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and layer is not head]
    assert convolutions
    assert {layer.compute_dtype for layer in convolutions} == {computed}
    assert head.compute_dtype == "float32"

    # They do: what comes out is float32, near, and not the same.
    predicted = keras.ops.convert_to_numpy(model(image))
    assert predicted.dtype == np.float32
    assert 0 < np.abs(predicted - expected).max() < 0.05
    inner = keras.Model(model.inputs[0], convolutions[-1].output)
    assert keras.backend.standardize_dtype(inner(image).dtype) == computed


def test_layers_behind_the_last_convolution_and_nested_networks_are_told_too() -> None:
    inner_input = keras.Input((8, 8, 2))
    inner = keras.Model(inner_input, keras.layers.Conv2D(2, 3, padding="same", name="inside")(inner_input), name="body")
    source = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(1, 1, name="logits")(inner(source))
    model = keras.Model(source, keras.layers.Activation("sigmoid", name="probabilities")(x))
    compute_in(model, "mixed_bfloat16")
    names = {layer.name: layer.compute_dtype for layer in all_layers(model)}
    assert (names["inside"], names["logits"], names["probabilities"]) == ("bfloat16", "float32", "float32")


def test_as_float32_is_float32_and_then_what_it_was() -> None:
    model = network()
    image = np.random.default_rng(0).random((2, 16, 16, 1)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(image))
    compute_in(model, "mixed_bfloat16")
    before = [layer.dtype_policy.name for layer in all_layers(model)]
    with as_float32(model):
        assert {layer.dtype_policy.name for layer in all_layers(model)} == {"float32"}
        assert (keras.ops.convert_to_numpy(model(image)) == expected).all()
    assert [layer.dtype_policy.name for layer in all_layers(model)] == before
    assert "mixed_bfloat16" in before
    with pytest.raises(KeyError), as_float32(model):
        raise KeyError
    assert [layer.dtype_policy.name for layer in all_layers(model)] == before


@pytest.mark.parametrize("precision", MIXED)
def test_a_saved_network_is_float32_throughout(precision: str, tmp_path: Path) -> None:
    model = network()
    compute_in(model, precision)
    with as_saved(model):
        model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        text = archive.read("config.json").decode()
    assert "float16" not in text
    assert json.loads(text)
    opened = keras.saving.load_model(tmp_path / "model.keras")
    assert {layer.dtype_policy.name for layer in all_layers(opened)} == {"float32"}
    assert all((a == b).all() for a, b in zip(model.get_weights(), opened.get_weights(), strict=True))


# ---------------------------------------------------------------------------
# What faster precision may cost
# ---------------------------------------------------------------------------


def sitting(asked: str, scores: dict[str, float], computed: list[str]) -> Any:
    """As much of a run as the choice of a precision needs; validation gives these scores."""
    model = network()

    def engine(*_: Any) -> Any:
        name = model.get_layer("encoder_1_conv_1").dtype_policy.name
        computed.append(name)
        return SimpleNamespace(evaluate=lambda _: SimpleNamespace(mean=lambda _: scores[name]))

    return SimpleNamespace(
        settings=TrainSettings(precision=asked),
        devices=Devices(None, None, ""),
        network=SimpleNamespace(model=model),
        task=SimpleNamespace(validation=SimpleNamespace(data=None)),
        _engine=engine,
    )


@pytest.mark.parametrize(
    ("faster", "expected"), [(0.81, "mixed_bfloat16"), (0.7981, "mixed_bfloat16"), (0.7979, "float32")]
)
def test_auto_gives_a_faster_precision_up_that_costs_dice(
    faster: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        session, "choose_precision", lambda *_, **__: PrecisionChoice("mixed_bfloat16", "the processor has it")
    )
    computed: list[str] = []
    scores = {"float32": 0.8, "mixed_bfloat16": faster}
    choice = session.TrainingSession._precision(sitting("auto", scores, computed))
    assert computed == ["float32", "mixed_bfloat16"]
    assert choice.name == expected
    if expected == "float32":
        assert choice.reason == "mixed_bfloat16 cost 0.0021 of Dice before training"


@pytest.mark.parametrize("asked", ["float32", *MIXED])
def test_what_is_asked_for_is_not_measured(asked: str) -> None:
    computed: list[str] = []
    assert session.TrainingSession._precision(sitting(asked, {}, computed)).name == asked
    assert not computed
