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
import json
import os
import struct
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from zlib_ng import zlib_ng as zlib

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.conversion.convert import Conversion, Failure, convert_item
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.files import explain_os_error, write_atomically
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


def run_task(task: Task) -> tuple[str, Chunk]:
    """Convert the items of a task, or load the finished chunk; return its key and the chunk. Runs in a worker process."""
    key = chunk_key(task)
    made = load_chunk(task.folder, key)
    if made is not None:
        return key, made
    failures: list[Failure] = []
    payloads = task.folder / f".{key}-{uuid.uuid4().hex}.bin"  # workers on other machines may have the same process id
    offset, checksum = 0, 0
    slices: list[Spooled] = []
    prints: list[Fingerprint] = []
    try:
        with payloads.open("wb") as stream:
            for item in task.items:
                for result in convert_item(item, task.conversion, task.prefix):
                    if isinstance(result, Failure):
                        failures.append(result)
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
    chunk = Chunk(
        slices=tuple(slices),
        prints=tuple(prints),
        problems=tuple(problem for failure in failures for problem in failure.problems),
        left_out=tuple(entry for failure in failures for entry in failure.left_out),
    )
    # Not durable: after a power cut, the checksum shows that the chunk must be made again.
    write_atomically(task.folder / f"{key}.json", _dump(chunk, offset, checksum), durable=False)
    return key, chunk


def _dump(chunk: Chunk, length: int, checksum: int) -> str:
    return json.dumps(
        {
            "length": length,
            "crc32": checksum,
            "slices": [
                {
                    "facts": asdict(piece.facts),
                    "fingerprint": base64.b64encode(print_.to_bytes()).decode(),
                    "offset": piece.place.offset,
                    "lengths": piece.place.lengths,
                }
                for piece, print_ in zip(chunk.slices, chunk.prints, strict=True)
            ],
            "problems": [asdict(problem) for problem in chunk.problems],
            "left_out": [asdict(entry) for entry in chunk.left_out],
        }
    )


def load_chunk(folder: Path, key: str) -> Chunk | None:
    """Load a chunk; None if it is absent or damaged."""
    try:
        state = parse_json((folder / f"{key}.json").read_bytes())
        payloads = (folder / f"{key}.bin").read_bytes()
        if len(payloads) != state["length"] or zlib.crc32(payloads) != state["crc32"]:
            return None
        return Chunk(
            slices=tuple(
                Spooled(_facts(entry["facts"]), Place(key, entry["offset"], tuple(entry["lengths"])))
                for entry in state["slices"]
            ),
            prints=tuple(Fingerprint.from_bytes(base64.b64decode(entry["fingerprint"])) for entry in state["slices"]),
            problems=tuple(Problem(**entry) for entry in state["problems"]),
            left_out=tuple(LeftOut(**entry) for entry in state["left_out"]),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None


def _facts(state: dict[str, object]) -> SliceFacts:
    spacing, notes = state.pop("spacing"), state.pop("notes")
    return SliceFacts(**state, spacing=tuple(spacing), notes=tuple(notes))  # type: ignore[arg-type]


_MOST_OPEN = 128


class SpoolReader:
    """Read payloads in any order, with a limited number of open files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for descriptor in self._open.values():
                stack.callback(os.close, descriptor)
            self._open.clear()

    def read(self, place: Place) -> Payload:
        descriptor = self._open.pop(place.key, None)
        if descriptor is None:
            descriptor = os.open(self._folder / f"{place.key}.bin", os.O_RDONLY)
        self._open[place.key] = descriptor
        if len(self._open) > _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        data = os.pread(descriptor, sum(place.lengths), place.offset)
        image, mask = place.lengths[0], place.lengths[1]
        return Payload(data[:image], data[image : image + mask], data[image + mask :])


def tasks(items: Sequence[Item], prefix: str, conversion: Conversion, folder: Path) -> list[Task]:
    """Divide items into tasks of 32: about 0.1 s of work each, so that an interruption loses little."""
    return [Task(tuple(items[start : start + 32]), prefix, conversion, folder) for start in range(0, len(items), 32)]
