"""Volumes that are no NIfTI come out like their NIfTI twin; damaged ones and those with voxels elsewhere are refused."""

from __future__ import annotations

import dataclasses
import gzip
import sys
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.nifti import Volume, read_volume, write_like
from kerasseg_tfrecords.formats.volumes import open_volume
from kerasseg_tfrecords.sources import detect, read_item
from kerasseg_tfrecords.sources.base import SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree

VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
AFFINE = np.array([[0, 0, 2.0, -9], [-0.5, 0, 0, 20], [0, -3.0, 0, 30], [0, 0, 0, 1]])


def twin(voxels: Any = VOXELS) -> Volume:
    return read_volume(nib.Nifti1Image(voxels, AFFINE).to_bytes(), "twin", 10**6)


def itk(path: Path, voxels: Any = VOXELS, *, compress: bool = False) -> Path:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(
        voxels.T if voxels.ndim == 3 else voxels.transpose(2, 1, 0, 3), isVector=voxels.ndim > 3
    )
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    lps = np.diag([-1, -1, 1]) @ AFFINE[:3]
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), compress)
    return path


def mgh(path: Path, voxels: Any = VOXELS) -> Path:
    nib.save(nib.MGHImage(voxels.astype(np.float32), AFFINE), path)
    return path


def equal(found: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert found.spacing == pytest.approx(expected.spacing)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("compress", [False, True])
def test_simpleitk_formats(tmp_path: Path, suffix: str, compress: bool) -> None:
    data = itk(tmp_path / f"a{suffix}", compress=compress).read_bytes()
    equal(open_volume(data, "a", suffix, 10**6), twin())
    several = itk(tmp_path / f"b{suffix}", np.stack([VOXELS, VOXELS + 1], 3)).read_bytes()
    equal(open_volume(several, "b", suffix, 10**6, channel=1), twin(VOXELS + 1))
    with pytest.raises(DataError, match="several channels"):
        open_volume(several, "b", suffix, 10**6)
    with pytest.raises(DataError, match="too large"):
        open_volume(data, "a", suffix, 100)


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
def test_freesurfer(tmp_path: Path, suffix: str) -> None:
    data = mgh(tmp_path / f"a{suffix}").read_bytes()
    equal(open_volume(data, "a", suffix, 10**6), twin())
    with pytest.raises(DataError, match="cut off"):
        open_volume(data[: len(data) * 2 // 3], "a", suffix, 10**6)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Spm99AnalyzeImage])
@pytest.mark.parametrize("packed", [False, True])
def test_pairs_of_header_and_voxels(tmp_path: Path, kind: Any, packed: bool) -> None:
    affine = AFFINE if kind is nib.Nifti1Pair else np.diag([-2.0, 3, 4, 1])
    nib.save(kind(VOXELS, affine), tmp_path / "a.img")
    header, voxels = ((tmp_path / name).read_bytes() for name in ("a.hdr", "a.img"))
    found = open_volume(header, "a", ".hdr", 10**6, pair=gzip.compress(voxels) if packed else voxels)
    expected = read_volume(nib.Nifti1Image(VOXELS, affine).to_bytes(), "twin", 10**6)
    if kind is not nib.Nifti1Pair:  # SPM keeps the place in the header's origin
        expected = dataclasses.replace(expected, affine=found.affine)
    equal(found, expected)
    assert ("no orientation" in " ".join(found.notes)) == (kind is not nib.Nifti1Pair)


def test_masks_are_written_in_the_same_place(tmp_path: Path) -> None:
    for suffix, path in ((".mha", itk(tmp_path / "a.mha")), (".mgz", mgh(tmp_path / "a.mgz"))):
        volume = open_volume(path.read_bytes(), "a", suffix, 10**6)
        back = read_volume(write_like(volume.voxels.astype(np.int16), volume.header), "back", 10**6)
        equal(back, twin())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_a_header_says_beside_the_voxels_is_neither_needed_nor_copied(kind: Any) -> None:
    """Many tools store their parameters behind the header, and file names in it."""
    image = kind(VOXELS, AFFINE)
    for name in {"descrip", "aux_file", "db_name", "intent_name"} & set(image.header.keys()):
        image.header[name] = b"/home/ann"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"/home/ann " * 5000))
    for data in (image.to_bytes(), gzip.compress(image.to_bytes())):
        volume = read_volume(data, "a", 10**6)
        equal(volume, twin())
        mask = write_like(volume.voxels.astype(np.int16), volume.header)
        equal(read_volume(mask, "back", 10**6), twin())
        assert b"/home/ann" not in gzip.decompress(mask)


def test_voxels_in_another_file_are_not_fetched(tmp_path: Path) -> None:
    itk(tmp_path / "a.mhd")
    secret = (tmp_path / "a.mhd").read_bytes().replace(b"a.raw", str(tmp_path / "a.raw").encode())
    with pytest.raises(DataError, match="its voxels are in another file"):
        open_volume(secret, "a.mha", ".mha", 10**6)
    comments = b"Comment = ElementDataFile = LOCAL\n" + b"Comment = x\n" * 100_000  # longer than any real header
    with pytest.raises(DataError, match="its voxels are in another file"):
        open_volume(secret.replace(b"NDims", comments + b"NDims"), "a.mha", ".mha", 10**6)
    with pytest.raises(DataError, match=r"a\.mha: "):  # ITK takes the name as it is spelt
        open_volume(secret.replace(b"ElementDataFile", b"elementdatafile"), "a.mha", ".mha", 10**6)
    itk(tmp_path / "b.nhdr")
    with pytest.raises(DataError, match="its voxels are in another file"):
        open_volume((tmp_path / "b.nhdr").read_bytes(), "b.nrrd", ".nrrd", 10**6)


def test_another_format_is_not_read_under_a_suffix_of_itk(tmp_path: Path) -> None:
    """ITK also reads HDF5 files, whose voxels can lie in any file of the user, and which leave room for a header."""
    itk(tmp_path / "a.hdf5")
    with (
        h5py.File(tmp_path / "a.hdf5") as source,
        h5py.File(tmp_path / "b.hdf5", "w", userblock_size=512) as file,
    ):
        for name in source:
            source.copy(name, file)
    header = b"ObjectType = Image\nElementDataFile = LOCAL\n"
    data = header.ljust(512, b"\0") + (tmp_path / "b.hdf5").read_bytes()[512:]
    with pytest.raises(DataError, match=r"a damaged \.mha file"):
        open_volume(data, "a.mha", ".mha", 10**6)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_cut_files_are_refused_by_name(
    tmp_path: Path, suffix: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = itk(tmp_path / f"a{suffix}").read_bytes()
    with pytest.raises(DataError, match=r"^a: ") as caught:
        open_volume(data[: int(len(data) * share)], "a", suffix, 10**6)
    assert str(tmp_path) not in str(caught.value)
    assert "kerasseg-" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = itk(tmp_path / "a.mha").read_bytes()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r"needs SimpleITK.*kerasseg\[volumes\]"):
        open_volume(data, "a.mha", ".mha", 10**6)


def test_a_data_set_of_mixed_volumes(tmp_path: Path) -> None:
    labels = (VOXELS > 150).astype(np.int16)
    for place, voxels in (("t1c", VOXELS), ("seg", labels)):
        itk(tmp_path / f"one/{place}.mha", voxels)
        (tmp_path / "two").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Pair(voxels, AFFINE), tmp_path / f"two/{place}.img")
    tree = open_tree(tmp_path)
    source = detect(tree)
    assert source.name == "nifti"
    listing = source.find_items(tree, SourceOptions())
    assert [item.name for item in listing.items] == ["one/t1c.mha", "two/t1c.hdr"]
    assert (listing.problems, listing.left_out) == ((), ())
    first, second = (read_item(item, SourceOptions()) for item in listing.items)
    for one, other in zip(first.slices, second.slices, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
    (tmp_path / "two/t1c.img").unlink()
    with pytest.raises(DataError, match=r"a header without its voxels .*two/t1c.img"):
        read_item(listing.items[1], SourceOptions())


def test_a_scale_beyond_float32_is_refused_silently() -> None:
    image = nib.Nifti1Image(np.full((4, 4, 2), 9, np.int16), np.eye(4))
    data = bytearray(image.to_bytes())
    data[112:116] = np.float32(3e38).tobytes()
    with pytest.raises(DataError, match="are infinite"):
        read_volume(bytes(data), "a.nii", 10**6)
