"""Identify files by their first bytes, for format detection and error messages."""

from __future__ import annotations

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mgh", ".mgz", ".mha", ".nrrd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".npy")
HEAD_BYTES = 1024

_PICTURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), "TIFF"),
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"\x93NUMPY": "NPY",
}
_OTHERS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"MATLAB 7.3", "a MATLAB 7.3 file"),
    (b"MATLAB 5.0", "a MATLAB 5 file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


def picture_kind(data: bytes) -> str | None:
    """Return "PNG", "JPEG", "TIFF", "GIF", "BMP" or "NPY", for data that start like such a file; None for others."""
    return next((kind for magic, kind in _PICTURES.items() if data.startswith(magic)), None)


def is_dicom(data: bytes) -> bool:
    """Whether `data` starts like a DICOM file: 128 arbitrary bytes and `DICM`, or (old scanners) the elements directly."""
    return data[128:132] == b"DICM" or has_no_preamble(data)


def has_no_preamble(data: bytes) -> bool:
    """Whether `data` starts with the elements of a DICOM data set, without the 132-byte preamble."""
    if data[128:132] == b"DICM" or len(data) < 16 or data[:2] not in {b"\x02\0", b"\x08\0"} or data[3] > 1:
        return False
    if data[4:6].isalpha() and data[4:6].isupper():
        return True
    end = 8 + int.from_bytes(data[4:8], "little")  # implicit: the length follows the tag
    return end < HEAD_BYTES and data[end : end + 2] in {b"\x02\0", b"\x08\0"} and data[end + 2 : end + 4] > data[2:4]


def is_gzip(data: bytes) -> bool:
    """Whether `data` starts like a gzip stream."""
    return data.startswith(b"\x1f\x8b")


def describe(data: bytes) -> str:
    r"""Describe the apparent type of a file for an error message.

    >>> describe(b""), describe(b"hello\n"), describe(b"\x89HDF\r\n\x1a\n")
    ('an empty file', 'a text file', 'an HDF5 file')
    """
    if not data:
        return "an empty file"
    if is_dicom(data):
        return "a DICOM file"
    if kind := picture_kind(data):
        return f"a file of type {kind}"
    for magic, words in _OTHERS:
        if data.startswith(magic):
            return words
    start = data[:HEAD_BYTES]
    if not start.strip(b"\x00"):
        return "a file of zero bytes"
    try:
        text = start[: len(start) - 3].decode() if len(start) == HEAD_BYTES else start.decode()
    except UnicodeDecodeError:
        return "something else"
    return "a text file" if all(c.isprintable() or c in "\r\n\t\f" for c in text) else "something else"
