"""Check the size and completeness of a picture file before decoding it.

OpenCV decodes damaged files without an error: a truncated PNG becomes half black, and a 400 kB file may allocate gigabytes.
Pillow therefore reads the header first, and the pixels of formats in which OpenCV reports no damage.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

from numpy.lib import format as npy
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.sniff import describe

_KINDS = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"BM": "bmp",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
    b"II+\x00": "tiff",
    b"MM\x00+": "tiff",
}
_BYTES = 4  # per pixel, for an image of the largest allowed size
_MAX_SCANS = 100
_MAX_PAGES = 10_000
_REDUCED = 1  # bit of TIFF tag 254: a thumbnail of another page


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a picture file.

    Attributes:
        kind: "png", "jpeg", "tiff", "gif", "bmp" or "npy".
        height, width: Size in pixels.
        depth: Bits per stored grey value; reliable below 8, otherwise 8 or more.
        lossy: Whether the pixels are JPEG-compressed.
        grey: Whether one value per pixel is stored (a palette is not grey).
        white_is_zero: Whether 0 is displayed as white.
        payload: Bytes for the decoder.
        palette: Whether the stored values are indices into a colour table.
        pages: Number of pages of a TIFF.
        array: Offset, type and column-major flag of the values of an .npy file.
    """

    kind: str
    height: int
    width: int
    depth: int
    lossy: bool
    grey: bool
    white_is_zero: bool
    payload: bytes = field(repr=False)
    palette: bool = False
    pages: int = 1
    array: tuple[int, str, bool] = (0, "", False)


def check_pixels(height: int, width: int, name: str, max_pixels: int) -> None:
    """Raise `DataError` for an image without pixels or with more than `max_pixels`."""
    if height < 1 or width < 1:
        raise DataError("an image without pixels", path=name, found=f"{height} x {width} pixels")
    if height * width > max_pixels:
        raise DataError(
            "the image is too large",
            path=name,
            found=f"{height} x {width} pixels",
            expected=f"at most {max_pixels} pixels",
            remedy="Check the file: no MRI slice is that large",
            kind="too-large",
        )


def _check_bytes(height: int, width: int, size: int, name: str, max_pixels: int) -> None:
    if height * width * size > _BYTES * max_pixels:
        raise DataError(
            "the image is too large",
            path=name,
            found=f"{height} x {width} pixels of {size} bytes",
            expected=f"at most {_BYTES * max_pixels} bytes",
            kind="too-large",
        )


def inspect(data: bytes, name: str, max_pixels: int) -> Header:
    """Read the header of a picture and check that the file is complete.

    Raises:
        DataError: The file is not a supported picture, too large (`max_pixels`), truncated or damaged.
    """
    if data.startswith(b"\x93NUMPY"):
        return _inspect_npy(data, name, max_pixels)
    kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
    if kind is None:
        expected = "PNG, JPEG, TIFF, BMP, GIF, NPY or DICOM"
        raise DataError("not an image", path=name, found=describe(data), expected=expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd tags, and about sizes that are checked here
            return (_inspect_tiff if kind == "tiff" else _inspect_picture)(data, kind, name, max_pixels)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError("the image is too large", path=name, found=error, kind="too-large") from None
    except Exception as error:  # Pillow passes on whatever damaged bytes lead to
        found = "its header or a checksum" if isinstance(error, UnidentifiedImageError) else error
        raise _damaged(name, kind.upper(), found) from None


def _damaged(name: str, kind: str, found: object) -> DataError:
    return DataError(f"a damaged {kind} file", path=name, found=found, remedy="Download or copy it again")


def _inspect_picture(data: bytes, kind: str, name: str, max_pixels: int) -> Header:
    with Image.open(io.BytesIO(data), formats=[kind.upper()]) as file:
        width, height = file.size
        check_pixels(height, width, name, max_pixels)
        depth, colour = (data[24], data[25]) if kind == "png" else (8, 0)
        samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
        _check_bytes(height, width, samples * depth // 8, name, max_pixels)
        grey = colour in {0, 4} if kind == "png" else file.mode == "L" and kind == "jpeg"
        palette = kind == "gif" or file.mode == "P"
        if kind in {"png", "bmp"}:
            file.load()  # raises if pixels are missing; OpenCV leaves them black
    if kind == "png":
        with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
            file.verify()  # the checksums
    if kind == "jpeg" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise _damaged(name, "JPEG", f"more than {_MAX_SCANS} scans")
    return Header(kind, height, width, depth, kind == "jpeg", grey, False, data, palette=palette)


class _Bounded(io.BytesIO):
    """A file of which little more than its size can be read; the tables of a hostile TIFF overlap."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = 2 * len(data) + (1 << 16)

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("its tables overlap")
        return data


def _inspect_tiff(data: bytes, kind: str, name: str, max_pixels: int) -> Header:
    pages: list[dict[int, Any]] = []
    stream = _Bounded(data)
    tables = TiffImagePlugin.ImageFileDirectory_v2(stream.read(16 if b"+" in data[:4] else 8))
    seen = {0}
    while tables.next not in seen:
        seen.add(stream.seek(tables.next))
        if len(seen) > _MAX_PAGES:
            raise _damaged(name, "TIFF", f"more than {_MAX_PAGES} pages")
        tables.load(stream)
        if not tables.get(254, 0) & _REDUCED:
            pages.append({tag: tables.get(tag) for tag in (256, 257, 258, 259, 262, 277, 322, 323)})
    if tables.next or not pages:
        raise _damaged(name, "TIFF", "its page tables form a loop" if tables.next else "it has no pages")
    width, height, bits, compression, photometric, samples, *tile = (value or 1 for value in pages[0].values())
    bits = bits[0] if isinstance(bits, tuple) else bits
    check_pixels(sum(page[257] for page in pages), max(page[256] for page in pages), name, max_pixels)
    if any(
        [page[tag] for tag in (256, 257, 258, 277)] != [pages[0][tag] for tag in (256, 257, 258, 277)] for page in pages
    ):
        found = f"{len(pages)} pages"
        raise DataError("a TIFF whose pages differ", path=name, found=found, expected="pages of one size")
    _check_bytes(len(pages) * height, width, samples * bits // 8, name, max_pixels)
    if not 1 <= samples <= 4 or tile[0] * tile[1] > max(max_pixels, 1 << 20):
        raise DataError(
            "this kind of TIFF is not supported",
            path=name,
            found=f"{samples} values per pixel",
            expected="grey or colour, with or without transparency",
        )
    palette = photometric == 3
    grey, inverted = samples == 1 and not palette, pages[0][262] == 0
    lossy = compression in {6, 7}
    return Header(kind, height, width, bits, lossy, grey, inverted, data, palette=palette, pages=len(pages))


def _inspect_npy(data: bytes, name: str, max_pixels: int) -> Header:
    stream = io.BytesIO(data)
    try:
        read_header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, columns, kind = read_header(stream)
    except Exception:  # NumPy passes on what Python's tokenizer and parser raise
        raise _damaged(name, "NPY", "its header") from None
    start, sizes = stream.tell(), list(shape)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise DataError("this type of array is not supported", path=name, found=str(kind)[:40], expected="numbers")
    while len(sizes) > 2 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) == 3 and sizes[2] == 1:
        sizes = sizes[:2]
    if len(sizes) not in {2, 3} or (len(sizes) == 3 and sizes[2] != 3):
        found = " x ".join(map(str, sizes)) or "one value"
        raise DataError(
            "the array is not an image", path=name, found=found, expected="height x width or height x width x 3"
        )
    check_pixels(sizes[0], sizes[1], name, max_pixels)
    item = kind.itemsize
    samples = 3 if len(sizes) == 3 else 1
    _check_bytes(sizes[0], sizes[1], samples * item, name, 2 * max_pixels)
    if len(data) < start + sizes[0] * sizes[1] * samples * item:
        raise _damaged(name, "NPY", "the file is cut off")
    return Header(
        "npy", sizes[0], sizes[1], 8 * item, False, samples == 1, False, data, array=(start, kind.str, columns)
    )
