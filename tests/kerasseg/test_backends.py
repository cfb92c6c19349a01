"""The backend-neutral parts give on JAX what they give on TensorFlow."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

PROBE = "tests/kerasseg/backend_probe.py"


@pytest.mark.rest
def test_jax_equals_tensorflow(tmp_path, child_environment):
    # KERASSEG_JAX_PYTHON names an interpreter that has JAX, where this one has not.
    other = os.environ.get("KERASSEG_JAX_PYTHON")
    if other is None and importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    results = {}
    for backend, program in (("tensorflow", sys.executable), ("jax", other or sys.executable)):
        target = tmp_path / f"{backend}.npz"
        environment = {**child_environment, "KERAS_BACKEND": backend}
        done = subprocess.run(
            [program, PROBE, str(target)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        results[backend] = dict(np.load(target))
        assert str(results[backend].pop("backend")) == backend
    assert results["tensorflow"].keys() == results["jax"].keys()
    for name, expected in results["tensorflow"].items():
        tolerance = 1e-4 if name == "augmented" else 2e-5
        if name == "augmented_masks":
            assert np.mean(results["jax"][name] != expected) < 1e-3
            continue
        np.testing.assert_allclose(results["jax"][name], expected, atol=tolerance, rtol=0, err_msg=name)
