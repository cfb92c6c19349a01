"""What the web page shows is what `predict_files` writes, and large inputs are refused."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import cv2
import keras
import nibabel as nib
import numpy as np
import pytest

from evaluated_runs import brightness_network
from factories import blob, write_mat
from kerasseg import predict_files
from kerasseg.postprocessing import MaskRule
from kerasseg.prediction.predictor import Network, open_network
from kerasseg.prediction.viewer import download, draw_probability, draw_slice, open_cases
from kerasseg_tfrecords.errors import DataError

SIZE = 32
RULE = MaskRule(threshold=0.5, min_diameter=0.1, fill_holes=True)


@pytest.fixture(scope="module")
def bright() -> keras.Model:
    return brightness_network(SIZE, at=0.5, steep=12)


@pytest.fixture(scope="module")
def network(bright: keras.Model) -> Network:
    return open_network(bright, rule=RULE, intensity="minmax", batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dropped") / "slices"
    root.mkdir()
    write_mat(root / "m.mat", *blob(1, 40), label=1, pid="P1")
    cv2.imwrite(str(root / "p.png"), np.clip(blob(2, (24, 30))[0] / 8, 0, 255).astype(np.uint8))
    volume = np.stack([blob(3 + k, 28)[0] for k in range(7)], axis=-1)
    nib.save(nib.Nifti1Image(volume, np.diag([-0.5, -2.0, 3.0, 1])), root / "v.nii.gz")
    (root / "note.txt").write_text("none")
    return root


@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.8])
def test_masks_areas_and_volumes_are_those_of_predict_files(
    network: Network, bright: keras.Model, folder: Path, tmp_path: Path, threshold: float
) -> None:
    rule = RULE.model_copy(update={"threshold": threshold})
    report = predict_files(bright, folder, tmp_path / "out", rule=rule, intensity="minmax")
    opened = open_cases(folder, network)
    assert (opened.problems, opened.left_out) == ((), ("note.txt",))
    assert [case.name for case in opened.cases] == [file.name for file in report.files]
    for case, file in zip(opened.cases, report.files, strict=True):
        for found, expected in zip(case.measure(rule)[1], file.rows, strict=True):
            names = ("file", "slice", "mask", "area_px", "area_mm2", "tumours", "case_tumours", "case_volume_ml")
            assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
        assert {name: (tmp_path / "out" / name).read_bytes() for name in file.files["mask"]} == case.files(rule)
    areas = [case.measure(rule)[1][0].case_volume_ml for case in opened.cases]
    assert areas[0] is None
    assert areas[2] is not None


def test_one_mask_is_downloaded_as_it_is_and_several_as_an_archive(network: Network, folder: Path) -> None:
    cases = open_cases(folder, network).cases
    name, data = download([cases[2]], RULE)
    assert name == "v_mask.nii.gz"
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_allclose(mask.affine, np.diag([-0.5, -2.0, 3.0, 1]))
    name, data = download(cases, RULE)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["m_mask.png", "p_mask.png", "v_mask.nii.gz", "predictions.csv"]
        assert archive.testzip() is None
        assert archive.read("predictions.csv").decode().count("\n") == 1 + 1 + 1 + 7


def test_the_view_keeps_the_shape_on_the_patient(network: Network, folder: Path) -> None:
    picture, volume = open_cases(folder, network).cases[1:]
    assert picture.view(0, RULE).aspect == pytest.approx(30 / 24)
    view = volume.view(volume.middle, RULE)
    # Rows run along the second axis (2 mm), columns along the first (0.5 mm).
    assert view.aspect == pytest.approx(0.5 / 2)
    assert volume.middle == int(np.argmax([p.sum() for p in volume.probabilities]))
    for data in (view.image, view.probability, view.mask):
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape[0] >= 384


def test_drawings_keep_grey_levels_and_colours() -> None:
    levels = np.arange(400 * 400, dtype=np.uint32).reshape(400, 400).astype(np.uint8)
    assert np.array_equal(cv2.imdecode(np.frombuffer(draw_slice(levels), np.uint8), cv2.IMREAD_UNCHANGED), levels)
    colour = np.zeros((400, 400, 3), np.uint8)
    colour[..., 0] = 200  # red
    assert cv2.imdecode(np.frombuffer(draw_slice(colour), np.uint8), cv2.IMREAD_COLOR)[0, 0].tolist() == [0, 0, 200]
    low, high = (
        cv2.imdecode(np.frombuffer(draw_probability(np.full((400, 400), p, np.float32)), np.uint8), cv2.IMREAD_COLOR)
        for p in (0, 1)
    )
    assert low[0, 0].sum() < high[0, 0].sum()


def test_a_bad_file_costs_no_other_and_a_large_one_is_refused(network: Network, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "slices"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    opened = open_cases(place, network, max_pixels=40 * 40 + 24 * 30 + 28 * 28)
    assert [case.name for case in opened.cases] == ["m.mat", "p.png"]
    assert [problem.name for problem in opened.problems] == ["bad.png", "v.nii.gz"]
    assert "too large for this page (found 7 slices)" in str(opened.problems[1])


def test_no_image_is_an_error(network: Network, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no images"):
        open_cases(tmp_path, network)
