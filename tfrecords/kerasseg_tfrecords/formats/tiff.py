"""Read the page tables of a TIFF file: number of pages, their sizes, and where their pixels are stored."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Page", "read_tiff"]

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1, 3, 4, 13, 16, 18}
_Tags = dict[int, NDArray[np.unsignedinteger[Any]]]
_MAX_PAGES = 10_000
_MAX_ENTRIES = 200_000  # over all pages
_MAX_VALUES = 4_000_000  # over all pages; page tables may overlap, so a small file can declare very many
_REDUCED = 1  # bit of tag 254: a thumbnail of another page
_JPEG = {6, 7}


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        height, width: Size in pixels.
        samples: Values per pixel.
        bits: Bits per value.
        palette: Whether the values are indices into a colour table.
        inverted: Whether 0 is white.
        lossy: Whether the pixels are JPEG-compressed.
        tile_pixels: Pixels per tile; 0 for strips.
        stored_end: File offset at which the last strip or tile ends.
        stored_bytes: Bytes in all strips or tiles.
        needed_bytes: Bytes that uncompressed pixels require; 0 for compressed pages.
    """

    height: int
    width: int
    samples: int
    bits: int
    palette: bool
    inverted: bool
    lossy: bool
    tile_pixels: int
    stored_end: int
    stored_bytes: int
    needed_bytes: int


def read_tiff(data: bytes) -> list[Page]:
    """Return the full-size pages of a TIFF or BigTIFF file; `ValueError` if there are none or the tables are invalid."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in {b"+\x00", b"\x00+"}
    try:
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        pages = []
        budget = [_MAX_ENTRIES, _MAX_VALUES]
        seen: set[int] = set()
        while offset:
            if offset in seen or len(seen) >= _MAX_PAGES:
                raise ValueError("its page tables form a loop")
            seen.add(offset)
            tags, offset = _read_directory(data, offset, order, big, budget)
            if not _first(tags, 254) & _REDUCED:
                pages.append(_page(tags))
    except (struct.error, OverflowError):
        raise ValueError("the file is cut off") from None
    if not pages:
        raise ValueError("it has no pages")
    return pages


def _read_directory(data: bytes, offset: int, order: str, big: bool, budget: list[int]) -> tuple[_Tags, int]:
    count_code, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = struct.unpack_from(order + count_code, data, offset)
    budget[0] -= count
    if count > 4096 or budget[0] < 0:
        raise ValueError("an impossible page table")
    position = offset + struct.calcsize(order + count_code)
    tags: _Tags = {}
    for _ in range(count):
        tag, kind, number = struct.unpack_from(order + entry, data, position)
        place = position + struct.calcsize(order + entry)
        position = place + inline
        if kind not in _CODES or tag not in _WANTED:
            continue
        size = _SIZES[kind] * number
        if size > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
        if place + size > len(data):
            raise ValueError("the file is cut off")
        budget[1] -= number
        if budget[1] < 0:
            raise ValueError("its tables declare too many values")
        tags[tag] = np.frombuffer(data, f"{order}u{_SIZES[kind]}", number, place)
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, position)
    return tags, following


_WANTED = {254, 256, 257, 258, 259, 262, 273, 277, 279, 284, 322, 323, 324, 325}


def _first(tags: _Tags, tag: int, default: int = 0) -> int:
    values = tags.get(tag)
    return int(values[0]) if values is not None and len(values) else default


def _page(tags: _Tags) -> Page:
    height, width = _first(tags, 257), _first(tags, 256)
    samples, bits = _first(tags, 277, 1), _first(tags, 258, 1)
    compression, photometric = _first(tags, 259, 1), _first(tags, 262, 1)
    none = np.zeros(0, np.uint64)
    offsets, lengths = (tags.get(324 + i, tags.get(273 + 6 * i, none)).astype(np.float64) for i in (0, 1))
    if not len(offsets):
        raise ValueError("it has no pixels")
    # Old writers omit the lengths; then only the decoder can detect missing pixels.
    many = min(len(offsets), len(lengths))
    ends = offsets[:many] + lengths[:many] if many else offsets
    plain = compression == 1 and len(lengths) > 0 and photometric != 6 and 324 not in tags
    return Page(
        height=height,
        width=width,
        samples=samples,
        bits=bits,
        palette=photometric == 3,
        inverted=photometric == 0,
        lossy=compression in _JPEG,
        tile_pixels=_first(tags, 322) * _first(tags, 323),
        stored_end=int(ends.max()),
        stored_bytes=int(lengths.sum()),
        needed_bytes=height * ((width * samples * bits + 7) // 8) if plain else 0,
    )
