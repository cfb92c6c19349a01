"""Convert a checkpoint of any supported kind to a Keras 3 file: `convert_checkpoint`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import Provenance, attach, provenance, public_name
from kerasseg_tfrecords.errors import CheckpointError, KerassegError, UsageError
from kerasseg_tfrecords.text import without_credentials

__all__ = ["Conversion", "convert_checkpoint"]

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
        """Return the result as plain JSON values."""
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
    seed: int = 0,
) -> Conversion:
    """Convert a checkpoint to a `.keras` file that `keras.saving.load_model` opens without kerasseg.

    The file is written under a temporary name, opened again, compared with the original on random input and then moved to
    `out`, so `out` is never incomplete.

    Args:
        source: Any checkpoint that `open_checkpoint` accepts.
        out: Output file, ending in `.keras`.
        overwrite: Whether to replace an existing `out`.
        architecture: See `open_checkpoint`.
        allow_partial: See `open_checkpoint`.
        seed: Seed of the random input.

    Raises:
        UsageError: `out` has another suffix, already exists, is the source, or its folder does not exist.
        CheckpointError: `source` cannot be opened or gives non-finite outputs, or the written file gives other outputs.
        KerassegError: `out` cannot be written.
    """
    target = Path(out)
    _check_target(source, target, overwrite=overwrite)
    model = open_checkpoint(source, architecture=architecture, allow_partial=allow_partial)
    record = provenance(model)
    if record is not None:
        # The file may be shared, so it must not name local folders.
        attach(model, dataclasses.replace(record, path=public_name(record.path), file=None))
    try:
        inputs, difference, equal, size = _write(model, source, target, seed)
    except OSError as error:
        raise KerassegError(
            "it cannot be written, and nothing was changed",
            path=target,
            found=error.strerror or error,
            remedy="Check the permissions and free space of its folder, or write elsewhere.",
        ) from error
    return Conversion(
        source=without_credentials(str(source)),
        out=target,
        bytes=size,
        parameters=model.count_params(),
        provenance=provenance(model),
        compared=tuple(x.shape for x in inputs),
        largest_difference=difference,
        weights_equal=equal,
    )


def _write(
    model: keras.Model, source: str | Path, target: Path, seed: int
) -> tuple[list[np.ndarray[Any, Any]], float, bool, int]:
    """Write, reopen, compare and move into place; return the random input, the difference, equality and the size."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=".keras", dir=target.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        model.save(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        again = keras.saving.load_model(draft, compile=False)
        inputs = _random_inputs(model, seed)
        expected, found = _outputs(model, inputs), _outputs(again, inputs)
        if not all(np.isfinite(x).all() for x in expected):
            raise CheckpointError(
                "the opened network gives NaN or infinite outputs, so nothing was written",
                path=source,
                found="NaN or infinite outputs on random input",
                remedy="Its weights are damaged, as by a training that diverged: take an earlier checkpoint.",
            )
        difference = max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(expected, found, strict=True))
        largest = max(float(np.max(np.abs(a), initial=0.0)) for a in expected)
        # `not <=` rather than `>`, so that NaN fails the check.
        if not difference <= _LIMIT * max(1.0, largest):
            raise CheckpointError(
                "the written network does not give the outputs of the opened one, so nothing was written",
                path=source,
                found=f"difference {difference:g}",
                expected=f"at most {_LIMIT * max(1.0, largest):g}",
            )
        equal = len(model.weights) == len(again.weights) and all(
            np.array_equal(_numpy(a), _numpy(b)) for a, b in zip(model.weights, again.weights, strict=True)
        )
        # mkstemp creates private files; give this one the permissions of any other new file.
        draft.chmod(0o666 & ~_umask())
        size = draft.stat().st_size
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return inputs, difference, equal, size


def _check_target(source: str | Path, target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".keras":
        raise UsageError(
            "a Keras 3 file has the ending .keras",
            path=target,
            found=target.suffix or "no ending",
            remedy=f"Write to {target.with_suffix('.keras').name}.",
        )
    if not target.parent.is_dir():
        raise UsageError("the folder does not exist", path=target.parent, remedy="Make it first.")
    if target.is_dir():
        raise UsageError("is a folder", path=target, expected="the name of a file")
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise UsageError(
            "the checkpoint would be written over itself", path=target, remedy="Give another name to the output."
        )
    if target.exists() and not overwrite:
        raise UsageError("exists already", path=target, remedy="Replace it with --overwrite, or give another name.")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _random_inputs(model: keras.Model, seed: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    shapes = [tuple(n or _OPEN_SIZE for n in tensor.shape[1:]) for tensor in model.inputs]
    return [random.random((2, *shape), dtype=np.float32) for shape in shapes]


def _outputs(model: keras.Model, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    made = model(inputs[0] if len(inputs) == 1 else inputs, training=False)
    return [_numpy(x) for x in keras.tree.flatten(made)]


def _numpy(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(x), dtype=np.float64)
