"""Which files of a repository make up its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Choice", "choose"]

_UNPACKED = ("config.json", "metadata.json", "model.weights.h5")
_SAVED_MODEL = ("saved_model.pb", "keras_metadata.pb", "fingerprint.pb", "metadata.json", "variables/")


@dataclass(frozen=True)
class Choice:
    """A checkpoint inside a repository.

    Attributes:
        entry: The file or folder to open, relative to the repository; `.` for the repository itself.
        files: The files to fetch for it.
    """

    entry: str
    files: tuple[str, ...]


def choose(files: Sequence[str], inside: str | None, name: str) -> Choice:
    """The checkpoint among the files of a repository: a `.keras` file, else a SavedModel, else an HDF5 file.

    Args:
        files: All files of the repository, with forward slashes.
        inside: The file or folder that the user asked for, if any.
        name: The repository, for messages.

    Raises:
        CheckpointError: If there is none, or several that nothing tells apart.

    Example:
        >>> choose(["README.md", "saved_model.pb", "variables/variables.index", "model.h5"], None, "me/unet")
        Choice(entry='.', files=('saved_model.pb', 'variables/variables.index'))
        >>> choose(["README.md", "unet.keras", "old/unet.keras"], None, "me/unet").entry
        'unet.keras'
    """
    files = [f for f in files if ".." not in PurePosixPath(f).parts and not f.startswith("/")]
    if inside is not None and inside in files:
        return Choice(inside, (inside,))
    candidates = files if inside is None else [f for f in files if f.startswith(f"{inside}/")]
    for find in (_archives, _unpacked, _saved_models, _hdf5, _weights):
        found = list(find(candidates))
        depth = min((_depth(c.entry) for c in found), default=0)
        found = [c for c in found if _depth(c.entry) == depth]
        if len(found) > 1:
            named = [c for c in found if PurePosixPath(c.entry).stem == "model"]
            if len(named) != 1:
                raise CheckpointError(
                    "the repository holds several checkpoints",
                    path=name,
                    found=", ".join(c.entry for c in found[:8]),
                    remedy=f"Name one: {name}/{found[0].entry}",
                )
            found = named
        if found:
            return found[0]
    shown = ", ".join(files[:10]) + (f" and {len(files) - 10} more" if len(files) > 10 else "")
    raise CheckpointError(
        "the repository holds no Keras checkpoint" + (f" under {inside}" if inside else ""),
        path=name,
        found=shown or "nothing",
        expected="a .keras or .h5 file or a SavedModel",
        remedy=_advice(files),
    )


def _depth(entry: str) -> int:
    return len(PurePosixPath(entry).parts)


def _archives(files: Sequence[str]) -> Iterable[Choice]:
    return (Choice(f, (f,)) for f in files if f.endswith(".keras"))


def _unpacked(files: Sequence[str]) -> Iterable[Choice]:
    for f in files:
        folder = PurePosixPath(f).parent
        parts = tuple(str(folder / part) for part in _UNPACKED)
        if f == parts[-1] and set(parts) <= set(files):
            yield Choice(str(folder), parts)


def _saved_models(files: Sequence[str]) -> Iterable[Choice]:
    for f in files:
        if PurePosixPath(f).name == "saved_model.pb":
            folder = PurePosixPath(f).parent
            prefix = "" if str(folder) == "." else f"{folder}/"
            own = [g for g in files if g.startswith(tuple(prefix + part for part in _SAVED_MODEL))]
            yield Choice(str(folder), tuple(own))


def _hdf5(files: Sequence[str]) -> Iterable[Choice]:
    return (Choice(f, (f,)) for f in files if f.endswith((".h5", ".hdf5")) and not f.endswith(".weights.h5"))


def _weights(files: Sequence[str]) -> Iterable[Choice]:
    return (Choice(f, (f,)) for f in files if f.endswith(".weights.h5"))


def _advice(files: Sequence[str]) -> str | None:
    if any(f.endswith((".bin", ".pt", ".pth", ".ckpt", ".safetensors")) for f in files):
        return "Its weights are for another library (PyTorch); kerasseg opens what Keras wrote."
    if any(f.endswith((".onnx", ".tflite")) for f in files):
        return "It holds an export for inference; kerasseg needs the Keras network that it was made of."
    return None
