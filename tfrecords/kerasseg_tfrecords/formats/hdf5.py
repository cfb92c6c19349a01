"""Read untrusted HDF5 files, so that a small file can neither open other files nor fill the memory.

HDF5 follows links into other files, reads external and virtual data sets, and inflates chunks without a limit. Slices need
none of this, and it is refused before anything is read:

* only hard links are followed;
* data sets must be numeric, not too large, and stored in the file itself;
* chunks are inflated here and must have exactly the declared size: HDF5 1.14 inflates any amount, and reads beyond the end
  of its buffer if a chunk is too short, which can end the process.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5f, h5fd, h5g, h5l, h5o, h5p, h5s, h5t, h5z
from numpy.typing import NDArray
from zlib_ng import zlib_ng as zlib

from kerasseg_tfrecords.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_CHUNKS = 65_536  # per data set; MATLAB writes a 512x512 image in 8
SURELY_SMALL = 60_000  # deflated bytes, which inflate to at most 62 MB
_FILTERS = {h5z.FILTER_DEFLATE: "deflate", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link into another file"}
_ZLIB_ERROR: Any = zlib.error  # the library declares it as an instance
LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, SystemError)
_NUMBERS = {h5t.INTEGER, h5t.FLOAT, h5t.ENUM}


def is_hdf5(head: bytes) -> bool:
    """Whether a file that begins with `head` is HDF5, after a user block of 0, 512, 1024, ... bytes."""
    places = [0, *(2**power for power in range(9, max(len(head).bit_length(), 9)))]
    return any(head[place : place + 8] == SIGNATURE for place in places)


@contextmanager
def open_hdf5(data: bytes, name: str) -> Iterator[Any]:
    """Open the root group of an HDF5 file in memory; it is closed, with its children, at the end of the block.

    Exceptions of the HDF5 library inside the block become `DataError`.
    """
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    # BytesIO shares the bytes; HDF5's own in-memory files copy them twice.
    access.set_fileobj_driver(h5fd.fileobj_driver, io.BytesIO(data))
    try:
        file = h5f.open(b"bytes in memory", h5f.ACC_RDONLY, access)
    except (*LIBRARY_ERRORS, MemoryError) as error:
        raise _damaged(name, error) from error
    try:
        yield h5g.open(file, b"/")
    except DataError:
        raise
    except (*LIBRARY_ERRORS, MemoryError) as error:
        raise _damaged(name, error) from error
    finally:
        file.close()


def _damaged(name: str, error: Exception) -> DataError:
    text = str(error)
    if "truncated file" in text:
        what, found = "the file is cut off", text[text.find("eof") :].rstrip(")")
    else:
        what, found = "the file is damaged", f"{type(error).__name__}: {text}"
    return DataError(what, path=name, found=found, remedy="Download or copy it again.")


def members(group: Any) -> tuple[str, ...]:
    """Return the names in a group, at most 100, without MATLAB's own (`#refs#`)."""
    names: list[bytes] = []

    def collect(name: bytes) -> bool | None:
        if not name.startswith(b"#"):
            names.append(name)
        return True if len(names) >= 100 else None

    group.links.iterate(collect)
    return tuple(sorted(name.decode("utf-8", "backslashreplace") for name in names))


def open_child(group: Any, child: str, name: str) -> Any:
    """Open a group or data set in a group; None if absent, `DataError` if it is a link or something else."""
    key = child.encode()
    if not group.links.exists(key):
        return None
    link = group.links.get_info(key)
    if link.type != h5l.TYPE_HARD:
        found = _LINKS.get(link.type, f"a link of type {link.type}")
        expected = "data in the file itself"
        raise DataError(f"{child} is {found}; it was not followed", path=name, expected=expected, kind="unsafe-link")
    opened = h5o.open(group, key)
    if not isinstance(opened, h5d.DatasetID | h5g.GroupID):
        raise DataError(f"{child} is neither a group nor a data set", path=name, kind="unreadable")
    return opened


def is_group(opened: Any) -> bool:
    return isinstance(opened, h5g.GroupID)


def read_numbers(
    dataset: Any, child: str, name: str, *, max_values: int, transpose: bool = False, opaque: bool = False
) -> NDArray[Any]:
    """Read a numeric data set.

    Args:
        dataset: From `open_child`.
        child: Name of the data set for messages.
        name: File name for messages.
        max_values: Larger data sets are refused before anything is read.
        transpose: Reverse the axes, which MATLAB's arrays need: faster here, by chunks, than afterwards.
        opaque: Also read values of two opaque bytes, as which Keras stores bfloat16.

    Returns:
        A new, row-major array of the stored shape (reversed with `transpose`) and type, in native byte order.

    Raises:
        DataError: Not numeric, too large, damaged, or in need of other files or unknown filters.
    """
    if not isinstance(dataset, h5d.DatasetID):
        raise DataError(f"{child} is not an array", path=name, found="a group", expected="a numeric array")
    plan = dataset.get_create_plist()
    layout = plan.get_layout()
    # Before reading the shape: HDF5 finds that of a virtual data set by opening other files.
    _check_own_data(plan, child, name)
    if dataset.get_type().get_class() not in (_NUMBERS | {h5t.OPAQUE} if opaque else _NUMBERS):
        raise DataError(f"{child} is not numeric", path=name, found=dataset.dtype, expected="a numeric array")
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or math.prod(shape) == 0:
        return np.empty((shape or (0,))[:: -1 if transpose else 1], dtype)
    values = math.prod(shape)
    if values > max_values:
        found = f"{' x '.join(map(str, shape))} values of {dtype.itemsize} bytes"
        raise DataError(f"{child} is too large", path=name, found=found, expected=f"at most {max_values} values",
                        kind="too-large")  # fmt: skip
    if (dtype.kind not in "biuf" or dtype.itemsize > 8) and dtype != "V2":
        raise DataError(f"{child} is not numeric", path=name, found=dtype, expected="integers or floats")
    if layout == h5d.CHUNKED:
        array = _read_chunked(dataset, plan, child, name, shape, dtype, transpose=transpose)
    elif dataset.get_storage_size() == 0:
        raise DataError(f"{child} is declared but was never written", path=name, found="no data", kind="empty-image")
    else:
        array = _read_plain(dataset, shape, dtype, transpose=transpose)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _check_own_data(plan: Any, child: str, name: str) -> None:
    if plan.get_layout() == h5d.VIRTUAL or plan.get_external_count():
        what = f"{child} keeps its data in other files; they were not read"
        raise DataError(what, path=name, expected="data in the file itself", kind="unsafe-link")


def _read_plain(dataset: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, transpose: bool) -> NDArray[Any]:
    array = np.empty(shape, dtype)
    dataset.read(h5s.ALL, h5s.ALL, array)
    return np.ascontiguousarray(array.T) if transpose else array


def _read_chunked(
    dataset: Any, plan: Any, child: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, transpose: bool
) -> NDArray[Any]:
    chunk = plan.get_chunk()
    size = math.prod(chunk) * dtype.itemsize
    grid = [range(0, length, step) for length, step in zip(shape, chunk, strict=True)]
    pieces = math.prod(len(places) for places in grid)
    # Chunks are read whole, so a chunk far larger than the array is refused as well.
    if pieces > MAX_CHUNKS or size > 4 * math.prod(shape) * dtype.itemsize + 2**20:
        found = f"{pieces} chunks of {size} bytes"
        raise DataError(f"{child} is stored in unreasonable chunks", path=name, found=found, kind="too-large")
    filters = [plan.get_filter(place)[0] for place in range(plan.get_nfilters())]
    unknown = [code for code in filters if code not in _FILTERS]
    if unknown or filters.count(h5z.FILTER_DEFLATE) > 1:
        expected = "deflate, shuffle or none"
        found = f"filters {', '.join(_FILTERS.get(code, str(code)) for code in filters)}"
        remedy = "Save it again with MATLAB's save -v7.3."
        what = f"{child} is compressed in an unsupported way"
        raise DataError(what, path=name, found=found, expected=expected, remedy=remedy)
    stored = _stored_chunks(dataset)
    if not stored:
        raise DataError(f"{child} is declared but was never written", path=name, found="no data", kind="empty-image")
    for _, _, length in stored:
        if length > size + size // 64 + 1024:
            found = f"{length} bytes for a chunk of {size}"
            raise DataError(f"{child} has a stored chunk that is too large", path=name, found=found)
    if not filters:
        return _read_plain(dataset, shape, dtype, transpose=transpose)
    fill = _fill_value(plan, dtype) if len(stored) < pieces else None
    array = np.empty(shape[::-1] if transpose else shape, dtype)
    if fill is not None:
        array[...] = fill
    as_stored = array.T if transpose else array
    inflate = _chunk_reader(filters, size, dtype.itemsize)
    for offset, skipped, _ in stored:
        raw = dataset.read_direct_chunk(offset)[1]
        block = np.frombuffer(inflate(raw, skipped), dtype).reshape(chunk)
        if h5z.FILTER_FLETCHER32 in filters:
            continue
        place = tuple(slice(start, start + step) for start, step in zip(offset, chunk, strict=True))
        target = as_stored[place]
        if target.shape == block.shape:
            target[...] = block
        else:  # the last chunk of a row or column extends beyond the array
            target[...] = block[tuple(slice(0, length) for length in target.shape)]
    # Chunks of the declared size are safe for HDF5, too.
    return _read_plain(dataset, shape, dtype, transpose=transpose) if h5z.FILTER_FLETCHER32 in filters else array


def _stored_chunks(dataset: Any) -> list[tuple[tuple[int, ...], int, int]]:
    """Return (offset, mask of skipped filters, stored bytes) of each chunk that was written."""
    stored: list[tuple[tuple[int, ...], int, int]] = []

    def collect(info: Any) -> None:
        stored.append((info.chunk_offset, info.filter_mask, info.size))

    dataset.chunk_iter(collect)
    return stored


def _fill_value(plan: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    fill = np.zeros((), dtype)
    if plan.fill_value_defined() != h5d.FILL_VALUE_UNDEFINED:
        plan.get_fill_value(fill)
    return fill


def _chunk_reader(filters: list[int], size: int, itemsize: int) -> Callable[[bytes, int], bytes]:
    """Return a function that undoes `filters`, given the stored bytes of a chunk and its mask of skipped filters."""

    def undo(raw: bytes, skipped: int) -> bytes:
        data = raw
        for place in range(len(filters) - 1, -1, -1):
            if skipped >> place & 1:
                continue
            if filters[place] == h5z.FILTER_DEFLATE:
                data = _inflated(data, size)
            elif filters[place] == h5z.FILTER_SHUFFLE:
                data = _unshuffled(data, itemsize)
            else:
                data = data[:-4]  # a checksum, which HDF5 verifies
        if len(data) != size:
            raise ValueError(f"a chunk has {len(data)} bytes instead of {size}")
        return data

    return undo


def _inflated(data: bytes, size: int) -> bytes:
    """Inflate a zlib stream that should hold `size` bytes, without allocating much more."""
    try:
        if len(data) <= SURELY_SMALL:
            return zlib.decompress(data, bufsize=size)  # a tenth faster than with a limit, and most chunks are small
        stream = zlib.decompressobj()
        # Up to four bytes more, for a checksum in the stream.
        inflated = stream.decompress(data, size + 5)
    except _ZLIB_ERROR as error:
        raise ValueError(str(error)) from error
    if not stream.eof:
        raise ValueError(f"a chunk of {size} bytes inflates to more, or is cut off")
    return inflated


def _unshuffled(data: bytes, itemsize: int) -> bytes:
    if itemsize == 1 or len(data) % itemsize:
        return data
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()


def read_text(dataset: Any, child: str, name: str, *, max_length: int = 1024) -> str:
    """Read a short text: an array of UTF-16 codes (MATLAB), an HDF5 string, or a number; "" if empty."""
    if not isinstance(dataset, h5d.DatasetID):
        raise DataError(f"{child} is not a text", path=name, found="a group", expected="text or a number")
    if dataset.get_type().get_class() == h5t.STRING:
        return _read_string(dataset, child, name, max_length)
    values = read_numbers(dataset, child, name, max_values=max_length)
    if values.size == 0 or h5py.h5a.exists(dataset, b"MATLAB_empty"):
        return ""
    flat = values.ravel()
    if flat.dtype.kind == "u" and flat.dtype.itemsize <= 2:
        codes = flat.astype("<u2").tobytes()
        return codes.decode("utf-16-le", "backslashreplace").replace("\0", "").strip()
    if flat.size != 1:
        raise DataError(f"{child} is not one text or number", path=name, found=f"{flat.size} values of {flat.dtype}")
    return number_text(flat[0])


def number_text(value: Any) -> str:
    """Format a number, whole numbers without a fraction.

    >>> number_text(100360.0), number_text(1.5)
    ('100360', '1.5')
    """
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else str(number)


def _read_string(dataset: Any, child: str, name: str, max_length: int) -> str:
    plan = dataset.get_create_plist()
    _check_own_data(plan, child, name)
    shape = dataset.shape
    if shape is None or math.prod(shape) != 1 or dataset.get_type().get_size() > max_length:
        raise DataError(f"{child} is not one short text", path=name, found=f"an array of texts, shape {shape}")
    if plan.get_layout() == h5d.CHUNKED:
        # HDF5 fills a chunk that inflates to too few bytes with other memory, which would be read as text.
        raise DataError(f"{child} is chunked text, which is not supported", path=name, expected="uncompressed text")
    if dataset.get_storage_size() < dataset.get_type().get_size():
        raise DataError(f"{child} is declared but was never written", path=name, found="no data")
    value = h5py.Dataset(dataset)[()]
    value = value.reshape(-1)[0] if isinstance(value, np.ndarray) else value
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if len(text) > max_length:
        raise DataError(f"{child} is too long", path=name, found=f"{len(text)} characters", kind="too-large")
    return text.strip("\0").strip()
