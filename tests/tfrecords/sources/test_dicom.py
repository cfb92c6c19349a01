"""DICOM slices come in the scanner's units, in the order of their places, and what is none is refused by name."""

from __future__ import annotations

import contextlib
import random
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.dicom import DicomSlice, read_dicom
from kerasseg_tfrecords.isolation import limit_memory, memory_limit
from kerasseg_tfrecords.sources import detect, find_items
from kerasseg_tfrecords.sources.base import Listing, SourceOptions
from kerasseg_tfrecords.sources.dicom import SOURCE
from kerasseg_tfrecords.sources.pairs import SOURCE as PAIRS
from kerasseg_tfrecords.sources.tree import open_tree

PIXELS = (np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 5) % 1000
PREDICT = SourceOptions(masks=False)
SERIES = generate_uid(entropy_srcs=["series"])


def write(path: Path, pixels: NDArray[Any] = PIXELS, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """A small MR file; `tags` replace the usual ones, None removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    usual = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR",
        "PatientID": "P1",
        "SeriesInstanceUID": SERIES,
        "InstanceNumber": 1,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": 12 if pixels.dtype == np.uint16 else pixels.dtype.itemsize * 8,
        "HighBit": (12 if pixels.dtype == np.uint16 else pixels.dtype.itemsize * 8) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": [0.5, 0.75],
        "PixelData": pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes(),
    }
    for tag, value in {**usual, **tags}.items():
        if value is not None:
            setattr(file, tag, value)
    if "PixelData" in file:
        file["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, file, enforce_file_format=True)
    return path


def opened(path: Path, max_pixels: int = 10**6) -> DicomSlice:
    return read_dicom(path.read_bytes(), path.name, max_pixels)


def listing(root: Path, options: SourceOptions = PREDICT) -> Listing:
    return SOURCE.find_items(open_tree(root), options)


def test_a_place_beyond_all_distances_is_unknown(tmp_path: Path) -> None:
    place = ["1e300", "0", "0"]
    header = opened(write(tmp_path / "1.dcm", ImagePositionPatient=place, SliceThickness="1e300")).header
    assert (header.origin, header.thickness) == (None, 0.0)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_stored_values(tmp_path: Path, syntax: str, dtype: type) -> None:
    pixels = (PIXELS % 200).astype(dtype) - (100 if dtype is np.int16 else 0)
    found = opened(write(tmp_path / "1.dcm", pixels.astype(dtype), syntax))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.header.spacing == (0.5, 0.75)
    assert found.notes == ()


def test_rle(tmp_path: Path) -> None:
    path = write(tmp_path / "1.dcm")
    file = pydicom.dcmread(path)
    file.compress(RLELossless)
    file.save_as(path)
    np.testing.assert_array_equal(opened(path).pixels, PIXELS)


def test_slope_and_intercept(tmp_path: Path) -> None:
    found = opened(write(tmp_path / "1.dcm", RescaleSlope=1.5, RescaleIntercept=-20))
    assert found.pixels.dtype == np.float32
    np.testing.assert_allclose(found.pixels, PIXELS * 1.5 - 20)


def test_windowing_changes_nothing(tmp_path: Path) -> None:
    found = opened(write(tmp_path / "1.dcm", WindowCenter=100, WindowWidth=10))
    np.testing.assert_array_equal(found.pixels, PIXELS)


def test_monochrome1_is_turned_round_alike_in_all_slices(tmp_path: Path) -> None:
    for slope in (None, 2.0):
        one = opened(write(tmp_path / "1.dcm", PhotometricInterpretation="MONOCHROME1", RescaleSlope=slope))
        np.testing.assert_allclose(one.pixels, (4095 - PIXELS.astype(int)) * (slope or 1))
        assert "MONOCHROME1" in one.notes[0]
    half = opened(write(tmp_path / "2.dcm", PIXELS // 2, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(half.pixels, 4095 - (PIXELS // 2).astype(int))
    signed = (PIXELS % 200).astype(np.int16) - 100
    turned = opened(write(tmp_path / "3.dcm", signed, PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_array_equal(turned, -1 - signed)


def test_a_series_is_a_volume_in_the_order_of_its_places(tmp_path: Path) -> None:
    places = {"c.dcm": 7.5, "a.dcm": -2.5, "b.dcm": 2.5}
    for number, (name, place) in enumerate(places.items()):
        axes, position = [1, 0, 0, 0, 1, 0], [-100, -100, place]
        write(tmp_path / name, InstanceNumber=10 - number, ImageOrientationPatient=axes, ImagePositionPatient=position)
    write(tmp_path / "other.dcm", SeriesInstanceUID=generate_uid(), PatientID="P2")
    found = listing(tmp_path)
    assert {item.name: (item.slice_index, item.volume == SERIES, item.patient) for item in found.items} == {
        "a.dcm": (0, True, "P1"),
        "b.dcm": (1, True, "P1"),
        "c.dcm": (2, True, "P1"),
        "other.dcm": (0, False, "P2"),
    }


def test_oblique_places_count_along_the_normal(tmp_path: Path) -> None:
    # The real case: rows run left, columns run back and down; the first coordinate alone would tell nothing.
    axes = [1.0, 0.0, 0.0, 0.0, 0.71103039832921, -0.7031612707279]
    for name, place in (("2.dcm", (-98.6, 144.7)), ("1.dcm", (-100.0, 143.3)), ("3.dcm", (-97.2, 146.2))):
        write(tmp_path / name, ImageOrientationPatient=axes, ImagePositionPatient=[-177.7, *place])
    assert [(item.name, item.slice_index) for item in listing(tmp_path).items] == [
        ("1.dcm", 0),
        ("2.dcm", 1),
        ("3.dcm", 2),
    ]


def test_without_places_the_instance_number_counts(tmp_path: Path) -> None:
    for name, number in (("x.dcm", 10), ("y.dcm", 9), ("z.dcm", 11)):
        write(tmp_path / name, InstanceNumber=number)
    assert {item.name: item.slice_index for item in listing(tmp_path).items} == {"y.dcm": 0, "x.dcm": 1, "z.dcm": 2}


def test_slices_of_a_listing(tmp_path: Path) -> None:
    write(tmp_path / "s1/IM0001")
    write(tmp_path / "s1/IM.0002", InstanceNumber=2)
    (tmp_path / "README").write_text("hello")
    found = listing(tmp_path)
    assert [item.name for item in found.items] == ["s1/IM0001", "s1/IM.0002"]
    assert [(entry.name, entry.reason) for entry in found.left_out] == [("README", "not a DICOM file")]
    (slice_,) = SOURCE.read(found.items[0], PREDICT).slices
    np.testing.assert_array_equal(slice_.image, PIXELS)
    assert (slice_.mask, slice_.patient, slice_.volume, slice_.slice_index) == (None, "P1", SERIES, 0)
    assert slice_.spacing == (0.5, 0.75)
    assert detect(open_tree(tmp_path)).name == "dicom"


def test_the_patient_pattern_has_the_first_word(tmp_path: Path) -> None:
    write(tmp_path / "head7/1.dcm")
    assert [
        item.patient for item in listing(tmp_path, SourceOptions(masks=False, patient_pattern=r"head(\d+)")).items
    ] == ["7"]


def test_training_without_masks_says_where_to_put_them(tmp_path: Path) -> None:
    write(tmp_path / "1.dcm")
    found = listing(tmp_path, SourceOptions())
    assert found.items == ()
    (problem,) = found.problems
    assert problem.kind == "no-masks"
    assert "1_mask.png" in problem.message


@pytest.mark.parametrize(("image", "mask"), [("images/1.dcm", "masks/1.png"), ("glioma/1.dcm", "glioma/1_mask.png")])
def test_png_masks_beside_dicom_images(tmp_path: Path, image: str, mask: str) -> None:
    write(tmp_path / image, RescaleSlope=2)
    truth = np.zeros(PIXELS.shape, np.uint8)
    truth[2:5, 3:6] = 255
    (tmp_path / mask).parent.mkdir(exist_ok=True)
    (tmp_path / mask).write_bytes(bytes(cv2.imencode(".png", truth)[1]))
    tree = open_tree(tmp_path)
    assert detect(tree).name == "pairs"
    (item,) = PAIRS.find_items(tree, SourceOptions()).items
    (slice_,) = PAIRS.read(item, SourceOptions()).slices
    np.testing.assert_allclose(slice_.image, PIXELS * 2.0)
    np.testing.assert_array_equal(slice_.mask, truth > 0)
    assert (slice_.patient, slice_.spacing) == ("P1", (0.5, 0.75))
    assert slice_.label == ("glioma" if "glioma" in image else "")


# Bad input


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PixelData": PIXELS.tobytes() * 3}, "colour .*RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"Modality": "CT"}, "not an MR image .*CT"),
        ({"PixelData": None}, "without pixels"),
        ({"PixelData": PIXELS.tobytes()[:-2]}, "382 bytes of pixels, but 1 x 12 x 16 need 384"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels"),
        ({"Rows": 0}, "without pixels"),
        ({"RescaleSlope": 0}, "slope 0"),
        ({"PixelSpacing": ["1e300", "1e300"]}, r"spacing \(1e\+300"),
        ({"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63}, "64 bits"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, tags: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "1.dcm", **tags)
    with pytest.raises(DataError, match=words) as caught:
        opened(path)
    assert caught.value.path == "1.dcm"
    write(tmp_path / "2.dcm")
    found = listing(tmp_path)
    assert [item.name for item in found.items] == ["2.dcm"]
    assert [problem.name for problem in found.problems] == ["1.dcm"]


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(_: object) -> None:
        raise AssertionError("decoded")

    path = write(tmp_path / "1.dcm")
    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(explode))
    with pytest.raises(DataError, match="too large") as caught:
        opened(path, max_pixels=100)
    assert caught.value.kind == "too-large"


def test_a_compression_without_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this DICOM compression is not supported .*gdcmconv"):
        opened(packed(tmp_path / "1.dcm", b"x", PIXELS, MPEG2MPML))


@pytest.mark.parametrize("bomb", [False, True])
def test_deflated_files_are_read_within_the_memory_limit(tmp_path: Path, bomb: bool) -> None:
    path = write(tmp_path / "1.dcm", syntax=DeflatedExplicitVRLittleEndian)
    if not bomb:
        np.testing.assert_array_equal(opened(path).pixels, PIXELS)
        return
    data = path.read_bytes()
    end = 144 + struct.unpack_from("<I", data, 140)[0]
    stream = zlib.compressobj(1, zlib.DEFLATED, -15)
    full = stream.compress(bytes(1 << 24)) + stream.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(data[:end] + full * 80 + b"\x03\0")
    before = memory_limit()
    limit_memory(1 << 30)
    try:
        (problem,) = find_items(open_tree(tmp_path), PREDICT, "dicom").problems
    finally:
        limit_memory(before)
    assert problem.name == "1.dcm"
    assert "takes more than 1 GB of memory" in problem.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello\n", "a text file"),
        (b"", "an empty file"),
        (bytes(500), "zero bytes"),
        (bytes(128) + b"DICM", "no transfer syntax"),
    ],
)
def test_what_is_no_dicom(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "1.dcm").write_bytes(data)
    assert detect(open_tree(tmp_path)).name == "dicom"
    found = listing(tmp_path)
    assert found.items == ()
    (problem,) = found.problems
    assert problem.name == "1.dcm"
    assert words in problem.message


def test_damaged_files_raise_nothing_else_and_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "1.dcm").read_bytes()
    draw = random.Random(7)
    for _ in range(1500):
        broken = bytearray(data[: draw.randrange(100, len(data))] if draw.random() < 0.5 else data)
        for _ in range(draw.randrange(4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        with contextlib.suppress(DataError):
            assert np.isfinite(read_dicom(bytes(broken), "1.dcm", 10**6).pixels).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.real
def test_real_files(real: Path) -> None:
    folder = real / "dicom"
    assert detect(open_tree(folder)).name == "dicom"
    found = listing(folder)
    assert [(item.name, item.slice_index) for item in found.items] == [
        (f"case1_{n:03}.dcm", i) for i, n in enumerate((8, 10, 12))
    ]
    assert len({item.volume for item in found.items}) == 1
    for item in found.items:
        file = pydicom.dcmread(folder / item.name)
        (slice_,) = SOURCE.read(item, PREDICT).slices
        stored = np.frombuffer(file.PixelData, "<u2").reshape(file.Rows, file.Columns)
        np.testing.assert_allclose(
            slice_.image, stored * float(file.RescaleSlope) + float(file.RescaleIntercept), rtol=1e-6
        )
        assert slice_.patient == "11788759296811"
        assert slice_.spacing == pytest.approx((0.732421875, 0.732421875))


# Compressed, without preamble, several frames


def packed(path: Path, frame: bytes, pixels: NDArray[Any], syntax: str) -> Path:
    write(path, pixels, syntax, PixelData=encapsulate([frame]))
    return path


def test_jpeg_2000_and_jpeg(tmp_path: Path) -> None:
    deep = np.tile(PIXELS, (6, 5))
    lossless = opened(packed(tmp_path / "1.dcm", encode_array(deep), deep, JPEG2000Lossless))
    np.testing.assert_array_equal(lossless.pixels, deep)
    grey = (np.add.outer(np.arange(32), np.arange(48)) * 3).astype(np.uint8)
    frame = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    lossy = opened(packed(tmp_path / "2.dcm", frame, grey, JPEGBaseline8Bit))
    assert np.abs(lossy.pixels.astype(int) - grey).max() <= 6


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit])
def test_a_compressed_frame_of_another_size_is_refused(tmp_path: Path, syntax: str) -> None:
    grey = np.zeros((64, 80), np.uint8)
    frame = encode_array(grey) if syntax == JPEG2000Lossless else cv2.imencode(".jpg", grey)[1].tobytes()
    path = packed(tmp_path / "1.dcm", frame, np.zeros((12, 16), np.uint8), syntax)
    with pytest.raises(DataError, match="damaged DICOM"):
        opened(path)


def test_the_extra_is_named_where_a_decoder_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "1.dcm", b"x", PIXELS, JPEG2000Lossless)
    monkeypatch.setattr("kerasseg_tfrecords.formats.dicom.get_decoder", lambda _: SimpleNamespace(is_available=False))
    with pytest.raises(DataError, match=r"JPEG 2000.*kerasseg\[dicom\]"):
        opened(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_preamble(tmp_path: Path, syntax: str, meta: bool) -> None:
    data = write(tmp_path / "1.dcm", syntax=syntax).read_bytes()
    end = 144 + struct.unpack_from("<I", data, 140)[0]
    (tmp_path / "1.dcm").write_bytes(data[132:] if meta else data[end:])
    np.testing.assert_array_equal(opened(tmp_path / "1.dcm").pixels, PIXELS)
    assert detect(open_tree(tmp_path)).name == "dicom"
    (item,) = listing(tmp_path).items
    np.testing.assert_array_equal(SOURCE.read(item, PREDICT).slices[0].image, PIXELS)


def test_files_without_suffix_in_a_zip_are_found(tmp_path: Path) -> None:
    data = write(tmp_path / "1.dcm").read_bytes()
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        archive.writestr("IM0001", data)
    (tmp_path / "1.dcm").unlink()
    assert detect(open_tree(tmp_path)).name == "dicom"
    (item,) = listing(tmp_path).items
    assert item.name == "series.zip!IM0001"
    np.testing.assert_array_equal(SOURCE.read(item, PREDICT).slices[0].image, PIXELS)


def test_frames_of_an_enhanced_file_are_slices_in_their_order(tmp_path: Path) -> None:
    frames = np.stack([PIXELS, PIXELS + 1, PIXELS + 2])
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.9], 3
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    groups = []
    for place in (6, 0, 3):
        position, group, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, place]
        values.RescaleSlope, values.RescaleIntercept = 2, place
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    path = write(
        tmp_path / "e.dcm",
        PixelData=frames.tobytes(),
        PixelSpacing=None,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(groups),
    )
    items = listing(tmp_path).items
    assert [(item.name, item.page, item.slice_index) for item in items] == [
        ("e.dcm#0", 0, 2),
        ("e.dcm#1", 1, 0),
        ("e.dcm#2", 2, 1),
    ]
    for item, place in zip(items, (6, 0, 3), strict=True):
        (slice_,) = SOURCE.read(item, PREDICT).slices
        np.testing.assert_array_equal(slice_.image, 2 * frames[item.page].astype(np.float32) + place)
        assert slice_.spacing == (0.8, 0.9)
    with pytest.raises(DataError, match="several frames .*3 frames"):
        opened(path)
