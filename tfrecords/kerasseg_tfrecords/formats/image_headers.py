"""Check the size and completeness of a picture file before decoding it.

OpenCV decodes damaged files without an error: a truncated PNG becomes half black. Pillow therefore reads the header first,
and the pixels of formats in which OpenCV reports no damage.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.sniff import describe, picture_kind

_BYTES = 4  # per pixel, for an image of the largest allowed size
_MAX_SCANS = 100
_MAX_PAGES = 10_000
_REDUCED = 1  # bit of TIFF tag 254: a thumbnail of another page


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a picture file.

    Attributes:
        kind: "PNG", "JPEG", "TIFF", "GIF", "BMP" or "NPY".
        height, width: Size in pixels.
        depth: Bits per stored grey value; reliable below 8, otherwise 8 or more.
        grey: Whether one value per pixel is stored (a palette is not grey).
        palette: Whether the stored values are indices into a colour table.
        lossy: Whether the pixels are JPEG-compressed.
        white_is_zero: Whether 0 is displayed as white.
        pages: Number of pages of a TIFF.
    """

    kind: str
    height: int
    width: int
    depth: int = 8
    grey: bool = False
    palette: bool = False
    lossy: bool = False
    white_is_zero: bool = False
    pages: int = 1


def check_pixels(height: int, width: int, name: str, max_pixels: int, size: int = 1) -> None:
    """Raise `DataError` for an image without pixels, with more than `max_pixels`, or with large pixels of `size` bytes."""
    if height < 1 or width < 1:
        raise DataError("an image without pixels", path=name, found=f"{height} x {width} pixels")
    if height * width * max(1, size / _BYTES) > max_pixels:
        raise DataError(
            "the image is too large",
            path=name,
            found=f"{height} x {width} pixels{f' of {size} bytes' if size > 1 else ''}",
            expected=f"at most {max_pixels} pixels",
            remedy="Check the file: no MRI slice is that large",
            kind="too-large",
        )


def damaged(name: str, kind: str, found: object) -> DataError:
    return DataError(f"a damaged {kind} file", path=name, found=found, remedy="Download or copy it again")


@contextmanager
def pillow(data: bytes, kind: str) -> Iterator[Image.Image]:
    """Open a picture with Pillow, without warnings about odd tags, and about sizes that are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=[kind]) as file:
            yield file


def inspect(data: bytes, name: str, max_pixels: int) -> Header:
    """Read the header of a picture and check that the file is complete.

    Raises:
        DataError: The file is not a supported picture, too large (`max_pixels`), truncated or damaged.
    """
    kind = picture_kind(data)
    if kind is None:
        expected = "PNG, JPEG, TIFF, BMP, GIF, NPY or DICOM"
        raise DataError("not an image", path=name, found=describe(data), expected=expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (_inspect_tiff if kind == "TIFF" else _inspect_picture)(data, kind, name, max_pixels)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError("the image is too large", path=name, found=error, kind="too-large") from None
    except Exception as error:  # Pillow passes on whatever damaged bytes lead to
        found = "its header or a checksum" if isinstance(error, UnidentifiedImageError) else error
        raise damaged(name, kind, found) from None


def _inspect_picture(data: bytes, kind: str, name: str, max_pixels: int) -> Header:
    with pillow(data, kind) as file:
        width, height = file.size
        depth, colour = (data[24], data[25]) if kind == "PNG" else (8, 0)
        samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
        check_pixels(height, width, name, max_pixels, samples * depth // 8)
        grey = colour in {0, 4} if kind == "PNG" else file.mode == "L" and kind == "JPEG"
        palette = kind == "GIF" or file.mode == "P"
        if kind in {"PNG", "BMP"}:
            file.load()  # raises if pixels are missing; OpenCV leaves them black
    if kind == "PNG":
        with pillow(data, kind) as file:
            file.verify()  # the checksums
    if kind == "JPEG" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise damaged(name, kind, f"more than {_MAX_SCANS} scans")
    return Header(kind, height, width, depth, grey, palette, lossy=kind == "JPEG")


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
            raise damaged(name, kind, f"more than {_MAX_PAGES} pages")
        tables.load(stream)
        if not tables.get(254, 0) & _REDUCED:
            pages.append({tag: tables.get(tag) for tag in (256, 257, 258, 259, 262, 277, 322, 323)})
    if tables.next or not pages:
        raise damaged(name, kind, "its page tables are damaged or form a loop" if tables.next else "it has no pages")
    width, height, bits, compression, photometric, samples, *tile = (value or 1 for value in pages[0].values())
    bits = bits[0] if isinstance(bits, tuple) else bits
    check_pixels(sum(page[257] for page in pages), max(page[256] for page in pages), name, max_pixels)
    check_pixels(len(pages) * height, width, name, max_pixels, samples * bits // 8)
    if any(
        [page[tag] for tag in (256, 257, 258, 277)] != [pages[0][tag] for tag in (256, 257, 258, 277)] for page in pages
    ):
        found = f"{len(pages)} pages"
        raise DataError("a TIFF whose pages differ", path=name, found=found, expected="pages of one size")
    if not 1 <= samples <= 4 or tile[0] * tile[1] > max(max_pixels, 1 << 20):
        raise DataError(
            "this kind of TIFF is not supported",
            path=name,
            found=f"{samples} values per pixel",
            expected="grey or colour, with or without transparency",
        )
    palette, inverted = photometric == 3, pages[0][262] == 0
    grey, lossy = samples == 1 and not palette, compression in {6, 7}
    return Header(kind, height, width, bits, grey, palette, lossy, inverted, len(pages))
