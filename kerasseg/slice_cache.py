"""One split in one file on disk, for training splits that do not fit into memory.

The file's name is a hash of what it holds (data set, shards, size, channels), so that a cache can never belong to other
data; caches of a shard directory that has changed since, or is gone, are removed when the next one is built. Whoever comes
first builds it under a lock, in a temporary file that is renamed when it is complete; the others wait and use it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kerasseg.slice_sources import CHUNK, FileSlices, Progress, ShardSlices
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import explain_os_error, write_atomically
from kerasseg_tfrecords.manifest import MANIFEST, Manifest

__all__ = ["cache_key", "cached_on_disk", "default_cache_folder"]

_VERSION = 1
_REMEDY = "Choose another folder (cache_folder, or the variable KERASSEG_CACHE), or read without one (cache='none')."


def default_cache_folder() -> Path:
    """`$KERASSEG_CACHE`, else `kerasseg` under `$XDG_CACHE_HOME` or `~/.cache`."""
    asked = os.environ.get("KERASSEG_CACHE")
    if asked:
        return Path(asked)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kerasseg"


def cache_key(manifest: Manifest, split: str) -> str:
    """Names a cache: equal for equal bytes of the split's shards, whatever their folder is called."""
    shards = [[shard.path, shard.sha256, shard.records] for shard in manifest.shards_of(split)]
    facts = [_VERSION, manifest.fingerprint, split, manifest.size, manifest.channels, shards]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def cached_on_disk(
    shards: ShardSlices,
    split: str,
    folder: Path,
    *,
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> FileSlices:
    """The split's cache, built first where there is none.

    Args:
        shards: Where the slices come from; nothing of them is read where the cache is there already.
        split: For the name and for what is stale.
        folder: Created where it is missing.
        check: Called before anything is read from the shards; not where the cache is there already.
        progress: Told "cache", the slices written, and how many there are.

    Raises:
        KerassegError: Where the disk is full or the folder cannot be written.
        DataError: Where a shard is damaged.
    """
    manifest, root = shards.records.manifest, shards.records.root.resolve()
    key = cache_key(manifest, split)
    path = folder / f"{split}-{key}.slices"
    need = len(shards) * shards.layout.row_bytes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if not (path.is_file() and path.stat().st_size == need):
                check()
                _clear(folder, root, split, key)
                free = shutil.disk_usage(folder).free
                if free < need:
                    raise KerassegError(
                        "no space for the cache of slices",
                        path=folder,
                        found=f"{free / 1e9:.1f} GB free",
                        expected=f"{need / 1e9:.1f} GB",
                        remedy=_REMEDY,
                    )
                _build(shards, path, progress)
            # Also where it was there: the shards may have moved, and what belongs to no shards is removed one day.
            facts = {"shards": str(root), "split": split, "fingerprint": manifest.fingerprint}
            write_atomically(path.with_suffix(".json"), json.dumps(facts, indent=1) + "\n", durable=False)
            # Opened under the lock: whoever clears up afterwards removes the name alone.
            return FileSlices(path, len(shards), shards.layout)
    except OSError as error:
        raise KerassegError(explain_os_error(error, folder).what, path=folder, remedy=_REMEDY) from error


def _build(shards: ShardSlices, path: Path, progress: Progress | None) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for first in range(0, len(shards), CHUNK):
                if progress:
                    progress("cache", first, len(shards))
                stream.write(shards.take(np.arange(first, min(first + CHUNK, len(shards)))).data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if progress:
        progress("cache", len(shards), len(shards))


def _clear(folder: Path, root: Path, split: str, key: str) -> None:
    """Removes what killed builders left (nobody else is building: we hold the lock) and the caches that are stale."""
    for left in folder.glob(".tmp-*"):
        left.unlink(missing_ok=True)
    for data in folder.glob("*.slices"):
        if not data.with_suffix(".json").exists():
            data.unlink(missing_ok=True)
    for facts in folder.glob("*.json"):
        try:
            state = json.loads(facts.read_text())
            of, its_split = Path(state["shards"]), state["split"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        replaced = of == root and its_split == split and not facts.stem.endswith(key)
        if replaced or not (of / MANIFEST).is_file():
            facts.with_suffix(".slices").unlink(missing_ok=True)
            facts.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for the lock, where `kerasseg_tfrecords.files.lock` would refuse."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
