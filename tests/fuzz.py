"""Feed mutated files to the readers: `python tests/fuzz.py --count 1000000 --state fuzz`.

A mutation is determined by the reader and its number, so a run that was stopped continues, and a finding can be made again.
A finding is a file that ends its process, takes too long, or raises anything but an error for the user; it is written to
the state folder. Where checksums or compression would hide a mutation from the decoder, the content is mutated and packed
again. Files that need too much memory or time and are refused are no findings: HDF5, for one, does not return from some
damaged heaps of texts. The child process has limits for them, which are lower here, because these files are small.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import operator
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import fuzz_files as files
from factories import write_mat
from kerasseg.checkpoints.provenance import provenance
from kerasseg.evaluation.per_slice import read_csv
from kerasseg.evaluation.schema import read_evaluation
from kerasseg.models.outline import read_outline
from kerasseg_tfrecords import isolation
from kerasseg_tfrecords.documents import read_document
from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.formats.weights import send_weights
from kerasseg_tfrecords.isolation import limit_memory, memory_limit, working_on
from kerasseg_tfrecords.records.manifest import Manifest
from kerasseg_tfrecords.records.shards import framed, read_shard
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources import read_item
from kerasseg_tfrecords.sources.base import Item, SourceOptions
from kerasseg_tfrecords.sources.index_csv import read_index
from kerasseg_tfrecords.sources.tree import open_tree
from kerasseg_tfrecords.splitting import splits_file
from kerasseg_tfrecords.workers import ordered_map

OPTIONS = SourceOptions(masks=False, max_pixels=1_000_000)


def _item(format_name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        place = Location(path, (), path.name)
        return read_item(Item(format_name, path.name, (place,), channel=0, volume="v"), OPTIONS)

    return read


def _tree(path: Path) -> None:
    for location in open_tree(path).with_suffix(".png"):
        read_item(Item("pairs", location.name, (location,), channel=0), OPTIONS)


def _outline(path: Path) -> None:
    read_outline(path)
    provenance(path)


def _network(path: Path) -> None:
    from kerasseg.checkpoints.open import open_checkpoint

    open_checkpoint(path, compare=int(path.stem) % 2 == 0)


def _saved_model(name: str, path: Path) -> None:
    """Open a SavedModel in which the file `name` is that at `path`."""
    folder = path.with_name(f"{path.stem}.d")
    shutil.copytree(files.SAVED_MODEL, folder)
    shutil.copy(path, folder / name)
    try:
        _network(folder)
    finally:
        shutil.rmtree(folder)


def _send(path: Path) -> None:
    send_weights(path, path.name, path.with_suffix(".answer"))


def _index(path: Path) -> None:
    read_index(Location(path, (), path.name), ())


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        suffix: Suffix of its files.
        original: Returns the bytes that are mutated.
        read: Reads a file.
        document: Whether the bytes are JSON, of which also values are mutated.
        pack: Makes the file from mutated bytes; one time of five, the file is mutated instead.
        share: How many mutations it gets: the kinds of one format divide a million, and those that build a network take
            hundreds of times as long.
    """

    suffix: str
    original: Callable[[], bytes]
    read: Callable[[Path], object]
    document: bool = False
    pack: Callable[[bytes], bytes] = bytes
    share: float = 1


_BUILDS = 0.01
READERS: dict[str, Reader] = {
    "matlab73": Reader(".mat", lambda: files.written(write_mat), _item("figshare")),
    "matlab5": Reader(".mat", files.matlab5, _item("figshare"), share=0.5),
    "matlab5 inside": Reader(
        ".mat", lambda: files.matlab5(compress=False), _item("figshare"), pack=files.deflated_matlab5, share=0.5
    ),
    "png": Reader(".png", files.chunks, _item("pairs"), pack=files.png),
    **{
        name: Reader(suffix, functools.partial(files.picture, suffix), _item("pairs"))
        for name, suffix in (("jpeg", ".jpg"), ("tiff", ".tif"), ("bmp", ".bmp"))
    },
    **{name: Reader(f".{name}", functools.partial(files.saved, name), _item("pairs")) for name in ("gif", "npy")},
    "nifti": Reader(".nii", files.volume, _item("nifti"), share=0.5),
    "nifti inside": Reader(".nii.gz", files.volume, _item("nifti"), pack=files.gzipped, share=0.5),
    "mgh": Reader(".mgh", files.mgh, _item("nifti"), share=0.5),
    "mgh inside": Reader(".mgz", files.mgh, _item("nifti"), pack=files.gzipped, share=0.5),
    "mha": Reader(".mha", lambda: files.itk(".mha"), _item("nifti")),
    "nrrd": Reader(".nrrd", lambda: files.itk(".nrrd"), _item("nifti"), share=0.8),
    "nrrd inside": Reader(".nrrd", lambda: files.itk(".nrrd"), _item("nifti"), pack=files.nrrd_gz, share=0.2),
    "dicom": Reader(".dcm", files.dicom, _item("dicom"), share=0.5),
    "dicom inside": Reader(".dcm", functools.partial(files.dicom, packed=True), _item("dicom"), share=0.5),
    "zip": Reader(".zip", files.small_zip, _tree, share=0.5),
    "zip inside": Reader(".zip", files.small_zip, _tree, pack=files.outer_zip, share=0.5),
    "index": Reader(".csv", lambda: b"image,mask,label,patient\n1.png,m.png,glioma,7\n", _index),
    "splits": Reader(".csv", (files.WRITTEN / "shards" / "splits.csv").read_bytes, splits_file.load),
    "scores": Reader(".csv", (files.RUN / "per_slice.csv").read_bytes, read_csv),
    "manifest": Reader(
        ".json",
        (files.WRITTEN / "shards" / "manifest.json").read_bytes,
        lambda path: read_document(path, Manifest, 1, "the manifest"),
        document=True,
    ),
    "metrics": Reader(".json", files.short_metrics, read_evaluation, document=True),
    "records": Reader(
        ".tfrecord",
        files.record,
        lambda path: list(read_shard(path, size=16, channels=1)),
        pack=lambda data: framed(data) * 2,
    ),
    "weights": Reader(".h5", files.weights, _send, share=0.5),
    "weights inside": Reader(".h5", np.ones(16, "f4").tobytes, _send, pack=files.chunked, share=0.5),
    "keras": Reader(".keras", lambda: files.archive(files.members(small=True)), _outline, share=0.6),
    "keras inside": Reader(
        ".keras",
        lambda: files.members(small=True)["model.weights.h5"],
        _outline,
        pack=functools.partial(files.with_member, "model.weights.h5"),
        share=0.2,
    ),
    "outline": Reader(
        ".keras",
        lambda: files.members(small=True)["config.json"],
        _outline,
        document=True,
        pack=functools.partial(files.with_member, "config.json"),
        share=0.2,
    ),
    "network": Reader(
        ".keras",
        lambda: files.members()["config.json"],
        _network,
        document=True,
        pack=functools.partial(files.with_member, "config.json", small=False),
        share=_BUILDS,
    ),
    "keras2": Reader(".h5", files.old_config, _network, document=True, pack=files.old_file, share=_BUILDS),
    "savedmodel": Reader(
        ".pb",
        (files.SAVED_MODEL / "saved_model.pb").read_bytes,
        functools.partial(_saved_model, "saved_model.pb"),
        share=_BUILDS,
    ),
    "savedmodel inside": Reader(
        ".pb",
        files.graph,
        functools.partial(_saved_model, "saved_model.pb"),
        document=True,
        pack=files.graph_file,
        share=_BUILDS,
    ),
    "variables": Reader(
        ".index",
        (files.SAVED_MODEL / "variables" / "variables.index").read_bytes,
        functools.partial(_saved_model, "variables/variables.index"),
        share=_BUILDS,
    ),
}


@lru_cache
def _original(reader: str) -> bytes:
    return READERS[reader].original()


@lru_cache
def _packed(reader: str) -> bytes:
    return READERS[reader].pack(_original(reader))


def mutated(reader: str, number: int) -> bytes:
    """Return a file like the original with some bytes or values changed, removed or repeated."""
    draw, pack = random.Random(f"{reader} {number}"), READERS[reader].pack
    if pack is not bytes and draw.random() < 0.2:
        return _other_bytes(_packed(reader), draw)
    if READERS[reader].document and draw.random() < 0.8:
        return pack(_other_values(reader, draw))
    return pack(_other_bytes(_original(reader), draw))


def _other_bytes(original: bytes, draw: random.Random) -> bytes:
    """Change, remove or repeat bytes."""
    data = bytearray(original)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data))
        match draw.randrange(6):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.choice((0, 1, 127, 128, 255))
            case 2:
                value = draw.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
                data[at : at + 4] = value.to_bytes(4, draw.choice(("little", "big")))
            case 3:
                del data[at : at + draw.randint(1, 16)]
            case 4:
                data[at:at] = data[at : at + draw.randint(1, 64)]
            case _ if draw.random() < 0.1:
                del data[at:]
        data = data or bytearray(b"\0")
    return bytes(data)


_ODD = (
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    1 << 31,
    1 << 70,
    -0.5,
    1e308,
    float("nan"),
    "",
    "\0",
    "\ud800",
    "conv",
    [],
    {},
    [[]],
)


@lru_cache
def _places(reader: str) -> list[tuple[Any, ...]]:
    """Return the keys that lead to each value of a JSON document."""
    places: list[tuple[Any, ...]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), json.loads(_original(reader)))]
    while waiting:
        way, part = waiting.pop()
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((*way, key))
            if isinstance(part[key], dict | list):
                waiting.append(((*way, key), part[key]))
    return places


def _other_values(reader: str, draw: random.Random) -> bytes:
    """Change, remove or repeat values of a JSON document."""
    document, places = json.loads(_original(reader)), _places(reader)
    for _ in range(draw.randint(1, 4)):
        *way, key = draw.choice(places)
        with contextlib.suppress(LookupError, TypeError):  # an earlier change removed the value
            part = functools.reduce(operator.getitem, way, document)
            match draw.randrange(5):
                case 0:
                    del part[key]
                case 1:
                    other = functools.reduce(operator.getitem, draw.choice(places), document)
                    part[key] = json.loads(json.dumps(other))
                case 2 if isinstance(part[key], list) and part[key]:
                    part[key] = part[key] * draw.choice((2, 8))
                case _:
                    part[key] = deepcopy(draw.choice(_ODD))  # later changes reach into lists
    return json.dumps(document).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Job:
    """Mutations `first` to `stop - 1` of a reader, read in a folder."""

    reader: str
    first: int
    stop: int
    folder: Path


def attempt(job: Job) -> list[tuple[int, str]]:
    """Read each mutation; return those that raise what no reader should, with the traceback."""
    reader, findings = READERS[job.reader], []
    folder = job.folder / f"{job.reader}-{job.first}"
    folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(job.folder)
    _read_original(job.reader)
    for number in range(job.first, job.stop):
        path = folder / f"{number}{reader.suffix}"
        path.write_bytes(mutated(job.reader, number))
        working_on(path.name, 30 if reader.share == _BUILDS else 2 if job.reader in _OUTSIDE else 1)
        try:
            reader.read(path)
        except DataError as error:
            if error.found and "Error:" in str(error.found) and "cannot be read" in error.what:
                findings.append((number, str(error)))  # an exception that the reader did not foresee
        except KerassegError:
            pass
        except Exception:
            findings.append((number, traceback.format_exc()))
        path.unlink()
    working_on("")
    shutil.rmtree(folder)
    if (keras := sys.modules.get("keras")) is not None:
        keras.backend.clear_session()
        gc.collect()
    return findings


@lru_cache
def _read_original(reader: str) -> None:
    """Read the original once in each process, because the first time takes longer: libraries are imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"0{READERS[reader].suffix}"
        path.write_bytes(_packed(reader))
        READERS[reader].read(path)


def _crashed(job: Job, error: DataError) -> list[tuple[int, str]]:
    """Record the mutation that ended the process, and try the rest."""
    number = int([job.first, *re.findall(r"(?:^|/)(\d+)\.", error.path or "")][-1])
    ends = ((job.first, number), (number + 1, job.stop))
    rest = [replace(job, first=first, stop=stop) for first, stop in ends if first < stop]
    known = "takes too long" in error.what and job.reader not in _OUTSIDE
    found = [] if known else [(number, str(error))]
    return [*found, *(one for part in ordered_map(attempt, rest, crashed=_crashed) for one in part)]


_ROUND = 100_000  # builders need other processes, which are started again in each round
_OUTSIDE = {"splits", "scores", "manifest", "metrics", "records", "outline"}
_OUTSIDE |= {name for name, reader in READERS.items() if reader.share == _BUILDS}
"""Readers that work in the calling process, at least in part, where nothing ends what takes too long."""


def fuzz(
    count: int, state: Path, *, readers: tuple[str, ...] = tuple(READERS), batch: int = 500, jobs: int = 2
) -> Iterator[tuple[str, int, str]]:
    """Yield (reader, number, report) of each finding; continue at the mutation that `state` names."""
    state.mkdir(parents=True, exist_ok=True)
    note, before = state / "done.json", memory_limit()
    done: dict[str, int] = json.loads(note.read_text()) if note.exists() else {}
    memory = Path("/dev/shm")  # noqa: S108 - a disk would take most of the time
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        for end in range(min(_ROUND, count), count + _ROUND, _ROUND):
            for builds in (False, True):
                limit_memory(16 << 30 if builds else before)  # TensorFlow reserves a lot of address space
                starts = [
                    Job(name, first, min(first + batch, stop), folder)
                    for name in readers
                    if (READERS[name].share == _BUILDS) is builds
                    for stop in [int(min(end, count) * READERS[name].share)]
                    for first in range(done.get(name, 0), stop, batch)
                ]
                for job, findings in zip(
                    starts, ordered_map(attempt, starts, jobs=jobs, crashed=_crashed), strict=True
                ):
                    for number, report in findings:
                        (state / f"{job.reader}-{number}").write_bytes(mutated(job.reader, number))
                        yield job.reader, number, report
                    done[job.reader] = job.stop
                    note.write_text(json.dumps(done))
    finally:
        limit_memory(before)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Print the findings; exit with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutations of each reader")
    parser.add_argument("--state", type=Path, default=Path("fuzz"), help="folder for progress and findings")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=[*READERS])
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    isolation._SILENT = 3600  # on a busy machine, only processor time counts
    found = 0
    from fuzz import fuzz as run  # so that child processes find its functions, which are not those of `__main__`

    for reader, number, report in run(asked.count, asked.state, readers=tuple(asked.readers), jobs=asked.jobs):
        found += 1
        sys.stdout.write(f"{reader} {number}: {report}\n")
        sys.stdout.flush()
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
