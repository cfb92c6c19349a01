"""Small files of all kinds for `fuzz.py`, and functions that pack their content again after it was mutated."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import h5py
import nibabel as nib
import numpy as np

from factories import blob, write_mat5

FIXTURES = Path(__file__).parent / "fixtures"
WRITTEN, LEGACY = FIXTURES / "before_move", FIXTURES / "legacy"
SAVED_MODEL = LEGACY / "addons0.23.0-group-savedmodel"
RUN = WRITTEN / "runs" / "run" / "evaluation" / "test"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"


def written(writer: Callable[..., Path], **options: object) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return writer(Path(folder) / "1.mat", *blob(size=24), **options).read_bytes()


def matlab5(**options: object) -> bytes:
    """Return a MATLAB 5 file without its date."""
    return b"MATLAB 5.0 MAT-file".ljust(116) + written(write_mat5, **options)[116:]


def deflated_matlab5(data: bytes) -> bytes:
    content = zlib.compress(data[128:], 1)
    return data[:128] + struct.pack("<II", 15, len(content)) + content


def picture(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, np.dstack([blob(size=24)[0].astype(np.uint8)] * 3))[1])


def volume() -> bytes:
    return bytes(nib.Nifti1Image(np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.eye(4)).to_bytes())


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def dicom(*, packed: bool = False) -> bytes:
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


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip, or a `.keras` archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def small_zip() -> bytes:
    return archive({"a/1.mat": b"x" * 99, "2.png": png(chunks())}, zipfile.ZIP_DEFLATED)


def outer_zip(data: bytes) -> bytes:
    return archive({"a.zip": data, "1.png": png(chunks())}, zipfile.ZIP_DEFLATED)


@lru_cache
def chunks() -> bytes:
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


def png(data: bytes) -> bytes:
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


def weights() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = "{}"
        file.create_dataset("layers/conv/vars/0", data=np.ones((3, 3, 2, 2), "f4"), chunks=True, compression="gzip")
        file["layers/conv/vars/1"] = np.ones(2, "f4")
    return stream.getvalue()


def chunked(data: bytes) -> bytes:
    """Return a file with weights of 64 bytes, whose chunk inflates to this data."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = "{}"
        options = {"chunks": (4, 4), "compression": "gzip", "shuffle": True}
        values = file.create_dataset("layers/conv/vars/0", (4, 4), "f4", **options)
        values.id.write_direct_chunk((0, 0), zlib.compress(data, 1))
    return stream.getvalue()


def saved(suffix: str) -> bytes:
    """Return a picture as Pillow writes it, or an array."""
    from PIL import Image

    stream, pixels = io.BytesIO(), blob(size=24)[0].astype(np.uint8)
    if suffix == "npy":
        np.save(stream, pixels)
    else:
        Image.fromarray(pixels).save(stream, suffix)
    return stream.getvalue()


def itk(suffix: str) -> bytes:
    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"1{suffix}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.arange(240, dtype=np.int16).reshape(5, 8, 6)), str(path))
        return path.read_bytes()


def nrrd_gz(data: bytes) -> bytes:
    """Return an NRRD file with its voxels compressed."""
    header, gap, voxels = data.partition(b"\n\n")
    return header.replace(b"encoding: raw", b"encoding: gzip") + gap + gzipped(voxels)


def mgh() -> bytes:
    return bytes(nib.MGHImage(np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.eye(4)).to_bytes())


def record() -> bytes:
    """Return the data of a record, without the lengths and checksums around it."""
    return next((WRITTEN / "shards" / "val").glob("glioma-*")).read_bytes()[12:-4]


@lru_cache
def members(*, small: bool = False) -> dict[str, bytes]:
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


def with_member(name: str, data: bytes, *, small: bool = True) -> bytes:
    """Return a `.keras` archive in which the member `name` is `data`."""
    return archive(members(small=small) | {name: data})


@lru_cache
def old_network() -> bytes:
    return (LEGACY / "keras2.3.1-unet.h5").read_bytes()


def old_config() -> bytes:
    with h5py.File(io.BytesIO(old_network())) as file:
        return str(file.attrs["model_config"]).encode()


def old_file(config: bytes) -> bytes:
    """Return an HDF5 file of Keras 2 with this configuration."""
    stream = io.BytesIO(old_network())
    with h5py.File(stream, "r+") as file:
        file.attrs["model_config"] = config.replace(b"\0", b"")
    return stream.getvalue()


def short_metrics() -> bytes:
    """Return a short metrics.json that matches the schema."""
    document = json.loads((RUN / "metrics.json").read_bytes())
    for network in (document["model"], document["baseline"]):
        (stage,) = network["stages"] = network["stages"][:1]
        for kind in ("classes", "sizes"):
            stage[kind] = dict([*stage[kind].items()][:1])
    return json.dumps(document).encode()


def graph() -> bytes:
    """Return a SavedModel as JSON."""
    from google.protobuf import json_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    message = SavedModel.FromString((SAVED_MODEL / "saved_model.pb").read_bytes())
    return json.dumps(json_format.MessageToDict(message)).encode()


def graph_file(data: bytes) -> bytes:
    """Return the SavedModel that JSON describes; nothing if a value is of another type."""
    from google.protobuf import json_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        return json_format.Parse(data, SavedModel(), ignore_unknown_fields=True).SerializeToString()  # type: ignore[no-any-return]
    except (json_format.ParseError, ValueError, RecursionError):
        return b""
