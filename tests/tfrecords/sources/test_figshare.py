"""The figshare reader: both MATLAB forms, orientation, what is no slice, and every way a file can be wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import blob, write_cvind, write_figshare, write_mat, write_mat5
from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.slices import Slice
from kerasseg_tfrecords.sources import find_items, read_item
from kerasseg_tfrecords.sources.base import NotASlice, SourceOptions
from kerasseg_tfrecords.sources.figshare import SOURCE
from kerasseg_tfrecords.sources.tree import open_tree

IMAGE, MASK = blob(7, (40, 56))  # neither square nor symmetric: a transposed one would show


def slices(root: Path, **options: Any) -> list[Slice]:
    chosen = SourceOptions(**options)
    listing = find_items(open_tree(root), chosen, "figshare")
    return [piece for item in listing.items for piece in read_item(item, chosen).slices]


def failure(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        slices(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ")
    assert "\n" not in message
    return caught.value


# ---- what is read


@pytest.mark.parametrize("user_block", [True, False])
@pytest.mark.parametrize("gzip", [True, False])
def test_matlab_73(tmp_path: Path, user_block: bool, gzip: bool) -> None:
    path = write_mat(tmp_path / "104.mat", IMAGE, MASK, 2, "MR040240B", user_block=user_block, gzip=gzip)
    (piece,) = slices(path)
    np.testing.assert_array_equal(piece.image, IMAGE)
    np.testing.assert_array_equal(piece.mask, MASK)
    assert piece.image.flags.c_contiguous
    assert piece.mask.flags.c_contiguous
    assert piece.image.dtype == np.int16
    assert piece.mask.dtype == bool
    assert (piece.slice_id, piece.source, piece.label, piece.patient) == ("104", "104.mat", "glioma", "MR040240B")
    assert (piece.volume, piece.slice_index, piece.spacing) == ("", -1, (0.0, 0.0))


@pytest.mark.parametrize("compress", [True, False])
def test_matlab_5_gives_the_same(tmp_path: Path, compress: bool) -> None:
    new = write_mat(tmp_path / "a" / "1.mat", IMAGE, MASK, 3, "MR1")
    old = write_mat5(tmp_path / "b" / "1.mat", IMAGE, MASK, 3, "MR1", compress=compress)
    (first,), (second,) = slices(new), slices(old)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.image.dtype == second.image.dtype
    for field in ("slice_id", "source", "label", "patient"):
        assert getattr(first, field) == getattr(second, field)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["i2", "u1", "u2", "f4", "f8"]), st.booleans())
def test_any_size_and_type(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, dtype: str, old: bool
) -> None:
    rng = np.random.default_rng(height * 41 + width)
    image, mask = rng.integers(0, 200, (height, width)).astype(dtype), rng.random((height, width)) > 0.5
    path = tmp_path_factory.mktemp("m") / "1.mat"
    (piece,) = slices((write_mat5 if old else write_mat)(path, image, mask, 1, "1"))
    np.testing.assert_array_equal(piece.image, image)
    np.testing.assert_array_equal(piece.mask, mask)


def test_the_hash_is_that_of_the_file_also_in_a_zip(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "1.mat", IMAGE, MASK)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "1.mat")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for root in (path, tmp_path / "a.zip"):
        (item,) = find_items(open_tree(root), SourceOptions()).items
        assert read_item(item, SourceOptions()).sha256 == expected


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_official_archive_in_place(tmp_path: Path, method: int) -> None:
    folder = write_figshare(tmp_path / "flat", patients=4, slices_each=3, size=32)
    write_cvind(folder / "cvind.mat", 12)
    official = tmp_path / "1512427.zip"
    with zipfile.ZipFile(official, "w", method) as outer:
        for part in range(4):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as inner:
                for number in range(part * 3 + 1, part * 3 + 4):
                    inner.write(folder / f"{number}.mat", f"{number}.mat")
            outer.writestr(f"brainTumorDataPublic_{part}.zip", buffer.getvalue(), method)
        outer.write(folder / "cvind.mat", "cvind.mat")
        outer.writestr("README.txt", "read me")
    tree = open_tree(official)
    listing = find_items(tree, SourceOptions())
    assert {left.name: left.reason for left in listing.left_out} == {"1512427.zip!README.txt": "not a .mat file"}
    read: dict[str, Slice] = {}
    reasons: dict[str, str] = {}
    for item in listing.items:
        try:
            (piece,) = read_item(item, SourceOptions()).slices
        except NotASlice as reason:
            reasons[item.name] = reason.what
        else:
            read[piece.slice_id] = piece
    assert reasons == {"1512427.zip!cvind.mat": "not a slice: a MATLAB file with only cvind (1 x 12)"}
    (folder / "cvind.mat").unlink()
    expected = {piece.slice_id: piece for piece in slices(folder)}
    assert read.keys() == expected.keys() == {str(number) for number in range(1, 13)}
    for number, piece in expected.items():
        np.testing.assert_array_equal(piece.image, read[number].image)
        assert (piece.label, piece.patient) == (read[number].label, read[number].patient)
    assert read["4"].source == "1512427.zip!brainTumorDataPublic_1.zip!4.mat"


def test_slice_ids_are_stems_and_paths_where_stems_repeat(tmp_path: Path) -> None:
    for name in ("a/1.mat", "b/1.mat", "b/2.mat", "B/3.MAT", "B/3.mat"):
        write_mat(tmp_path / name, IMAGE, MASK)
    listing = find_items(open_tree(tmp_path), SourceOptions())
    assert [item.slice_id for item in listing.items] == ["B/3.MAT", "B/3.mat", "a/1", "b/1", "2"]
    assert len({item.name for item in listing.items}) == 5
    assert "2 file names" in listing.notes[0] or "1 file names" in listing.notes[0]


@pytest.mark.parametrize("name", ["mit Leer.mat", "Größe.mat", "neue\nZeile.mat", "MR!1#2.mat", "UPPER.MAT"])
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    write_mat(tmp_path / "sub folder" / name, IMAGE, MASK)
    (piece,) = slices(tmp_path)
    assert piece.source == f"sub folder/{name}"
    bad = tmp_path / "bad" / name
    bad.parent.mkdir()
    bad.write_bytes(b"text")
    with pytest.raises(DataError) as caught:
        slices(tmp_path / "bad")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("values", "expected"), [((0, 1), 1), ((0, 255), 255), ((0, 3), 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int16])
def test_mask_values(tmp_path: Path, values: tuple[int, int], expected: int, dtype: type) -> None:
    (piece,) = slices(write_mat(tmp_path / "1.mat", IMAGE, (MASK * expected).astype(dtype)))
    np.testing.assert_array_equal(piece.mask, MASK)


def test_an_empty_mask_is_read(tmp_path: Path) -> None:
    (piece,) = slices(write_mat(tmp_path / "1.mat", IMAGE, MASK & False))
    assert not piece.mask.any()


@pytest.mark.parametrize(("label", "name"), [(1, "meningioma"), (2.0, "glioma"), (3, "pituitary")])
def test_labels(tmp_path: Path, label: float, name: str) -> None:
    assert slices(write_mat(tmp_path / "1.mat", IMAGE, MASK, label))[0].label == name


def test_own_classes_and_patient_pattern(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "sub-07_12.mat", IMAGE, MASK, 2, "ignored")
    (piece,) = slices(path, classes=("cyst", "lesion"), patient_pattern=r"(sub-\d+)_")
    assert (piece.label, piece.patient) == ("lesion", "sub-07")
    assert slices(path, patient_pattern="nowhere")[0].patient == "ignored"


def test_prediction_needs_neither_mask_nor_label(tmp_path: Path) -> None:
    (piece,) = slices(write_mat(tmp_path / "1.mat", IMAGE, None, None, None), masks=False)
    assert piece.mask is None
    assert (piece.label, piece.patient) == ("", "")
    assert slices(write_mat(tmp_path / "1.mat", IMAGE, None, 7), masks=False)[0].label == ""


# ---- what is no slice


@pytest.mark.parametrize("name", ["cvind.mat", "12.mat"])
def test_cross_validation_indices_are_left_out_by_content(tmp_path: Path, name: str) -> None:
    write_cvind(tmp_path / name)
    with pytest.raises(NotASlice, match=r"cvind \(1 x 3064\)"):
        slices(tmp_path)


def test_old_cross_validation_indices_too(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(tmp_path / "x.mat", {"cvind": np.arange(5.0), "author": "Cheng"})
    with pytest.raises(NotASlice, match="cvind"):
        slices(tmp_path)


def test_a_slice_called_cvind_is_read(tmp_path: Path) -> None:
    assert slices(write_mat(tmp_path / "cvind.mat", IMAGE, MASK))[0].slice_id == "cvind"


def save_h5(path: Path, **variables: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in variables.items():
            file[key] = value
    return path


def test_an_image_without_cjdata_is_a_problem(tmp_path: Path) -> None:
    error = failure(save_h5(tmp_path / "1.mat", image=IMAGE, tumorMask=MASK))
    assert not isinstance(error, NotASlice)
    assert "the file has no cjdata (found image (40 x 56), tumorMask (40 x 56)" in str(error)
    assert failure(save_h5(tmp_path / "2.mat")).kind == "no-cjdata"
    assert failure(save_h5(tmp_path / "3.mat", **{"data/image": IMAGE})).found == "data (struct)"


# ---- what is wrong


def test_label_7(tmp_path: Path) -> None:
    error = failure(write_mat(tmp_path / "1.mat", IMAGE, MASK, 7))
    assert error.kind == "unknown-label"
    for word in ("7", "meningioma = 1", "glioma = 2", "pituitary = 3"):
        assert word in str(error)


@pytest.mark.parametrize("label", [1.5, float("nan"), -1, 1e300, None])
def test_other_labels(tmp_path: Path, label: float | None) -> None:
    assert failure(write_mat(tmp_path / "1.mat", IMAGE, MASK, label)).kind == "unknown-label"


@pytest.mark.parametrize("writer", [write_mat, write_mat5])
def test_a_mask_of_another_size(tmp_path: Path, writer: Callable[..., Path]) -> None:
    error = failure(writer(tmp_path / "1.mat", IMAGE, MASK[:, 1:]))
    assert (error.kind, error.found, error.expected) == ("size-mismatch", "40 x 55", "40 x 56")
    assert failure(writer(tmp_path / "2.mat", IMAGE, MASK.T)).kind == "size-mismatch"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(tmp_path: Path, value: float) -> None:
    image = IMAGE.astype(np.float32)
    image[3, 4] = value
    assert failure(write_mat(tmp_path / "1.mat", image, MASK)).kind == "not-finite"
    mask = MASK.astype(np.float32)
    mask[0, 0] = value
    assert failure(write_mat(tmp_path / "2.mat", IMAGE, mask)).kind == "not-finite"


def test_missing_fields(tmp_path: Path) -> None:
    assert "cjdata has no image (found PID, label, tumorMask)" in str(
        failure(write_mat(tmp_path / "1.mat", None, MASK))
    )
    assert failure(write_mat(tmp_path / "2.mat", IMAGE, None)).kind == "missing-mask"
    with h5py.File(tmp_path / "3.mat", "w") as file:
        file["cjdata"] = IMAGE
    assert "cjdata is not a struct" in str(failure(tmp_path / "3.mat"))


@pytest.mark.parametrize("image", [np.zeros((0, 0), np.int16), np.zeros((4, 4, 3)), np.zeros(9)])
def test_images_that_are_none(tmp_path: Path, image: Any) -> None:
    assert failure(write_mat(tmp_path / "1.mat", image, MASK)).kind == "empty-image"


@pytest.mark.parametrize("writer", [write_mat, write_mat5])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.95])
def test_cut_off_files(tmp_path: Path, writer: Callable[..., Path], share: float) -> None:
    path = writer(tmp_path / "1.mat", *blob(size=128))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    failure(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\n", "not a MATLAB file"),
        (b"<html>404</html>", "not a MATLAB file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
        (b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(600), "cut off or damaged"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "1.mat").write_bytes(content)
    assert words in str(failure(tmp_path / "1.mat"))


def test_two_terabytes_and_foreign_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file.create_dataset("cjdata/image", (2**20, 2**20), "<i2", chunks=(512, 512), compression=3)
        file["cjdata/tumorMask"] = MASK
    assert (tmp_path / "1.mat").stat().st_size < 10_000
    assert failure(tmp_path / "1.mat").kind == "too-large"
    write_mat(tmp_path / "other.mat", IMAGE, MASK)
    for number, link in enumerate((h5py.ExternalLink("other.mat", "/cjdata"), h5py.SoftLink("/elsewhere"))):
        with h5py.File(tmp_path / f"link{number}.mat", "w") as file:
            file["cjdata"] = link
            file["elsewhere/image"] = IMAGE
        assert failure(tmp_path / f"link{number}.mat").kind == "unsafe-link"
    with h5py.File(write_mat(tmp_path / "5.mat", None, MASK), "r+") as file:
        file["cjdata/image"] = h5py.ExternalLink("other.mat", "/cjdata/image")
    assert failure(tmp_path / "5.mat").kind == "unsafe-link"


def test_max_pixels(tmp_path: Path) -> None:
    for writer in (write_mat, write_mat5):
        path = writer(tmp_path / "1.mat", IMAGE, MASK)
        assert slices(path, max_pixels=40 * 56)
        assert failure(path, max_pixels=40 * 56 - 1).kind == "too-large"


def test_a_bomb_in_the_old_form(tmp_path: Path) -> None:
    body = zlib.compress(bytes(200 * 2**20), 9)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    (tmp_path / "1.mat").write_bytes(header + struct.pack("<II", 15, len(body)) + body)
    item = find_items(open_tree(tmp_path / "1.mat"), SourceOptions(), "figshare").items[0]
    tracemalloc.start()
    with pytest.raises(DataError, match="too large"):
        SOURCE.read(item, SourceOptions(max_pixels=2**20))
    assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("compress", [True, False])
def test_bit_flips_in_the_old_form_raise_nothing_else(tmp_path: Path, compress: bool) -> None:
    data = write_mat5(tmp_path / "1.mat", *blob(size=16), compress=compress).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "2.mat"
    for place in rng.integers(0, len(data), 150):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :])
        with contextlib.suppress(DataError):
            slices(path)


def test_a_problem_for_a_report(tmp_path: Path) -> None:
    error = failure(write_mat(tmp_path / "1.mat", IMAGE, MASK[1:]))
    problem = Problem.of(error)
    assert (problem.name, problem.kind, problem.level) == ("1.mat", "size-mismatch", "error")
    assert str(problem) == str(error)


def test_reading_imports_only_what_it_needs(tmp_path: Path, python: str, child_environment: dict[str, str]) -> None:
    write_figshare(tmp_path, 1, 1)
    code = f"""
import sys
from kerasseg_tfrecords.sources import SourceOptions, find_items, read_item
from kerasseg_tfrecords.sources.tree import open_tree
for item in find_items(open_tree({str(tmp_path)!r}), SourceOptions()).items:
    read_item(item, SourceOptions())
heavy = {{"cv2", "nibabel", "pydicom", "scipy", "sklearn", "tensorflow", "keras", "pydantic"}}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([python, "-c", code], env=child_environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- the real data


@pytest.mark.real
@pytest.mark.slow
def test_all_real_slices(real: Path) -> None:
    tree = open_tree(real / "figshare-mat")
    listing = find_items(tree, SourceOptions())
    assert not listing.problems
    counts: Counter[str] = Counter()
    for item in listing.items:
        reading = read_item(item, SourceOptions())
        (piece,) = reading.slices
        with h5py.File(item.files[0].path) as file:
            struct = file["cjdata"]
            np.testing.assert_array_equal(piece.image, struct["image"][()].T)
            np.testing.assert_array_equal(piece.mask, struct["tumorMask"][()].T == 1)
            assert piece.patient == "".join(chr(code) for code in struct["PID"][:, 0])
            # The border was drawn as x, y: independent evidence that rows are rows.
            border = np.rint(struct["tumorBorder"][()].reshape(-1, 2)).astype(int).clip(1, 512) - 1
        near = cv2.dilate(piece.mask.astype(np.uint8), np.ones((5, 5)))
        assert near[border[:, 1], border[:, 0]].all()
        assert reading.sha256 == hashlib.sha256(item.files[0].path.read_bytes()).hexdigest()
        counts[piece.label] += 1
    assert counts == {"meningioma": 104, "glioma": 102, "pituitary": 102}


@pytest.mark.real
def test_real_slices_stand_as_their_published_pngs_do(real: Path) -> None:
    def mean(images: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        return np.mean([cv2.resize(np.ascontiguousarray(i / i.max(), np.float32), (64, 64)) for i in images], axis=0)

    items = find_items(open_tree(real / "figshare-mat"), SourceOptions()).items[::6]
    mats = mean([read_item(item, SourceOptions()).slices[0].image for item in items])
    pngs = mean([cv2.imread(str(path), 0) for path in sorted((real / "figshare-png" / "images").iterdir())[::12]])
    upright, transposed = (np.corrcoef(image.ravel(), pngs.ravel())[0, 1] for image in (mats, mats.T))
    assert upright > 0.97 > 0.93 > transposed
