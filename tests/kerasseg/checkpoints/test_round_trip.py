"""Round trip: every file that kerasseg writes opens again, in a process that knows nothing of the first, and is equal."""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import architectures
from kerasseg import ensemble, fit_to_task, fold_batchnorm, freeze, unet
from kerasseg.checkpoints.provenance import Provenance, attach
from kerasseg.export.serving import write_keras
from kerasseg.losses import DiceBCELoss
from kerasseg_tfrecords.errors import CheckpointError, UsageError

_OPEN_ALL = """
import json, sys
from pathlib import Path
import numpy as np
from kerasseg.checkpoints.open import open_checkpoint
failures = {}
for path in sorted(Path(sys.argv[1]).rglob("*.keras")):
    expected = np.load(path.with_suffix(".npz"))
    try:
        model = open_checkpoint(path)
        found = [np.asarray(y) for y in __import__("keras").tree.flatten(model(expected["x"], training=False))]
        for i, y in enumerate(found):
            np.testing.assert_allclose(y, expected[f"y{i}"], rtol=1e-5, atol=1e-6)
        assert len(found) == len(expected.files) - 1 and len(model.weights) == int(path.stem.rpartition("-")[2])
    except Exception as error:
        failures[path.name] = f"{type(error).__name__}: {error}"
print(json.dumps(failures))
"""


def networks() -> Iterator[tuple[str, keras.Model]]:
    """Every builder of `tests/architectures.py` that needs no argument, and the head shapes that people use."""
    for name, make in vars(architectures).items():
        if not inspect.isfunction(make) or name.startswith("_") or inspect.signature(make).return_annotation != "Built":
            continue
        if all(p.default is not p.empty for p in inspect.signature(make).parameters.values()):
            yield name, make()[0]
    yield "softmax", unet((32, 32, 1), classes=4, filters=2, depth=2, normalization="group")
    x = keras.Input((32, 32, 3))
    body = unet((32, 32, 3), filters=2, depth=1, name="body")(x)
    yield "logits_of_classes", keras.Model(x, keras.layers.Conv2D(3, 1, name="classes")(body))
    yield "tanh", keras.Model(x, keras.layers.Conv2D(1, 1, activation="tanh", name="classes")(body))
    yield "three_sigmoids", keras.Model(x, keras.layers.Conv2D(3, 1, activation="sigmoid", name="classes")(body))
    grey_levels = keras.layers.Rescaling(1 / 255, name="scale")(x)
    yield "rescales", keras.Model(x, keras.layers.Conv2D(1, 1, activation="sigmoid", name="classes")(
        unet((32, 32, 3), filters=2, depth=1, name="body")(grey_levels)
    ))  # fmt: skip


def made_from(name: str, model: keras.Model) -> Iterator[tuple[str, keras.Model]]:
    """What kerasseg makes of a network, one stage after the other."""
    fitted: list[keras.Model] = []
    options: list[dict[str, Any]] = [{}, {"head": "binary", "seed": 1}]
    if any(output.shape[-1] != 1 for output in model.outputs):
        options += [{"foreground": 1}, {"foreground": [1, 2]}]
    for number, option in enumerate(options):
        with contextlib.suppress(CheckpointError, UsageError):  # channels first, no such channel: nothing to save
            made = fit_to_task(model, **option).model
            if made is not model:
                yield f"fitted{number}", made
            fitted.append(made)
    if not fitted:
        return
    best = fitted[0]
    with contextlib.suppress(CheckpointError, UsageError):
        freeze(best, "conservative")
        yield "frozen", best
    yield "folded", fold_batchnorm(best)
    if name in {"unet", "softmax", "three_sigmoids", "squeezed", "rescales"}:  # these stages do not depend on the graph
        yield "ensemble", ensemble([best, keras.models.clone_model(best)])
        shape = (2, *best.input_shape[1:3])
        x = np.random.default_rng(1).random((*shape, best.input_shape[-1]), "float32")
        best.compile(keras.optimizers.Adam(1e-3), DiceBCELoss(), jit_compile=False, run_eagerly=True)
        best.fit(x, np.zeros((*shape, 1), "float32"), epochs=1, verbose=0)
        yield "trained", best


def save(model: keras.Model, folder: Path, name: str) -> None:
    """As kerasseg saves: with provenance, and `model.keras` of an export by the exporter's own function."""
    attach(model, Provenance("first.h5", "00", "Keras 2.3.1", "Keras 2 HDF5"))
    path = folder / f"{name}-{len(model.weights)}.keras"
    if name.endswith(("folded", "ensemble")):
        (folder / "export").mkdir(exist_ok=True)
        write_keras(model, folder / "export")
        (folder / "export" / "model.keras").replace(path)
    else:
        model.save(path)
    shape = (2, *(n or 32 for n in model.inputs[0].shape[1:]))
    x = np.random.default_rng(0).random(shape, "float32")
    y = [np.asarray(value) for value in keras.tree.flatten(model(x, training=False))]
    np.savez(path.with_suffix(".npz"), x=x, **{f"y{i}": value for i, value in enumerate(y)})


@pytest.mark.rest
@pytest.mark.filterwarnings("ignore")
def test_whatever_kerasseg_writes_opens_again_in_a_new_process(
    tmp_path: Path, child_environment: dict[str, str]
) -> None:
    stages: set[str] = set()
    for name, model in networks():
        for stage, made in made_from(name, model):
            stages.add(stage)
            save(made, tmp_path, f"{name}-{stage}")
    assert {"fitted0", "fitted1", "fitted2", "fitted3", "frozen", "folded", "ensemble", "trained"} <= stages
    child = subprocess.run(
        [sys.executable, "-c", _OPEN_ALL, str(tmp_path)],
        env=child_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    failures = json.loads(child.stdout.splitlines()[-1])
    assert failures == {}
