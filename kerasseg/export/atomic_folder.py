"""Write an export to a temporary folder, and move it to its place when it is complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from kerasseg.export.schema import METADATA, SCHEMA
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import atomic_folder, check_utf8, explain_os_error, read_file


def check_place(target: Path, *, overwrite: bool) -> None:
    """Check that an export can be written to a folder."""
    check_utf8(target)
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
    """Yield a new folder that replaces `target` if the block succeeds."""
    check_place(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise explain_os_error(error, target) from error
    if free < need:
        raise KerassegError(
            "too little disk space for the export",
            path=target.parent,
            found=f"{free / 1e6:,.1f} MB free",
            expected=f"about {need / 1e6:,.1f} MB",
            remedy="Free some space, or choose another --out.",
        )
    with atomic_folder(target, replace=True, check=lambda: check_place(target, overwrite=overwrite)) as folder:
        yield folder


def _is_export(folder: Path) -> bool:
    try:
        state = parse_json(read_file(folder / METADATA))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("schema") == SCHEMA
