"""Writing files so that a reader sees the old one or the new one, and nothing between."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kerasseg_tfrecords.errors import KerassegError

__all__ = ["FULL", "explain_os_error", "lock", "open_atomically", "sync_folder", "temporary_space", "write_atomically"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system answers where there is no room: the disk, the user's share of it, the size of one file."""

_FREE = "Free some space and run the same command again: it continues (kerasseg train: with --resume)."


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Writes `data` to `path`: temporary file in the same folder, flush, fsync, rename.

    Args:
        path: The file; an existing one is replaced.
        data: Bytes, or text that is written as UTF-8.
        durable: False leaves out the fsync: a killed process still leaves the old or the new file, a power cut may not.

    Raises:
        KerassegError: Where the disk is full or the folder cannot be written; the earlier file is then untouched.
    """
    with open_atomically(path, durable=durable) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def open_atomically(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A stream whose content becomes the file `path` when the block ends well, and nothing when it does not.

    Args:
        path: The file; an existing one is replaced.
        durable: As in `write_atomically`.

    Raises:
        KerassegError: As `write_atomically`.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
        os.replace(temporary, path)  # noqa: PTH105 - the word that the design uses for it
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise explain_os_error(error, path) from error
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def explain_os_error(error: OSError, path: Path) -> KerassegError:
    """`error`, which came of writing `path`, as a sentence with a remedy."""
    remedies = {
        errno.ENOSPC: ("no space left on the disk", _FREE),
        errno.EDQUOT: ("the disk quota is used up", _FREE),
        errno.EFBIG: ("the file grew over the system's limit", "Raise the limit (ulimit -f) and run again."),
        errno.EACCES: ("no permission to write", "Choose another folder with --out, or change its permissions."),
        errno.EPERM: ("no permission to write", "Choose another folder with --out, or change its permissions."),
        errno.EROFS: ("the file system is read-only", "Choose another folder with --out."),
    }
    what, remedy = remedies.get(error.errno or 0, (f"cannot be written: {error.strerror or error}", None))
    return KerassegError(what, path=path, remedy=remedy)


@contextlib.contextmanager
def temporary_space() -> Iterator[None]:
    """Says of files that are made and filled for the time of the block where there is no room for them.

    They lie in the system's folder for temporary files, whose disk is often a small one of its own; unexplained, its end
    would be taken for a fault of the file that was being read.

    Raises:
        KerassegError: That folder is full, or there is none.
    """
    try:
        yield
    except OSError as error:
        # Where no such folder takes a single byte, tempfile says that there is none.
        none = isinstance(error, FileNotFoundError) and "temporary directory" in str(error)
        if error.errno not in FULL and not none:
            raise
        folder = Path(os.environ.get("TMPDIR", "/tmp") if none else tempfile.gettempdir())  # noqa: S108
        what = "no space left on the disk" if none else explain_os_error(error, folder).what
        raise KerassegError(
            f"{what} for temporary files",
            path=folder,
            found=_free(folder),
            remedy="Make room there, or name a folder on another disk: TMPDIR=FOLDER before the same command.",
        ) from error


def _free(folder: Path) -> str | None:
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        return None


@contextlib.contextmanager
def lock(path: Path, what: str, *, busy: str | None = None, remedy: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` while the block runs; it ends with the process, however that ends.

    Args:
        path: A file for the lock alone; created where it is missing.
        what: What is locked, for the message ("shards").
        busy: The message where another process holds it.
        remedy: What to do then.

    Raises:
        KerassegError: Where another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("a"))
        except OSError as error:
            raise explain_os_error(error, path.parent) from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KerassegError(
                busy or f"another process is writing these {what}",
                path=path.parent,
                remedy=remedy or "Wait for it, or choose another --out.",
            ) from None
        yield
