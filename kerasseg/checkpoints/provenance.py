"""Where an opened network came from, kept with it through `save`.

The record rides in the model's *build configuration*: Keras writes that entry into every `.keras` file and does not read
it back for a network that is built already, as functional networks are. So the saved file stays a plain Keras file, which
`keras.saving.load_model` opens without kerasseg, and kerasseg finds its record there again. The legacy `.h5` format has
no such place: what is saved to it keeps no record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import keras

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.text import without_credentials

__all__ = [
    "OpenedModel",
    "Provenance",
    "attach",
    "copy_provenance",
    "provenance",
    "public_name",
    "recorded",
    "recorded_beside",
    "sha256_of",
]

_KEY = "kerasseg"
_ATTRIBUTE = "_kerasseg_provenance"
_LONGEST = 4096  # characters of one recorded text: a record is read from files of strangers
_MOST = 1000  # entries of one recorded list


@dataclass(frozen=True)
class Provenance:
    """Where a network came from.

    Attributes:
        path: The checkpoint as the user named it when it was first opened: a path, `hf://...` or `https://...`.
        sha256: SHA-256 of that file in hexadecimal; of a folder, that of its files (see `kerasseg.checkpoints.provenance`).
        writer: What wrote it, for instance `Keras 3.15.1`, `tf-keras 2.15.0`, `Keras 2.3.1`.
        kind: What it is, for instance `Keras 3 archive` or `SavedModel`.
        translated: What had to be translated to make native Keras 3 layers of it, one sentence each.
        largest_difference: The largest absolute difference between the outputs of the original and the opened network
            on random input; None where the original cannot be run beside it.
        changes: What was changed afterwards to fit it to a task, one sentence each.
        intensity: The rule by which its training images were scaled (`minmax`, `percentile`, `zscore`), where known.
        kerasseg: The version of kerasseg that opened it.
        file: The saved copy that was opened, where that is not `path` itself; None otherwise.
        file_sha256: SHA-256 of that copy.

    Example:
        >>> record = Provenance("unet.h5", "00", "Keras 2.3.1", "Keras 2 HDF5", translated=("groups=1 dropped",))
        >>> record.writer, record.translated, record.largest_difference
        ('Keras 2.3.1', ('groups=1 dropped',), None)
    """

    path: str
    sha256: str
    writer: str
    kind: str
    translated: tuple[str, ...] = ()
    largest_difference: float | None = None
    changes: tuple[str, ...] = ()
    intensity: str | None = None
    kerasseg: str = __version__
    file: str | None = None
    file_sha256: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", without_credentials(self.path))
        if self.file is not None:
            object.__setattr__(self, "file", without_credentials(self.file))

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; `from_json` reads it back.

        >>> p = Provenance("unet.h5", "00", "Keras 2.3.1", "Keras 2 HDF5", translated=("groups=1 dropped",))
        >>> Provenance.from_json(p.to_json()) == p
        True
        """
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, record: object) -> Provenance | None:
        """The record that `to_json` wrote, or None where it is not one: files are written by anybody."""
        if not isinstance(record, Mapping):
            return None
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in record:
                continue
            value = record[field.name]
            if field.name in {"translated", "changes"}:
                if not isinstance(value, list) or len(value) > _MOST or not all(map(_is_text, value)):
                    return None
                values[field.name] = tuple(value)
            elif field.name == "largest_difference":
                if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                    return None
                values[field.name] = None if value is None else float(value)
            elif _is_text(value) or (value is None and field.name in {"intensity", "file", "file_sha256"}):
                values[field.name] = value
            else:
                return None
        return cls(**values) if {"path", "sha256", "writer", "kind"} <= values.keys() else None


def public_name(source: str) -> str:
    """A checkpoint's name for files that are shared: without folders of this machine, user names and passwords.

    Example:
        >>> public_name("/home/ann/nets/unet.keras"), public_name("hf://me/unet@main")
        ('unet.keras', 'hf://me/unet@main')
        >>> public_name("https://ann:secret@example.org/unet.keras?X-Amz-Signature=0")
        'https://example.org/unet.keras'
    """
    scheme, separator, rest = source.partition("://")
    if not separator:
        return PurePath(source).name or source
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if scheme != "hf":  # its `@` names a revision
        host = host.rpartition("@")[2]
    return f"{scheme}://{host}{slash}{path}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST


def provenance(model: keras.Model | str | Path) -> Provenance | None:
    """Where `model` came from, or None where nobody recorded it.

    Args:
        model: A network that `open_checkpoint` returned (or one made from it by `fit_to_task`), or the path of a
            `.keras` file that such a network was saved to. A network that plain `keras.saving.load_model` read knows
            nothing of its record; ask for the file then.

    Example:
        >>> provenance(keras.Sequential()) is None
        True
    """
    if isinstance(model, str | Path):
        try:
            with zipfile.ZipFile(model) as archive:
                info = archive.getinfo("config.json")
                config = json.loads(archive.read(info)) if info.file_size < (1 << 26) else None
        except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile):
            return None
        return recorded(config)
    return getattr(model, _ATTRIBUTE, None)


def recorded(config: object) -> Provenance | None:
    """The record inside the configuration of a `.keras` file, if there is a valid one."""
    build = config.get("build_config") if isinstance(config, Mapping) else None
    return Provenance.from_json(build.get(_KEY)) if isinstance(build, Mapping) else None


def recorded_beside(folder: Path) -> Provenance | None:
    """The record that `kerasseg export` left beside a SavedModel, in `metadata.json`, if there is a valid one."""
    path = folder / "metadata.json"
    try:
        state = json.loads(path.read_bytes()) if path.stat().st_size < (1 << 26) else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(state, Mapping) or state.get("schema") != "kerasseg-export":
        return None
    return Provenance.from_json(state.get("provenance"))


def attach(model: keras.Model, record: Provenance) -> keras.Model:
    """Let `model` know where it came from; returns the same model.

    The record is written by every later `model.save("x.keras")`, also by Keras' own callbacks.
    """
    setattr(model, _ATTRIBUTE, record)
    inherited = type(model).get_build_config

    def get_build_config() -> dict[str, Any]:
        return {**(inherited(model) or {}), _KEY: getattr(model, _ATTRIBUTE).to_json()}

    # On the instance, not by a subclass: a saved subclass could not be opened without kerasseg.
    model.get_build_config = get_build_config
    return model


def copy_provenance(
    old: keras.Model, new: keras.Model, *, changes: tuple[str, ...] = (), **fields: Any
) -> Provenance | None:
    """Hand the record of `old` on to `new`, which was made from it.

    Args:
        old: The network that was opened.
        new: The network made from it.
        changes: What was changed, one sentence each; added to the changes that are recorded already.
        **fields: Other fields of `Provenance` to replace, for instance `intensity="minmax"`.

    Returns:
        The record of `new`; None, and nothing recorded, where `old` has none.
    """
    record = provenance(old)
    if record is None:
        return None
    record = dataclasses.replace(record, changes=(*record.changes, *changes), **fields)
    attach(new, record)
    return record


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, opened.

    Attributes:
        model: The network, uncompiled, of native Keras 3 layers wherever Keras has one.
        writer: What wrote the checkpoint, for instance `Keras 2.3.1`.
        kind: What the checkpoint is, for instance `Keras 2 HDF5`.
        translated: What had to be translated, one sentence each.
        largest_difference: The largest absolute difference between original and opened network on random input; None
            where the original was not run.
    """

    model: keras.Model
    writer: str
    kind: str
    translated: tuple[str, ...] = ()
    largest_difference: float | None = None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files, in hexadecimal.

    A folder's digest is that of the lines `<sha256>  <relative path>` in the order of the paths, which is what
    `find . -type f | sort | xargs sha256sum` prints without the leading `./`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a")
        ...     _ = file.write_bytes(b"abc")
        ...     sha256_of(file)[:16]
        'ba7816bf8f01cfea'
    """
    if path.is_dir():
        files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{sha256_of(file)}  {name}\n" for name, file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
