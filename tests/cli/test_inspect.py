"""`inspect` and `convert` tell the truth about real and made-up checkpoints, and never leave half a file."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import architectures as build
from kerasseg import freeze, open_checkpoint
from kerasseg.models.blocks import Block, Blocks
from kerasseg.models.inspection import inspect_model, layer_prefixes
from kerasseg_cli.console import wants_unicode
from kerasseg_cli.convert import convert
from kerasseg_cli.inspect import inspect
from kerasseg_tfrecords.errors import CheckpointError, KerassegError, UsageError

app = typer.Typer()
app.command()(inspect)
app.command()(convert)


def run(*arguments: str | Path, columns: int = 100):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def good(*arguments: str | Path, columns: int = 100) -> str:
    result = run(*arguments, columns=columns)
    assert result.exit_code == 0, result.exception
    return result.output


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "plain.keras"
    keras.utils.set_random_seed(1)
    build.unet(3)[0].save(path)
    return path


# ---- inspect -------------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("unet-lgg.keras", ["conv2d .. conv2d_7", "conv2d_transpose .. conv2d_transpose_3", "conv2d_18"]),
        ("braintumour-128-keras3.h5", ["conv2d, conv2d_1", "no weights", "conv2d_4"]),
        ("afm-keras3.keras", ["conv2d, conv2d_1", "conv2d_2, conv2d_3", "conv2d_4, conv2d_5", "conv2d_6"]),
    ],
)
def test_published_files(real: Path, name: str, prefixes: list[str]) -> None:
    text = good("inspect", real / "checkpoints" / name, "--strategy", "conservative")
    model = keras.saving.load_model(real / "checkpoints" / name, compile=False)
    assert f"{model.count_params():,} parameters in {len(model.weights)} variables" in text
    assert all(prefix in text for prefix in prefixes)
    assert "encoder_1 ❄" in text
    assert "decoder_1 ❄" not in text
    assert f"{model.inputs[0].shape[1]} x {model.inputs[0].shape[2]}" in text


@pytest.mark.parametrize("strategy", ["conservative", "moderate", "aggressive", "encoder_2,decoder_*"])
def test_json_says_what_freeze_does(plain: Path, strategy: str) -> None:
    found = json.loads(good("inspect", plain, "--json", "--strategy", strategy))
    model = open_checkpoint(plain)
    for entry in [*found["strategies"], found["chosen"]]:
        report = freeze(model, entry["name"].split(", "))
        assert entry["frozen_blocks"] == list(report.frozen_blocks)
        assert entry["trained"] == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
        assert entry["frozen"] == sum(int(np.prod(w.shape)) for w in model.non_trainable_weights)
    assert [entry["name"] for entry in found["strategies"]] == ["conservative", "moderate", "aggressive"]
    assert found["strategies"][-1]["share_trained"] == 1.0
    assert found["format"] == 1
    assert found["variables"] == len(model.weights)
    assert found["parameters"] == model.count_params() == sum(b["parameters"] for b in found["blocks"])
    assert found["inputs"][0]["shape"] == [None, 32, 32, 3]
    assert found["outputs"][0]["activation"] == "sigmoid"
    states = {b["name"]: b["state"] for b in found["blocks"]}
    assert [n for n, state in states.items() if state == "frozen"] == found["chosen"]["frozen_blocks"]
    assert found["provenance"]["sha256"]
    assert found["problem"] is None


def test_the_drawing_fits_the_terminal(plain: Path) -> None:
    for columns in (60, 80, 120):
        assert max(map(len, good("inspect", plain, columns=columns).splitlines())) <= columns


def test_a_network_that_is_no_u_is_described_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "stack.keras"
    layers = [keras.Input((16, 16, 1)), keras.layers.Conv2D(2, 3, padding="same"), keras.layers.Conv2D(1, 1)]
    keras.Sequential(layers).save(path)
    result = run("inspect", path)
    assert "23 parameters in 4 variables of 2 layers" in result.output
    assert isinstance(result.exception, CheckpointError)
    assert "plain stack" in str(result.exception)
    assert str(path) in str(result.exception)
    machine = run("inspect", path, "--json")
    assert machine.exit_code == 1
    found = json.loads(machine.output)
    assert found["blocks"] is None
    assert "plain stack" in found["problem"]


def test_an_unknown_strategy_is_refused(plain: Path) -> None:
    for wrong in ("conservativ", "encoder_9", " , "):
        result = run("inspect", plain, "--strategy", wrong)
        assert isinstance(result.exception, UsageError), wrong


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "[red]x.keras"
    inputs = keras.Input((16, 16, 1))
    a = keras.layers.Conv2D(2, 3, padding="same", name="a\x1b]0;owned\x07")(inputs)
    b = keras.layers.Conv2D(2, 3, padding="same", name="[bold]:smile:")(keras.layers.MaxPooling2D(2)(a))
    c = keras.layers.Concatenate()([keras.layers.UpSampling2D(2)(b), a])
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(c))
    found = inspect_model(model, path=path)
    assert found.prefixes["encoder"] == ("a\x1b]0;owned\x07",)
    from kerasseg_cli import inspect as module

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setenv("COLUMNS", "300")
        module._show(found)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "[bold]:smile:" in text
    assert "[red]x.keras" in text


def test_ascii_terminals_get_ascii() -> None:
    assert not wants_unicode(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii")))
    assert wants_unicode(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))


def test_inspecting_leaves_the_network_as_it_was() -> None:
    model = build.unet(2)[0]
    freeze(model, "encoder_2")
    before = [(w.path, w.trainable) for w in model.weights], [x.trainable for x in model.layers]
    inspect_model(model, what="conservative")
    assert ([(w.path, w.trainable) for w in model.weights], [x.trainable for x in model.layers]) == before


def blocks_of(**parts: list[str]) -> Blocks:
    """Blocks with layers of these names and nothing else."""

    def block(name: str, names: list[str]) -> Block:
        return Block(name, tuple(SimpleNamespace(name=n, weights=[1]) for n in names), 1, 1)

    return Blocks(
        (block("encoder_1", parts["encoder"]),),
        block("bottleneck", parts["bottleneck"]),
        (block("decoder_1", parts["decoder"]),),
        block("head", parts["head"]),
    )


def test_prefixes_are_runs_that_no_other_part_interrupts() -> None:
    found = layer_prefixes(
        blocks_of(
            encoder=["conv2d", "conv2d_1", "conv2d_2", "conv2d_7", "stem"],
            bottleneck=["conv2d_3"],
            decoder=["conv2d_4", "conv2d_5", "conv2d_6", "conv2d_transpose"],
            head=[],
        )
    )
    assert found == {
        "encoder": ("conv2d .. conv2d_2", "conv2d_7", "stem"),
        "bottleneck": ("conv2d_3",),
        "decoder": ("conv2d_4 .. conv2d_6", "conv2d_transpose"),
        "head": (),
    }


def test_many_names_become_beginnings_that_no_other_part_shares() -> None:
    found = layer_prefixes(
        blocks_of(
            encoder=[f"conv2_block{b}_{kind}" for b in range(4) for kind in ("conv", "bn")] + ["conv1_conv"],
            bottleneck=["conv5_block1_conv"],
            decoder=[f"up_{a}_{b}_conv" for a in "abc" for b in "abc"] + ["conv1"],
            head=["up_z"],
        )
    )
    assert found["encoder"] == ("conv2_*", "conv1_conv")
    assert found["decoder"] == ("up_a_*", "up_b_*", "up_c_*", "conv1")


# ---- convert -------------------------------------------------------------------------------------------------------------


def test_convert_writes_what_plain_keras_opens(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.keras"
    (tmp_path / ".tmp-kerasseg-left").mkdir()  # by a process that was killed
    text = good("convert", plain, out, columns=200)
    assert "all weights equal" in text
    assert "2 x 32 x 32 x 3" in text
    x = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    one, two = (keras.saving.load_model(p, compile=False)(x) for p in (plain, out))
    np.testing.assert_array_equal(one, two)
    assert [x.name for x in tmp_path.iterdir()] == ["out.keras"]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask


def test_convert_overwrites_only_when_told(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.keras"
    out.write_bytes(b"precious")
    result = run("convert", plain, out)
    assert isinstance(result.exception, UsageError)
    assert "--overwrite" in str(result.exception)
    assert out.read_bytes() == b"precious"
    good("convert", plain, out, "--overwrite")
    assert out.read_bytes()[:2] == b"PK"


@pytest.mark.parametrize("name", ["out.h5", "out", "out.keras.txt"])
def test_convert_wants_the_right_ending(plain: Path, tmp_path: Path, name: str) -> None:
    result = run("convert", plain, tmp_path / name)
    assert isinstance(result.exception, UsageError)
    assert ".keras" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_convert_never_onto_itself(plain: Path, tmp_path: Path) -> None:
    before = plain.read_bytes()
    link = tmp_path / "link.keras"
    link.symlink_to(plain)
    for out in (plain, link):
        result = run("convert", plain, out, "--overwrite")
        assert isinstance(result.exception, UsageError)
        assert "over itself" in str(result.exception)
    assert plain.read_bytes() == before


def test_convert_into_no_folder(plain: Path, tmp_path: Path) -> None:
    result = run("convert", plain, tmp_path / "none" / "out.keras")
    assert isinstance(result.exception, UsageError)
    assert "does not exist" in str(result.exception)


def test_convert_says_that_it_may_not_write(plain: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kerasseg.checkpoints.conversion.scratch_folder", refuse)
    result = run("convert", plain, tmp_path / "out.keras")
    assert isinstance(result.exception, KerassegError)
    assert "out.keras: it cannot be written" in str(result.exception)
    assert "no permission to write" in str(result.exception)


def test_convert_names_weights_that_are_no_numbers(tmp_path: Path) -> None:
    model = build.unet(1)[0]
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan))
    model.save(tmp_path / "nan.keras")
    result = run("convert", tmp_path / "nan.keras", tmp_path / "out.keras")
    assert isinstance(result.exception, CheckpointError)
    assert "found NaN in" in str(result.exception)
    assert not (tmp_path / "out.keras").exists()


def test_convert_keeps_what_another_process_has_written_meanwhile(plain: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out.keras"
    monkeypatch.setattr("kerasseg.checkpoints.conversion._difference", lambda *_: float(out.write_bytes(b"other")))
    result = run("convert", plain, out)
    assert isinstance(result.exception, UsageError)
    assert out.read_bytes() == b"other"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("when", ["saving", "comparing"])
def test_a_failed_conversion_leaves_what_was_there(plain: Path, tmp_path: Path, monkeypatch, when: str) -> None:
    out = tmp_path / "out.keras"
    out.write_bytes(b"precious")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    if when == "saving":
        monkeypatch.setattr(keras.Model, "save", fail)
        expected: type[Exception] = KerassegError
    else:
        read = keras.saving.load_model

        def other(path, **options):
            model = read(path, **options)
            if "plain" not in str(path):
                model.weights[-1].assign(model.weights[-1] + 1)
            return model

        monkeypatch.setattr("kerasseg.checkpoints.conversion.keras.saving.load_model", other)
        expected = CheckpointError
    result = run("convert", plain, out, "--overwrite")
    assert isinstance(result.exception, expected)
    assert out.read_bytes() == b"precious"
    assert [x.name for x in tmp_path.iterdir()] == ["out.keras"]
