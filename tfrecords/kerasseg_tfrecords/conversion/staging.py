"""Keep converted slices on disk, in chunks, until the split is known.

A chunk is named by a hash of everything that its content depends on: the items, the size and date of their files, the
conversion options and the versions of the code. A run that was killed therefore reuses its finished chunks, with any number
of `--jobs`, and a file or an option that has changed gives another name.

    KEY.bin   the payloads, one after another
    KEY.json  facts and offsets; written last, so that its presence means the chunk is complete
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydantic import BaseModel
from zlib_ng import zlib_ng as zlib

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.conversion.convert import Conversion, Converted, convert_item
from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.files import explain_os_error, read_file, write_atomically
from kerasseg_tfrecords.records.schema import Payload, SliceFacts
from kerasseg_tfrecords.sources.base import Item, LeftOut
from kerasseg_tfrecords.splitting.fingerprints import Fingerprint


@dataclass(frozen=True, slots=True)
class Task:
    """Consecutive items of one input, which become one chunk."""

    items: tuple[Item, ...]
    prefix: str
    conversion: Conversion
    folder: Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the spool the payload of a slice is.

    Attributes:
        key: Name of the chunk.
        offset: Start of the image in the payload file of the chunk; mask and native mask follow.
        lengths: Bytes of image, mask and native mask.
    """

    key: str
    offset: int
    lengths: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Spooled:
    """A slice whose payload is in the spool."""

    facts: SliceFacts
    place: Place


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of a task.

    Attributes:
        slices: Usable slices.
        prints: Their fingerprints.
        problems, left_out: Of the other items.
    """

    slices: tuple[Spooled, ...] = ()
    prints: tuple[Fingerprint, ...] = ()
    problems: tuple[Problem, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


class _Stored(BaseModel):
    """The content of KEY.json: a chunk, with its fingerprints in base64, and the length and checksum of KEY.bin."""

    length: int
    crc32: int
    slices: tuple[Spooled, ...]
    prints: tuple[str, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]


_VERSIONS = f"{__version__} numpy {np.__version__} opencv {cv2.__version__}"


def chunk_key(task: Task) -> str:
    """Return the name of the chunk: a hash of its input."""
    state: list[object] = [_VERSIONS, task.prefix, repr(task.conversion)]
    for item in task.items:
        stats = []
        for location in item.files:
            try:
                found = location.path.stat()
                stats.append((str(location.path.absolute()), location.members, found.st_size, found.st_mtime_ns))
            except OSError:
                stats.append((str(location.path.absolute()), location.members, -1, -1))
        state.append((item.format, item.name, item.label, item.patient, item.volume, item.slice_index, stats))
    return hashlib.sha256(repr(state).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def run_task(task: Task) -> Chunk:
    """Convert the items of a task, or load the finished chunk. Runs in a worker process."""
    key = chunk_key(task)
    made = load_chunk(task.folder, key)
    if made is not None:
        return made
    problems: list[Problem] = []
    left_out: list[LeftOut] = []
    payloads = task.folder / f".{key}-{uuid.uuid4().hex}.bin"  # workers on other machines may have the same process id
    offset, checksum = 0, 0
    slices: list[Spooled] = []
    prints: list[Fingerprint] = []
    try:
        with payloads.open("wb") as stream:
            for item in task.items:
                for result in convert_item(item, task.conversion, task.prefix):
                    if not isinstance(result, Converted):
                        problems += [result] if isinstance(result, Problem) else []
                        left_out += [result] if isinstance(result, LeftOut) else []
                        continue
                    parts = (result.payload.image, result.payload.mask, result.payload.mask_native)
                    for part in parts:
                        stream.write(part)
                        checksum = zlib.crc32(part, checksum)
                    lengths = (len(parts[0]), len(parts[1]), len(parts[2]))
                    slices.append(Spooled(result.facts, Place(key, offset, lengths)))
                    prints.append(result.fingerprint)
                    offset += sum(lengths)
        payloads.replace(task.folder / f"{key}.bin")
    except OSError as error:
        raise explain_os_error(error, task.folder.parent) from error
    finally:
        payloads.unlink(missing_ok=True)
    chunk = Chunk(tuple(slices), tuple(prints), tuple(problems), tuple(left_out))
    # Not durable: after a power cut, the checksum shows that the chunk must be made again.
    stored = _Stored(
        length=offset,
        crc32=checksum,
        slices=chunk.slices,
        prints=tuple(base64.b64encode(one.to_bytes()).decode() for one in prints),
        problems=chunk.problems,
        left_out=chunk.left_out,
    )
    write_atomically(task.folder / f"{key}.json", stored.model_dump_json(), durable=False)
    return chunk


def load_chunk(folder: Path, key: str) -> Chunk | None:
    """Load a chunk; None if it is absent or damaged."""
    try:
        stored = _Stored.model_validate_json(read_file(folder / f"{key}.json"))
        payloads = (folder / f"{key}.bin").read_bytes()
        if len(payloads) != stored.length or zlib.crc32(payloads) != stored.crc32:
            return None
        prints = tuple(Fingerprint.from_bytes(base64.b64decode(one)) for one in stored.prints)
    except (OSError, ValueError):
        return None
    return Chunk(stored.slices, prints, stored.problems, stored.left_out)


def read_payload(folder: Path, place: Place) -> Payload:
    with (folder / f"{place.key}.bin").open("rb", buffering=0) as stream:
        data = os.pread(stream.fileno(), sum(place.lengths), place.offset)
    image, mask = place.lengths[0], place.lengths[1]
    return Payload(data[:image], data[image : image + mask], data[image + mask :])


def tasks(items: Sequence[Item], prefix: str, conversion: Conversion, folder: Path) -> list[Task]:
    """Divide items into tasks of 32: about 0.1 s of work each, so that an interruption loses little."""
    return [Task(tuple(items[start : start + 32]), prefix, conversion, folder) for start in range(0, len(items), 32)]
