"""Read zip archives in place, including zips inside zips, without unpacking them.

The declarations of an archive are not trusted: unsafe names, overlapping members, impossible or bomb-like sizes, encryption
and unknown compression are refused while listing, and no read returns more bytes than the member declares.

Each process keeps a few archives open.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.files import temporary_space
from kerasseg_tfrecords.isolation import working_on
from kerasseg_tfrecords.slices import Location

MAX_DEPTH = 4  # levels of nested archives
MAX_ARCHIVES = 1_000  # archives inside one archive, at all levels
MAX_MEMBERS = 500_000
_DIRECTORY = 46  # bytes per member in the directory, without its name
KEPT_OPEN = 16  # open archives per process; the figshare data set has five
DEFLATE_RATIO = 1_032  # largest compression ratio that deflate can reach
BOMB_RATIO, BOMB_BYTES = 200, 256 * 2**20
"""A member or archive above both limits is treated as a zip bomb."""
SPOOL_RATIO, SPOOL_BYTES = 20, 64 * 2**20
"""The same for a compressed zip inside a zip, which must be unpacked to a temporary file."""
_METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
_SYSTEM_NAMES = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
}


@dataclass(slots=True)
class ArchiveListing:
    """The readable members of an archive, and the problems of the others."""

    locations: list[Location] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name belongs to the system rather than to the data.

    >>> [is_hidden(name) for name in ("._1.mat", "__MACOSX", "Thumbs.db", "1.mat")]
    [True, True, True, False]
    """
    return name.startswith((".", "~$")) or name.lower() in _SYSTEM_NAMES


def shown(name: str) -> str:
    """Escape the bytes of a name that are not UTF-8, so that it can be written to any file or terminal."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")


class _Window(io.RawIOBase):
    """A range of an open file as a file object with its own position."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        super().__init__()
        self.descriptor, self.start, self.size = descriptor, start, size
        self._at = 0
        # Closed with the last reader rather than on removal from the cache.
        weakref.finalize(self, os.close, descriptor)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise OSError("seek before the start of the archive")
        self._at = origin + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.size - self._at, 0)
        data = self.read_at(self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, self.start + offset)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Convert the exceptions of zipfile and the disk to `DataError`."""
    try:
        yield
    except DataError as error:
        error.name_file(name)
        raise
    except KeyError as error:
        raise DataError("no longer in its archive", path=name, remedy="Check whether the archive changed.") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError) or error.strerror:
            raise DataError("cannot be read", path=name, found=error.strerror) from error
        raise DataError("the file is damaged", path=name, found=error, remedy="Download or copy it again.") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, struct.error, ValueError) as error:
        remedy = "Download or copy it again."
        raise DataError("the zip archive is damaged", path=name, found=error, remedy=remedy) from error
    except (NotImplementedError, RuntimeError) as error:
        raise DataError(
            "cannot be read in place", path=name, found=error, remedy="Unpack the archive first."
        ) from error


def _signature(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _open(path: Path, chain: tuple[str, ...]) -> tuple[_Window, zipfile.ZipFile]:
    """Open the archive at `path`, or the nested zip at `chain` inside it; cached while the file is unchanged."""
    return _opened(path, chain, _signature(path))


@lru_cache(maxsize=KEPT_OPEN)
def _opened(path: Path, chain: tuple[str, ...], signature: tuple[int, ...]) -> tuple[_Window, zipfile.ZipFile]:
    window = _inner_window(*_opened(path, chain[:-1], signature), chain[-1]) if chain else _outer_window(path)
    return window, _zip_in(window, MAX_MEMBERS)


def open_zip(path: Path, most: int) -> zipfile.ZipFile:
    """Open a zip archive that has about `most` members at most."""
    return _zip_in(_outer_window(path), most)


def _zip_in(window: _Window, most: int) -> zipfile.ZipFile:
    """Open a zip unless it has too many members, each of which takes half a kilobyte of memory."""
    tail_size = min(window.size, 1 << 16 | 22 + 20)
    tail = window.read_at(window.size - tail_size, tail_size)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return zipfile.ZipFile(window)  # which reports it
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    wide = tail.rfind(b"PK\x06\x06", 0, end)  # zip64 has a record of its own for the size
    if wide >= 0:
        size = int.from_bytes(tail[wide + 40 : wide + 48], "little")
    if size > most * _DIRECTORY * 4 or (size > most * _DIRECTORY and window.size < 4 * size):
        found = f"a directory of {size} bytes"
        raise DataError("too many files", found=found, expected=f"at most {most}", kind="zip-bomb")
    return zipfile.ZipFile(window)


def _outer_window(path: Path) -> _Window:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _Window(descriptor, 0, os.fstat(descriptor).st_size)


def _inner_window(outer: _Window, archive: zipfile.ZipFile, member: str) -> _Window:
    """Open a zip inside a zip: a stored one within the outer file, a compressed one from a temporary file."""
    info = archive.getinfo(member)
    if info.compress_type == zipfile.ZIP_STORED:
        header = outer.read_at(info.header_offset, 30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no local header for {member!r}")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > outer.size:
            raise zipfile.BadZipFile(f"{member!r} extends beyond the end of the archive")
        return _Window(os.dup(outer.descriptor), outer.start + start, info.file_size)
    with temporary_space(), tempfile.TemporaryFile(prefix="kerasseg-") as spool, archive.open(info) as stream:
        written = 0
        while part := stream.read(2**20):
            written += len(part)
            spool.write(part)
        spool.flush()
        return _Window(os.dup(spool.fileno()), 0, written)


def read_member(location: Location, *, limit: int) -> bytes:
    """Read a file inside archives; `DataError` if it is damaged or larger than `limit` bytes."""
    with _explained(location.name):
        _, archive = _open(location.path, location.members[:-1])
        info = archive.getinfo(location.members[-1])
        reason = _refusal(info)
        if reason is not None:
            raise DataError(reason[1], path=location.name, kind=reason[0])
        if info.file_size > limit:
            found, expected = f"{info.file_size} bytes", f"at most {limit} bytes"
            raise DataError(
                "the file is too large", path=location.name, found=found, expected=expected, kind="too-large"
            )
        with archive.open(info) as stream:
            data = stream.read(info.file_size)
        if len(data) != info.file_size:
            raise zipfile.BadZipFile(f"{len(data)} of {info.file_size} bytes")
        return data


def _unsafe_name(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return not name or ".." in parts or parts[0] == "" or (len(parts[0]) > 1 and parts[0][1] == ":") or "\0" in name


def _refusal(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    """Return kind and message of the reason not to read a member, from the archive's directory; None if it is good."""
    if _unsafe_name(info.orig_filename):  # not `filename`, which zipfile cuts at a NUL
        return "unsafe-name", "its name leads out of the archive; it was not read. Create the archive again"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "unsafe-name", "links inside archives are not followed. Archive the file itself"
    if info.flag_bits & 0x1:
        return "encrypted", "is encrypted. Unpack the archive with its password and use the folder"
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        return "unreadable", f"is compressed with {method} (expected stored or deflate). Unpack the archive first"
    packed, size = info.compress_size, info.file_size
    bomb = size > packed * BOMB_RATIO and size > BOMB_BYTES
    if (info.compress_type == zipfile.ZIP_STORED and packed != size) or bomb or size > packed * DEFLATE_RATIO + 4096:
        return "zip-bomb", f"{packed} bytes claim to unpack to {size}, as in a zip bomb; it was not read"
    return None


def list_archive(path: Path, name: str) -> ArchiveListing:
    """List all files in the zip at `path` and in zips inside it, except hidden and system files.

    Raises:
        DataError: The archive itself cannot be used. Problems of single members are in the listing.
    """
    listing = ArchiveListing()
    _list_into(listing, path, (), name, [MAX_ARCHIVES])
    return listing


def _list_into(listing: ArchiveListing, path: Path, chain: tuple[str, ...], name: str, budget: list[int]) -> None:
    working_on(name)
    budget[0] -= 1
    if len(chain) >= MAX_DEPTH or budget[0] < 0:
        what = "archives are nested too deeply" if budget[0] >= 0 else "too many archives"
        expected = f"at most {MAX_DEPTH} deep" if budget[0] >= 0 else f"at most {MAX_ARCHIVES}"
        raise DataError(what, path=name, expected=expected, remedy="Unpack it first.", kind="zip-bomb")
    with _explained(name):
        infos = _open(path, chain)[1].infolist()
    _check_whole(infos, name)
    files = [info for info in infos if not info.filename.endswith("/")]
    if files and all(info.flag_bits & 0x1 for info in files):
        remedy = "Unpack it with its password and use the folder."
        raise DataError("the whole archive is encrypted", path=name, remedy=remedy, kind="encrypted")
    seen: set[str] = set()
    for info in files:
        plain = shown(info.filename.replace("\\", "/")).removeprefix("./")
        if any(is_hidden(part) and part not in {".", ".."} for part in plain.split("/")):
            continue
        member = f"{name}!{plain}"
        reason = _refusal(info)
        if reason is None and info.filename in seen:
            reason = "duplicate-name", "the archive has two files with this name. Create the archive again"
        seen.add(info.filename)
        if reason is not None:
            listing.problems.append(Problem(member, *reason))
        elif plain.lower().endswith(".zip"):
            try:
                _check_spool(info, member)
                _list_into(listing, path, (*chain, info.filename), member, budget)
            except DataError as error:
                listing.problems.append(Problem.of(error, member))
        else:
            listing.locations.append(Location(path, (*chain, info.filename), member))


def _check_whole(infos: list[zipfile.ZipInfo], name: str) -> None:
    """Refuse an archive with too many members, overlapping members, or an absurd total size."""
    if len(infos) > MAX_MEMBERS:
        found, expected = f"{len(infos)} members", f"at most {MAX_MEMBERS}"
        raise DataError("too many files", path=name, found=found, expected=expected, kind="zip-bomb")
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            what = "its members overlap, as in a zip bomb; it was not read"
            raise DataError(what, path=name, found=shown(info.filename), kind="zip-bomb")
        end = info.header_offset + 30 + info.compress_size
    packed, size = sum(info.compress_size for info in infos), sum(info.file_size for info in infos)
    if size > packed * BOMB_RATIO and size > 64 * BOMB_BYTES:
        what = f"{packed} bytes claim to unpack to {size}, as in a zip bomb; it was not read"
        raise DataError(what, path=name, kind="zip-bomb")


def _check_spool(info: zipfile.ZipInfo, name: str) -> None:
    if info.file_size > info.compress_size * SPOOL_RATIO and info.file_size > SPOOL_BYTES:
        what = f"{info.compress_size} bytes claim to unpack to a zip of {info.file_size}, as in a zip bomb"
        raise DataError(f"{what}; it was not read", path=name, kind="zip-bomb")
