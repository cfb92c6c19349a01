"""Imports run downwards only, and heavy libraries are loaded only where the design allows."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSES = {"kerasseg_cli": ROOT / "cli", "kerasseg": ROOT, "kerasseg_tfrecords": ROOT / "tfrecords"}
# The order of `docs/contributing`: a room imports only from rooms below it, and modules of one room in no circle.
ORDER = (
    "kerasseg_cli",
    "kerasseg",
    "kerasseg.workflows",
    "kerasseg.app",
    "kerasseg.prediction",
    "kerasseg.training",
    "kerasseg.export",
    "kerasseg.report",
    "kerasseg.tuning",
    "kerasseg.evaluation",
    "kerasseg.models",
    "kerasseg.checkpoints",
    "kerasseg.phantom",
    "kerasseg.data",
    "kerasseg.runs",
    "kerasseg.architectures",
    "kerasseg.metrics",
    "kerasseg.losses",
    "kerasseg.optimizers",
    "kerasseg.callbacks",
    "kerasseg.postprocessing",
    "kerasseg.catalogue",
    "kerasseg.interrupts",
    "kerasseg.recipe",
    "kerasseg_tfrecords",
    "kerasseg_tfrecords.conversion",
    "kerasseg_tfrecords.checks",
    "kerasseg_tfrecords.records",
    "kerasseg_tfrecords.splitting",
    "kerasseg_tfrecords.sources",
    "kerasseg_tfrecords.formats",
    "kerasseg_tfrecords.intensity",
    "kerasseg_tfrecords.slices",
    "kerasseg_tfrecords.classes",
    "kerasseg_tfrecords.cluster",
    "kerasseg_tfrecords.workers",
    "kerasseg_tfrecords.isolation",
    "kerasseg_tfrecords.storage",
    "kerasseg_tfrecords.download",
    "kerasseg_tfrecords.documents",
    "kerasseg_tfrecords.validation",
    "kerasseg_tfrecords.tables",
    "kerasseg_tfrecords.files",
    "kerasseg_tfrecords.errors",
    "kerasseg_tfrecords.text",
    "kerasseg_tfrecords._lazy",
    "kerasseg_tfrecords._version",
)
OLD_HOMES = {"kerasseg.augment", "kerasseg.schedule"}
"""Modules that stay for files of version 0.1, which name them."""
TENSORFLOW_ALLOWED = {
    "kerasseg_tfrecords.records.parsing",
    "kerasseg.data.tf_data",
    "kerasseg.training.tf_datasets",  # other people's tf.data
    "kerasseg.training.engine",
    "kerasseg.training.batchnorm",
    "kerasseg.training.devices",
    "kerasseg.training.recomputation",
    "kerasseg.workflows.train",
    "kerasseg.training.tensorboard",  # event files are TensorFlow's records of its own messages
    "kerasseg.checkpoints.savedmodel.open",
    "kerasseg.export.savedmodel_format",
    "kerasseg.checkpoints.savedmodel.bundle",
    "kerasseg.checkpoints.savedmodel.messages",
    "kerasseg.checkpoints.savedmodel.parity",
    "kerasseg.export.serving",
}


def modules() -> Iterator[tuple[str, Path]]:
    for package, base in HOUSES.items():
        for path in sorted((base / package).rglob("*.py")):
            yield ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere in it, inside functions and type-checking blocks too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= inner or {node.module or ""}
    return names


def room(module: str) -> str:
    """The room of a module of ours: its package, or the folder or module in it."""
    parts = module.split(".")
    return parts[0] if parts[0] == "kerasseg_cli" else ".".join(parts[:2])


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def test_every_module_has_its_place_in_the_order() -> None:
    assert {room(name) for name in MODULES} - {"kerasseg_cli.__main__"} == set(ORDER) | OLD_HOMES


def test_imports_run_downwards() -> None:
    upward = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other in others & set(MODULES)
        if name not in OLD_HOMES and room(name) != room(other) and ORDER.index(room(name)) > ORDER.index(room(other))
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: others & set(MODULES) for name, others in IMPORTS.items()}
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, which names the modules


def test_tensorflow_and_keras_are_imported_where_the_design_allows() -> None:
    roots = {name: {module.split(".")[0] for module in others} for name, others in IMPORTS.items()}
    assert {name for name in roots if "tensorflow" in roots[name]} == TENSORFLOW_ALLOWED
    assert [name for name in roots if name.startswith("kerasseg_tfrecords") and "keras" in roots[name]] == []


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    import tensorflow.io\n    from keras import ops\n")
    assert imported(file) == {"tensorflow.io", "keras"}


def test_public_names_are_listed_in_the_stubs_alone() -> None:
    lists = [name for name, path in MODULES.items() if "\n__all__" in path.read_text()]
    assert lists == []


def code_lines(function: ast.FunctionDef) -> int:
    """Number of lines of a function, without its signature and docstring."""
    code = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (code[-1].end_lineno or 0) - code[0].lineno + 1 if code else 0


def test_functions_have_at_most_80_lines_of_code() -> None:
    long = {
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and code_lines(node) > 80
    }
    assert long <= {"kerasseg.app.build_page"}  # it lists the widgets of the page, and what each does


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


def test_preparing_and_verifying_load_neither_tensorflow_nor_keras(
    python: str, child_environment: dict[str, str]
) -> None:
    names = (
        "conversion.staging",
        "sources.figshare",
        "sources.pairs",
        "records.schema",
        "records.shards",
        "checks.shards",
    )
    code = "import " + ", ".join(f"kerasseg_tfrecords.{name}" for name in names)
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
