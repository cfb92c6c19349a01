"""Feed mutated files to the readers: `python tests/fuzz.py --count 1000000 --state fuzz`.

A mutation is determined by the seed, the reader and its number, so a run that was stopped continues, and a finding can be
made again. A finding is a file that ends its process, takes too long, or raises anything but an error for the user; it is
written to the state folder. Files that need too much memory and are refused are no findings.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import h5py
import nibabel as nib
import numpy as np

from factories import blob, write_mat, write_mat5
from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.formats.weights import send_weights
from kerasseg_tfrecords.isolation import working_on
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources import read_item
from kerasseg_tfrecords.sources.base import Item, SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree
from kerasseg_tfrecords.workers import ordered_map

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


READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], object]]] = {
    "matlab73": (".mat", lambda: _written(write_mat), _item("figshare")),
    "matlab5": (".mat", lambda: _written(write_mat5), _item("figshare")),
    "png": (".png", lambda: _picture(".png"), _item("pairs")),
    "jpeg": (".jpg", lambda: _picture(".jpg"), _item("pairs")),
    "tiff": (".tif", lambda: _picture(".tif"), _item("pairs")),
    "nifti": (".nii", _volume, _item("nifti")),
    "dicom": (".dcm", _dicom, _item("dicom")),
    "zip": (".zip", _zip, open_tree),
    "weights": (".h5", _weights, lambda path: send_weights(path, path.name, path.with_suffix(".answer"))),
}


@lru_cache
def _original(reader: str) -> bytes:
    return READERS[reader][1]()


def mutated(reader: str, number: int) -> bytes:
    """Return the original with some bytes changed, removed or repeated."""
    draw, data = random.Random(f"{reader} {number}"), bytearray(_original(reader))
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
    return bytes(data)


@dataclass(frozen=True)
class Job:
    """Mutations `first` to `stop - 1` of a reader."""

    reader: str
    first: int
    stop: int


def attempt(job: Job) -> list[tuple[int, str]]:
    """Read each mutation; return those that raise what no reader should, with the traceback."""
    suffix, _, read = READERS[job.reader]
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(job.first, job.stop):
            path = Path(folder) / f"{number}{suffix}"
            path.write_bytes(mutated(job.reader, number))
            working_on(path.name)
            try:
                read(path)
            except DataError as error:
                if error.found and "Error:" in str(error.found) and "cannot be read" in error.what:
                    findings.append((number, str(error)))  # an exception that the reader did not foresee
            except KerassegError:
                pass
            except Exception:
                findings.append((number, traceback.format_exc()))
            path.unlink()
    return findings


def _crashed(job: Job, error: DataError) -> list[tuple[int, str]]:
    """Record the mutation that ended the process, and try the rest."""
    number = int(Path(error.path or f"{job.first}").name.partition(".")[0])
    rest = [Job(job.reader, *ends) for ends in ((job.first, number), (number + 1, job.stop)) if ends[0] < ends[1]]
    return [(number, str(error)), *(one for part in ordered_map(attempt, rest, crashed=_crashed) for one in part)]


def fuzz(count: int, state: Path, *, batch: int = 500, jobs: int = 2) -> Iterator[tuple[str, int, str]]:
    """Yield (reader, number, report) of each finding; continue at the mutation that `state` names."""
    state.mkdir(parents=True, exist_ok=True)
    note = state / "done.json"
    done: dict[str, int] = json.loads(note.read_text()) if note.exists() else {}
    starts = [
        Job(reader, first, min(first + batch, count))
        for first in range(0, count, batch)
        for reader in READERS
        if first >= done.get(reader, 0)
    ]
    for job, findings in zip(starts, ordered_map(attempt, starts, jobs=jobs, crashed=_crashed), strict=True):
        for number, report in findings:
            (state / f"{job.reader}-{number}").write_bytes(mutated(job.reader, number))
            yield job.reader, number, report
        done[job.reader] = job.stop
        note.write_text(json.dumps(done))


def main() -> None:
    """Print the findings; exit with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutations of each reader")
    parser.add_argument("--state", type=Path, default=Path("fuzz"), help="folder for progress and findings")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    found = 0
    from fuzz import fuzz as run  # so that child processes find its functions, which are not those of `__main__`

    for reader, number, report in run(asked.count, asked.state, jobs=asked.jobs):
        found += 1
        sys.stdout.write(f"{reader} {number}: {report}\n")
        sys.stdout.flush()
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
