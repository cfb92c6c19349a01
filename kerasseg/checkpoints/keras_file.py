"""`.keras` archives of Keras 3 (loaded in safe mode) and of Keras 2 (tf-keras; translated first)."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from kerasseg.checkpoints import legacy  # noqa: F401 - registers the names of TensorFlow Addons
from kerasseg.checkpoints.allowed import build, check_config, check_size, parse_config, without_training
from kerasseg.checkpoints.hdf5 import open_hdf5
from kerasseg.checkpoints.identify import is_keras_3, writer_name
from kerasseg.checkpoints.keras2.rewrites import rewrite
from kerasseg.checkpoints.keras2.translate import build_translated, translate, with_bare_ends
from kerasseg.checkpoints.provenance import OpenedModel, Provenance, recorded
from kerasseg.checkpoints.stored import read_by_class, stored_numbers
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["check_archive", "open_keras", "open_keras_folder", "read_archive", "read_weights"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ALWAYS_FINE = 1 << 26  # bytes
_MOST_EXPANSION = 200  # times the stored bytes; Keras stores without compression, float32 weights compress to 90 %
_MOST_MEMBERS = 10_000


def check_archive(archive: zipfile.ZipFile, path: object) -> None:
    """Refuse archives with paths outside their folder, links, duplicate members or an excessive unpacked size.

    Raises:
        CheckpointError: The archive is refused; the message names the member.
    """
    names: set[str] = set()
    if len(archive.infolist()) > _MOST_MEMBERS:
        raise CheckpointError("refused: too many members in the archive", path=str(path))
    for info in archive.infolist():
        name = info.orig_filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
            raise CheckpointError(
                "refused: a member of the archive has a path outside its folder",
                path=str(path),
                found=name,
                remedy="The file may be malicious: get it from a trusted source.",
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise CheckpointError("refused: a member of the archive is a link", path=str(path), found=name)
        if info.filename in names:
            raise CheckpointError("refused: the archive names a member twice", path=str(path), found=name)
        if info.flag_bits & 1:
            raise CheckpointError("the archive is encrypted", path=str(path), found=name)
        names.add(info.filename)
        if info.file_size > max(_ALWAYS_FINE, _MOST_EXPANSION * info.compress_size):
            raise CheckpointError(
                "refused: a member of the archive unpacks to far more than it stores",
                path=str(path),
                found=f"{name}: {info.file_size} bytes from {info.compress_size}",
            )


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    with archive.open(name) as member:
        data = member.read(size + 1)  # at most one byte more than declared
    if len(data) != size:
        raise zipfile.BadZipFile(f"{name} has another size than declared")
    return data


def open_keras(path: Path) -> tuple[OpenedModel, Provenance | None]:
    """Open a `.keras` archive.

    Args:
        path: The file; its suffix does not matter.

    Returns:
        The network, and the provenance that kerasseg recorded in the file, if any.

    Raises:
        CheckpointError: The archive, its configuration or its weights are refused or damaged.
    """
    return _open(*read_archive(path), path)


def read_archive(path: Path) -> tuple[dict[str, object], object, bytes]:
    """Read the configuration, the metadata and the weights (an HDF5 file) of a `.keras` archive.

    Raises:
        CheckpointError: The archive is damaged or is not a `.keras` file.
    """
    members = _members(path, (_CONFIG, _METADATA, _WEIGHTS))
    return parse_config(members[_CONFIG], path), _metadata(members.get(_METADATA)), members[_WEIGHTS]


def read_weights(path: Path) -> bytes:
    """Read the weights (an HDF5 file) of a `.keras` archive or folder, whatever its network."""
    return (path / _WEIGHTS).read_bytes() if path.is_dir() else _members(path, (_WEIGHTS,))[_WEIGHTS]


def _members(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            check_archive(archive, path)
            names = set(archive.namelist())
            if _CONFIG not in names or _WEIGHTS not in names:
                raise CheckpointError(
                    "the archive is not a `.keras` file",
                    path=str(path),
                    found=", ".join(sorted(names)[:8]) or "nothing in it",
                    expected=f"{_CONFIG}, {_METADATA} and {_WEIGHTS}",
                )
            return {name: _read(archive, name) for name in wanted if name in names}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError, zlib.error) as error:
        raise CheckpointError(
            "the archive is damaged", path=str(path), found=str(error), remedy="Fetch it again and compare its size."
        ) from error


def _metadata(data: bytes | None) -> object:
    try:
        return {} if data is None else parse_json(data, max_bytes=1 << 20)
    except ValueError:
        return {}


def open_keras_folder(path: Path) -> tuple[OpenedModel, Provenance | None]:
    """Open an unpacked `.keras` archive, as Keras writes it to the Hugging Face Hub; see `open_keras`."""
    try:
        if (path / _CONFIG).stat().st_size > _ALWAYS_FINE or (path / _METADATA).stat().st_size > _ALWAYS_FINE:
            raise CheckpointError("the network's configuration is too long", path=str(path))
        config = parse_config((path / _CONFIG).read_bytes(), path / _CONFIG)
        metadata = _metadata((path / _METADATA).read_bytes())
        weights = (path / _WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError("the folder cannot be read", path=str(path), found=error) from error
    return _open(config, metadata, weights, path)


def _open(
    config: dict[str, object], metadata: object, weights: bytes, path: Path
) -> tuple[OpenedModel, Provenance | None]:
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    version = version if isinstance(version, str) else None
    if is_keras_3(version):
        return _open_keras_3(config, weights, version, path), recorded(config)
    return _open_keras_2(config, weights, version, path), None


def _open_keras_3(config: dict[str, object], weights: bytes, version: str | None, path: Path) -> OpenedModel:
    rewritten = rewrite(with_bare_ends(without_training(config)), path)
    config = rewritten.config
    check_config(config, path)
    with open_hdf5(weights, f"{path}!{_WEIGHTS}") as file:
        check_size(config, stored_numbers(file), path)
        model = build(config, path)
        try:
            model.load_weights(file.filename)  # Keras' own reader, because layers may define their own layout
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise CheckpointError(
                "the weights do not fit the network that the file describes",
                path=str(path),
                found=" ".join(str(error).split())[:300],
            ) from error
    return OpenedModel(model, writer_name(version), "Keras 3 archive (.keras)", rewritten.notes)


def _open_keras_2(config: dict[str, object], weights: bytes, version: str | None, path: Path) -> OpenedModel:
    old = without_training(config)
    translation = translate(old, writer=version or "", path=path)
    with open_hdf5(weights, f"{path}!{_WEIGHTS}") as file:
        model = build_translated(translation, stored_numbers(file), read_by_class(file, old), path)
    return OpenedModel(model, writer_name(version), "Keras 2 archive (.keras)", translation.notes)
