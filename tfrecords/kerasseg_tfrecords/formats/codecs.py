"""OpenCV's decoder, made to keep silent and to admit damage.

libjpeg and libtiff write "Corrupt JPEG data" to the process' standard error and hand out half a picture; OpenCV offers no
way to hear of it. So standard error is caught while a file is decoded: what the codecs said decides whether the file is
damaged, anything else is passed on.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError

__all__ = ["codec_messages", "decode"]

_CODEC = re.compile(
    r"Corrupt JPEG|Premature end|JPEG|libpng|TIFF|imgcodecs|grfmt_|imdecode|^\[( INFO|DEBUG)", re.IGNORECASE
)
# What libtiff calls an error, OpenCV 4 calls a warning: there the words must tell.
_DAMAGE = re.compile(
    r"Corrupt JPEG|Premature end|libpng error|Unsupported marker|_Error|\bERROR:|Decod(e:|ing error)|not yet in table"
    r"|Discarding [0-9]+ bytes|Not enough data|(Read|Seek) error",
    re.IGNORECASE,
)
# Stray bytes between two segments cost no pixel, and many JPEGs in the wild have them.
_HARMLESS = re.compile(r"extraneous bytes before marker")

_DEBUG = 5  # the level of OpenCV's log at which all its versions pass on what libtiff says


@dataclass(slots=True)
class _Catcher:
    """Where standard error goes meanwhile: a file in memory, one a process, for a forked child must not share its parent's.

    Attributes:
        process: Whose it is.
        descriptor: The file; -1 where none could be made, and nothing is caught then.
        lock: There is only one standard error.
    """

    process: int
    descriptor: int
    lock: threading.Lock = field(default_factory=threading.Lock)


@lru_cache(maxsize=1)
def _catcher(process: int) -> _Catcher:
    try:
        if hasattr(os, "memfd_create"):
            return _Catcher(process, os.memfd_create("codec-messages"))
        with tempfile.TemporaryFile() as file:
            return _Catcher(process, os.dup(file.fileno()))
    except OSError:
        return _Catcher(process, -1)


@contextmanager
def codec_messages(heard: list[str], pattern: re.Pattern[str] = _CODEC) -> Iterator[None]:
    """Append to `heard` the lines that are written to file descriptor 2 meanwhile and match `pattern`."""
    catcher = _catcher(os.getpid())
    caught = catcher.descriptor
    with catcher.lock:
        try:
            before = os.dup(2) if caught >= 0 else -1
        except OSError:  # standard error is closed: nobody can be disturbed
            before = -1
        if before < 0:
            yield
            return
        os.lseek(caught, 0, os.SEEK_SET)
        os.ftruncate(caught, 0)
        os.dup2(caught, 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            if size := os.fstat(caught).st_size:
                os.lseek(caught, 0, os.SEEK_SET)
                for line in os.read(caught, size).splitlines(keepends=True):
                    if pattern.search(text := line.decode(errors="replace")):
                        heard.append(text.strip())
                    else:
                        os.write(2, line)
            os.close(before)


def decode(data: bytes, name: str, kind: str, pages: int = 1) -> list[NDArray[Any]]:
    """The pages of a picture file as OpenCV gives them: (height, width) or (height, width, 3 or 4) in BGR(A) order.

    Args:
        data: The file.
        name: For messages.
        kind: "PNG", "JPEG" or "TIFF", for messages.
        pages: How many pages it has.

    Raises:
        DataError: The file cannot be decoded, or the decoder found it damaged.
    """
    heard: list[str] = []
    # OpenCV 5 has moved these two; the numbers are the same.
    logs = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    level = logs.getLogLevel()
    with codec_messages(heard):
        logs.setLogLevel(_DEBUG)
        try:
            raw = np.frombuffer(data, np.uint8)
            if pages == 1:
                found = [cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)]
            else:
                found = list(cv2.imdecodemulti(raw, cv2.IMREAD_UNCHANGED)[1])
        except cv2.error as error:
            heard.append(f"{error.err}"[:200])
            found = []
        finally:
            logs.setLogLevel(level)
    damage = [line for line in heard if _DAMAGE.search(line) and not _HARMLESS.search(line)]
    if len(found) != pages or found[0] is None or damage:
        # OpenCV's own prefix holds the time and a line of its source.
        said = re.sub(
            r"^(?:\[.*?\] .*?(?:_Error|_Warning|readData|imdecode_)|OpenCV TIFF)\s*:?\s*",
            "",
            (damage or heard or ["no reason given"])[0],
        )
        raise DataError(
            f"a damaged {kind} file, or one of a kind that is not read",
            path=name,
            found=said,
            remedy="Get the file again, or write it anew as PNG",
        )
    return [np.asarray(page) for page in found]
