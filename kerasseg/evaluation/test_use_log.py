"""The log of evaluations of a test split: one line each, in the shard directory and in the run.

Choices made after looking at test figures make later test figures too good. Each evaluation is therefore counted, and every
report shows the count.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import explain_os_error, read_file

LOOKS = "test-looks.jsonl"
"""Name of the file, in the shard directory and in the run."""


@dataclass(frozen=True, slots=True)
class Look:
    """One evaluation of a test split.

    Attributes:
        look: Unique id: the same entry is in two files.
        time: Time of the evaluation, ISO 8601, UTC.
        run, run_id: The evaluated run.
        fingerprint: Fingerprint of the data set.
        split: "test", or "all" for the whole of another shard directory.
        by: Command.
    """

    look: str
    time: str
    run: str
    run_id: str
    fingerprint: str
    split: str
    by: str


def record_look(shards: Path, run: Path | None, *, run_id: str, fingerprint: str, split: str = "test") -> int:
    """Append an entry to the logs of shards and run, and count the entries.

    Args:
        shards: The shard directory; if it is read-only, only the run's log gets the entry.
        run: Folder of the run; None for a network without a run.
        run_id: See `Look`.
        fingerprint: Fingerprint of the data set.
        split: "test", or "all".

    Returns:
        Known evaluations of the test split of this data set, including this one.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> [record_look(folder, None, run_id="", fingerprint="f") for _ in range(2)]
        [1, 2]
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    look = Look(uuid.uuid4().hex, now, "" if run is None else str(run), run_id, fingerprint, split, "evaluate")
    line = json.dumps(asdict(look), ensure_ascii=False) + "\n"
    if run is not None:
        _append(run / LOOKS, line)
    try:
        _append(shards / LOOKS, line)
    except KerassegError:
        if run is None:
            raise
    return count_looks([shards / LOOKS] + ([] if run is None else [run / LOOKS]), fingerprint)


def count_looks(files: Iterable[Path], fingerprint: str) -> int:
    """Count the distinct entries for a data set; an unreadable line counts as one."""
    seen: set[str] = set()
    for file in files:
        try:
            lines = read_file(file).splitlines()
        except OSError:
            continue
        for line in lines:
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
                mine, name = entry["fingerprint"] == fingerprint, str(entry["look"])
            except (ValueError, KeyError, TypeError):
                # Truncated by a full disk, or edited: it was an evaluation all the same.
                mine, name = True, line.decode("utf-8", "replace")
            if mine:
                seen.add(name)
    return len(seen)


def _append(path: Path, line: str) -> None:
    """Append in one write, so that lines of several processes do not mix."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8", "surrogateescape"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise explain_os_error(error, path) from error
