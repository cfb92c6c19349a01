"""Where the bytes of a file are: on disk, or inside archives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Location"]


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A file, on disk or inside archives. Cheap to pickle; `sources.tree` opens it.

    Attributes:
        path: The file on disk (the archive, for members).
        members: Names down the archives: ("inner.zip", "1.mat") is `1.mat` in `inner.zip` in `path`; () for plain files.
        name: As shown to users and written to `splits.csv`: relative to its input, POSIX slashes, `!` between archives.
    """

    path: Path
    members: tuple[str, ...] = ()
    name: str = ""
