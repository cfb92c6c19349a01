"""SHA-256 of checkpoints, single files and folders alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["sha256_of"]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files, in hexadecimal.

    A folder's digest is that of the lines `<sha256>  <relative path>` in the order of the paths, which is what
    `find . -type f | sort | xargs sha256sum` prints without the leading `./`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a")
        ...     _ = file.write_bytes(b"abc")
        ...     sha256_of(file)[:16]
        'ba7816bf8f01cfea'
    """
    if path.is_dir():
        files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{sha256_of(file)}  {name}\n" for name, file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
