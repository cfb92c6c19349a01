"""Read the JSON files that kerasseg writes: one reader, with limits on size and depth and a check of the version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.validation import complaint

MAX_BYTES = 1 << 28
"""Largest JSON file that is read."""
_MAX_VALUES = 8_000_000  # three bytes of JSON can take two hundred in memory
_MAX_DEPTH = 100

Document = TypeVar("Document", bound=BaseModel)


def parse_json(
    data: bytes | str, *, max_bytes: int = MAX_BYTES, max_values: int = _MAX_VALUES, max_depth: int = _MAX_DEPTH
) -> Any:
    """Parse untrusted JSON.

    Args:
        data: UTF-8 bytes or text.
        max_bytes: Longer input is refused before it is parsed.
        max_values: The same for input with more values, commas in texts among them.
        max_depth: Deeper nesting is refused, since code that walks the result would exhaust Python's stack.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
        >>> parse_json("[" * 101 + "]" * 101)
        Traceback (most recent call last):
        ValueError: nested more than 100 levels deep
    """
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    if (values := sum(map(data.count, (b",", b"[", b"{")))) > max_values:
        raise ValueError(f"{values:,} values, more than {max_values:,}")
    deep = f"nested more than {max_depth} levels deep"
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(deep) from None
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return value
    raise ValueError(deep)


def read_json(path: Path, what: str, *, remedy: str | None = None, missing_remedy: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: Description of the file for messages ("a run configuration").
        remedy: What to do about a damaged file.
        missing_remedy: What to do about a missing file; `remedy` by default.
    """
    try:
        return parse_json(read_file(path, MAX_BYTES))
    except FileNotFoundError:
        raise DataError(f"{what} is missing", path=path, remedy=missing_remedy or remedy) from None
    except OSError as error:
        raise DataError(f"{what} cannot be read", path=path, found=error.strerror or error, remedy=remedy) from None
    except ValueError as error:
        raise DataError(f"{what} is damaged", path=path, found=error, expected="JSON", remedy=remedy) from None


def refuse_newer(document: Any, version: int, path: Path, what: str) -> bool:
    """Check the format version of a document; returns whether it has one."""
    found = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(found, int) or isinstance(found, bool):
        return False
    if found > version:
        raise KerassegError(
            f"{what} was written by a newer version of kerasseg",
            path=path,
            found=f"format version {found}",
            expected=f"at most {version}",
            remedy="Update kerasseg: pip install --upgrade kerasseg",
        )
    return True


def read_document(
    path: Path,
    model: type[Document],
    version: int,
    what: str,
    *,
    remedy: str | None = None,
    missing_remedy: str | None = None,
) -> Document:
    """Read a versioned JSON document and check it against its schema.

    Args:
        path: The file.
        model: The schema; the document has `format_version` at its top level.
        version: The newest format version that this version of kerasseg can read.
        what: Description of the file for messages ("the manifest").
        remedy: What to do about a damaged file.
        missing_remedy: What to do about a missing file; `remedy` by default.

    Raises:
        DataError: The file is missing, cannot be read, or does not match the schema.
        KerassegError: A newer version of kerasseg wrote it.
    """
    document = read_json(path, what, remedy=remedy, missing_remedy=missing_remedy)
    if not refuse_newer(document, version, path, what):
        raise DataError(f"{what} is damaged", path=path, found="no format_version", remedy=remedy)
    try:
        # Through JSON again, because pydantic reads JSON more leniently than Python objects (lists for tuples).
        return model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise DataError(f"{what} is damaged", path=path, found=complaint(error), remedy=remedy) from None
