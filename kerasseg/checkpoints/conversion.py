"""Convert a checkpoint of any supported kind to a Keras 3 file: `convert_checkpoint`."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import Provenance, provenance, without_folders
from kerasseg_tfrecords.errors import CheckpointError, KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error, scratch_folder
from kerasseg_tfrecords.text import without_credentials

_LIMIT = 1e-5  # tolerance relative to the largest output (float32 rounding)
_OPEN_SIZE = 64  # pixels, for networks without a fixed input size


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        source: The checkpoint, as given.
        out: The written file.
        bytes: Size of the file.
        parameters: Number of parameters.
        provenance: Origin of the network; its `largest_difference` compares the original with the opened network.
        compared: Shapes of the random inputs on which the opened network and the file were compared.
        largest_difference: Largest absolute difference between their outputs.
        weights_equal: Whether all weights are identical.
    """

    source: str
    out: Path
    bytes: int
    parameters: int
    provenance: Provenance | None
    compared: tuple[tuple[int, ...], ...]
    largest_difference: float
    weights_equal: bool

    def to_json(self) -> dict[str, Any]:
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return record | {
            "format": 1,
            "out": str(self.out),
            "provenance": None if self.provenance is None else self.provenance.to_json(),
            "compared": [list(shape) for shape in self.compared],
        }


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    architecture: str | keras.Model | None = None,
    allow_partial: bool = False,
) -> Conversion:
    """Convert a checkpoint to a `.keras` file that `keras.saving.load_model` opens without kerasseg.

    The file is written under a temporary name, opened again, compared with the original on random input and then moved to
    `out`, so `out` is never incomplete.

    Args:
        source: Any checkpoint that `open_checkpoint` accepts.
        architecture: See `open_checkpoint`.
        allow_partial: See `open_checkpoint`.
        out: Output file, ending in `.keras`.
        overwrite: Whether to replace an existing `out`.

    Raises:
        UsageError: `out` has another suffix, already exists, is the source, or its folder does not exist.
        CheckpointError: `source` cannot be opened or gives non-finite outputs, or the written file gives other outputs.
        KerassegError: `out` cannot be written.
    """
    target = Path(out)
    _check_target(source, target, overwrite=overwrite)
    model = open_checkpoint(source, architecture=architecture, allow_partial=allow_partial)
    without_folders(model)  # the file may be shared
    random = np.random.default_rng(0)
    shapes = [(2, *(n or _OPEN_SIZE for n in tensor.shape[1:])) for tensor in model.inputs]
    inputs = [random.random(shape, dtype=np.float32) for shape in shapes]
    try:
        with scratch_folder(target.parent) as folder:
            draft = folder / target.name
            model.save(draft)
            again = keras.saving.load_model(draft, compile=False)
            difference = _difference(model, again, inputs, source)
            equal = len(model.weights) == len(again.weights) and all(
                np.array_equal(_numpy(a), _numpy(b)) for a, b in zip(model.weights, again.weights, strict=True)
            )
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            size = draft.stat().st_size
            _check_target(source, target, overwrite=overwrite)  # another process may have written it meanwhile
            draft.replace(target)
    except OSError as error:
        explained = explain_os_error(error, target)
        if explained.path != str(target):  # Keras' temporary files
            raise explained from error
        what = "it cannot be written, and nothing was changed"
        remedy = "Check the permissions and free space of its folder, or write elsewhere."
        raise KerassegError(what, path=target, found=explained.what, remedy=remedy) from error
    return Conversion(
        source=without_credentials(str(source)),
        out=target,
        bytes=size,
        parameters=model.count_params(),
        provenance=provenance(model),
        compared=tuple(shapes),
        largest_difference=difference,
        weights_equal=equal,
    )


def _difference(model: keras.Model, again: keras.Model, inputs: list[Any], source: str | Path) -> float:
    """Return the largest difference between the outputs of the opened and the written network; refuse a large one."""
    x = inputs[0] if len(inputs) == 1 else inputs
    expected, found = ([_numpy(y) for y in keras.tree.flatten(net(x, training=False))] for net in (model, again))
    if not all(np.isfinite(y).all() for y in expected):
        what = "the opened network gives NaN or infinite outputs, so nothing was written"
        remedy = "Its weights are damaged, as by a training that diverged: take an earlier checkpoint."
        raise CheckpointError(what, path=source, found="NaN or infinite outputs on random input", remedy=remedy)
    difference = max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(expected, found, strict=True))
    limit = _LIMIT * max(1.0, *(float(np.max(np.abs(y), initial=0.0)) for y in expected))
    if not difference <= limit:  # rather than `>`, so that NaN fails the check
        problem = "the written network does not give the outputs of the opened one, so nothing was written"
        raise CheckpointError(problem, path=source, found=f"difference {difference:g}", expected=f"at most {limit:g}")
    return difference


def _check_target(source: str | Path, target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".keras":
        what, found = "a Keras 3 file has the ending .keras", target.suffix or "no ending"
        remedy = f"Write to {target.with_suffix('.keras').name}."
        raise UsageError(what, path=target, found=found, remedy=remedy)
    if not target.parent.is_dir():
        raise UsageError("the folder does not exist", path=target.parent, remedy="Make it first.")
    if target.is_dir():
        raise UsageError("is a folder", path=target, expected="the name of a file")
    if target.exists() and Path(source).exists() and target.samefile(source):
        remedy = "Give another name to the output."
        raise UsageError("the checkpoint would be written over itself", path=target, remedy=remedy)
    if target.exists() and not overwrite:
        raise UsageError("exists already", path=target, remedy="Replace it with --overwrite, or give another name.")


def _numpy(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(x), dtype=np.float64)
