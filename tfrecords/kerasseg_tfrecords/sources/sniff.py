"""What a file is by its first bytes, for detection and for telling users what they gave instead of an image."""

from __future__ import annotations

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.sources.base import Location, SourceOptions
from kerasseg_tfrecords.sources.tree import read_bytes

__all__ = ["DICOM_SUFFIXES", "describe", "file_limit", "head", "is_dicom", "is_gzip", "is_picture"]

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_HEAD = 1024
_MEMBER_LIMIT = 1 << 28

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"II+\x00", "a TIFF image"),
    (b"MM\x00+", "a TIFF image"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"MATLAB 7.3", "a MATLAB 7.3 file"),
    (b"MATLAB 5.0", "a MATLAB 5 file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"%PDF", "a PDF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


def is_picture(data: bytes) -> bool:
    """Whether `data` starts like a PNG, JPEG or TIFF file."""
    return any(data.startswith(magic) for magic, _ in _MAGIC[:6])


def is_dicom(data: bytes) -> bool:
    """Whether `data` starts like a DICOM file: 128 bytes of anything, then `DICM`."""
    return data[128:132] == b"DICM"


def is_gzip(data: bytes) -> bool:
    """Whether `data` starts like a gzip stream."""
    return data.startswith(b"\x1f\x8b")


def describe(data: bytes) -> str:
    r"""What a file seems to be, in words for an error message.

    >>> describe(b""), describe(b"hello\n"), describe(b"\x89HDF\r\n\x1a\n")
    ('an empty file', 'a text file', 'an HDF5 file')
    """
    if not data:
        return "an empty file"
    if is_dicom(data):
        return "a DICOM file"
    for magic, words in _MAGIC:
        if data.startswith(magic):
            return words
    start = data[:_HEAD]
    if not start.strip(b"\x00"):
        return "a file of zero bytes"
    try:
        text = start[: len(start) - 3].decode() if len(start) == _HEAD else start.decode()
    except UnicodeDecodeError:
        return "something else"
    return "a text file" if all(c.isprintable() or c in "\r\n\t\f" for c in text) else "something else"


def file_limit(options: SourceOptions) -> int:
    """Bytes that a file of one slice may have: 8 a pixel, and room for what headers carry."""
    return 8 * options.max_pixels + (1 << 26)


def head(location: Location) -> bytes:
    """The first bytes of a file, for detection; b"" where it cannot be read (reading it will tell why)."""
    try:
        if location.members:
            return read_bytes(location, limit=_MEMBER_LIMIT)[:_HEAD]
        with location.path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, DataError):
        return b""
