"""Filter out TensorFlow's start-up messages.

TensorFlow's C++ code logs half a dozen lines during import, before it reads any log level. While a command runs, file
descriptor 2 therefore leads through a filter that drops such lines. Python's own `sys.stderr` bypasses it, because a
progress bar needs the terminal. With `--debug` nothing is filtered.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

_CHATTER = re.compile(
    rb"""
    [IW]\d{4}\ \d\d:\d\d:.*             # absl: information and warnings
    | \d{4}-\d\d-\d\d\ [\d:.]+:\ [IW]\ .*   # the older form
    | WARNING:\ All\ log\ messages\ before\ absl::InitializeLog.*
    | To\ enable\ the\ following\ instructions:.*
    | .*failed\ call\ to\ cuInit.*      # logged as an error on machines without a GPU
    | INFO:\ Created\ TensorFlow\ Lite\ .*\ delegate\ for\ CPU\.
    | fully_quantize:\ .*               # settings of the LiteRT converter
    | \s*
    """,
    re.VERBOSE,
)


def is_chatter(line: bytes) -> bool:
    """Return whether a line is one of TensorFlow's start-up messages."""
    return _CHATTER.fullmatch(line.rstrip(b"\r\n")) is not None


@contextlib.contextmanager
def quiet_tf_logs() -> Iterator[None]:
    """Filter what C++ code writes to standard error while the block runs."""
    sys.stderr.flush()
    real = os.dup(2)
    reading, writing = os.pipe()

    def forward() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not is_chatter(line):
                    os.write(real, line)

    thread = threading.Thread(target=forward, daemon=True)
    before = sys.stderr
    sys.stderr = os.fdopen(os.dup(real), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(writing, 2)
    os.close(writing)
    thread.start()
    try:
        yield
    finally:
        os.dup2(real, 2)  # closes the pipe here; a remaining worker may still hold its end
        thread.join(timeout=1)
        sys.stderr.close()
        sys.stderr = before
