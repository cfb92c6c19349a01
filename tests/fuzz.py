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
import gzip
import io
import json
import operator
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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


def _matlab5(**options: object) -> bytes:
    """Return a MATLAB 5 file without its date."""
    return b"MATLAB 5.0 MAT-file".ljust(116) + _written(write_mat5, **options)[116:]


def _deflated_matlab5(data: bytes) -> bytes:
    content = zlib.compress(data[128:], 1)
    return data[:128] + struct.pack("<II", 15, len(content)) + content


def _picture(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, np.dstack([blob(size=24)[0].astype(np.uint8)] * 3))[1])


def _volume() -> bytes:
    return bytes(nib.Nifti1Image(np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.eye(4)).to_bytes())


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _dicom(*, packed: bool = False) -> bytes:
    import pydicom

    data = pydicom.Dataset()
    data.Modality, data.Rows, data.Columns, data.BitsAllocated, data.BitsStored = "MR", 8, 8, 16, 12
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 11, 0, 1
    data.PhotometricInterpretation, data.PixelSpacing = "MONOCHROME2", [0.5, 0.5]
    data.PixelData = np.arange(64, dtype="<u2").tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = MR_IMAGE, "1.2.3"
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if packed:
        data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip, or a `.keras` archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def _zip() -> bytes:
    return _archive({"a/1.mat": b"x" * 99, "2.png": _png(_chunks())}, zipfile.ZIP_DEFLATED)


def _outer_zip(data: bytes) -> bytes:
    return _archive({"a.zip": data, "1.png": _png(_chunks())}, zipfile.ZIP_DEFLATED)


def _tree(path: Path) -> None:
    for location in open_tree(path).with_suffix(".png"):
        read_item(Item("pairs", location.name, (location,), channel=0), OPTIONS)


@lru_cache
def _chunks() -> bytes:
    """Return the chunks of a PNG without their checksums, and its pixels not compressed."""
    from PIL import Image, PngImagePlugin

    stream, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("Comment", "a" * 40, zip=True)
    picture = Image.fromarray(blob(size=24)[0].astype(np.uint8)).quantize(16)
    picture.save(stream, "png", pnginfo=text, transparency=3, dpi=(72, 72))
    data = stream.getvalue()
    out, at = data[:8], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        content = data[at + 8 : at + 8 + size]
        content = zlib.decompress(content) if data[at + 4 : at + 8] == b"IDAT" else content
        out += len(content).to_bytes(4) + data[at + 4 : at + 8] + content
        at += size + 12
    return out


def _png(data: bytes) -> bytes:
    """Return the PNG that these chunks make; their lengths and types are those given."""
    out, at = data[:8], 8
    while at < len(data):
        size, kind = data[at : at + 4], data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + int.from_bytes(size)]
        at += 8 + len(content)
        if kind == b"IDAT":
            content = zlib.compress(content, 1)
            size = len(content).to_bytes(4)
        out += size + kind + content + zlib.crc32(kind + content).to_bytes(4)
    return out


def _weights() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = "{}"
        file.create_dataset("layers/conv/vars/0", data=np.ones((3, 3, 2, 2), "f4"), chunks=True, compression="gzip")
        file["layers/conv/vars/1"] = np.ones(2, "f4")
    return stream.getvalue()


def _chunked(data: bytes) -> bytes:
    """Return a file with weights of 64 bytes, whose chunk inflates to this data."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = "{}"
        options = {"chunks": (4, 4), "compression": "gzip", "shuffle": True}
        values = file.create_dataset("layers/conv/vars/0", (4, 4), "f4", **options)
        values.id.write_direct_chunk((0, 0), zlib.compress(data, 1))
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


def _nrrd_gz(data: bytes) -> bytes:
    """Return an NRRD file with its voxels compressed."""
    header, gap, voxels = data.partition(b"\n\n")
    return header.replace(b"encoding: raw", b"encoding: gzip") + gap + _gzip(voxels)


def _mgh() -> bytes:
    return bytes(nib.MGHImage(np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.eye(4)).to_bytes())


def _record() -> bytes:
    """Return the data of a record, without the lengths and checksums around it."""
    return next((WRITTEN / "shards" / "val").glob("glioma-*")).read_bytes()[12:-4]


@lru_cache
def _members(*, small: bool = False) -> dict[str, bytes]:
    """Return the members of a `.keras` archive with a U-Net, or with its first block and its head."""
    with zipfile.ZipFile(WRITTEN / "network.keras") as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    if not small:
        return found
    config = json.loads(found["config.json"])
    layers = config["config"]["layers"] = config["config"]["layers"][:4] + config["config"]["layers"][-1:]
    layers[4]["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = layers[3]["name"]
    stream = io.BytesIO()
    with h5py.File(io.BytesIO(found["model.weights.h5"])) as all_weights, h5py.File(stream, "w") as weights:
        groups = all_weights["layers"]
        head = f"conv2d_{sum(name.startswith('conv2d_') and name[7:].isdigit() for name in groups)}"
        for name, copy in (("conv2d", "conv2d"), ("batch_normalization",) * 2, (head, "conv2d_1")):
            groups.copy(name, weights.require_group("layers"), copy)
    return found | {"config.json": json.dumps(config).encode(), "model.weights.h5": stream.getvalue()}


def _with_member(name: str, data: bytes, *, small: bool = True) -> bytes:
    """Return a `.keras` archive in which the member `name` is `data`."""
    return _archive(_members(small=small) | {name: data})


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


def _metrics() -> bytes:
    """Return a short metrics.json that matches the schema."""
    document = json.loads((_RUN / "metrics.json").read_bytes())
    for network in (document["model"], document["baseline"]):
        (stage,) = network["stages"] = network["stages"][:1]
        for kind in ("classes", "sizes"):
            stage[kind] = dict([*stage[kind].items()][:1])
    return json.dumps(document).encode()


def _graph() -> bytes:
    """Return a SavedModel as JSON."""
    from google.protobuf import json_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    message = SavedModel.FromString((SAVED_MODEL / "saved_model.pb").read_bytes())
    return json.dumps(json_format.MessageToDict(message)).encode()


def _graph_file(data: bytes) -> bytes:
    """Return the SavedModel that JSON describes; nothing if a value is of another type."""
    from google.protobuf import json_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        return json_format.Parse(data, SavedModel(), ignore_unknown_fields=True).SerializeToString()  # type: ignore[no-any-return]
    except (json_format.ParseError, ValueError, RecursionError):
        return b""


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
        share: How many mutations it gets; those that build a network take hundreds of times as long.
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
    "matlab5": Reader(".mat", _matlab5, _item("figshare")),
    "matlab5 inside": Reader(".mat", lambda: _matlab5(compress=False), _item("figshare"), pack=_deflated_matlab5),
    "png": Reader(".png", _chunks, _item("pairs"), pack=_png),
    **{
        name: Reader(suffix, functools.partial(_picture, suffix), _item("pairs"))
        for name, suffix in (("jpeg", ".jpg"), ("tiff", ".tif"), ("bmp", ".bmp"))
    },
    **{name: Reader(f".{name}", functools.partial(_saved, name), _item("pairs")) for name in ("gif", "npy")},
    "nifti": Reader(".nii", _volume, _item("nifti")),
    "nifti inside": Reader(".nii.gz", _volume, _item("nifti"), pack=_gzip),
    "mgh": Reader(".mgh", _mgh, _item("nifti")),
    "mgh inside": Reader(".mgz", _mgh, _item("nifti"), pack=_gzip),
    "mha": Reader(".mha", lambda: _itk(".mha"), _item("nifti")),
    "nrrd": Reader(".nrrd", lambda: _itk(".nrrd"), _item("nifti")),
    "nrrd inside": Reader(".nrrd", lambda: _itk(".nrrd"), _item("nifti"), pack=_nrrd_gz, share=0.2),
    "dicom": Reader(".dcm", _dicom, _item("dicom")),
    "dicom inside": Reader(".dcm", functools.partial(_dicom, packed=True), _item("dicom")),
    "zip": Reader(".zip", _zip, _tree),
    "zip inside": Reader(".zip", _zip, _tree, pack=_outer_zip, share=0.5),
    "index": Reader(".csv", lambda: b"image,mask,label,patient\n1.png,m.png,glioma,7\n", _index),
    "splits": Reader(".csv", (WRITTEN / "shards" / "splits.csv").read_bytes, splits_file.load),
    "scores": Reader(".csv", (_RUN / "per_slice.csv").read_bytes, read_csv),
    "manifest": Reader(
        ".json",
        (WRITTEN / "shards" / "manifest.json").read_bytes,
        lambda path: read_document(path, Manifest, 1, "the manifest"),
        document=True,
    ),
    "metrics": Reader(".json", _metrics, read_evaluation, document=True),
    "records": Reader(
        ".tfrecord",
        _record,
        lambda path: list(read_shard(path, size=16, channels=1)),
        pack=lambda data: framed(data) * 2,
    ),
    "weights": Reader(".h5", _weights, _send),
    "weights inside": Reader(".h5", np.ones(16, "f4").tobytes, _send, pack=_chunked, share=0.5),
    "keras": Reader(".keras", lambda: _archive(_members(small=True)), _outline),
    "keras inside": Reader(
        ".keras",
        lambda: _members(small=True)["model.weights.h5"],
        _outline,
        pack=functools.partial(_with_member, "model.weights.h5"),
        share=0.2,
    ),
    "outline": Reader(
        ".keras",
        lambda: _members(small=True)["config.json"],
        _outline,
        document=True,
        pack=functools.partial(_with_member, "config.json"),
        share=0.2,
    ),
    "network": Reader(
        ".keras",
        lambda: _members()["config.json"],
        _network,
        document=True,
        pack=functools.partial(_with_member, "config.json", small=False),
        share=_BUILDS,
    ),
    "keras2": Reader(".h5", _old_config, _network, document=True, pack=_old_file, share=_BUILDS),
    "savedmodel": Reader(
        ".pb",
        (SAVED_MODEL / "saved_model.pb").read_bytes,
        functools.partial(_saved_model, "saved_model.pb"),
        share=_BUILDS,
    ),
    "savedmodel inside": Reader(
        ".pb",
        _graph,
        functools.partial(_saved_model, "saved_model.pb"),
        document=True,
        pack=_graph_file,
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
                    part[key] = draw.choice(_ODD)
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
        working_on(path.name, 60)
        signal.setitimer(signal.ITIMER_PROF, 30 if reader.share == _BUILDS else 2)
        try:
            reader.read(path)
        except DataError as error:
            if error.found and "Error:" in str(error.found) and "cannot be read" in error.what:
                findings.append((number, str(error)))  # an exception that the reader did not foresee
        except KerassegError:
            pass
        except Exception:
            findings.append((number, traceback.format_exc()))
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink()
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
    known = re.search("takes too long|signal 27", error.what) and job.reader not in _OUTSIDE
    found = [] if known else [(number, str(error))]
    return [*found, *(one for part in ordered_map(attempt, rest, crashed=_crashed) for one in part)]


_ROUND = 20_000
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
