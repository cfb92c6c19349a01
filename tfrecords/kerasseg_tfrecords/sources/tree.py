"""The files of one input: a folder, one file, or an archive. Sources look at trees and never walk the disk themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.sources.base import Location

__all__ = ["Tree", "natural_key", "open_tree", "read_bytes"]


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `2.mat` before `10.mat`.

    >>> sorted(["10.mat", "2.mat"], key=natural_key)
    ['2.mat', '10.mat']
    """
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(p), p) if p.isdigit() else (1, 0, p) for p in parts if p)


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of one input.

    Attributes:
        root: What the user named.
        locations: All files in natural order of their names; hidden and system files left out.
    """

    root: Path
    locations: tuple[Location, ...]

    def with_suffix(self, *suffixes: str) -> tuple[Location, ...]:
        """Locations whose lower-case name ends in one of `suffixes` (".mat", ".nii.gz")."""
        return tuple(loc for loc in self.locations if loc.name.lower().endswith(suffixes))


def open_tree(root: Path) -> Tree:
    """Lists the files of `root`. Raises `DataError` where there is nothing to read."""
    if root.is_file():
        return Tree(root, (Location(root, (), root.name),))
    if not root.is_dir():
        raise DataError("no such file or folder", path=root)
    found = [
        Location(path, (), path.relative_to(root).as_posix())
        for path in root.rglob("*")
        if path.is_file() and not any(p.startswith((".", "__MACOSX")) for p in path.relative_to(root).parts)
    ]
    if not found:
        raise DataError("an empty folder", path=root, expected="slices and their masks")
    return Tree(root, tuple(sorted(found, key=lambda loc: natural_key(loc.name))))


def read_bytes(location: Location, *, limit: int) -> bytes:
    """The bytes of a file, at most `limit` of them; a larger file is a `DataError`, found before it is read."""
    size = location.path.stat().st_size
    if size > limit:
        raise DataError(
            "the file is too large", path=location.name, found=f"{size} bytes", expected=f"at most {limit} bytes"
        )
    return location.path.read_bytes()
