"""Child process that parses untrusted HDF5 bytes; `hdf5.py` runs this file as a script.

It reads the file from standard input, checks it, and writes a JSON header (groups, text attributes, shape and type of each
data set) and then the numbers to standard output. The HDF5 library is written in C: if a file makes it crash, hang or
allocate without limit, only this process ends.

It does not import kerasseg, so that it starts in a quarter of a second.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # every thread of a pool counts towards the memory limit

import h5py
import numpy as np

REFUSED = 3  # exit code; standard error then holds the arguments of `CheckpointError` as JSON
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000
_MAX_CHUNKS = 1_000_000
_MAX_TEXT = 1 << 26  # bytes of all text attributes together
_ALWAYS_FINE = 1 << 26  # bytes that a data set may declare regardless of its stored size
_MAX_EXPANSION = 200  # times the stored bytes; compressed float32 weights stay below 2, zeros reach 1000
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
_REMEDY = "The file was damaged or tampered with: download it again from a trusted source."


def refuse(what: str, **details: object) -> NoReturn:
    """Exit with a reason."""
    sys.stderr.write(json.dumps({"what": what} | {key: str(value) for key, value in details.items()}) + "\n")
    sys.stderr.flush()
    os._exit(REFUSED)


def limit(memory: int, seconds: int) -> None:
    """Limit the CPU time and memory of this process, where supported."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def look_over(file: h5py.File, size: int) -> tuple[list[tuple[str, Any]], list[tuple[str, h5py.Dataset]]]:
    """Check the file and return its groups and numeric data sets with their paths."""
    seen: set[int] = set()
    groups: list[tuple[str, Any]] = []
    datasets: list[tuple[str, h5py.Dataset]] = []
    declared = 0
    stack: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    while stack:
        group, prefix, depth = stack.pop()
        groups.append((prefix, group))
        if depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
            refuse("refused: its groups are nested too deeply", found=prefix)
        for key in group:
            path = f"{prefix}/{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = getattr(link, "filename", None) or getattr(link, "path", "")
                kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
                refuse(f"refused: `{path}` is {kind}", found=f"a link to {target}", expected="data", remedy=_REMEDY)
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                refuse(f"refused: `{path}` is in the file twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                stack.append((item, path, depth + 1))
            elif isinstance(item, h5py.Dataset):
                declared += check_dataset(item, path)
                if _is_numeric(item.dtype):
                    datasets.append((path, item))
    if declared > max(_ALWAYS_FINE, _MAX_EXPANSION * size):
        refuse("refused: it declares far more than it stores", found=f"{declared} bytes declared, {size} stored")
    return groups, datasets


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    # Keras stores bfloat16 as two opaque bytes. Texts and tables are not weights.
    return dtype.kind in "fiub" or (dtype.kind == "V" and dtype.itemsize == 2 and dtype.fields is None)


def check_dataset(dataset: h5py.Dataset, path: str) -> int:
    """Check a data set and return the number of bytes that it declares."""
    if dataset.is_virtual:
        refuse(f"refused: `{path}` is a virtual data set", expected="numbers stored in it")
    if dataset.external:
        refuse(f"refused: `{path}` keeps its numbers in another file", found=dataset.external[0][0])
    size = math.prod(int(n) for n in dataset.shape or ()) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if size > max(_ALWAYS_FINE, _MAX_EXPANSION * stored):
        refuse(
            f"refused: `{path}` declares far more than it stores",
            found=f"shape {dataset.shape}, {stored} bytes",
            remedy=_REMEDY,
        )
    if dataset.chunks is not None and _is_numeric(dataset.dtype):
        check_chunks(dataset, path)
    return size


def check_chunks(dataset: h5py.Dataset, path: str) -> None:
    """Refuse chunks that do not unpack to the expected size, because HDF5 would read past their end."""
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if not set(filters) <= {_DEFLATE, _SHUFFLE, _CHECKSUM}:
        refuse(f"refused: `{path}` is compressed by a method that Keras does not use", found=f"filters {filters}")
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if size > _ALWAYS_FINE and size > 2 * dataset.nbytes:
        refuse(f"refused: `{path}` has chunks larger than itself", found=f"{dataset.chunks} of {dataset.shape}")
    stored: list[Any] = []
    dataset.id.chunk_iter(stored.append)
    if len(stored) > _MAX_CHUNKS:
        refuse(f"refused: `{path}` has too many chunks", found=len(stored), expected=f"at most {_MAX_CHUNKS}")
    for info in stored:
        expected = size + 4 * sum(
            f == _CHECKSUM and not info.filter_mask >> i & 1
            for i, f in enumerate(filters)
            if _DEFLATE not in filters or i < filters.index(_DEFLATE)
        )
        data = dataset.id.read_direct_chunk(info.chunk_offset)[1]
        for i, kind in reversed(list(enumerate(filters))):
            if info.filter_mask >> i & 1:
                continue
            if kind == _CHECKSUM and i > (filters.index(_DEFLATE) if _DEFLATE in filters else len(filters)):
                data = data[:-4]
            elif kind == _DEFLATE:
                stream = zlib.decompressobj()
                try:
                    data = stream.decompress(data, expected + 1)
                except zlib.error as error:
                    refuse(f"`{path}` has a damaged chunk", found=error, remedy=_REMEDY)
        if len(data) != expected:
            refuse(
                f"`{path}` has a damaged chunk",
                found=f"{len(data)} bytes at {info.chunk_offset}",
                expected=f"{expected} bytes",
                remedy=_REMEDY,
            )


def texts(item: Any) -> Iterator[tuple[str, str | list[str]]]:
    """Yield the attributes that are texts or lists of texts."""
    for name in item.attrs:
        try:
            value = item.attrs[name]
        except (OSError, TypeError, ValueError):  # a type that h5py does not support and Keras does not write
            continue
        if isinstance(value, str | bytes):
            yield name, decoded(value)
        elif isinstance(value, np.ndarray) and value.ndim <= 1 and (value.dtype.kind in "SUO" or not value.size):
            yield name, [decoded(v) for v in np.atleast_1d(value)]


def decoded(value: object) -> str:
    """Return an attribute value as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def send(file: h5py.File, size: int, out: BinaryIO) -> None:
    """Write the header, then the numbers."""
    groups, datasets = look_over(file, size)
    attributes = {path: found for path, item in (*groups, *datasets) if (found := dict(texts(item)))}
    header = json.dumps(
        {
            "groups": [path for path, _ in groups],
            "attributes": attributes,
            "datasets": [(path, item.dtype.str, list(item.shape or ())) for path, item in datasets],
        }
    ).encode()
    if len(header) > _MAX_TEXT * 2:
        refuse("refused: its attributes are too long", found=f"{len(header)} bytes")
    out.write(len(header).to_bytes(8, "little") + header)
    for _, item in datasets:
        values = np.zeros(item.shape or (), item.dtype)  # zeros, so that no old memory is sent
        if values.size:
            item.read_direct(values) if values.ndim else values.__setitem__((), item[()])
        out.write(values.tobytes())
    out.flush()


def main() -> None:
    """Parse the file on standard input: `hdf5_child.py MEMORY SECONDS`."""
    limit(int(sys.argv[1]), int(sys.argv[2]))
    stream = os.fdopen(0, "rb")
    size = os.fstat(0).st_size
    try:
        # As a file object, so that relative external links have no folder to start from.
        with h5py.File(stream, "r") as file:
            send(file, size, os.fdopen(1, "wb", closefd=False))
    except MemoryError:
        refuse("refused: reading it takes too much memory")
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        text = str(error)
        cut = re.search(r"eof = (\d+).*stored_eof = (\d+)", text)
        if cut:
            refuse(
                f"the HDF5 file is truncated: {int(cut[1]):,} of {int(cut[2]):,} bytes",
                remedy="Fetch it again and compare its size or checksum.",
            )
        refuse(
            "the HDF5 file is damaged",
            found=text.split("(")[0].strip() or type(error).__name__,
            remedy="Fetch it again and compare its size or checksum.",
        )


if __name__ == "__main__":
    main()
