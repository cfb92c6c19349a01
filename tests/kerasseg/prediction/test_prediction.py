"""Masks lie where their inputs lay, are those that `evaluate` scores, and an interrupted prediction loses nothing."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2
import keras
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

import kerasseg
from children import PATIENCE
from evaluated_runs import brightness_network, write_run
from factories import blob, write_figshare, write_mat
from kerasseg import predict_files, predict_masks
from kerasseg.evaluation.predictions import predict_split
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.prediction.pipeline import Limits, run_flow
from kerasseg.prediction.predictor import open_network
from kerasseg.prediction.resume import JOURNAL
from kerasseg.prediction.writers import segmentation
from kerasseg.runs.directory import RunDirectory
from kerasseg.training.precision import compute_in
from kerasseg.workflows import predict as files_module
from kerasseg_tfrecords import isolation, prepare
from kerasseg_tfrecords.errors import CheckpointError, DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error
from kerasseg_tfrecords.records.manifest import PrepareOptions
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.base import SourceOptions

SIZE = 32


def picture(path: Path, seed: int = 0, size: int | tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A slice of 0 and 200 in random blocks: no threshold between can be mistaken, whatever is rounded."""
    height, width = (size, size) if isinstance(size, int) else size
    pixels = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint8) * 200
    pixels[0, 0], pixels[0, 1] = 0, 200
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return pixels


def mask_of(path: Path) -> NDArray[np.uint8]:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None, path
    return np.asarray(found, np.uint8)


@pytest.fixture(scope="module")
def bright() -> keras.Model:
    return brightness_network(SIZE, at=0.5, steep=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        picture(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path / "in"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a run on them, in a folder of their own."""
    root = tmp_path_factory.mktemp("trained")
    write_figshare(root / "raw", patients=9, slices_each=2, size=48)
    prepare(root / "raw", root / "shards", PrepareOptions(size=SIZE, split="60/20/20"), jobs=1)
    write_run(root / "runs" / "first", root / "shards", model=brightness_network(SIZE, at=0.55, steep=8))
    return root


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_are_those_that_evaluate_scores(trained: Path, tmp_path: Path) -> None:
    """Slice by slice: the network on the shards, resized and cut as `evaluate` does, against the files."""
    rule = MaskRule(threshold=0.4, min_diameter=0.05, fill_holes=True)
    run = RunDirectory.open(trained / "runs" / "first")
    report = predict_files(run, trained / "raw", tmp_path / "out", rule=rule)
    assert not report.problems
    expected = predict_split(kerasseg.open_checkpoint(run.model_file), trained / "shards", "train")
    some = 0
    for number in range(len(expected)):
        case = expected.case(number)
        mask = apply_rule(expected.probability(number), rule)
        found = mask_of(tmp_path / "out" / f"{case.slice_id.split('/')[-1]}_mask.png")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, mask.astype(np.uint8) * 255)
        some += bool(mask.any()) and not bool(mask.all())
    assert some > 3


def test_the_precision_is_that_of_evaluate_unless_another_is_chosen(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that was trained in bfloat16, and of a network whose layers compute in it."""
    monkeypatch.setattr("kerasseg.training.precision.processor_has_bfloat16", lambda *_: True)
    shutil.copytree(trained / "runs" / "first", trained / "runs" / "half")
    run = RunDirectory(trained / "runs" / "half")
    config = run.config()
    run.write_config(
        config.model_copy(update={"resolved": config.resolved.model_copy(update={"precision": "mixed_bfloat16"})})
    )
    network = open_network(run)
    assert network.precision == "float32"
    assert not any("mixed" in note for note in network.notes)
    faster = open_network(run, precision="mixed_bfloat16")
    assert [note for note in faster.notes if "computing in mixed_bfloat16" in note]

    half = kerasseg.unet((SIZE, SIZE, 1), filters=2, depth=1, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 1)).astype(np.uint8)
    expected = open_network(half).probabilities(images)
    compute_in(half, "mixed_bfloat16")
    np.testing.assert_allclose(open_network(half).probabilities(images), expected, atol=1e-6)


def test_pictures_keep_their_size_and_the_table_says_what_was_found(bright: keras.Model, tmp_path: Path) -> None:
    pixels = picture(tmp_path / "in" / "glioma" / "a.png", 1, size=(24, SIZE))
    image, _ = blob(3, (20, SIZE))
    write_mat(tmp_path / "in" / "b.mat", image, None, label=None, pid=None)
    empty = tmp_path / "in" / "empty.png"
    cv2.imwrite(str(empty), np.full((SIZE, SIZE), 7, np.uint8))
    out = tmp_path / "out"
    report = predict_files(bright, tmp_path / "in", out, threshold=0.5, probabilities=True, overlay=True)
    assert [file.name for file in report.files] == ["b.mat", "empty.png", "glioma/a.png"]
    np.testing.assert_array_equal(mask_of(out / "glioma/a_mask.png"), np.where(pixels > 100, 255, 0))
    # A .mat file's mask lies as MATLAB shows the image: rows are rows.
    scaled = (image - image.min()) / (image.max() - image.min())
    mask = mask_of(out / "b_mask.png")
    assert mask.shape == image.shape
    assert (mask[scaled > 0.52] == 255).all()
    assert (mask[scaled < 0.48] == 0).all()
    shares = cv2.imread(str(out / "glioma/a_probabilities.png"), cv2.IMREAD_UNCHANGED)
    assert shares.dtype == np.uint16
    assert set(np.unique(shares[pixels > 100])) == {65535}
    assert cv2.imread(str(out / "glioma/a_overlay.png")).shape == (24 * 16, SIZE * 16, 3)

    second, third = rows(out)[1:]
    assert (second["tumour"], second["area_px"], second["top"], second["mean_probability"]) == ("0", "0", "", "")
    inside = np.argwhere(pixels > 100)
    (top, left), (bottom, right) = inside.min(0), inside.max(0)
    assert third["file"], third["mask"] == ("glioma/a.png", "glioma/a_mask.png")
    assert [int(third[name]) for name in ("area_px", "top", "left", "height", "width")] == [
        len(inside),
        top,
        left,
        bottom - top + 1,
        right - left + 1,
    ]
    assert (third["area_mm2"], third["slice"]) == ("", "")
    assert float(third["mean_probability"]) > 0.99
    assert float(third["seconds"]) > 0


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL", "PIR"])
@pytest.mark.parametrize("plane", [None, "coronal", "sagittal"])
def test_volumes_keep_shape_orientation_and_affine(
    bright: keras.Model, tmp_path: Path, codes: str, plane: str | None
) -> None:
    shape = (SIZE, 20, 12)
    stored = np.random.default_rng(0).integers(0, 2, shape).astype(np.int16) * 900
    axes = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "S": (2, 1), "I": (2, -1)}
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for place, code in enumerate(codes):
        axis, sign = axes[code]
        affine[axis, place] = sign * 1.5  # cubes: other voxels are resampled, which `test_intensity.py` covers
    affine[:3, 3] = (10, -20, 30)
    image = nib.Nifti1Image(stored, affine)
    image.set_qform(affine, code=2)
    image.set_sform(affine, code=4)
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "t1c.nii.gz")
    # All sides but the longest are padded, and the longest may lie across: then slices are enlarged in between.
    predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5, plane=plane, probabilities=True)
    mask = nib.load(tmp_path / "out" / "t1c_mask.nii.gz")
    assert mask.shape == shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, image.affine)
    for form in ("sform", "qform"):
        assert mask.header[f"{form}_code"] == image.header[f"{form}_code"]
    found = np.asarray(mask.dataobj)
    across = {None: 2, "axial": 2, "coronal": 1, "sagittal": 0}[plane]
    in_plane = [shape[place] for place, code in enumerate(codes) if axes[code][0] != across]
    if max(in_plane) == SIZE:
        np.testing.assert_array_equal(found, stored > 450)
    else:
        assert (found == (stored > 450)).mean() > 0.8
    chances = nib.load(tmp_path / "out" / "t1c_probabilities.nii.gz")
    assert chances.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(chances.dataobj) >= 0.5, found)
    line = rows(tmp_path / "out")[0]
    assert float(line["area_mm2"]) > 0


def test_volumes_are_cut_as_those_that_the_run_was_trained_on(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    for file, change in (
        (moved / "shards" / "manifest.json", {"options": {"plane": "coronal"}}),
        (moved / "runs" / "first" / "config.json", {"settings": {"shards": str(moved / "shards")}}),
    ):
        document = json.loads(file.read_text())
        for part, values in change.items():
            document[part] |= values
        file.write_text(json.dumps(document))
    stored = np.random.default_rng(1).integers(0, 1000, (20, 12, SIZE)).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1])), tmp_path / "t1c.nii.gz")
    run = RunDirectory.open(moved / "runs" / "first")
    report = predict_files(run, tmp_path / "t1c.nii.gz", tmp_path / "out", threshold=0.5)
    assert len(report.files[0].rows) == 12
    assert len(predict_files(run, tmp_path / "t1c.nii.gz", tmp_path / "axial", plane="axial").files[0].rows) == SIZE


@pytest.mark.parametrize(
    ("shape", "codes"), [((SIZE, 16, 1), "axial"), ((1, 16, SIZE), "sagittal"), ((SIZE, 16), "axial")]
)
def test_a_volume_of_one_slice(bright: keras.Model, tmp_path: Path, shape: tuple[int, ...], codes: str) -> None:
    stored = np.random.default_rng(1).integers(0, 2, shape).astype(np.int16) * 900
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1])), tmp_path / "in" / "one.nii")
    report = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5)
    assert len(report.files[0].rows) == 1
    mask = nib.load(tmp_path / "out" / "one_mask.nii.gz")
    assert mask.shape == shape
    np.testing.assert_array_equal(np.asarray(mask.dataobj), stored > 450)
    other = "coronal"
    report = predict_files(bright, tmp_path / "in", tmp_path / "other", threshold=0.5, plane=other)
    (problem,) = report.problems
    assert problem.kind == "one-slice"
    assert f"found {codes}, expected coronal" in problem.message


def write_series(folder: Path, gaps: Sequence[float], rows_: int = 16, columns: int = SIZE) -> NDArray[np.uint16]:
    """An oblique MR series; gives its pixels (slices, rows, columns)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    series, study, frame = (generate_uid(entropy_srcs=[name]) for name in ("series", "study", "frame"))
    across, down = np.array([1.0, 0, 0]), np.array([0, 0.8, -0.6])
    normal = np.cross(across, down)
    pixels = []
    for number, gap in enumerate(np.cumsum([0, *gaps])):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(number)])
        file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        # Blocks, because slices whose pixels are no squares are resampled, which blurs edges.
        blocks = rng.integers(0, 2, (rows_ // 8, columns // 8)).astype(np.uint16) * 700
        pixels.append(np.kron(blocks, np.ones((8, 8), np.uint16)))
        tags = {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "MR",
            "PatientID": "P1",
            "PatientName": "A",
            "PatientBirthDate": "",
            "PatientSex": "",
            "StudyInstanceUID": study,
            "StudyDate": "20200101",
            "StudyTime": "120000",
            "StudyID": "1",
            "AccessionNumber": "",
            "ReferringPhysicianName": "",
            "SeriesInstanceUID": series,
            "SeriesNumber": 3,
            "FrameOfReferenceUID": frame,
            "PositionReferenceIndicator": "",
            "InstanceNumber": number + 1,
            "Manufacturer": "",
            "Rows": rows_,
            "Columns": columns,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 12,
            "HighBit": 11,
            "PixelRepresentation": 0,
            "PixelSpacing": [0.5, 0.75],
            "SliceThickness": 2.0,
            "ImageOrientationPatient": [*across, *down],
            "ImagePositionPatient": list(np.array([10.0, 20, 30]) + gap * normal),
            "PixelData": pixels[-1].tobytes(),
        }
        for tag, value in tags.items():
            setattr(file, tag, value)
        pydicom.dcmwrite(folder / f"IM{9 - number}.dcm", file, enforce_file_format=True)
    return np.array(pixels)


def test_a_dicom_series_becomes_a_volume_in_its_place(bright: keras.Model, tmp_path: Path) -> None:
    pixels = write_series(tmp_path / "in" / "head", [2.5, 2.5, 2.5])
    report = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5)
    (file,) = report.files
    assert file.files["mask"] == ["head_mask.nii.gz"]
    image = nib.load(tmp_path / "out" / "head_mask.nii.gz")
    found = np.asarray(image.dataobj)
    assert (found.transpose(2, 1, 0) == (pixels > 350)).mean() > 0.95
    # The pixel in row 7 and column 5 of slice 2, computed as the DICOM standard says (C.7.6.2.1.1), left and back turned.
    normal = np.cross([1.0, 0, 0], [0, 0.8, -0.6])
    place = (
        np.array([10.0, 20, 30]) + 5.0 * normal + 5 * 0.75 * np.array([1.0, 0, 0]) + 7 * 0.5 * np.array([0, 0.8, -0.6])
    )
    np.testing.assert_allclose((image.affine @ [5, 7, 2, 1])[:3], place * [-1, -1, 1], atol=1e-4)
    assert [row.file for row in file.rows] == ["head/IM9.dcm", "head/IM8.dcm", "head/IM7.dcm", "head/IM6.dcm"]
    assert file.rows[0].area_mm2 == pytest.approx(0.375 * (pixels[0] > 350).sum(), rel=0.1)
    assert file.volume_ml == pytest.approx(0.375 * 2.5 * (pixels > 350).sum() / 1000, rel=0.1)
    assert [row["case_volume_ml"] for row in rows(tmp_path / "out")] == [str(file.volume_ml)] * 4


def test_a_dicom_segmentation_refers_to_its_slices(bright: keras.Model, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    pixels = write_series(tmp_path / "in" / "head", [2.5, 2.5])
    report = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5)
    assert report.files[0].notes == ()
    assert report.files[0].files["seg"] == ["head_seg.dcm"]
    made = pydicom.dcmread(tmp_path / "out" / "head_seg.dcm")
    assert made.Modality == "SEG"
    frames = {}
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        frames[source] = made.pixel_array[number]
    names = ("IM9.dcm", "IM8.dcm", "IM7.dcm")
    for place, name in enumerate(names):
        source = pydicom.dcmread(tmp_path / "in" / "head" / name).SOPInstanceUID
        assert (frames[source] == (pixels[place] > 350)).mean() > 0.95


def test_a_segmentation_is_made_behind_the_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("highdicom")
    pixels = write_series(tmp_path / "head", [2.5])
    files = [Location(path, (), path.name) for path in (tmp_path / "head").iterdir()]
    monkeypatch.setattr(isolation, "_limit", 300 << 20)  # less than highdicom itself
    data, reason = segmentation(files, list(pixels > 350), SourceOptions())
    assert data is None
    assert reason.startswith("no DICOM SEG file")  # Python without memory fails in many ways


def test_a_segmentation_names_the_header_that_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    pixels = write_series(tmp_path / "head", [2.5])
    files = [Location(path, (), path.name) for path in (tmp_path / "head").iterdir()]
    for place in files:
        file = pydicom.dcmread(place.path)
        del file.PatientName
        file.save_as(place.path)
    reason = segmentation(files, list(pixels > 350), SourceOptions())[1]
    assert reason == "no DICOM SEG file, because the headers are incomplete (no PatientName)"


def test_a_series_without_highdicom_says_what_is_missing(
    bright: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in" / "head", [2.5, 2.5])
    monkeypatch.setattr(files_module, "has_highdicom", lambda: False)
    report = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5)
    (note,) = [note for note in report.notes if "DICOM SEG" in note]
    assert "no DICOM SEG files for 1 series" in note
    assert "pip install 'kerasseg[dicom]'" in note


@pytest.mark.parametrize(
    ("part", "remark"), [("KNEE", "KNEE"), ("Abdomen", "Abdomen"), ("BRAIN W/O", None), ("", None), ("UNKNOWN", None)]
)
def test_a_series_of_another_body_part_gets_a_remark(
    bright: keras.Model, tmp_path: Path, part: str, remark: str | None
) -> None:
    write_series(tmp_path / "in" / "scan", [2.5])
    for path in (tmp_path / "in" / "scan").glob("*.dcm"):
        file = pydicom.dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on lower case
            file.BodyPartExamined = part
            file.save_as(path)
    (file,) = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5).files
    assert [note for note in file.notes if "not a head" in note] == (
        [f"the header says that the series shows {remark}, not a head: do not rely on its masks"] if remark else []
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_table_counts_tumours_and_millilitres(bright: keras.Model, tmp_path: Path, plane: str) -> None:
    stored = np.zeros((SIZE, SIZE, SIZE), np.int16)
    stored[4:10, 4:10, 4:10] = stored[20:26, 4:10, 4:12] = 900
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(stored, np.diag([-0.5, -1.0, 2.0, 1.0])), tmp_path / "in" / "t1c.nii.gz")
    report = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5, plane=plane)
    (file,) = report.files
    # Voxels of 1 mm3. Sides that are enlarged in between may lose a voxel at edges.
    assert file.tumours == 2
    assert file.volume_ml == pytest.approx((6 * 6 * 6 + 6 * 6 * 8) / 1000, rel=0.15)
    assert file.volume_ml == pytest.approx(np.asarray(nib.load(tmp_path / "out/t1c_mask.nii.gz").dataobj).sum() / 1000)
    lines = rows(tmp_path / "out")
    assert {line["case_tumours"] for line in lines} == {"2"}
    assert {line["case_volume_ml"] for line in lines} == {str(file.volume_ml)}
    assert max(int(line["tumours"]) for line in lines) == (1 if plane == "sagittal" else 2)


def test_names_of_files_start_no_formula(bright: keras.Model, tmp_path: Path) -> None:
    for name in ("=cmd|' '!A1.png", "@SUM(1).png", "-2+3.png"):
        picture(tmp_path / "in" / name)
    report = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5)
    assert len(report.files) == 3
    for line in rows(tmp_path / "out"):
        assert line["file"].startswith("'")
        assert line["mask"].startswith("'")
        assert (tmp_path / "in" / line["file"].removeprefix("'")).is_file()


def test_uneven_slices_have_files_of_their_own(bright: keras.Model, tmp_path: Path) -> None:
    pixels = write_series(tmp_path / "in" / "head", [2.5, 9.0])
    (file,) = predict_files(bright, tmp_path / "in", tmp_path / "out", threshold=0.5).files
    assert "not evenly spaced" in file.notes[0]
    assert file.volume_ml is None
    assert file.files["mask"] == [f"head/000{n}-IM{9 - n}_mask.nii.gz" for n in range(3)]
    for place, name in enumerate(file.files["mask"]):
        image = nib.load(tmp_path / "out" / name)
        assert ((pixels[place] > 350) == np.asarray(image.dataobj)[..., 0].T).mean() > 0.95
        gap = [0, 2.5, 11.5][place]
        expected = np.array([10.0, 20, 30]) + gap * np.cross([1.0, 0, 0], [0, 0.8, -0.6])
        np.testing.assert_allclose(image.affine[:3, 3], expected * [-1, -1, 1], atol=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_real_files_keep_their_geometry(bright: keras.Model, real: Path, tmp_path: Path) -> None:
    inputs = [
        real / "figshare-mat" / "15?.mat",
        real / "figshare-png" / "images" / "77?.png",
        real / "lgg-tiff" / "*" / "*_1.tif",
        real / "brisc",
        real / "nifti",
        real / "dicom",
    ]
    out = tmp_path / "out"
    network = brightness_network(SIZE, at=0.4, steep=10, channels=3)
    report = predict_files(network, inputs, out, threshold=0.5)
    assert not report.problems
    assert {file.name.split("/")[0] for file in report.files} >= {"figshare-mat", "images", "brisc", "nifti", "dicom"}
    seen = set()
    for file in report.files:
        (name,) = file.files["mask"]
        kind, _, rest = file.name.partition("/")
        seen.add(name.rsplit("_mask", 1)[1])
        if file.name.endswith(".nii.gz"):
            source, mask = nib.load(real / "nifti" / rest), nib.load(out / name)
            assert (mask.shape, nib.aff2axcodes(mask.affine)) == (source.shape, nib.aff2axcodes(source.affine))
            np.testing.assert_array_equal(mask.affine, source.affine)
        elif kind == "dicom":
            first = pydicom.dcmread(real / "dicom" / "case1_008.dcm")
            mask = nib.load(out / name)
            assert mask.shape == (first.Columns, first.Rows, 3)
            origin = np.array([float(v) for v in first.ImagePositionPatient]) * [-1, -1, 1]
            np.testing.assert_allclose(mask.affine[:3, 3], origin, atol=1e-4)
        else:
            mask = mask_of(out / name)
            assert set(np.unique(mask)) <= {0, 255}
            if file.name.endswith(".mat"):
                import h5py

                with h5py.File(real / "figshare-mat" / rest) as mat:
                    assert mask.shape == mat["cjdata/image"].shape[::-1]
            else:
                (path,) = [p for p in real.rglob(Path(rest).name) if kind in p.as_posix()]
                assert mask.shape == cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2]
    assert seen == {".png", ".nii.gz"}


def test_bids_names(bright: keras.Model, tmp_path: Path) -> None:
    volume = np.stack([np.eye(SIZE, dtype=np.int16) * 200] * 3, axis=-1)
    for name in ("sub-01/anat/sub-01_ce-gd_T1w", "sub-02/ses-1/anat/sub-02_ses-1_T1w"):
        (tmp_path / "bids" / name).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "bids" / f"{name}.nii.gz")
    out = tmp_path / "derivatives"
    for go_on in (False, True):
        report = predict_files(bright, tmp_path / "bids", out, bids=True, probabilities=True, go_on=go_on)
        assert (report.problems, report.earlier) == ((), 2 * go_on)
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.gz"))]
    assert names == [
        "sub-01/anat/sub-01_ce-gd_label-tumor_mask.nii.gz",
        "sub-01/anat/sub-01_ce-gd_label-tumor_probseg.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_label-tumor_mask.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_label-tumor_probseg.nii.gz",
    ]
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    with pytest.raises(UsageError, match="were made differently"):
        predict_files(bright, tmp_path / "bids", out, probabilities=True, go_on=True)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "bids" / "head.nii.gz")
    with pytest.raises(UsageError, match="not a BIDS name"):
        predict_files(bright, tmp_path / "bids", tmp_path / "other", bids=True)


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_runs_own_rule_and_grey_levels_are_taken(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "runs" / "first", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["intensity"] = "percentile"
    (run / "config.json").write_text(json.dumps(config))
    network = open_network(run)
    assert (network.intensity, network.size, network.rule) == ("percentile", SIZE, MaskRule())
    assert "no tuned threshold" in network.notes[0]


def test_a_tuned_rule_is_taken(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kerasseg.workflows.tune import tune_run

    monkeypatch.chdir(trained)
    tuned = tune_run(RunDirectory.find("runs/first"), force=True).model.rule
    try:
        assert tuned != MaskRule()
        assert open_network("runs/first").rule == tuned
        assert open_network("runs/first", threshold=0.3).rule == MaskRule(threshold=0.3)
        assert not open_network("runs/first").notes
        (note,) = open_network("runs/first", flip_average=True).notes
        assert "tuned without --flip-average: leave out" in note
    finally:
        (trained / "runs/first/threshold.json").unlink()


def test_the_mean_of_networks_and_of_mirror_images() -> None:
    size = 16
    models = [kerasseg.unet((size, size, 1), filters=2, depth=1, seed=seed) for seed in (1, 2)]
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1), np.uint8)
    network = open_network(models, batch_size=2, flip_average=True)
    found = np.concatenate([network.probabilities(images[:2]), network.probabilities(images[2:])])
    scaled = images.astype("float32") / 255
    expected = np.mean(
        [
            answer
            for model in models
            for answer in (
                model.predict(scaled, verbose=0)[..., 0],
                model.predict(scaled[:, :, ::-1], verbose=0)[:, :, ::-1, 0],
            )
        ],
        axis=0,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - models[0].predict(scaled, verbose=0)[..., 0]).max() > 1e-3


def test_several_networks_must_go_together(bright: keras.Model, trained: Path) -> None:
    with pytest.raises(UsageError, match="different images"):
        open_network([bright, brightness_network(16)])
    run = trained / "runs" / "first"
    mean = open_network([run, run], threshold=0.2)
    assert mean.rule == MaskRule(threshold=0.2)
    assert len(mean.names) == 2


@pytest.mark.parametrize("name", ["rotation", "RandomVerticalFlip", "elastic", "color_jitter", "zoom", "brightness"])
def test_other_averages_are_refused_by_name(bright: keras.Model, folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is refused"):
        predict_files(bright, folder, tmp_path / "out", augment=[name])
    assert not (tmp_path / "out").exists()


def test_any_checkpoint_is_cut_at_one_half(folder: Path, tmp_path: Path, bright: keras.Model) -> None:
    bright.save(tmp_path / "net.keras")
    report = predict_files(tmp_path / "net.keras", folder, tmp_path / "out")
    assert report.rule == MaskRule()
    np.testing.assert_array_equal(mask_of(tmp_path / "out/3_mask.png") > 0, mask_of(folder / "3.png") > 100)
    with pytest.raises(CheckpointError, match="no such file"):
        predict_files(tmp_path / "gone.keras", folder, tmp_path / "other")


def test_arrays(bright: keras.Model, folder: Path) -> None:
    images = [mask_of(folder / "1.png").astype(np.int16) * 9, np.ones((20, SIZE))]
    one, flat = predict_masks(bright, images, rule=0.5)
    np.testing.assert_array_equal(one, images[0] > 900)
    assert flat.shape == (20, SIZE)
    assert not flat.any()
    assert predict_masks(bright, []) == []
    for wrong in (np.zeros(4), np.zeros((4, 4, 2)), np.full((4, 4), np.nan), np.zeros((4, 4, 3))):
        with pytest.raises(UsageError):
            predict_masks(bright, [wrong])


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_being_trained(trained: Path, folder: Path, tmp_path: Path) -> None:
    run = RunDirectory.open(trained / "runs" / "first")
    with run.locked(), pytest.raises(KerassegError, match=r"still being trained.*--model .*model\.keras"):
        predict_files(run, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_disagrees_with_its_run(trained: Path, folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "runs" / "first", tmp_path / "run")
    RunDirectory(run).save_model(brightness_network(16), run / "model.keras")
    with pytest.raises(UsageError, match="16x16x1, expected 32x32x1"):
        predict_files(run, folder, tmp_path / "out")


def test_a_folder_without_images(bright: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"no images \(found an empty folder"):
        predict_files(bright, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no images \(found files: 1 \.txt"):
        predict_files(bright, tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        predict_files(bright, tmp_path / "gone", tmp_path / "out")
    with pytest.raises(DataError, match="no file matches"):
        predict_files(bright, tmp_path / "*.png", tmp_path / "out")


def test_the_output_folder_is_no_input(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, tmp_path / "link", folder / ".." / "in"):
        with pytest.raises(UsageError, match="output folder is the input folder"):
            predict_files(bright, folder, out)
        with pytest.raises(UsageError, match="output folder is the input folder"):
            predict_files(bright, folder / "1.png", out)
    # Below it, it is none of the inputs.
    report = predict_files(bright, folder, folder / "masks", overlay=True)
    again = predict_files(bright, folder, folder / "masks", overlay=True, overwrite=True)
    assert [file.name for file in again.files] == [file.name for file in report.files]


def test_two_inputs_of_one_name(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(folder / "1.jpg"), np.zeros((8, 8), np.uint8))
    report = predict_files(bright, folder, tmp_path / "out")
    masks = {file.name: file.files["mask"] for file in report.files}
    assert masks["1.png"] == ["1-png_mask.png"]
    assert masks["1.jpg"] == ["1-jpg_mask.png"]
    assert masks["2.png"] == ["2_mask.png"]


def test_a_name_that_is_too_long_stops_no_other(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    picture(folder / ("x" * 249 + ".png"), seed=9)
    report = predict_files(bright, folder, tmp_path / "out")
    assert [problem.kind for problem in report.problems] == ["name"]
    assert len(report.files) == 6


def test_a_run_is_no_folder_of_images(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.keras"):
        (folder / name).write_text("")
    with pytest.raises(UsageError, match=r"this is a run.*--ensemble A --ensemble B"):
        predict_files(bright, folder, tmp_path / "out")


@pytest.mark.parametrize("options", [{}, {"go_on": True}, {"overwrite": True}])
def test_masks_that_somebody_drew_are_never_replaced(
    bright: keras.Model, folder: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    picture(other / "9.png", seed=9)
    (folder / "1_mask.png").write_bytes(b"drawn by hand")
    # With several inputs each has its own folder below the output: here the inputs themselves.
    with pytest.raises(UsageError, match="output folder is the input folder"):
        predict_files(bright, [folder, other], tmp_path, **options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1_mask.png").write_bytes(b"drawn by hand")
    with pytest.raises(UsageError, match=r"kerasseg did not write.*found 1_mask\.png"):
        predict_files(bright, folder, tmp_path / "out", **options)
    assert (tmp_path / "out" / "1_mask.png").read_bytes() == b"drawn by hand"


def test_pictures_of_an_earlier_prediction_are_no_images(bright: keras.Model, folder: Path) -> None:
    first = predict_files(bright, folder, folder / "first", overlay=True)
    assert (folder / "first" / "1_overlay.png").is_file()
    again = predict_files(bright, folder, folder / "second")
    assert [file.name for file in again.files] == [file.name for file in first.files]


def test_going_on_with_other_inputs_forgets_nothing(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(bright, folder / "1.png", out)
    report = predict_files(bright, folder / "2.png", out, go_on=True)
    assert (report.earlier, report.total) == (0, 1)
    assert sorted(row["file"] for row in rows(out)) == ["1.png", "2.png"]
    assert predict_files(bright, [folder / "1.png", folder / "2.png"], out, go_on=True).earlier == 2


def test_bad_files_are_reported_and_the_others_done(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    (folder / "a.mat").write_bytes(b"rubbish")
    (folder / "b.nii.gz").write_bytes(b"rubbish")
    (folder / "c.dcm").write_bytes(b"rubbish")
    cv2.imwrite(str(folder / "colour.png"), (np.arange(SIZE * SIZE * 3).reshape(SIZE, SIZE, 3) % 251).astype(np.uint8))
    report = predict_files(bright, folder, tmp_path / "out")
    assert {problem.name for problem in report.problems} == {"2.png", "a.mat", "b.nii.gz", "c.dcm", "colour.png"}
    assert [file.name for file in report.files] == [f"{n}.png" for n in (0, 1, 3, 4, 5)]
    assert [row["file"] for row in rows(tmp_path / "out")] == [file.name for file in report.files]


def test_a_file_that_disappears(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    gone = iter([True])

    def progress(_stage: str, _done: int, _total: int) -> None:
        if next(gone, False):
            (folder / "4.png").unlink()

    report = predict_files(bright, folder, tmp_path / "out", progress=progress)
    (problem,) = report.problems
    assert problem.name == "4.png"
    assert "No such file" in problem.message
    assert len(report.files) == 5


def test_a_full_disk_keeps_what_is_done(
    bright: keras.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = files_module.write_atomically, iter(range(3))

    def full(path: Path, data: bytes | str, *, durable: bool = True) -> None:
        if next(left, None) is None:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise explain_os_error(error, path) from error
        real(path, data, durable=durable)

    monkeypatch.setattr(files_module, "write_atomically", full)
    with pytest.raises(KerassegError, match=r"no space left.*--continue"):
        predict_files(bright, folder, tmp_path / "out")
    monkeypatch.undo()
    assert threading.active_count() < 20
    report = predict_files(bright, folder, tmp_path / "out", go_on=True)
    assert (report.earlier, len(report.files)) == (3, 6)


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_temporary_folder_is_no_unreadable_network(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    """Weights are read from a copy there. For any other fault, the network's file is named."""

    def full(**_: object) -> NoReturn:
        raise OSError(why, os.strerror(why), str(tmp_path))

    monkeypatch.setattr("kerasseg.checkpoints.hdf5.tempfile.TemporaryDirectory", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KerassegError) as caught:
        predict_files(trained / "runs" / "first", folder, tmp_path / "out")
    if why == errno.EIO:
        assert isinstance(caught.value, CheckpointError)
        assert str(caught.value.path).endswith("model.keras")
        return
    assert type(caught.value) is KerassegError
    assert caught.value.path == str(tmp_path)
    assert "bytes free" in str(caught.value)
    assert "TMPDIR=" in str(caught.value)


# --- going on --------------------------------------------------------------------------------------------------------


def test_stopped_and_continued_is_as_undisturbed(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    for number in range(6, 30):  # more than are under way at once
        picture(folder / f"{number}.png", seed=number)
    whole = predict_files(bright, folder, tmp_path / "whole")
    done: list[int] = []
    report = predict_files(
        bright,
        folder,
        tmp_path / "out",
        batch_size=1,
        progress=lambda _stage, count, _total: done.append(count),
        stop=lambda: bool(done) and done[-1] >= 2,
    )
    assert report.interrupted
    assert 2 <= len(report.files) < 30
    assert len(rows(tmp_path / "out")) == len(report.files)
    earlier = {file.name: (tmp_path / "out" / file.files["mask"][0]).stat().st_mtime_ns for file in report.files}
    again = predict_files(bright, folder, tmp_path / "out", go_on=True)
    assert not again.interrupted
    assert again.earlier == len(earlier)
    for name, before in earlier.items():
        assert (tmp_path / "out" / f"{Path(name).stem}_mask.png").stat().st_mtime_ns == before
    for file in whole.files:
        (name,) = file.files["mask"]
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "out")]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "whole")]


def test_only_what_is_missing_or_changed_is_done(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(bright, folder, out)
    # As after kill -9 while the last line was written, with a mask lost, one cut off, an input changed and a new one.
    journal = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(journal[:-30])
    (out / ".tmp-left").write_text("half a file")
    (out / "1_mask.png").unlink()
    (out / "2_mask.png").write_bytes(b"")
    new = picture(folder / "3.png", seed=77)
    picture(folder / "new.png", seed=78)
    last = json.loads(journal.splitlines()[-1])["name"]
    report = predict_files(bright, folder, out, go_on=True)
    assert report.total == len(report.files) == 7
    assert report.earlier == 7 - len({"1.png", "2.png", "3.png", "new.png", last})
    np.testing.assert_array_equal(mask_of(out / "3_mask.png") > 0, new > 100)
    assert not (out / ".tmp-left").exists()
    assert len(rows(out)) == 7


def test_masks_of_two_makings_are_not_mixed(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(bright, folder, out)
    with pytest.raises(UsageError, match=r"not empty.*--continue"):
        predict_files(bright, folder, out)
    with pytest.raises(UsageError, match=r"made differently \(found rule .*threshold"):
        predict_files(bright, folder, out, threshold=0.3, go_on=True)
    with pytest.raises(UsageError, match=r"made differently \(found network"):
        predict_files(brightness_network(SIZE, at=0.7), folder, out, go_on=True)
    assert predict_files(bright, folder, out, threshold=0.3, overwrite=True).earlier == 0
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "2_mask.png").write_bytes(b"drawn by hand")
    with pytest.raises(UsageError, match=r"found 2_mask\.png"):
        predict_files(bright, folder, tmp_path / "theirs")


# --- the flow --------------------------------------------------------------------------------------------------------


class _Thing:
    """Something whose life can be watched."""


@pytest.mark.parametrize("units", [30, 300])
@pytest.mark.parametrize("each", [1, 20])
def test_memory_does_not_grow_with_the_number_of_files(units: int, each: int) -> None:
    alive: weakref.WeakSet[_Thing] = weakref.WeakSet()
    lock = threading.Lock()
    most, written = 0, 0

    def read(_unit: int) -> Iterator[_Thing]:
        nonlocal most
        for _ in range(each):
            thing = _Thing()
            with lock:
                alive.add(thing)
                most = max(most, len(alive))
            yield thing
            del thing

    def write(_thing: _Thing, _answer: int) -> None:
        nonlocal written
        with lock:
            written += 1

    limits = Limits(batch_size=3, readers=2, writers=2, ahead=4)
    assert run_flow(iter(range(units)), read, lambda batch: [0] * len(batch), write, limits, lambda: False)
    assert written == units * each
    # One more for each thread that has one in hand while its next is made.
    assert limits.batch_size < most <= limits.alive + limits.readers + limits.writers
    gc.collect()
    assert not alive


@pytest.mark.parametrize("where", ["read", "ask", "write"])
def test_a_failure_anywhere_ends_all_threads(where: str) -> None:
    def fail() -> None:
        msg = f"in {where}"
        raise ZeroDivisionError(msg)

    def read(unit: int) -> Iterator[int]:
        if where == "read" and unit == 40:
            fail()
        yield unit

    def ask(batch: Sequence[int]) -> Sequence[int]:
        if where == "ask" and 40 in batch:
            fail()
        return batch

    def write(thing: int, _answer: int) -> None:
        if where == "write" and thing == 40:
            fail()

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=where):
        run_flow(iter(range(1000)), read, ask, write, Limits(2, 2, 2, 4), lambda: False)
    assert threading.active_count() == before


def test_reading_goes_on_while_the_network_works(bright: keras.Model, folder: Path, tmp_path: Path) -> None:
    """The network is held until more has been read than it was given: without overlap this would wait for ever."""
    more = threading.Event()
    count = 0

    def read(unit: int) -> Iterator[int]:
        nonlocal count
        count += 1
        if count > 2:
            more.set()
        yield unit

    def ask(batch: Sequence[int]) -> Sequence[int]:
        assert more.wait(PATIENCE)
        return batch

    assert run_flow(iter(range(6)), read, ask, lambda _thing, _answer: None, Limits(1, 1, 1, 4), lambda: False)


# --- inputs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., list[str]]:
    from kerasseg.prediction.inputs import plan_units
    from kerasseg_tfrecords.sources.base import SourceOptions
    from kerasseg_tfrecords.sources.unlabelled import list_images

    def names(*inputs: str, **options: Any) -> list[str]:
        found = list_images([tmp_path / name for name in inputs], SourceOptions(), **options)
        assert not any(entry.problems for entry in found)
        return [unit.name for unit in plan_units(found)]

    return names


def test_masks_and_classes_are_not_needed(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    for name in ("glioma/images/1.png", "glioma/masks/1.png", "other/2.png", "other/3.tif", "other/3_mask.tif"):
        picture(tmp_path / "in" / name)
    # Two masks for one image, and two images for one mask: nobody needs to know which is right.
    for name in ("a/4.png", "a/4_mask.png", "a/4_seg.png", "b/image_5.png", "b/5.jpg", "b/5_mask.png"):
        picture(tmp_path / "in" / name)
    assert listed("in") == [
        "a/4.png",
        "b/5.jpg",
        "b/image_5.png",
        "glioma/images/1.png",
        "other/2.png",
        "other/3.tif",
    ]


def test_patterns_and_files(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    for name in ("a/1.png", "a/1_mask.png", "a/2.png", "b/1.png", "b/deep/1.png"):
        picture(tmp_path / name)
    assert listed("a/*.png") == ["1.png", "2.png"]
    assert listed("a/1.png", "a/2.png", "a/1.png") == ["1.png", "2.png"]
    assert listed("a/1.png", "b") == ["a/1.png", "b/1.png", "b/deep/1.png"]
    assert listed("b/**/*.png") == ["b/1.png", "deep/1.png"]


def test_formats_stand_side_by_side(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    picture(tmp_path / "in" / "1.png")
    write_mat(tmp_path / "in" / "2.mat", blob(0)[0], None)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "in" / "3.nii.gz")
    write_series(tmp_path / "in" / "head", [1.0])
    # Masks of DICOM slices, in a folder whose name alone tells.
    picture(tmp_path / "in" / "masks" / "IM9.png")
    assert listed("in") == ["1.png", "2.mat", "3.nii.gz", "head/IM9.dcm and 1 more"]
    assert listed("in", format_name="nifti") == ["3.nii.gz"]
