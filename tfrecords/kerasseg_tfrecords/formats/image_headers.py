"""Check the size and completeness of a picture file before decoding it.

OpenCV decodes damaged files without an error: a truncated file becomes half grey, a flipped bit shifts the picture, and a
400 kB file may allocate gigabytes. The header is therefore read first, with the checks that each format offers (chunk CRCs,
end markers, strip tables).
"""

from __future__ import annotations

import ast
import re
import struct
import zlib
from dataclasses import dataclass, field

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.sniff import describe
from kerasseg_tfrecords.formats.tiff import read_tiff

__all__ = ["Header", "check_pixels", "inspect"]

_REMEDY = "Download or copy it again"


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


_BYTES = 4  # per pixel, for an image of the largest allowed size
_MAX_SCANS = 100
_PIECE = 1 << 20
_NPY = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


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
    """Read the header of a picture and check that the file is complete, without decoding it.

    Raises:
        DataError: The file is not a supported picture, too large (`max_pixels`), truncated or damaged.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _inspect_png(data, name, max_pixels)
    if data.startswith(b"\xff\xd8\xff"):
        return _inspect_jpeg(data, name, max_pixels)
    if data.startswith(b"BM"):
        return _inspect_bmp(data, name, max_pixels)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _inspect_gif(data, name, max_pixels)
    if data.startswith(b"\x93NUMPY"):
        return _inspect_npy(data, name, max_pixels)
    if data[:4] in {b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"}:
        return _inspect_tiff(data, name, max_pixels)
    raise DataError("not an image", path=name, found=describe(data), expected="PNG, JPEG, TIFF, BMP, GIF, NPY or DICOM")


def _damaged(name: str, kind: str, detail: str) -> DataError:
    return DataError(f"a damaged {kind} file", path=name, found=detail, remedy=_REMEDY)


def _inspect_png(data: bytes, name: str, max_pixels: int) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _damaged(name, "PNG", "no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    check_pixels(height, width, name, max_pixels)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    _check_bytes(height, width, (samples or 1) * depth // 8, name, max_pixels)
    if samples is None or depth not in {1, 2, 4, 8, 16} or interlaced not in {0, 1}:
        raise _damaged(name, "PNG", "an impossible header")
    kept = [data[:8]]
    pixels = []
    position = 8
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise _damaged(name, "PNG", "the file is cut off")
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 12 + length
        if end > len(data):
            raise _damaged(name, "PNG", "the file is cut off")
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _damaged(name, "PNG", f"the checksum of {kind.decode('latin-1')} is wrong")
        # Colour profiles and texts do not change the pixels, but make libpng print warnings.
        if kind in {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}:
            kept.append(data[position:end])
        if kind == b"IDAT":
            pixels.append(data[position + 8 : end - 4])
        position = end
    _check_png_pixels(b"".join(pixels), _png_passes(height, width, depth * samples, bool(interlaced)), name)
    return Header("png", height, width, depth, False, colour in {0, 4}, False, b"".join(kept), palette=colour == 3)


def _png_passes(height: int, width: int, bits: int, interlaced: bool) -> list[tuple[int, int]]:
    """Return rows and bytes per row (filter byte included) of each interlacing pass."""
    if not interlaced:
        return [(height, 1 + (width * bits + 7) // 8)]
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    sizes = [(-((y - height) // dy), -((x - width) // dx)) for y, x, dy, dx in adam7]
    return [(rows, 1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0]


def _check_png_pixels(compressed: bytes, passes: list[tuple[int, int]], name: str) -> None:
    stream = zlib.decompressobj()
    done, expected = 0, sum(rows * stride for rows, stride in passes)
    try:
        for rows, stride in passes:
            # Some rows at a time, so that the whole picture is not in memory twice.
            together = max(1, _PIECE // stride)
            for first in range(0, rows, together):
                wanted = min(together, rows - first) * stride
                raw = stream.decompress(compressed, wanted)
                compressed = stream.unconsumed_tail
                done += len(raw)
                if len(raw) < wanted:
                    raise _damaged(name, "PNG", f"{done} of {expected} bytes of pixels")
                if max(raw[::stride]) > 4:
                    raise _damaged(name, "PNG", "a row with an unknown filter")
        stream.decompress(compressed, 1)  # the trailing checksum
    except zlib.error:
        raise _damaged(name, "PNG", "its compressed pixels cannot be unpacked") from None


def _inspect_jpeg(data: bytes, name: str, max_pixels: int) -> Header:
    size: tuple[int, int, int] | None = None
    scans = 0
    # Matches only the last FF of a run: a pattern for the whole run would retry from each of its bytes.
    marker = re.compile(rb"\xff([^\x00\xff])")
    after_scan = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
    position = 2
    while True:
        match = (after_scan if scans else marker).search(data, position)
        if match is None:
            raise _damaged(name, "JPEG", "the file is cut off")
        code, position = match.group(1)[0], match.end()
        if code == 0xD9:
            break
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if length < 2 or position + length > len(data):
            raise _damaged(name, "JPEG", "the file is cut off")
        if 0xC0 <= code <= 0xCF and code not in {0xC4, 0xC8, 0xCC}:
            if length < 8:
                raise _damaged(name, "JPEG", "an impossible header")
            height, width, components = struct.unpack(">HHB", data[position + 3 : position + 8])
            check_pixels(height, width, name, max_pixels)
            size = height, width, components
        if code == 0xDA:
            scans += 1
            if scans > _MAX_SCANS:
                raise _damaged(name, "JPEG", f"more than {_MAX_SCANS} scans")
        position += length
    if size is None or not scans:
        raise _damaged(name, "JPEG", "it holds no picture")
    return Header("jpeg", size[0], size[1], 8, True, size[2] == 1, False, data)


def _inspect_tiff(data: bytes, name: str, max_pixels: int) -> Header:
    try:
        pages = read_tiff(data)
    except ValueError as error:
        raise _damaged(name, "TIFF", str(error)) from None
    page = pages[0]
    check_pixels(sum(page.height for page in pages), max(page.width for page in pages), name, max_pixels)
    if any(
        (one.height, one.width, one.samples, one.bits) != (page.height, page.width, page.samples, page.bits)
        for one in pages
    ):
        raise DataError(
            "a TIFF whose pages differ", path=name, found=f"{len(pages)} pages", expected="pages of one size"
        )
    _check_bytes(len(pages) * page.height, page.width, page.samples * page.bits // 8, name, max_pixels)
    if not 1 <= page.samples <= 4 or page.tile_pixels > max(max_pixels, 1 << 20):
        raise DataError(
            "this kind of TIFF is not supported",
            path=name,
            found=f"{page.samples} values per pixel",
            expected="grey or colour, with or without transparency",
        )
    if any(one.stored_end > len(data) or one.stored_bytes < one.needed_bytes for one in pages):
        raise _damaged(name, "TIFF", "the file is cut off")
    return Header(
        "tiff",
        page.height,
        page.width,
        page.bits,
        page.lossy,
        page.samples == 1 and not page.palette,
        page.inverted,
        data,
        palette=page.palette,
        pages=len(pages),
    )


def _inspect_bmp(data: bytes, name: str, max_pixels: int) -> Header:
    if len(data) < 54 or int.from_bytes(data[14:18], "little") < 40:
        raise _damaged(name, "BMP", "no header")
    start = int.from_bytes(data[10:14], "little")
    width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    check_pixels(abs(height), width, name, max_pixels)
    needed = start + (width * bits + 31) // 32 * 4 * abs(height)
    if bits not in {1, 4, 8, 16, 24, 32} or (compression in {0, 3} and len(data) < needed):
        raise _damaged(name, "BMP", "the file is cut off")
    return Header("bmp", abs(height), width, 8, False, False, False, data, palette=bits <= 8)


def _inspect_gif(data: bytes, name: str, max_pixels: int) -> Header:
    if len(data) < 14 or not data.rstrip(b"\x00").endswith(b";"):
        raise _damaged(name, "GIF", "the file is cut off")
    width, height = struct.unpack("<HH", data[6:10])
    check_pixels(height, width, name, max_pixels)
    return Header("gif", height, width, 8, False, False, False, data, palette=True)


def _inspect_npy(data: bytes, name: str, max_pixels: int) -> Header:
    # NumPy's own reader can run pickles; here the header is parsed as data, and the values must be numbers.
    size = 2 if data[6:7] == b"\x01" else 4
    start = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    try:
        text = data[8 + size : min(start, 10_000)].decode("latin-1")
        entries = ast.literal_eval(text.strip())
        shape, kind, columns = entries["shape"], str(entries["descr"]), entries["fortran_order"] is True
        sizes = [int(length) for length in shape]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        raise _damaged(name, "NPY", "its header") from None
    if not _NPY.fullmatch(kind):
        raise DataError("this type of array is not supported", path=name, found=kind[:40], expected="numbers")
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
    item = int(kind[-1])
    samples = 3 if len(sizes) == 3 else 1
    _check_bytes(sizes[0], sizes[1], samples * item, name, 2 * max_pixels)
    if len(data) < start + sizes[0] * sizes[1] * samples * item:
        raise _damaged(name, "NPY", "the file is cut off")
    return Header("npy", sizes[0], sizes[1], 8 * item, False, samples == 1, False, data, array=(start, kind, columns))
