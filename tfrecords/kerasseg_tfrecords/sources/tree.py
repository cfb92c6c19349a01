"""List and read the files of one input: a folder, a file, or an archive. Sources access the disk only through this."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kerasseg_tfrecords.errors import BadInputError, DataError, Problem
from kerasseg_tfrecords.formats.sniff import HEAD_BYTES, PICTURE_SUFFIXES
from kerasseg_tfrecords.formats.zip import is_hidden, list_archive, read_member, shown
from kerasseg_tfrecords.isolation import call, isolated, working_on
from kerasseg_tfrecords.slices import Location

R = TypeVar("R")
IMAGE_SUFFIXES = frozenset({".dcm", *PICTURE_SUFFIXES})
"""Suffixes of single images, for messages about the content of a folder."""
_MEMBER_LIMIT = 1 << 28
_DIGITS = re.compile(r"([0-9]+)")
_NO_ZIP = (".7z", ".rar", ".tar", ".tar.bz2", ".tar.gz", ".tar.xz", ".tgz")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key with `2.mat` before `10.mat`; different texts have different keys.

    >>> sorted(["10.mat", "2.mat", "02.mat"], key=natural_key)
    ['02.mat', '2.mat', '10.mat']
    """
    key: list[tuple[int, int, str]] = []
    for place, part in enumerate(_DIGITS.split(text)):
        if place % 2:
            # Comparing lengths first avoids conversion of very long numbers.
            digits = part.lstrip("0")
            key.append((0, len(digits), digits))
        elif part:
            key.append((1, 0, part))
    key.append((-1, 0, text))
    return tuple(key)


def suffix_of(name: str) -> str:
    """Return the lower-case suffix of a file name, such as `.nii.gz`; "" if there is none.

    >>> suffix_of("a.b/T1.NII.GZ"), suffix_of("x.zip!1.mat"), suffix_of("IM0001")
    ('.nii.gz', '.mat', '')
    """
    base = re.split(r"[/!]", name.lower())[-1]
    stem, dot, end = base.rpartition(".")
    if not dot or not stem:
        return ""
    return ".nii.gz" if end == "gz" and stem.endswith(".nii") else f".{end}"


def has_suffix(name: str) -> bool:
    """Whether a file name has a suffix; a number is none, since scanners write such names.

    >>> has_suffix("1.png"), has_suffix("x.zip!IM0001"), has_suffix("1.2.840.113619")
    (True, False, False)
    """
    suffix = suffix_of(name)
    return suffix != "" and not suffix[1:].isdigit()


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of one input.

    Attributes:
        root: The path that the user gave.
        locations: All files in natural order of their names, except hidden and system files.
        problems: Damaged archives, unsafe or encrypted members, broken links, folders without permission.
    """

    root: Path
    locations: tuple[Location, ...]
    problems: tuple[Problem, ...] = ()

    def with_suffix(self, *suffixes: str) -> tuple[Location, ...]:
        """Return the locations whose lower-case name ends with one of `suffixes` (".mat", ".nii.gz")."""
        return tuple(loc for loc in self.locations if loc.name.lower().endswith(suffixes))

    def without(self, folders: Iterable[Path]) -> Tree:
        """Leave out the files below `folders`, except for a folder that is the root itself."""
        root = self.root.resolve()
        paths = [
            path for path in (folder.resolve() for folder in folders) if path != root and path.is_relative_to(root)
        ]
        starts = tuple(shown(f"{path.relative_to(root).as_posix()}/") for path in paths)
        return replace(self, locations=tuple(loc for loc in self.locations if not loc.name.startswith(starts)))

    def suffixes(self) -> Counter[str]:
        """Count the files of each suffix (see `suffix_of`)."""
        return Counter(suffix_of(location.name) for location in self.locations)


@isolated
def open_tree(root: Path | str) -> Tree:
    """List the files of a folder (recursively, each linked folder once), of one file, or of a zip.

    Zips, including those in folders and in other zips, are read in place: their files appear as `official.zip!1.mat`.

    Args:
        root: The folder, file or zip.

    Raises:
        DataError: There is no such file, it is empty, or nothing in it can be listed (`BadInputError` with all reasons).

    Example:
        >>> [location.name for location in open_tree("data").locations][:3]
        ['1.mat', '2.mat', '3.mat']
    """
    root = Path(root)
    if root.is_file():
        found, problems = _single(root)
    elif root.is_dir():
        found, problems = _folder(root)
    else:
        expected = "a folder, a file or a zip archive"
        what = "neither a file nor a folder" if os.path.lexists(root) else "no such file or folder"
        raise DataError(what, path=root, expected=expected, kind="missing-file")
    if not found:
        if problems:
            raise BadInputError(problems, f"{shown(str(root))}: nothing in it can be read")
        what = "an empty folder" if root.is_dir() else "an empty archive"
        raise DataError(what, path=root, expected="slices and their masks", kind="empty")
    return Tree(root, tuple(sorted(found, key=lambda loc: natural_key(loc.name))), tuple(sorted(problems)))


def _single(root: Path) -> tuple[list[Location], list[Problem]]:
    name = shown(root.name)
    if name.lower().endswith(_NO_ZIP):
        remedy = "Unpack it and use the folder."
        raise DataError("this kind of archive is not read in place", path=root, expected="a zip", remedy=remedy)
    if not name.lower().endswith(".zip"):
        return [Location(root, (), name)], []
    listing = list_archive(root, name)
    return listing.locations, listing.problems


def _folder(root: Path) -> tuple[list[Location], list[Problem]]:
    found: list[Location] = []
    problems: list[Problem] = []
    for path, name in _walk(root, problems):
        if name.lower().endswith(".zip"):
            try:
                listing = list_archive(Path(path), name)
            except DataError as error:
                problems.append(Problem.of(error, name))
                continue
            found += listing.locations
            problems += listing.problems
            if not listing.locations and not listing.problems:
                problems.append(Problem(name, "empty", "an empty archive", "warning"))
        else:
            found.append(Location(Path(path), (), name))
    return found, problems


def _walk(root: Path, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Yield all visible files below `root` as (path on disk, display name), in no particular order."""
    # Linked folders come last, so that a folder that is also linked is listed once, under its own name.
    visited: set[tuple[int, int]] = set()
    real: list[tuple[str, str]] = [(os.fspath(root), "")]
    linked: list[tuple[str, str]] = []
    while real or linked:
        folder, prefix = real.pop() if real else linked.pop(0)
        try:
            facts = os.stat(folder)  # noqa: PTH116 - a Path for each folder costs more than the call
            if (facts.st_dev, facts.st_ino) in visited:
                continue
            visited.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise DataError("the folder cannot be read", path=root, found=error.strerror) from error
            problems.append(Problem(prefix.rstrip("/"), "unreadable", f"the folder cannot be read ({error.strerror})"))
            continue
        for entry in children:
            if is_hidden(entry.name):
                continue
            name = prefix + shown(entry.name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder:
                (linked if entry.is_symlink() else real).append((entry.path, name + "/"))
            elif is_file:
                yield entry.path, name
            elif entry.is_symlink():
                where = "a device or pipe" if os.path.exists(entry) else "a missing file"  # noqa: PTH110
                message = f"a link to {where}. Restore the file or remove the link"
                problems.append(Problem(name, "missing-file", message))


def read_bytes(location: Location, *, limit: int) -> bytes:
    """Read a file on disk or in an archive; `DataError` if it is larger than `limit` bytes, damaged, or unreadable."""
    working_on(location.name)
    if location.members:
        return read_member(location, limit=limit)
    try:
        with open(location.path, "rb", buffering=0) as stream:  # noqa: PTH123 - faster than Path.open, once a slice
            size = os.fstat(stream.fileno()).st_size
            # One byte more detects a file that grew. Not `limit`, because read() allocates the requested size.
            data = stream.read(size + 1) if size <= limit else b""
            # Only very large files and some network drives need several reads.
            while len(data) < size <= limit and (more := stream.read(size + 1 - len(data))):
                data += more
    except OSError as error:
        raise DataError("cannot be read", path=location.name, found=error.strerror) from error
    if max(size, len(data)) > limit:
        found, expected = f"{max(size, len(data))} bytes", f"at most {limit} bytes"
        raise DataError("the file is too large", path=location.name, found=found, expected=expected, kind="too-large")
    return data


def head(location: Location) -> bytes:
    """Return the first bytes of a file, for detection; b"" if it cannot be read."""
    working_on(location.name)
    try:
        if location.members:
            return read_bytes(location, limit=_MEMBER_LIMIT)[:HEAD_BYTES]
        with location.path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, DataError):
        return b""


def surviving(function: Callable[..., R], tree: Tree, *args: Any) -> tuple[R, tuple[Problem, ...]]:
    """Run `function(tree, *args)` in a child process, without the files that end it; return its result and those files."""
    problems: list[Problem] = []
    while True:
        try:
            return call(function, tree, *args), tuple(problems)
        except DataError as error:
            rest = tuple(location for location in tree.locations if location.name != error.path)
            if error.kind != "crashed" or len(rest) == len(tree.locations):
                raise
            problems.append(Problem.of(error))
            tree = replace(tree, locations=rest)


def input_names(roots: Sequence[Path]) -> list[str]:
    """Return a short unique name for each input: that of the folder, with a number if it is repeated."""
    names: list[str] = []
    for root in roots:
        base = (root.resolve().name or "data").removesuffix(".zip")
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
