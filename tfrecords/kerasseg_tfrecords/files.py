"""Write files and folders atomically: a reader sees the old version or the new one, and a killed process leaves no mess."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.text import count

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers for: disk full, quota used up, file size limit reached."""

_SCRATCH = ".tmp-kerasseg-"
_NEW, _OLD = "new", "old"
_FREE = "Free some space and run the same command again: it continues (kerasseg train: with --resume)."


def read_file(path: Path, most_bytes: int = 1 << 28) -> bytes:
    """Return the content of a file that anybody may have written.

    Raises:
        OSError: It cannot be read, is larger than `most_bytes`, or is a pipe or a device, which might never end.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "a pipe or a device, not a file")
        data = stream.read(min(facts.st_size, most_bytes) + 1)
        if len(data) > most_bytes:
            raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes")
    return data


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write bytes, or text as UTF-8, to a file by temporary file, flush, fsync and rename.

    Without `durable`, fsync is omitted: a killed process still leaves the old or the new file, but a power cut may not.

    Raises:
        KerassegError: The disk is full or the folder cannot be written; an existing file is then unchanged.
    """
    with open_atomically(path, durable=durable) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def open_atomically(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a stream whose content becomes the file `path` if the block succeeds.

    The temporary file always has the same name, so that the next write to `path` removes what a killed process left.
    `durable` and exceptions are those of `write_atomically`.
    """
    # A hash, because the name itself may leave no room for a suffix.
    temporary = path.with_name(f".tmp-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}")
    try:
        with _open_locked(temporary) as stream:
            try:
                yield stream
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
                os.fchmod(stream.fileno(), 0o644)
                os.replace(temporary, path)  # noqa: PTH105 - the call that the tests intercept
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _open_locked(path: Path) -> IO[bytes]:
    """Open an empty file for writing, locked against other processes; wait for one that is writing it."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(OSError):  # not every network file system has locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            state = os.fstat(descriptor)
            # The process before us may have renamed or deleted the file while we waited.
            if state.st_nlink == 1 and path.exists() and os.path.samestat(state, path.stat()):
                os.ftruncate(descriptor, 0)
                return os.fdopen(descriptor, "wb")
            if state.st_nlink > 1:
                path.unlink(missing_ok=True)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(
    target: Path, *, replace: bool = False, within: Path | None = None, check: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Yield an empty folder that is moved to `target` if the block succeeds.

    An existing folder is exchanged for the new one, in a single step if the file system supports it, and then deleted. If
    the process is killed, the next call with the same parent folder removes its leftovers.

    Args:
        target: The folder.
        replace: Whether an existing folder may be replaced; an empty one always is.
        within: Parent of the temporary folder, on the same file system as `target`; by default its parent.
        check: Called immediately before the exchange; an exception stops it.

    Raises:
        KerassegError: The target exists (without `replace`), the disk is full, or the folder cannot be written.

    Example:
        >>> with atomic_folder(Path("made")) as folder:
        ...     written = (folder / "a.txt").write_text("whole")
        >>> Path("made/a.txt").read_text()
        'whole'
    """
    target = target if target.name else target.resolve()
    try:
        with scratch_folder(within or target.parent, home=target.parent, shown=target) as scratch:
            new, old = scratch / _NEW / target.name, scratch / _OLD / target.name
            new.mkdir(parents=True)
            old.parent.mkdir()
            yield new
            _sync_tree(new)
            if check is not None:
                check()
            if not replace and target.exists() and not (target.is_dir() and not any(target.iterdir())):
                raise KerassegError("already exists", path=target, remedy="Choose another folder with --out.")
            _exchange(new, target, old)
    except OSError as error:
        raise explain_os_error(error, target) from error


class _NoInodesError(OSError):
    """The disk had room for bytes, but not for more files, when the error was raised."""


@contextlib.contextmanager
def scratch_folder(parent: Path, *, home: Path | None = None, shown: Path | None = None) -> Iterator[Path]:
    """Create a folder for temporary files in `parent`, and delete it at the end; see also `remove_leftovers`.

    Errors about files in it name `shown` instead, by default `parent`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent, home=home)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
        try:
            descriptor = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # Held while this process lives, to distinguish a folder in use from a leftover.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if scratch.exists():
            break
        os.close(descriptor)  # another process took it for a leftover before it was locked
    try:
        yield scratch
    except KerassegError as error:
        if error.path is not None and scratch.name in error.path:  # the name of a temporary file says nothing to users
            error.path = None
            error.name_file(str(shown or parent))
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC and _out_of_inodes(scratch):  # later, its own inodes are free again
            raise _NoInodesError(error.errno, error.strerror, error.filename) from error
        raise
    finally:
        os.close(descriptor)
        shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(parent: Path, *, home: Path | None = None) -> None:
    """Delete the scratch folders of killed processes in `parent`.

    A folder that a killed `atomic_folder` had moved away returns to `home`, by default `parent`.
    """
    for left in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for moved in (left / _OLD).glob("*"):
                    back = (home or parent) / moved.name
                    if not back.exists():  # killed between the two renames of `_exchange`
                        moved.rename(back)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def _exchange(new: Path, target: Path, old: Path) -> None:
    if not target.exists() or not _swap(new, target):
        if target.exists():
            os.replace(target, old)  # noqa: PTH105
        try:
            os.replace(new, target)  # noqa: PTH105
        except BaseException:
            if old.exists():
                os.replace(old, target)  # noqa: PTH105
            raise
    sync_folder(target.parent)


def _swap(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0)


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def explain_os_error(error: OSError, path: Path) -> KerassegError:
    """Describe an error from writing `path`, with a remedy.

    An error that names a file in the folder for temporary files is about that folder, whatever was to be written: libraries
    such as Keras put parts of what they write there.
    """
    temporary = tempfile.tempdir  # None if it has not been used
    elsewhere = temporary is not None and not path.absolute().is_relative_to(temporary)
    if elsewhere and f"{temporary}/" in str(error) and (found := _explain_temporary(error)) is not None:
        return found
    other = "Choose another folder with --out"
    remedies = {
        errno.ENOSPC: ("no space left on the disk", _FREE),
        errno.EDQUOT: ("the disk quota is used up", _FREE),
        errno.EFBIG: ("the file reached the system's size limit", "Raise the limit (ulimit -f) and run again."),
        errno.EACCES: ("no permission to write", f"{other}, or change its permissions."),
        errno.EPERM: ("no permission to write", f"{other}, or change its permissions."),
        errno.EROFS: ("the file system is read-only", f"{other}."),
        errno.ENAMETOOLONG: ("the file name is too long", f"{other}."),
    }
    if isinstance(error, _NoInodesError) or (error.errno == errno.ENOSPC and _out_of_inodes(path)):
        what = "the disk has no room for more files (its inodes are used up; there may be free bytes)"
        return KerassegError(what, path=path, remedy="Delete some files and run the same command again.")
    what, remedy = remedies.get(error.errno or 0, (f"cannot be written: {error.strerror or error}", None))
    return KerassegError(what, path=path, remedy=remedy)


def system_error(error: Exception) -> OSError | None:
    """Return the error of the disk behind an exception that only quotes the system, such as those of TensorFlow.

    Example:
        >>> system_error(RuntimeError("variables_temp; No space left on device [Op:SaveV2]")).errno == errno.ENOSPC
        True
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    numbers = [n for n in (*FULL, errno.EROFS) if os.strerror(n) in str(error)]
    place = f"{tempfile.tempdir}/"
    named = (place,) if place in str(error) else ()
    return OSError(numbers[0], os.strerror(numbers[0]), *named) if numbers else None


def check_utf8(path: Path | str) -> None:
    """Refuse a path with bytes that are not UTF-8, which neither JSON nor TensorFlow's writers take."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        remedy = "Rename the folder or file, or use another one."
        raise UsageError("the path is not valid UTF-8", path=path, remedy=remedy) from error


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, unless it exists."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error


def _out_of_inodes(path: Path) -> bool:
    """Whether the file system of a path, or of its nearest existing folder, has run out of inodes."""
    for place in (path, *path.absolute().parents):
        try:
            state = os.statvfs(place)
        except OSError:
            continue
        return state.f_files > 0 and state.f_favail == 0
    return False


@contextlib.contextmanager
def temporary_space(folder: Path | None = None, needed: int = 0) -> Iterator[None]:
    """Explain a full disk while temporary files are written in the block.

    The system's folder for temporary files is often on a small disk of its own; without this, the error would name the file
    that was being read.

    Args:
        folder: The folder, where another process chose it; None for this process's own.
        needed: Bytes without which the block is not entered.
    """
    try:
        if needed and shutil.disk_usage(folder or tempfile.gettempdir()).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if 0 <= resource.getrlimit(resource.RLIMIT_FSIZE)[0] < needed:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        yield
    except KerassegError:
        raise
    except Exception as error:  # h5py and TensorFlow only quote the system
        if (explained := _explain_temporary(error, folder, needed)) is None:
            raise
        raise explained from error


def _explain_temporary(error: Exception, folder: Path | None = None, needed: int = 0) -> KerassegError | None:
    # tempfile reports full folders as missing.
    none = isinstance(error, FileNotFoundError) and "temporary directory" in str(error)
    full = OSError(errno.ENOSPC, "") if none else system_error(error)
    if full is None or full.errno not in FULL:
        return None
    folder = folder or Path(os.environ.get("TMPDIR", "/tmp") if none else tempfile.gettempdir())  # noqa: S108
    known = explain_os_error(full, folder)
    limited = full.errno == errno.EFBIG
    elsewhere = "Free some space there, or use a folder on another disk: TMPDIR=FOLDER before the same command."
    return KerassegError(
        f"{known.what} for temporary files",
        path=folder,
        found=None if limited else _free(folder, needed),
        remedy=known.remedy if limited else elsewhere,
    )


def _free(folder: Path, needed: int) -> str | None:
    try:
        state, free = os.statvfs(folder), shutil.disk_usage(folder).free
    except OSError:
        return None
    if _out_of_inodes(folder):
        return None
    # The temporary files themselves may be gone by now, with the inodes that they used.
    files = f" and room for {count(state.f_favail, 'more file')}" if state.f_files > 0 and state.f_favail < 1000 else ""
    return f"{free:,} bytes free{files}{f', {needed:,} needed' if needed else ''}"


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs, which may delete the file.

    If another process holds it, wait for it, or raise BlockingIOError; `lock` explains that to users.
    """
    with contextlib.ExitStack() as stack:
        while True:
            # A run that somebody sent may hold a pipe, which blocks, or a link in the place of the file.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            stream = stack.enter_context(os.fdopen(os.open(path, flags, 0o666), "a"))
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    break
            stack.pop_all().close()  # the process before us has deleted the file
        yield


_RELEASE = 2.0  # seconds; a process killed while it starts a child leaves its locks to the child for a moment


@contextlib.contextmanager
def lock(path: Path, what: str, *, busy: str | None = None, remedy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs; it ends with the process.

    Args:
        path: A file used for the lock alone; created where it is missing.
        what: What is locked, for the message ("shards").
        busy: The message if another process holds the lock.
        remedy: What to do then.
    """
    with contextlib.ExitStack() as stack:
        latest = time.monotonic() + _RELEASE
        while True:
            try:
                stack.enter_context(locked(path, wait=False))
                break
            except BlockingIOError:
                if time.monotonic() > latest:
                    raise KerassegError(
                        busy or f"another process is writing these {what}",
                        path=path.parent,
                        remedy=remedy or "Wait for it to finish, or choose another --out.",
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                raise explain_os_error(error, path.parent) from error
        yield
