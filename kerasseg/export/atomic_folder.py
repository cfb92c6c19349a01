"""Write an export to a temporary folder, and move it to its place when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kerasseg.export.schema import METADATA, SCHEMA
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error, sync_folder

__all__ = ["check_place", "placed"]

_TEMPORARY = ".tmp-export-"


def check_place(target: Path, *, overwrite: bool) -> None:
    """Check that an export can be written to a folder.

    Raises:
        UsageError: The folder contains something that may not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not _is_export(target):
        raise UsageError(
            "the output folder is not empty and is not an export",
            path=target,
            expected="a new or empty folder, or an earlier export",
            remedy="Choose another --out.",
        )
    if not overwrite:
        raise UsageError(
            "an export exists already", path=target, remedy="Replace it with --overwrite, or choose another --out."
        )


@contextlib.contextmanager
def placed(target: Path, *, overwrite: bool, need: int = 0) -> Iterator[Path]:
    """Yield a new folder that replaces `target` if the block succeeds.

    Args:
        target: The folder.
        overwrite: Whether an earlier export may be replaced.
        need: Approximate number of bytes to write.

    Raises:
        UsageError: As `check_place`.
        KerassegError: The disk is full, or the folder cannot be written to.
    """
    check_place(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < need:
            raise KerassegError(
                "too little disk space for the export",
                path=target.parent,
                found=f"{free / 1e6:,.0f} MB free",
                expected=f"about {need / 1e6:,.0f} MB",
                remedy="Free some space, or choose another --out.",
            )
        draft = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
        lock = os.open(draft, os.O_RDONLY)
    except OSError as error:
        raise explain_os_error(error, target) from error
    try:
        # Held by this process, so that `_clear` can tell a folder in use from one of a killed process.
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = draft / "export"
        content.mkdir()
        yield content
        _sync(content)
        check_place(target, overwrite=overwrite)
        _exchange(content, target, draft / "earlier")
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        os.close(lock)
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(content: Path, target: Path, earlier: Path) -> None:
    if target.exists():
        os.replace(target, earlier)  # noqa: PTH105
    try:
        os.replace(content, target)  # noqa: PTH105
    except BaseException:
        if earlier.exists():
            os.replace(earlier, target)  # noqa: PTH105
        raise
    sync_folder(target.parent)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _is_export(folder: Path) -> bool:
    try:
        state = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and state.get("schema") == SCHEMA


def _clear(folder: Path) -> None:
    """Remove folders of killed exports."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        lock = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
