"""What `import kerasseg` promises: its names, their descriptions, their types, and that it does nothing else."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import kerasseg
import kerasseg_tfrecords
from test_examples import MODULES

ROOT = Path(__file__).resolve().parents[1]

# A name that comes or goes is a decision, and is written down here as well.
NAMES = [
    "BadInputError",
    "Block",
    "Blocks",
    "CheckpointError",
    "ClassScores",
    "DataError",
    "DecayedAdam",
    "DiceBCELoss",
    "DiceScore",
    "EvaluationData",
    "EvaluationResult",
    "ExportMetadata",
    "Exported",
    "FetchedDataset",
    "FineTuned",
    "FreezeReport",
    "IntegrityReport",
    "Interval",
    "IoU",
    "KerassegError",
    "Manifest",
    "MaskRule",
    "Observer",
    "PlateauRule",
    "PlateauSchedule",
    "PlateauState",
    "Precision",
    "PredictionReport",
    "PrepareOptions",
    "Problem",
    "Provenance",
    "Reading",
    "Recall",
    "Record",
    "SafeAugmentation",
    "Shares",
    "Slice",
    "SliceBatches",
    "SliceScores",
    "SoftDice",
    "SourceOptions",
    "SurfaceDistances",
    "ThresholdSweep",
    "TrainingData",
    "UsageError",
    "Verification",
    "__version__",
    "apply_rule",
    "bootstrap_interval",
    "check_data",
    "class_weights",
    "detect",
    "dice",
    "ensemble",
    "evaluate",
    "export_model",
    "fetch_dataset",
    "find_blocks",
    "fine_tune",
    "fit_to_task",
    "fold_batchnorm",
    "freeze",
    "hd95",
    "load_manifest",
    "load_split",
    "open_checkpoint",
    "open_tree",
    "paired_interval",
    "parse_batch",
    "phantom_slices",
    "postprocess",
    "predict_files",
    "predict_masks",
    "prepare",
    "provenance",
    "read_item",
    "read_records",
    "restore",
    "set_l2",
    "shard_paths",
    "slice_scores",
    "source_for",
    "split_by_group",
    "split_by_slice",
    "stratified_batches",
    "surface_distances",
    "sweep_thresholds",
    "unet",
    "verify",
    "write_phantoms",
    "write_report",
]
OBJECTS = [name for name in NAMES if name != "__version__"]


def test_the_public_names_are_these() -> None:
    assert kerasseg.__all__ == NAMES
    assert dir(kerasseg) == NAMES


def test_the_names_of_the_house_below_are_among_them() -> None:
    assert set(kerasseg_tfrecords.__all__) <= set(kerasseg.__all__)
    for name in kerasseg_tfrecords.__all__:
        assert getattr(kerasseg, name) is getattr(kerasseg_tfrecords, name)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_name_is_described_with_an_example_that_is_run(name: str) -> None:
    """`test_examples` runs the doctests of `MODULES`; this one sees to it that there is something to run."""
    thing = getattr(kerasseg, name)
    text = inspect.getdoc(thing) or ""
    assert thing.__doc__, "inherited"
    assert ">>> " in text
    assert "+SKIP" not in text
    assert thing.__module__ in MODULES
    if inspect.isfunction(thing):
        assert [parameter for parameter in inspect.signature(thing).parameters if parameter not in text] == []
        assert "Raises:" in text or name in SAFE


SAFE = {
    "check_data",  # reports instead
    "parse_batch",  # inside tf.data: TensorFlow raises
    "provenance",  # None where nothing is recorded
    "restore",
}

SIDE_EFFECTS = """
import json, logging, os, random, signal, sys, threading, warnings
import numpy

def state():
    return {
        "environment": dict(os.environ),
        "warnings": [repr(filter) for filter in warnings.filters],
        "handlers": [repr(handler) for handler in logging.root.handlers],
        "loggers": sorted(logging.root.manager.loggerDict),
        "level": logging.root.level,
        "seed": repr((random.getstate(), numpy.random.get_state())),
        "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "path": list(sys.path),
        "threads": threading.active_count(),
        "files": sorted(os.listdir(".")),
    }

before = state()
import kerasseg  # noqa: E402
kerasseg.__version__, dir(kerasseg)
after = state()
heavy = sorted({"tensorflow", "keras", "jax", "torch", "cv2", "scipy", "sklearn", "h5py", "pydantic"} & set(sys.modules))
print(json.dumps([[name for name in before if before[name] != after[name]], heavy]))
"""


def test_importing_it_changes_nothing(tmp_path: Path, python: str, child_environment: dict[str, str]) -> None:
    """No device touched (TensorFlow is not even there), no seed, handler, filter, variable, signal, thread or file."""
    environment = {**child_environment, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-c", SIDE_EFFECTS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[], []]
    assert done.stderr == ""


CONSUMER = """
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import kerasseg  # noqa: E402
from kerasseg import *  # the star gives the same names

mask = np.zeros((4, 8, 8), bool)

assert_type(kerasseg.__version__, str)
assert_type(kerasseg.dice(mask[0], mask[0]), np.float64 | npt.NDArray[np.float64])
assert_type(kerasseg.hd95(mask[0], mask[0], spacing=(0.5, 0.5)), float)
assert_type(kerasseg.surface_distances(mask[0], mask[0]), kerasseg.SurfaceDistances)
assert_type(kerasseg.surface_distances(mask[0], mask[0]).hd95_or_diagonal, float)
assert_type(kerasseg.bootstrap_interval([0.5, 0.7], ["a", "b"]), kerasseg.Interval)
assert_type(kerasseg.paired_interval([0.5], [0.7]).above_zero, bool)
assert_type(kerasseg.sweep_thresholds(0.5 * mask, mask), kerasseg.ThresholdSweep)
assert_type(kerasseg.MaskRule(threshold=0.4), kerasseg.MaskRule)
assert_type(kerasseg.prepare("data", "shards", kerasseg.PrepareOptions(size=128)), kerasseg.Manifest)
assert_type(kerasseg.verify("shards"), kerasseg.Verification)
assert_type(kerasseg.check_data(["data"]).problems, tuple[kerasseg.Problem, ...])
assert_type(kerasseg.load_manifest("shards").classes, tuple[str, ...])
for record in kerasseg.read_records("shards", "train"):
    assert_type(record, kerasseg.Record)
    assert_type(record.label, int)

model: Any = kerasseg.open_checkpoint(Path("unet.keras"))
assert_type(kerasseg.provenance(model), kerasseg.Provenance | None)
assert_type(kerasseg.find_blocks(model), kerasseg.Blocks)
for block in kerasseg.find_blocks(model):
    assert_type(block, kerasseg.Block)
assert_type(kerasseg.freeze(model, ["encoder_*"]).frozen_blocks, tuple[str, ...])
assert_type(kerasseg.fine_tune(model, "shards", strategy="moderate", epochs=3), kerasseg.FineTuned)
assert_type(kerasseg.evaluate(model, mask, mask), kerasseg.EvaluationResult)
assert_type(kerasseg.PlateauRule(1e-4).begin(), kerasseg.PlateauState)
try:
    kerasseg.fine_tune(model, "shards")
except kerasseg.DataError as error:
    assert_type(error.exit_code, int)
"""

MISTAKES = """
import kerasseg  # noqa: E402

kerasseg.fine_tune(None, "shards", strategy="careful")
kerasseg.fine_tune(None, "shards", learning_rat=1e-4)
kerasseg.PrepareOptions(intensity="log")
kerasseg.dice("a mask")
kerasseg.opne_checkpoint("unet.keras")
"""


@pytest.mark.rest
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_types_hold_from_outside(tmp_path: Path) -> None:
    """`mypy --strict` over somebody else's script, with kerasseg among its installed packages (`py.typed`)."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    for package, base in (("kerasseg", ROOT), ("kerasseg_tfrecords", ROOT / "tfrecords")):
        (packages / package).symlink_to(base / package)
    # Installed beside it: what kerasseg depends on.
    (packages / "others.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    (tmp_path / "consumer.py").write_text(CONSUMER + "".join(f"kerasseg.{name}\n{name}\n" for name in OBJECTS))
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    python = tmp_path / "venv" / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(python),
        "consumer.py",
        "mistakes.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line for line in lines if not line.startswith("mistakes.py")] == [], done.stdout
    assert [int(line.split(":")[1]) for line in lines] == [4, 5, 6, 7, 8], done.stdout + done.stderr
