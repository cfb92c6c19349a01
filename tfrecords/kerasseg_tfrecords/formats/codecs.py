"""Decode pictures with OpenCV, silently, and detect damage that OpenCV does not report.

For a damaged file, libjpeg and libtiff write a message to standard error and return half a picture, and OpenCV does not
pass the message on. Standard error is therefore captured during decoding: messages of the codecs tell whether the file is
damaged, and all other output is passed on.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError

_CODEC = re.compile(
    r"Corrupt JPEG|Premature end|JPEG|libpng|TIFF|imgcodecs|grfmt_|imdecode|^\[( INFO|DEBUG)", re.IGNORECASE
)
# OpenCV 4 logs errors of libtiff as warnings, so only their words identify them.
_DAMAGE = re.compile(
    r"Corrupt JPEG|Premature end|libpng error|Unsupported marker|_Error|\bERROR:|Decod(e:|ing error)|not yet in table"
    r"|Discarding [0-9]+ bytes|Not enough data|(Read|Seek) error",
    re.IGNORECASE,
)
# Stray bytes between two segments do not affect pixels, and many published JPEGs have them.
_HARMLESS = re.compile(r"extraneous bytes before marker")

_MEMORY_FILES = hasattr(os, "memfd_create")
_DEBUG = 5  # log level at which all versions of OpenCV pass on the messages of libtiff


@contextmanager
def codec_messages(heard: list[str], pattern: re.Pattern[str] = _CODEC) -> Iterator[None]:
    """Append to `heard` the lines that the block writes to file descriptor 2 and that match `pattern`."""
    with os.fdopen(os.memfd_create("messages"), "w+b") if _MEMORY_FILES else tempfile.TemporaryFile() as caught:
        before = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            caught.seek(0)
            for line in caught:
                if pattern.search(text := line.decode(errors="replace")):
                    heard.append(text.strip())
                else:
                    os.write(2, line)


def decode(data: bytes, name: str, kind: str, pages: int = 1) -> list[NDArray[Any]]:
    """Decode the pages of a picture file: (height, width) or (height, width, 3 or 4) in BGR(A) order.

    Raises:
        DataError: The file cannot be decoded, or the decoder found it damaged.
    """
    heard: list[str] = []
    # OpenCV 5 has moved the logging functions; the levels are the same.
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
        # Remove OpenCV's prefix: the time and a line of its source.
        said = re.sub(
            r"^(?:\[.*?\] .*?(?:_Error|_Warning|readData|imdecode_)|OpenCV TIFF)\s*:?\s*",
            "",
            (damage or heard or ["no reason given"])[0],
        )
        raise DataError(
            f"a damaged {kind} file, or an unsupported kind of it",
            path=name,
            found=said,
            remedy="Download or copy it again, or save it as PNG",
        )
    return [np.asarray(page) for page in found]
