"""Imports run downwards only, and heavy libraries are loaded only where the design allows."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSES = {"kerasseg_cli": ROOT / "cli", "kerasseg": ROOT, "kerasseg_tfrecords": ROOT / "tfrecords"}
ABOVE = {"kerasseg_tfrecords": {"kerasseg", "kerasseg_cli"}, "kerasseg": {"kerasseg_cli"}, "kerasseg_cli": set[str]()}
TENSORFLOW_ALLOWED = {
    "kerasseg_tfrecords.schema",
    "kerasseg_tfrecords.shards",
    "kerasseg.pipeline",
    "kerasseg.training.datasets",  # other people's tf.data
    "kerasseg.training.devices",
    "kerasseg.training.engine",
    "kerasseg.training.fused_batchnorm",
    "kerasseg.training.memory",
    "kerasseg.training.session",
    "kerasseg.training.tensorboard",  # event files are TensorFlow's records of its own messages
    "kerasseg.checkpoints.savedmodel",
    "kerasseg.export.intensity_graph",
    "kerasseg.export.litert_format",
    "kerasseg.export.mask_graph",
    "kerasseg.export.savedmodel_format",
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    base = HOUSES[package]
    for path in sorted((base / package).rglob("*.py")):
        yield ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere in it, inside functions and type-checking blocks too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


EVERY = [(package, name, path) for package in HOUSES for name, path in modules(package)]


@pytest.mark.parametrize(("package", "name", "path"), EVERY, ids=[name for _, name, _ in EVERY])
def test_imports_run_downwards(package: str, name: str, path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & ABOVE[package]
    if name not in TENSORFLOW_ALLOWED:
        assert "tensorflow" not in roots
    if package == "kerasseg_tfrecords":
        assert "keras" not in roots


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    import tensorflow.io\n    from keras import ops\n")
    assert imported(file) == {"tensorflow.io", "keras"}


HEAVY = {"tensorflow", "keras", "scipy", "matplotlib", "sklearn", "cv2", "h5py", "joblib", "numpy", "pydantic"}


def loaded_by(python: str, environment: dict[str, str], code: str) -> set[str]:
    code += "\nimport sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


HELP = """
import sys
from kerasseg_cli.app import app
try:
    app(["--help"])
except SystemExit as stop:
    assert stop.code == 0
"""


def test_help_loads_nothing_heavy(python: str, child_environment: dict[str, str]) -> None:
    assert not loaded_by(python, child_environment, HELP) & HEAVY


def test_importing_the_libraries_loads_nothing_heavy(python: str, child_environment: dict[str, str]) -> None:
    assert not loaded_by(python, child_environment, "import kerasseg, kerasseg_tfrecords") & HEAVY


def test_workers_load_neither_tensorflow_nor_keras(python: str, child_environment: dict[str, str]) -> None:
    code = "import kerasseg_tfrecords.spool, kerasseg_tfrecords.sources.figshare, kerasseg_tfrecords.sources.pairs"
    loaded = loaded_by(python, child_environment, code)
    assert "cv2" in loaded
    assert not loaded & {"tensorflow", "keras", "matplotlib", "sklearn"}


@pytest.mark.parametrize("package", ["kerasseg", "kerasseg_tfrecords"])
def test_every_public_name_exists(package: str) -> None:
    import importlib

    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(dir(module)) == set(module.__all__)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = module.nothing_of_that_name
