"""The record of where a network came from, through saving, copying and reopening."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kerasseg
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import Provenance, attach, copy_provenance, provenance, sha256_of

FIXTURE = Path(__file__).parents[2] / "fixtures" / "legacy" / "tf2.15.1-unet.keras"


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return open_checkpoint(FIXTURE)


def test_it_names_file_hash_writer_and_what_was_translated(model: keras.Model) -> None:
    record = kerasseg.provenance(model)
    assert record is not None
    assert record.path == str(FIXTURE)
    assert record.sha256 == hashlib.sha256(FIXTURE.read_bytes()).hexdigest()
    assert record.writer == "tf-keras 2.15.0"
    assert record.kerasseg == kerasseg.__version__
    assert record.translated
    assert record.file is None


def test_it_survives_save(model: keras.Model, tmp_path: Path) -> None:
    before = provenance(model)
    assert before is not None
    for number, save in enumerate((model.save, lambda p: keras.saving.save_model(model, p))):
        copy = tmp_path / f"{number}.keras"
        save(copy)
        assert provenance(copy) == before
        again = provenance(open_checkpoint(copy))
        assert again is not None
        assert (again.path, again.sha256, again.writer, again.translated) == (
            before.path,
            before.sha256,
            before.writer,
            before.translated,
        )
        assert again.file == str(copy)
        assert again.file_sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()


def test_keras_callbacks_write_it_too_and_training_does_not_lose_it(tmp_path: Path) -> None:
    model = open_checkpoint(FIXTURE)
    model.compile("sgd", "mse")
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss")
    model.fit(np.zeros((2, 16, 16, 3)), np.zeros((2, 16, 16, 1)), verbose=0, callbacks=[best])
    record = provenance(open_checkpoint(tmp_path / "best.keras"))
    assert record is not None
    assert record.path == str(FIXTURE)


@pytest.mark.rest
@pytest.mark.slow
def test_the_saved_file_is_a_plain_keras_file(model: keras.Model, tmp_path: Path, python: str) -> None:
    model.save(tmp_path / "a.keras")
    assert set(zipfile.ZipFile(tmp_path / "a.keras").namelist()) == {"config.json", "metadata.json", "model.weights.h5"}
    program = "import keras; m = keras.saving.load_model('a.keras'); m.save('b.keras'); print(len(m.layers))"
    result = subprocess.run([python, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert int(result.stdout.split()[-1]) == len(model.layers)


def test_a_sequential_network_keeps_it(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 1)])
    attach(model, Provenance("a", "b", "c", "d"))
    model.save(tmp_path / "s.keras")
    assert keras.saving.load_model(tmp_path / "s.keras").count_params() == 2
    assert provenance(tmp_path / "s.keras") == Provenance("a", "b", "c", "d")


def test_copies_collect_what_was_changed(model: keras.Model) -> None:
    inputs = keras.Input((8, 8, 1))
    other = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    record = copy_provenance(model, other, changes=("grey repeated",), intensity="minmax")
    assert record == provenance(other)
    assert record is not None
    assert record.changes == ("grey repeated",)
    assert record.intensity == "minmax"
    assert provenance(model) != record
    third = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    copied = copy_provenance(other, third, changes=("head replaced",))
    assert copied is not None
    assert copied.changes == ("grey repeated", "head replaced")


def test_unknown_networks_and_files_have_none(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    assert provenance(model) is None
    assert copy_provenance(model, model) is None
    model.save(tmp_path / "m.keras")
    assert provenance(tmp_path / "m.keras") is None
    assert provenance(tmp_path / "missing.keras") is None
    (tmp_path / "text.keras").write_text("no archive")
    assert provenance(tmp_path / "text.keras") is None


texts = st.text(max_size=20)


@given(
    st.builds(
        Provenance,
        path=texts,
        sha256=texts,
        writer=texts,
        kind=texts,
        translated=st.lists(texts, max_size=3).map(tuple),
        largest_difference=st.none() | st.floats(allow_nan=False),
        changes=st.lists(texts, max_size=3).map(tuple),
        intensity=st.none() | texts,
    )
)
def test_the_record_is_json_and_back(record: Provenance) -> None:
    assert Provenance.from_json(json.loads(json.dumps(record.to_json()))) == record


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(
    ["path", "sha256", "writer", "kind", "translated", "largest_difference", "intensity", "changes"]
)


@given(json_values | st.dictionaries(fields, json_values, max_size=8))
def test_a_record_by_anybody_is_valid_or_none(record: object) -> None:
    read = Provenance.from_json(record)
    assert read is None or isinstance(read.path, str)


def test_a_folder_has_a_hash_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "variables" / "x").write_bytes(b"numbers")
    before = sha256_of(tmp_path)
    assert before == sha256_of(tmp_path)
    (tmp_path / "variables" / "x").write_bytes(b"numberz")
    assert sha256_of(tmp_path) != before
