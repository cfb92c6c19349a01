"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [ROOT, ROOT / "cli", ROOT / "tfrecords"]

# Before anything imports TensorFlow: no start-up chatter, no GPU, the same kernels in every process.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# A deadline measures the machine, not the code.
settings.register_profile("kerasseg", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
settings.load_profile("kerasseg")


def real_data() -> Path:
    """The folder of real slices and checkpoints, which may be absent."""
    return Path(os.environ.get("KERASSEG_REAL_DATA", ROOT.parent / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = real_data()
    if folder.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no real data at {folder}: set KERASSEG_REAL_DATA")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real() -> Path:
    """`KERASSEG_REAL_DATA`; use it with `@pytest.mark.real`."""
    return real_data()


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """Environment for `sys.executable -m ...` children, in which the three packages can be imported from the tree."""
    paths = [str(p) for p in PACKAGES] + [p for p in [os.environ.get("PYTHONPATH", "")] if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "", "COLUMNS": "120"}


@pytest.fixture(scope="session")
def python() -> str:
    return sys.executable


@pytest.fixture(autouse=True)
def _determinism_ends_with_the_test() -> Iterator[None]:
    """A run with --deterministic sets it for the whole process; later tests (XLA, say) must not inherit it."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        if config.is_op_determinism_enabled():
            config.disable_op_determinism()
