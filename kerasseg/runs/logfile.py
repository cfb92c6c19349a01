"""`log.jsonl`: what a run told, one JSON object a line, for machines and for those who look later."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["append_log", "read_log"]


def append_log(path: Path, event: Mapping[str, Any]) -> None:
    """Adds a line with the time. A line that a kill has torn is ended first.

    Args:
        path: The file; made where it is missing.
        event: JSON values; NaN becomes null.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **_plain(event)}, allow_nan=False)
    with path.open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(line.encode() + b"\n")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole, in order."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
