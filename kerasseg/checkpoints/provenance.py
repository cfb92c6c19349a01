"""The origin of an opened network, kept with it through `save`.

The record is part of the model's *build configuration*, which Keras writes into every `.keras` file and ignores when it
loads a functional network. The saved file therefore stays a plain Keras file that `keras.saving.load_model` opens without
kerasseg. The legacy `.h5` format has no such entry and keeps no record.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import file_sha256, read_file
from kerasseg_tfrecords.formats.weights import read_members
from kerasseg_tfrecords.text import without_credentials

if TYPE_CHECKING:
    import keras

_KEY = "kerasseg"
_ATTRIBUTE = "_kerasseg_provenance"
# Records come from untrusted files.
Text = Annotated[str, Field(max_length=4096)]
Texts = Annotated[tuple[Text, ...], Field(max_length=1000)]


@dataclass(frozen=True)
class Provenance:
    """The origin of a network.

    Attributes:
        path: The checkpoint as it was named when first opened: a path, `hf://...` or `https://...`.
        sha256: SHA-256 of that file in hexadecimal; for a folder, see `sha256_of`.
        writer: The program that wrote it, for instance `Keras 3.15.1`, `tf-keras 2.15.0`, `Keras 2.3.1`.
        kind: The kind of checkpoint, for instance `Keras 3 archive` or `SavedModel`.
        translated: What was translated to native Keras 3 layers, one sentence each.
        largest_difference: Largest absolute difference between the outputs of the original and the opened network on
            random input; None if the original was not run.
        changes: Later changes that fitted it to a task, one sentence each.
        intensity: Intensity scaling of its training images (`minmax`, `percentile`, `zscore`), if known.
        kerasseg: The version of kerasseg that opened it.
        file: The saved copy that was opened, if it is not `path` itself.
        file_sha256: SHA-256 of that copy.

    Example:
        >>> record = Provenance("unet.h5", "00", "Keras 2.3.1", "Keras 2 HDF5", translated=("groups=1 dropped",))
        >>> record.writer, record.translated, record.largest_difference
        ('Keras 2.3.1', ('groups=1 dropped',), None)
    """

    path: Text
    sha256: Text
    writer: Text
    kind: Text
    translated: Texts = ()
    largest_difference: Annotated[float | None, Field(strict=True)] = None
    changes: Texts = ()
    intensity: Text | None = None
    kerasseg: Text = __version__
    file: Text | None = None
    file_sha256: Text | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", without_credentials(self.path))
        if self.file is not None:
            object.__setattr__(self, "file", without_credentials(self.file))

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, record: object) -> Provenance | None:
        """Return the record that `to_json` wrote, or None if the value is not a valid one."""
        try:
            return TypeAdapter(cls).validate_python(record) if isinstance(record, Mapping) else None
        except ValidationError:
            return None


def public_name(source: str) -> str:
    """Return a checkpoint's name for shared files: without local folders, user names and passwords.

    Example:
        >>> public_name("/home/ann/nets/unet.keras"), public_name("hf://me/unet@main")
        ('unet.keras', 'hf://me/unet@main')
        >>> public_name("https://ann:secret@example.org/unet.keras?X-Amz-Signature=0")
        'https://example.org/unet.keras'
    """
    return without_credentials(source) if "://" in source else PurePath(source).name or source


def without_folders(model: keras.Model) -> None:
    """Name the checkpoint in the record of a network, if it has one, as in shared files; see `public_name`."""
    if (record := provenance(model)) is not None:
        file = None if record.file is None else public_name(record.file)
        attach(model, dataclasses.replace(record, path=public_name(record.path), file=file))


def provenance(model: keras.Model | str | Path) -> Provenance | None:
    """Return the origin of `model`, or None if none was recorded.

    Args:
        model: A network from `open_checkpoint` or `fit_to_task`, or the path of a `.keras` file that such a network was
            saved to. A network loaded with plain `keras.saving.load_model` has no record; pass its file instead.

    Example:
        >>> import keras
        >>> provenance(keras.Sequential()) is None
        True
    """
    if isinstance(model, str | Path):
        try:
            config = parse_json(read_members(Path(model), ("config.json",))["config.json"])
        except (OSError, KeyError, ValueError, KerassegError):
            return None
        return recorded(config)
    return getattr(model, _ATTRIBUTE, None)


def recorded(config: object) -> Provenance | None:
    """Return the record in the configuration of a `.keras` file, if there is a valid one."""
    build = config.get("build_config") if isinstance(config, Mapping) else None
    return Provenance.from_json(build.get(_KEY)) if isinstance(build, Mapping) else None


def recorded_beside(folder: Path) -> Provenance | None:
    """Return the record that `kerasseg export` wrote beside a SavedModel in `metadata.json`, if there is a valid one."""
    path = folder / "metadata.json"
    try:
        state = parse_json(read_file(path, 1 << 26))
    except (OSError, ValueError):
        return None
    if not isinstance(state, Mapping) or state.get("schema") != "kerasseg-export":
        return None
    return Provenance.from_json(state.get("provenance"))


def attach(model: keras.Model, record: Provenance | None) -> keras.Model:
    """Attach a record, or none, to `model` and return it; every later `model.save("x.keras")` writes the record."""
    setattr(model, _ATTRIBUTE, record)
    inherited = type(model).get_build_config

    def get_build_config() -> dict[str, Any]:
        record = provenance(model)
        return {**(inherited(model) or {}), **({} if record is None else {_KEY: record.to_json()})}

    # On the instance, because a saved subclass could not be opened without kerasseg.
    model.get_build_config = get_build_config
    return model


def copy_provenance(
    old: keras.Model, new: keras.Model, *, changes: tuple[str, ...] = (), **fields: Any
) -> Provenance | None:
    """Copy the record of a network, if it has one, to a network made from it, and return it.

    `changes` are appended to the recorded ones; other fields of `Provenance` are replaced.
    """
    record = provenance(old)
    if record is None:
        return None
    record = dataclasses.replace(record, changes=(*record.changes, *changes), **fields)
    attach(new, record)
    return record


@dataclass(frozen=True)
class OpenedModel:
    """An opened checkpoint: the uncompiled model, and the fields of `Provenance` known at this point."""

    model: keras.Model
    writer: str
    kind: str
    translated: tuple[str, ...] = ()
    largest_difference: float | None = None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file or of a folder's files in hexadecimal.

    The digest of a folder is that of the lines `<sha256>  <relative path>` sorted by path, as printed by
    `find . -type f | sort | xargs sha256sum` without the leading `./`.
    """
    if path.is_dir():
        files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{sha256_of(file)}  {name}\n" for name, file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    return file_sha256(path)
