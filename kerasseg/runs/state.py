"""The saved state of a run, in two generations, so that one stays readable while the other is written."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kerasseg_tfrecords.documents import MAX_BYTES, parse_json
from kerasseg_tfrecords.errors import DataError, KerassegError, one_line
from kerasseg_tfrecords.files import open_atomically
from kerasseg_tfrecords.formats.zip import open_zip

FORMAT_VERSION = 1

_NAME = re.compile(r"state-(\d{8})\.npz")
_FACTS = "facts.json"
_MOST_ARRAYS = 1_000_000
_Content = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
_EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """Content of one generation."""

    generation: int
    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    skipped: tuple[str, ...] = ()


class StateStore:
    """Save the state of a run, and find the newest readable one.

    A generation is one `.npz` file (a zip of `.npy` arrays, uncompressed, nothing pickled) with the facts as JSON and a
    SHA-256 of everything. It is written to a temporary file in the same folder, synced and renamed; then all others but
    the last readable one are deleted.

    Args:
        folder: Folder for the files; created if missing.

    Example:
        >>> import tempfile
        >>> store = StateStore(Path(tempfile.mkdtemp()))
        >>> _ = store.save({"epoch": 3}, {"kernel": np.ones((2, 2), "float32")})
        >>> store.newest().facts, store.newest().arrays["kernel"].sum()
        ({'epoch': 3}, np.float32(4.0))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._good: Path | None = None

    def save(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Write a new generation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        there = self._generations()
        if self._good is None:
            self._good = next((path for _, path, _ in self._readable([])), None)
        path = self.folder / f"state-{(there[-1][0] if there else 0) + 1:08d}.npz"
        document = {"format_version": FORMAT_VERSION, "facts": dict(facts), "sha256": _digest(facts, arrays)}
        with (
            open_atomically(path) as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            archive.writestr(zipfile.ZipInfo(_FACTS, _EPOCH_OF_ZIP), json.dumps(document))
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH_OF_ZIP), "w", force_zip64=True) as member:
                    npy.write_array(cast(Any, member), np.asarray(array, order="C"), allow_pickle=False)
        for _, old in there:
            if old != self._good:
                old.unlink(missing_ok=True)
        self._good = path
        return path

    def newest(self) -> SavedState | None:
        """Read the newest intact generation; None if nothing was saved."""
        skipped: list[str] = []
        for generation, path, (facts, arrays) in self._readable(skipped):
            self._good = path
            return SavedState(generation, facts, arrays, tuple(skipped))
        if skipped:
            raise KerassegError(
                "no saved state can be read",
                path=self.folder,
                found=f"{len(skipped)} damaged",
                remedy="The best weights are in model.keras: start a new run with --checkpoint and that file.",
            )
        return None

    def _readable(self, skipped: list[str]) -> Iterator[tuple[int, Path, _Content]]:
        """Yield readable generations, newest first; add a sentence to `skipped` for each damaged one."""
        for generation, path in reversed(self._generations()):
            try:
                content = _read(path)
            # A damaged zip may raise almost anything: errors of zlib, of memory, of types.
            except Exception as error:
                if isinstance(error, KerassegError) and not isinstance(error, DataError):
                    raise
                skipped.append(f"{path}: damaged ({one_line(error)}); the previous state is used.")
                continue
            yield generation, path, content

    def _generations(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in found)


def _read(path: Path) -> _Content:
    with open_zip(path, _MOST_ARRAYS) as archive, archive.open(_FACTS) as stored:
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            msg = "it unpacks to more than its size"
            raise ValueError(msg)
        document = parse_json(stored.read(MAX_BYTES + 1))
        if document["format_version"] > FORMAT_VERSION:
            raise KerassegError(
                "this run was written by a newer version of kerasseg",
                path=path,
                found=f"state version {document['format_version']}",
                expected=f"at most {FORMAT_VERSION}",
                remedy="Update kerasseg: pip install --upgrade kerasseg",
            )
        arrays = {}
        for info in archive.infolist():
            if info.filename != _FACTS:
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = npy.read_array(cast(Any, member), allow_pickle=False)
    if _digest(document["facts"], arrays) != document["sha256"]:
        msg = "its content does not match its SHA-256"
        raise ValueError(msg)
    return document["facts"], arrays


def _digest(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
