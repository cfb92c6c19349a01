"""The location of a file: on disk, or inside archives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A file on disk or inside archives; `sources.tree` reads it.

    Attributes:
        path: The file on disk (the archive, for its members).
        members: Member names, outermost archive first: ("inner.zip", "1.mat"); () for plain files.
        name: Display name, also in `splits.csv`: relative to the input, POSIX slashes, `!` between archives.
    """

    path: Path
    members: tuple[str, ...] = ()
    name: str = ""
