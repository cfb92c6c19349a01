"""Keeps TensorFlow's start-up chatter off the user's screen.

TensorFlow logs half a dozen lines while it is imported, through C++, before any setting of level is read. So for the time
of a command file descriptor 2 leads through a filter that lets pass whatever is not such a line, and Python's own
`sys.stderr` goes straight to where it went before (a progress bar must find its terminal). `--debug` leaves everything as
it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

__all__ = ["is_chatter", "quiet_tf_logs"]

_CHATTER = re.compile(
    rb"""
    [IW]\d{4}\ \d\d:\d\d:.*             # absl: information and warnings
    | \d{4}-\d\d-\d\d\ [\d:.]+:\ [IW]\ .*   # the older form
    | WARNING:\ All\ log\ messages\ before\ absl::InitializeLog.*
    | To\ enable\ the\ following\ instructions:.*
    | .*failed\ call\ to\ cuInit.*      # "error" is what it calls a machine without a GPU
    | INFO:\ Created\ TensorFlow\ Lite\ .*\ delegate\ for\ CPU\.
    | fully_quantize:\ .*               # the LiteRT converter, of its own settings
    | \s*
    """,
    re.VERBOSE,
)


def is_chatter(line: bytes) -> bool:
    """True for a line that TensorFlow's C++ writes about itself and that tells a user nothing."""
    return _CHATTER.fullmatch(line.rstrip(b"\r\n")) is not None


@contextlib.contextmanager
def quiet_tf_logs() -> Iterator[None]:
    """While the block runs, what C++ code writes to standard error is filtered line by line."""
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
        os.dup2(real, 2)  # closes the pipe here; a worker that lingers may still hold its end
        thread.join(timeout=1)
        sys.stderr.close()
        sys.stderr = before
