"""Each piece of advice of `kerasseg doctor`, brought about by a staged folder or machine."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluated_runs import write_run
from factories import write_figshare
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.state import StateStore
from kerasseg.workflows import doctor
from kerasseg.workflows.doctor import Finding, examine
from kerasseg.workflows.tune import tune_run
from kerasseg_cli.app import app
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all is well: shards, and a run that is trained and tuned."""
    folder = tmp_path_factory.mktemp("staged")
    raw = write_figshare(folder / "raw", patients=15, slices_each=1, size=32)
    prepare(raw, folder / "shards", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    shutil.rmtree(folder / "raw")
    run = write_run(folder / "runs" / "one", folder / "shards")
    config = json.loads(run.config_file.read_text())
    config["settings"]["shards"] = "shards"
    run.config_file.write_text(json.dumps(config))
    StateStore(run.state_folder).save({"finished": "finished", "epoch": 3}, {})
    (folder / "runs" / "latest").write_text("one\n")
    tune_run(run, shards=folder / "shards")
    return folder


@pytest.fixture
def here(staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, to spoil."""
    shutil.copytree(staged, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def found(folder: Path, topic: str) -> list[Finding]:
    return [finding for finding in examine(folder).findings if finding.topic == topic]


def test_where_all_is_well_it_says_so(here: Path) -> None:
    shown = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0, shown.output
    assert "15 slices in 9 files, all hashes correct" in shown.stdout
    assert "complete: trained, tuned, shards in place" in shown.stdout
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    document = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert document["sound"] is True
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_it_fits_the_terminal(here: Path, columns: int) -> None:
    shown = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert max(map(len, shown.output.splitlines())) <= columns
    assert CliRunner().invoke(app, ["doctor", "--quiet"]).output == ""


# --- shards --------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def one_shard(here: Path) -> Path:
    return sorted((here / "shards").rglob("*.tfrecord"))[0]


@pytest.mark.parametrize(
    ("spoil", "value", "advice", "verdict"),
    [
        (lambda p: flip(one_shard(p)), "its bytes have changed", "kerasseg verify shards", "bad"),
        (lambda p: one_shard(p).unlink(), "missing", "kerasseg verify shards", "bad"),
        (lambda p: (p / "shards" / "splits.csv").write_text("x"), "splits.csv: has changed", "verify", "bad"),
        (lambda p: (p / "shards" / "manifest.json").write_text("{"), "manifest is damaged", "kerasseg prepare", "bad"),
        (lambda p: (p / "shards" / "manifest.json").unlink(), "not a shard directory", "kerasseg prepare", "bad"),
        (lambda p: shutil.rmtree(p / "shards"), "none in this folder", "kerasseg prepare data/", "note"),
    ],
)
def test_shards_that_are_not_sound(here: Path, spoil: Any, value: str, advice: str, verdict: str) -> None:
    spoil(here)
    [finding] = [one for one in found(here, "shards") if one.verdict != "ok"]
    assert value in finding.value
    assert advice in finding.advice
    assert finding.verdict == verdict
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == (3 if verdict == "bad" else 0)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda m: m["split"].update(patients_on_both_sides=4), "--split-by patient"),
        (lambda m: m["split"].update(slices_without_patient=4), "--patient-pattern"),
    ],
)
def test_splits_that_may_leak(here: Path, change: Any, advice: str) -> None:
    edit(here / "shards" / "manifest.json", change)
    assert advice in found(here, "shards")[-1].advice


# --- runs ----------------------------------------------------------------------------------------------------------------


def run_of(here: Path) -> RunDirectory:
    return RunDirectory(here / "runs" / "one")


def unfinished(here: Path) -> None:
    StateStore(run_of(here).state_folder).save({"finished": "", "epoch": 2}, {})


def unreadable_states(here: Path) -> None:
    for path in run_of(here).state_folder.glob("*.npz"):
        path.write_bytes(b"half")


def other_shards(here: Path) -> None:
    edit(here / "shards" / "manifest.json", lambda m: m.update(fingerprint="0" * 64))


@pytest.mark.rest
@pytest.mark.parametrize(
    ("spoil", "value", "advice", "verdict"),
    [
        (lambda p: run_of(p).config_file.write_text("{}"), "is damaged", "Start a new run", "bad"),
        (lambda p: run_of(p).model_file.unlink(), "model.keras is missing", "Restore it", "bad"),
        (lambda p: flip(run_of(p).model_file), "model.keras is damaged", "Restore it", "bad"),
        (lambda p: run_of(p).baseline_file.write_bytes(b"PK"), "baseline.keras is damaged", "Restore it", "bad"),
        (unreadable_states, "training state is damaged", "--checkpoint", "bad"),
        (unfinished, "interrupted after epoch 2", "kerasseg train --resume --out", "warning"),
        (lambda p: run_of(p).threshold_file.unlink(), "threshold not tuned yet", "kerasseg tune-threshold", "note"),
        (
            lambda p: shutil.copy(run_of(p).baseline_file, run_of(p).model_file),
            "tuned for other weights",
            "kerasseg tune-threshold",
            "warning",
        ),
        (lambda p: run_of(p).threshold_file.write_text("{}"), "threshold.json", "kerasseg tune-threshold", "bad"),
        (other_shards, "are not those it was trained on", "--shards", "warning"),
        (lambda p: shutil.rmtree(p / "shards"), "its shards are not at", "--shards", "note"),
        (lambda p: (p / "runs" / "latest").write_text("gone\n"), "gone does not exist", "Give a run", "warning"),
        (lambda p: (p / "runs" / "latest").unlink(), "not set", "Give a run", "warning"),
        (lambda p: shutil.rmtree(p / "runs"), "none in this folder", "kerasseg train", "note"),
    ],
)
def test_runs_that_are_not_sound(here: Path, spoil: Any, value: str, advice: str, verdict: str) -> None:
    spoil(here)
    [finding] = [one for one in found(here, "runs") if one.verdict != "ok"]
    assert value in finding.value
    assert advice in finding.advice
    assert finding.verdict == verdict
    assert examine(here).data_bad is (verdict == "bad")


def test_a_run_that_is_being_trained(here: Path) -> None:
    unfinished(here)
    with (here / "runs" / "one" / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert found(here, "runs")[0].value == "is being trained now"


# --- the machine ---------------------------------------------------------------------------------------------------------


def named(folder: Path, name: str) -> Finding:
    return next(finding for finding in examine(folder).findings if finding.name == name)


def test_supported_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    stated = {entry.split(">=")[0]: entry.split(">=")[1] for entry in project["dependencies"]}
    stated["python"] = project["requires-python"].removeprefix(">=")
    assert {name: stated[name] for name in doctor.SUPPORTED} == doctor.SUPPORTED


def test_versions_that_are_too_old_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"python": "3.9.1", "keras": "3.9.2", "tensorflow": None, "numpy": "1.26.0", "h5py": "3.14"}
    monkeypatch.setattr(doctor, "_installed", lambda name: installed.get(name, "99"))
    assert "new environment with Python 3.11" in named(tmp_path, "python").advice
    assert named(tmp_path, "keras") == Finding(
        "versions", "keras", "3.9.2, older than 3.15", "warning", "pip install --upgrade 'keras>=3.15'"
    )
    missing = named(tmp_path, "tensorflow")
    assert (missing.verdict, missing.advice) == ("bad", "pip install 'tensorflow>=2.18'")
    assert named(tmp_path, "numpy").verdict == named(tmp_path, "h5py").verdict == "ok"
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_extras_are_listed_with_the_command_that_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    stated = project["optional-dependencies"]
    assert {*doctor.EXTRAS, "gpu"} == set(stated)
    needed = {entry.split(">=")[0] for entry in project["dependencies"]}
    for extra, (_, package) in doctor.EXTRAS.items():
        assert package in {entry.split(">=")[0] for entry in stated[extra]} - needed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "gradio" else "9.1")
    assert named(tmp_path, "[app]") == Finding(
        "extras", "[app]", "web page; not installed: pip install 'kerasseg[app]'", "note"
    )
    assert named(tmp_path, "[mlflow]").value == "tracking; mlflow 9.1"
    assert not examine(tmp_path).installation_bad


def test_little_memory_and_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: (8e9, 2e9))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    memory, disk = named(tmp_path, "memory"), named(tmp_path, "disk")
    assert (memory.verdict, memory.value) == ("warning", "2.0 of 8.0 GB available")
    assert "--batch-size" in memory.advice
    assert (disk.verdict, disk.value) == ("warning", "1.0 GB free")


def test_processors_are_counted_where_the_system_has_no_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert named(tmp_path, "processors").value == str(os.cpu_count())


def test_a_container_has_the_memory_of_its_limit() -> None:
    total, available = doctor._memory()
    assert 0 < available <= total


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor, "_nvidia", lambda: ["Tesla T4 (14 of 15 GiB free)"])
    unseen = named(tmp_path, "GPU")
    assert (unseen.verdict, "kerasseg[gpu]" in unseen.advice) == ("warning", True)
    monkeypatch.setattr("kerasseg.training.devices.gpu_names", lambda: ["Tesla T4"])
    monkeypatch.setattr("kerasseg.training.devices.compute_capability", lambda: (7, 5))
    assert named(tmp_path, "GPU").value == "Tesla T4; Tesla T4 (14 of 15 GiB free)"
    assert named(tmp_path, "precision").value.startswith("mixed_float16: ")


def test_a_tensorflow_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libtensorflow_cc.so.2").write_bytes(b"half")
    monkeypatch.setattr(doctor, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    broken = named(tmp_path, "TensorFlow")
    assert (broken.verdict, "libtensorflow_cc.so.2" in broken.value) == ("bad", True)
    assert examine(tmp_path).installation_bad

    def fail() -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor, "_nvidia", lambda: ["Tesla T4 (14 of 15 GiB free)"])
    monkeypatch.setattr("kerasseg.training.devices.gpu_names", fail)
    assert "libcudart" in named(tmp_path, "TensorFlow").value


@pytest.mark.parametrize(
    ("variable", "value", "shown", "advice"),
    [
        ("TF_CONFIG", "{", "cannot be read", "Unset it"),
        ("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {}}', "2 machines", "waits for all"),
        ("CUDA_VISIBLE_DEVICES", "-1", "'-1'", "hides all GPUs"),
        ("CUDA_VISIBLE_DEVICES", "1", "'1'", "Other GPUs are hidden"),
    ],
)
def test_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shown: str, advice: str
) -> None:
    monkeypatch.setenv(variable, value)
    finding = named(tmp_path, variable)
    assert shown in finding.value
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("backend", "order", "words"),
    [("jax", "channels_last", "unset KERAS_BACKEND"), ("tensorflow", "channels_first", "channels_last")],
)
def test_backends_that_commands_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, order: str, words: str
) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(json.dumps({"backend": backend, "image_data_format": order}))
    finding = named(tmp_path, "Keras backend")
    assert (finding.verdict, words in finding.advice) == ("bad", True)
