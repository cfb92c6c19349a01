"""Feed mutated files to the readers: `python tests/fuzz.py --count 1000000 --state fuzz`.

A mutation is determined by the reader and its number, so a run that was stopped continues, and a finding can be made again.
A finding is a file that ends its process, takes too long, or raises anything but an error for the user; it is written to
the state folder. Files that need too much memory or time and are refused are no findings: HDF5, for one, does not return
from some damaged heaps of texts, which is what the time limit of the child process is for.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import h5py
import nibabel as nib
import numpy as np

from factories import blob, write_mat, write_mat5
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

FIXTURES = Path(__file__).parent / "fixtures"
WRITTEN, LEGACY = FIXTURES / "before_move", FIXTURES / "legacy"
SAVED_MODEL = LEGACY / "addons0.23.0-group-savedmodel"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
OPTIONS = SourceOptions(masks=False, max_pixels=1_000_000)


def _item(format_name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        place = Location(path, (), path.name)
        return read_item(Item(format_name, path.name, (place,), channel=0, volume="v"), OPTIONS)

    return read


def _written(writer: Callable[..., Path], **options: object) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return writer(Path(folder) / "1.mat", *blob(size=24), **options).read_bytes()


def _picture(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, np.dstack([blob(size=24)[0].astype(np.uint8)] * 3))[1])


def _volume() -> bytes:
    return bytes(nib.Nifti1Image(np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.eye(4)).to_bytes())


def _dicom() -> bytes:
    import pydicom

    data = pydicom.Dataset()
    data.Modality, data.Rows, data.Columns, data.BitsAllocated, data.BitsStored = "MR", 8, 8, 16, 12
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 11, 0, 1
    data.PhotometricInterpretation, data.PixelSpacing = "MONOCHROME2", [0.5, 0.5]
    data.PixelData = np.arange(64, dtype="<u2").tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = MR_IMAGE, "1.2.3"
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.mat", b"x" * 99)
        archive.writestr("2.png", _picture(".png"))
    return stream.getvalue()


def _weights() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = "{}"
        file.create_dataset("layers/conv/vars/0", data=np.ones((3, 3, 2, 2), "f4"), chunks=True, compression="gzip")
        file["layers/conv/vars/1"] = np.ones(2, "f4")
    return stream.getvalue()


def _saved(suffix: str) -> bytes:
    """Return a picture as Pillow writes it, or an array."""
    from PIL import Image

    stream, pixels = io.BytesIO(), blob(size=24)[0].astype(np.uint8)
    if suffix == "npy":
        np.save(stream, pixels)
    else:
        Image.fromarray(pixels).save(stream, suffix)
    return stream.getvalue()


def _itk(suffix: str) -> bytes:
    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"1{suffix}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.arange(240, dtype=np.int16).reshape(5, 8, 6)), str(path))
        return path.read_bytes()


def _mgh() -> bytes:
    return bytes(nib.MGHImage(np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.eye(4)).to_bytes())


def _record() -> bytes:
    """Return the data of a record, without the lengths and checksums around it."""
    return next((WRITTEN / "shards" / "val").glob("glioma-*")).read_bytes()[12:-4]


@lru_cache
def _members() -> dict[str, bytes]:
    with zipfile.ZipFile(WRITTEN / "network.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(config: bytes) -> bytes:
    """Return a `.keras` archive with this configuration."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in (_members() | {"config.json": config}).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


@lru_cache
def _old_network() -> bytes:
    return (LEGACY / "keras2.3.1-unet.h5").read_bytes()


def _old_config() -> bytes:
    with h5py.File(io.BytesIO(_old_network())) as file:
        return str(file.attrs["model_config"]).encode()


def _old_file(config: bytes) -> bytes:
    """Return an HDF5 file of Keras 2 with this configuration."""
    stream = io.BytesIO(_old_network())
    with h5py.File(stream, "r+") as file:
        file.attrs["model_config"] = config.replace(b"\0", b"")
    return stream.getvalue()


def _outline(path: Path) -> None:
    read_outline(path)
    provenance(path)


def _network(path: Path) -> None:
    from kerasseg.checkpoints.open import open_checkpoint

    open_checkpoint(path, compare=int(path.stem) % 2 == 0)


def _saved_model(name: str, path: Path) -> None:
    """Open a SavedModel in which the file `name` is that at `path`."""
    folder = path.with_name(f"{path.stem}.d")
    shutil.copytree(SAVED_MODEL, folder)
    shutil.copy(path, folder / name)
    try:
        _network(folder)
    finally:
        shutil.rmtree(folder)


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
        pack: Makes the file from mutated bytes.
        share: How many mutations it gets; those that build a network take a thousand times as long.
    """

    suffix: str
    original: Callable[[], bytes]
    read: Callable[[Path], object]
    document: bool = False
    pack: Callable[[bytes], bytes] = bytes
    share: float = 1


_RUN = WRITTEN / "runs" / "run" / "evaluation" / "test"
_BUILDS = 0.01
READERS: dict[str, Reader] = {
    "matlab73": Reader(".mat", lambda: _written(write_mat), _item("figshare")),
    "matlab5": Reader(".mat", lambda: _written(write_mat5), _item("figshare")),
    **{
        name: Reader(suffix, functools.partial(_picture, suffix), _item("pairs"))
        for name, suffix in (("png", ".png"), ("jpeg", ".jpg"), ("tiff", ".tif"), ("bmp", ".bmp"))
    },
    **{name: Reader(f".{name}", functools.partial(_saved, name), _item("pairs")) for name in ("gif", "npy")},
    "nifti": Reader(".nii", _volume, _item("nifti")),
    "mgh": Reader(".mgh", _mgh, _item("nifti")),
    "mha": Reader(".mha", lambda: _itk(".mha"), _item("nifti")),
    "nrrd": Reader(".nrrd", lambda: _itk(".nrrd"), _item("nifti")),
    "dicom": Reader(".dcm", _dicom, _item("dicom")),
    "zip": Reader(".zip", _zip, open_tree),
    "index": Reader(".csv", lambda: b"image,mask,label,patient\n1.png,m.png,glioma,7\n", _index),
    "splits": Reader(".csv", (WRITTEN / "shards" / "splits.csv").read_bytes, splits_file.load),
    "scores": Reader(".csv", (_RUN / "per_slice.csv").read_bytes, read_csv),
    "manifest": Reader(
        ".json",
        (WRITTEN / "shards" / "manifest.json").read_bytes,
        lambda path: read_document(path, Manifest, 1, "the manifest"),
        document=True,
    ),
    "metrics": Reader(".json", (_RUN / "metrics.json").read_bytes, read_evaluation, document=True, share=0.2),
    "records": Reader(
        ".tfrecord",
        _record,
        lambda path: list(read_shard(path, size=16, channels=1)),
        pack=lambda data: framed(data) * 2,
    ),
    "weights": Reader(".h5", _weights, lambda path: send_weights(path, path.name, path.with_suffix(".answer"))),
    "keras": Reader(".keras", (WRITTEN / "network.keras").read_bytes, _outline),
    "outline": Reader(".keras", lambda: _members()["config.json"], _outline, document=True, pack=_archive, share=0.05),
    "network": Reader(
        ".keras", lambda: _members()["config.json"], _network, document=True, pack=_archive, share=_BUILDS
    ),
    "keras2": Reader(".h5", _old_config, _network, document=True, pack=_old_file, share=_BUILDS),
    "savedmodel": Reader(
        ".pb",
        (SAVED_MODEL / "saved_model.pb").read_bytes,
        functools.partial(_saved_model, "saved_model.pb"),
        share=_BUILDS,
    ),
    "variables": Reader(
        ".index",
        (SAVED_MODEL / "variables" / "variables.index").read_bytes,
        functools.partial(_saved_model, "variables/variables.index"),
        share=_BUILDS,
    ),
}


@lru_cache
def _original(reader: str) -> bytes:
    return READERS[reader].original()


def mutated(reader: str, number: int) -> bytes:
    """Return a file like the original with some bytes or values changed, removed or repeated."""
    draw = random.Random(f"{reader} {number}")
    if READERS[reader].document and draw.random() < 0.8:
        return READERS[reader].pack(_other_values(_original(reader), draw))
    data = bytearray(_original(reader))
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data))
        match draw.randrange(6):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.choice((0, 1, 127, 128, 255))
            case 2:
                data[at : at + 4] = draw.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "little")
            case 3:
                del data[at : at + draw.randint(1, 16)]
            case 4:
                data[at:at] = data[at : at + draw.randint(1, 64)]
            case _ if draw.random() < 0.1:
                del data[at:]
        data = data or bytearray(b"\0")
    return READERS[reader].pack(bytes(data))


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


def _other_values(data: bytes, draw: random.Random) -> bytes:
    """Change, remove or repeat values of a JSON document."""
    document = json.loads(data)
    for _ in range(draw.randint(1, 4)):
        places: list[tuple[Any, Any]] = []
        waiting = [document]
        while waiting:
            part = waiting.pop()
            for key in part if isinstance(part, dict) else range(len(part)):
                places.append((part, key))
                if isinstance(part[key], dict | list):
                    waiting.append(part[key])
        if not places:
            break
        part, key = draw.choice(places)
        match draw.randrange(5):
            case 0:
                del part[key]
            case 1:
                other, place = draw.choice(places)
                part[key] = json.loads(json.dumps(other[place]))
            case 2 if isinstance(part[key], list) and part[key]:
                part[key] = part[key] * draw.choice((2, 8))
            case _:
                part[key] = draw.choice(_ODD)
    return json.dumps(document).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Job:
    """Mutations `first` to `stop - 1` of a reader."""

    reader: str
    first: int
    stop: int


def attempt(job: Job) -> list[tuple[int, str]]:
    """Read each mutation; return those that raise what no reader should, with the traceback."""
    reader, findings = READERS[job.reader], []
    memory = Path("/dev/shm")  # noqa: S108 - a disk would take most of the time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for number in range(job.first, job.stop):
            path = Path(folder) / f"{number}{reader.suffix}"
            path.write_bytes(mutated(job.reader, number))
            working_on(path.name)
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
    if (keras := sys.modules.get("keras")) is not None:
        keras.backend.clear_session()
        gc.collect()
    return findings


def _crashed(job: Job, error: DataError) -> list[tuple[int, str]]:
    """Record the mutation that ended the process, and try the rest."""
    number = int([job.first, *re.findall(r"(?:^|/)(\d+)\.", error.path or "")][-1])
    rest = [Job(job.reader, *ends) for ends in ((job.first, number), (number + 1, job.stop)) if ends[0] < ends[1]]
    known = "takes too long" in error.what and job.reader not in _OUTSIDE
    found = [] if known else [(number, str(error))]
    return [*found, *(one for part in ordered_map(attempt, rest, crashed=_crashed) for one in part)]


_ROUND = 2_000
_OUTSIDE = {"splits", "scores", "manifest", "metrics", "records", "keras", "outline"}
_OUTSIDE |= {name for name, reader in READERS.items() if reader.share == _BUILDS}
"""Readers that work in the calling process, at least in part, where nothing ends what takes too long."""


def fuzz(
    count: int, state: Path, *, readers: tuple[str, ...] = tuple(READERS), batch: int = 500, jobs: int = 2
) -> Iterator[tuple[str, int, str]]:
    """Yield (reader, number, report) of each finding; continue at the mutation that `state` names."""
    state.mkdir(parents=True, exist_ok=True)
    note, before = state / "done.json", memory_limit()
    done: dict[str, int] = json.loads(note.read_text()) if note.exists() else {}
    try:
        for end in range(min(_ROUND, count), count + _ROUND, _ROUND):
            for builds in (False, True):
                limit_memory(16 << 30 if builds else before)  # TensorFlow reserves a lot of address space
                starts = [
                    Job(name, first, min(first + batch, stop))
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
