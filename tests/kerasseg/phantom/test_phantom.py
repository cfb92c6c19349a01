"""Synthetic heads: the habits of their tumours, what tells the scanners apart, and that numbers alone decide."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import kerasseg
from kerasseg.phantom.anatomy import CLASSES, TISSUES, Anatomy, head
from kerasseg.phantom.slices import mat_bytes, phantom_slice
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.sources import find_items, read_item
from kerasseg_tfrecords.sources.base import SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree

PATIENTS, SIDE = 24, 128


@pytest.fixture(scope="module")
def heads() -> list[tuple[str, Anatomy]]:
    """Eight patients of each class, two cuts each."""
    return [
        (CLASSES[patient % 3], head(7, "A", patient, index, SIDE)) for patient in range(PATIENTS) for index in (0, 1)
    ]


def gap_to_the_edge(anatomy: Anatomy) -> float:
    """Shortest way from tumour to what is not brain, pixels."""
    return float(cv2.distanceTransform(anatomy.brain.astype(np.uint8), cv2.DIST_L2, 5)[anatomy.mask].min())


def solidity(mask: NDArray[np.bool_]) -> float:
    """Share of its convex hull that a tumour fills: low for ragged ones."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(contours))
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, [hull], -1, 1, cv2.FILLED)
    return float(mask.sum() / filled.sum())


def off_centre(anatomy: Anatomy) -> float:
    """From the middle of the brain to the middle of the tumour, as a share of the picture."""
    middles = [np.argwhere(plane).mean(0) for plane in (anatomy.mask, anatomy.brain)]
    return float(np.linalg.norm(middles[0] - middles[1])) / SIDE


def test_every_tumour_lies_within_the_brain(heads: list[tuple[str, Anatomy]]) -> None:
    for _, anatomy in heads:
        assert anatomy.mask.any()
        assert not (anatomy.mask & ~anatomy.brain).any()
        tissue = np.isin(anatomy.tissue, [TISSUES.index(name) for name in ("tumour", "rim", "core")])
        assert np.array_equal(tissue, anatomy.mask)
        assert 0.25 < anatomy.brain.mean() < 0.45
        border = np.ones((SIDE, SIDE), bool)
        border[2:-2, 2:-2] = False
        assert (anatomy.tissue[border] == TISSUES.index("air")).all()  # the whole head is in the picture


def test_habits_of_the_classes(heads: list[tuple[str, Anatomy]]) -> None:
    of = {name: [anatomy for kind, anatomy in heads if kind == name] for name in CLASSES}
    assert max(map(gap_to_the_edge, of["meningioma"])) < 3
    assert min(solidity(one.mask) for one in of["meningioma"]) > 0.9
    assert min(map(gap_to_the_edge, of["glioma"])) > 2
    assert np.median([solidity(one.mask) for one in of["glioma"]]) < 0.9
    assert all((one.tissue == TISSUES.index("core")).any() for one in of["glioma"])  # bright rim, dark core
    assert max(map(off_centre, of["pituitary"])) < 0.08
    area = {name: [int(one.mask.sum()) for one in of[name]] for name in CLASSES}
    assert np.median(area["pituitary"]) < np.median(area["meningioma"]) < np.median(area["glioma"])


def test_place_size_and_form_tell_the_classes_apart(heads: list[tuple[str, Anatomy]]) -> None:
    def guess(anatomy: Anatomy) -> str:
        if gap_to_the_edge(anatomy) < 2:
            return "meningioma"
        return "pituitary" if off_centre(anatomy) < 0.08 and solidity(anatomy.mask) > 0.9 else "glioma"

    assert np.mean([guess(anatomy) == kind for kind, anatomy in heads]) > 0.95


def test_numbers_alone_decide() -> None:
    """A longer collection begins with the shorter one, and any slice can be had without the others."""
    short = list(kerasseg.phantom_slices(2, 2, size=48, seed=3))
    long = [one for one in kerasseg.phantom_slices(4, 3, size=48, seed=3) if one.slice_id.endswith(("-1", "-2"))]
    later = list(kerasseg.phantom_slices(1, 2, size=48, seed=3, first=1))
    for one, other in [*zip(short, long, strict=False), *zip(short[2:], later, strict=True)]:
        assert one.slice_id == other.slice_id
        assert mat_bytes(one) == mat_bytes(other)
    alone = phantom_slice(1, 1, size=48, seed=3)
    assert np.array_equal(alone.image, short[3].image)


def test_other_numbers_give_other_heads() -> None:
    asked = [
        {},
        {"patient": 3},
        {"index": 1},
        {"seed": 1},
        {"scanner": "B"},
    ]
    base = {"patient": 0, "index": 0, "seed": 0, "scanner": "A", "size": 48}
    found = [phantom_slice(**{**base, **other}) for other in asked]  # type: ignore[arg-type]
    assert len({hashlib.sha256(one.image.tobytes()).hexdigest() for one in found}) == len(asked)
    assert len({hashlib.sha256(one.mask.tobytes()).hexdigest() for one in found if one.mask is not None}) == len(asked)
    assert {one.label for one in found} == {"meningioma"}
    # Patients of the two scanners are never the same people.
    assert found[0].patient != found[4].patient


def test_cuts_of_a_patient_resemble_one_another_more_than_other_heads() -> None:
    def likeness(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
        return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])

    cuts = [[phantom_slice(patient, index, size=64).image for index in range(2)] for patient in range(6)]
    within = [likeness(one, other) for one, other in cuts]
    between = [likeness(cuts[i][0], cuts[j][0]) for i in range(6) for j in range(i)]
    assert np.mean(within) > np.mean(between) + 0.05


def test_scanner_b_shows_tumours_less_and_is_noisier() -> None:
    def contrast(scanner: str) -> tuple[float, float, float]:
        """Tumour against the brightest, noise in the air, and how sharp the brightest edges are."""
        found = []
        for patient in range(0, 12, 3):
            one = phantom_slice(patient, 0, scanner=scanner, size=96)
            image = one.image / one.image.max()
            assert one.mask is not None
            inner = cv2.erode(one.mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
            steps = np.abs(np.diff(image, axis=1))
            found.append((image[inner].mean(), image[:12, :12].std(), float(np.quantile(steps, 0.99))))
        tumour, noise, edge = np.mean(found, axis=0)
        return tumour, noise, edge

    a, b = contrast("A"), contrast("B")
    assert a[0] > b[0] + 0.1
    assert b[1] > 1.3 * a[1]
    assert a[2] > b[2]


def test_files_are_read_as_figshare_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    files = kerasseg.write_phantoms(folder, 3, 2, size=40, scanner="B", seed=5)
    assert [path.name for path in files] == [f"{number}.mat" for number in range(1, 7)]
    made = list(kerasseg.phantom_slices(3, 2, size=40, scanner="B", seed=5))
    options = SourceOptions()
    listing = find_items(open_tree(folder), options)
    read = {item.name: read_item(item, options).slices[0] for item in listing.items}
    assert len(read) == 6
    for number, one in enumerate(made, 1):
        (other,) = (value for name, value in read.items() if Path(name).stem == str(number))
        assert other.image.dtype == np.int16
        assert np.array_equal(other.image, one.image)
        assert np.array_equal(other.mask, one.mask)
        assert (other.label, other.patient) == (one.label, one.patient)


def test_the_border_runs_around_the_mask(tmp_path: Path) -> None:
    """`x1, y1, x2, y2, ...` counted from 1: filled, it is the mask again."""
    (path,) = kerasseg.write_phantoms(tmp_path / "data", 1, 1, size=64)
    with h5py.File(path) as file:
        points = file["cjdata/tumorBorder"][0].reshape(-1, 2) - 1
        mask = np.ascontiguousarray(file["cjdata/tumorMask"][()].T)
    filled = np.zeros_like(mask)
    cv2.fillPoly(filled, [points.astype(np.int32)], 1)
    assert np.array_equal(filled, mask)


@pytest.mark.real
def test_files_have_the_form_of_the_real_ones(tmp_path: Path, real: Path) -> None:
    def form(path: Path) -> dict[str, tuple[str, int, str]]:
        with h5py.File(path) as file:
            assert file.userblock_size == 512
            return {
                name: (data.dtype.str, data.ndim, data.attrs["MATLAB_class"].decode())
                for name, data in file["cjdata"].items()
            }

    (path,) = kerasseg.write_phantoms(tmp_path / "data", 1, 1, size=64)
    theirs = sorted((real / "figshare-mat").rglob("*.mat"))[0]
    assert form(path) == form(theirs)
    assert path.read_bytes()[:19] == theirs.read_bytes()[:19]
    assert path.read_bytes()[124:128] == theirs.read_bytes()[124:128]


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such scanner .found 'C', expected A or B"):
        phantom_slice(0, 0, scanner="C")
    with pytest.raises(UsageError, match="at least 32"):
        phantom_slice(0, 0, size=16)
    with pytest.raises(UsageError, match="counted from 0"):
        phantom_slice(-1, 0)
    (tmp_path / "mine.txt").write_text("here before")
    with pytest.raises(KerassegError, match="not empty"):
        kerasseg.write_phantoms(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(KerassegError, match="cannot be written"):
        kerasseg.write_phantoms(tmp_path / "file" / "below", 1, 1)
