"""Volumes come out upright whatever way they are stored, and damaged ones do not come out at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import struct
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.formats.nifti import read_volume
from kerasseg_tfrecords.slices import Reading
from kerasseg_tfrecords.sources import detect
from kerasseg_tfrecords.sources.base import Listing, SourceOptions
from kerasseg_tfrecords.sources.nifti import SOURCE
from kerasseg_tfrecords.sources.tree import open_tree

SHAPE = (9, 10, 8)  # right to left, front to back, feet to head, in the world that the tests build
ALL_LABELS = SourceOptions(empty_share=100.0)


def world() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A volume in left-back-head (LPS) order and its labels: each voxel has its own value."""
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 3:6, 4:6] = 1
    labels[3, 4, 5] = 4
    return image, labels


def stored(voxels: NDArray[Any], codes: str, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> nib.Nifti1Image:
    """`voxels` (LPS order, spacing along L, P, S) as a file would hold them whose axes run towards `codes`.

    Built from first principles: axis by axis, without nibabel's orientation functions.
    """
    axes = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    data = voxels.transpose([axes[code] for code in codes])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    origin = np.array([40.0, 50.0, -30.0])  # world (R, A, S) place of the first LPS voxel
    steps = np.diag([-spacing[0], -spacing[1], spacing[2]])  # what one LPS step does in RAS
    for place, code in enumerate(codes):
        axis = axes[code]
        if code in "RAI":
            data = np.flip(data, place)
            affine[:3, place] = -steps[:, axis]
            origin = origin + steps[:, axis] * (voxels.shape[axis] - 1)
        else:
            affine[:3, place] = steps[:, axis]
    affine[:3, 3] = origin
    return nib.Nifti1Image(np.ascontiguousarray(data), affine)


def save(root: Path, name: str, image: nib.Nifti1Image) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def case(root: Path, codes: str = "LPS", other: str | None = None, **changes: Any) -> None:
    image, labels = world()
    save(root, "case1/t1c.nii.gz", stored(changes.get("image", image), codes, **changes.get("grid", {})))
    save(root, "case1/seg.nii.gz", stored(changes.get("labels", labels), other or codes, **changes.get("grid", {})))


def listing(root: Path, **options: Any) -> Listing:
    return SOURCE.find_items(open_tree(root), SourceOptions(**options))


def read(root: Path, **options: Any) -> Reading:
    found = listing(root, **options)
    assert found.problems == ()
    (item,) = found.items
    return SOURCE.read(item, SourceOptions(**options))


ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(["LR", "PA", "SI"]) for codes in itertools.product(*axes)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_48_orientations_give_the_same_picture(tmp_path: Path, codes: str) -> None:
    image, labels = world()
    case(tmp_path, codes, grid={"spacing": (0.5, 2.0, 3.0)})
    for plane, axis, spacing in (("axial", 2, (2.0, 0.5)), ("coronal", 1, (3.0, 0.5)), ("sagittal", 0, (3.0, 2.0))):
        reading = read(tmp_path, plane=plane, empty_share=100.0)
        assert [s.slice_index for s in reading.slices] == list(range(SHAPE[axis]))
        for slice_ in reading.slices:
            assert slice_.spacing == pytest.approx(spacing)
            assert slice_.mask is not None
            for row, column in itertools.product(range(slice_.image.shape[0]), range(slice_.image.shape[1])):
                # Front, or head, is up; the patient's right, or the front, is on the left.
                k, up = slice_.slice_index, SHAPE[2] - 1 - row
                voxel = {"axial": (column, row, k), "coronal": (column, k, up), "sagittal": (k, column, up)}[plane]
                assert slice_.image[row, column] == image[voxel]
                assert slice_.mask[row, column] == (labels[voxel] > 0)


def test_image_and_labels_may_be_stored_in_different_orders(tmp_path: Path) -> None:
    case(tmp_path, "LPS", "SAR")
    image, labels = world()
    for slice_ in read(tmp_path).slices:
        np.testing.assert_array_equal(slice_.image, image[:, :, slice_.slice_index].T)
        np.testing.assert_array_equal(slice_.mask, labels[:, :, slice_.slice_index].T > 0)


def test_nibabel_agrees_on_an_oblique_volume(tmp_path: Path) -> None:
    image, labels = world()
    file = stored(image, "RAS")
    turn = np.deg2rad(12)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    for name, voxels in (("t1c", image), ("seg", labels)):
        save(
            tmp_path,
            f"c/{name}.nii",
            nib.Nifti1Image(stored(voxels, "RAS").get_fdata().astype(np.int16), rotation @ file.affine),
        )
    canonical = nib.as_closest_canonical(nib.load(tmp_path / "c/t1c.nii")).get_fdata()[::-1, ::-1]
    for slice_ in read(tmp_path).slices:
        np.testing.assert_array_equal(slice_.image, canonical[:, :, slice_.slice_index].T)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_versions_types_and_byte_orders(tmp_path: Path, suffix: str, kind: type, dtype: Any) -> None:
    image, labels = world()
    values = (image % 200).astype(dtype)
    header = kind.header_class(endianness=np.dtype(dtype).byteorder if np.dtype(dtype).byteorder == ">" else "<")  # type: ignore[attr-defined]
    header.set_data_dtype(dtype)
    save(tmp_path, f"x_t1c{suffix}", kind(values, np.diag([-1, -1, 1, 1]), header))
    save(tmp_path, f"x_seg{suffix}", kind(labels, np.diag([-1, -1, 1, 1])))
    reading = read(tmp_path)
    assert reading.scope is not None
    assert reading.scope.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(reading.scope, values)


def test_slope_and_intercept(tmp_path: Path) -> None:
    image, _ = world()
    case(tmp_path)
    path = tmp_path / "case1/t1c.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = struct.pack("<ff", 0.5, -7)
    path.write_bytes(gzip.compress(bytes(raw)))
    reading = read(tmp_path)
    np.testing.assert_allclose(reading.slices[0].image, image[:, :, reading.slices[0].slice_index].T * 0.5 - 7)
    np.testing.assert_allclose(np.asarray(nib.load(path).dataobj), reading.scope)


# Slices


def test_slices_with_tumour_and_a_share_of_the_others(tmp_path: Path) -> None:
    image, labels = world()
    image[:, :, 0] = 0  # below the head: nothing to see
    case(tmp_path, image=image)
    with_tumour = set(np.flatnonzero(labels.any(axis=(0, 1))))
    chosen = {
        share: {s.slice_index for s in read(tmp_path, empty_share=share).slices} for share in (0, 0.5, 1, 1.5, 100)
    }
    assert chosen[0] == with_tumour == {4, 5}
    assert [len(chosen[share]) for share in (0.5, 1, 1.5)] == [3, 4, 5]
    assert chosen[0] < chosen[0.5] < chosen[1] < chosen[1.5] < chosen[100] == set(range(1, SHAPE[2]))


def test_the_choice_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    shape = (6, 6, 60)
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    labels = np.zeros(shape, np.uint8)
    labels[2, 2, :10] = 1
    for name in ("a", "b"):
        save(tmp_path, f"{name}/t1c.nii.gz", stored(image, "LPS"))
        save(tmp_path, f"{name}/seg.nii.gz", stored(labels, "LPS"))

    def chosen(**options: Any) -> list[list[int]]:
        asked = SourceOptions(empty_share=1.0, **options)
        return [[s.slice_index for s in SOURCE.read(item, asked).slices] for item in listing(tmp_path).items]

    first = chosen(seed=1)
    assert first == chosen(seed=1)
    assert first[0] != first[1]
    assert first != chosen(seed=2)


def test_foreground_says_which_labels_are_tumour(tmp_path: Path) -> None:
    _, labels = world()
    case(tmp_path)
    reading = read(tmp_path, foreground=(4,))
    (slice_,) = [s for s in reading.slices if s.mask is not None and s.mask.any()]
    np.testing.assert_array_equal(slice_.mask, labels[:, :, 5].T == 4)
    assert "labels 1, 4: 4 count as tumour" in slice_.notes[0]
    assert "labels 1, 4: all of them are tumour" in read(tmp_path).slices[0].notes[0]


def test_facts_of_a_slice(tmp_path: Path) -> None:
    case(tmp_path)
    reading = read(tmp_path)
    slice_ = next(s for s in reading.slices if s.slice_index == 5)
    assert (slice_.volume, slice_.slice_id, slice_.source) == ("case1", "case1#5", "case1/t1c.nii.gz#5")
    assert (slice_.patient, slice_.label) == ("case1", "")
    assert reading.scope is not None
    assert reading.scope.shape == SHAPE
    assert slice_.image.flags.c_contiguous
    assert len(reading.sha256) == 64


def test_prediction_reads_all_slices_without_labels(tmp_path: Path) -> None:
    image, _ = world()
    save(tmp_path, "case1/t1c.nii.gz", stored(image, "RAS"))
    reading = read(tmp_path, masks=False)
    assert [s.slice_index for s in reading.slices] == list(range(SHAPE[2]))
    assert all(s.mask is None for s in reading.slices)
    assert read(tmp_path / "case1/t1c.nii.gz", masks=False).slices[0].volume == "t1c"


def test_unknown_plane(tmp_path: Path) -> None:
    case(tmp_path)
    with pytest.raises(UsageError, match="axial, coronal, sagittal"):
        listing(tmp_path, plane="frontal")


def test_a_flat_volume_is_one_slice(tmp_path: Path) -> None:
    image, labels = world()
    save(tmp_path, "x_t1c.nii.gz", stored(image[:, :, 4:5], "LPS"))
    save(tmp_path, "x_seg.nii.gz", stored(labels[:, :, 4:5], "LPS"))
    (slice_,) = read(tmp_path).slices
    np.testing.assert_array_equal(slice_.image, image[:, :, 4].T)


# Cases


CASES = [
    ({"c1/t1c.nii.gz": "c1/seg.nii.gz", "c2/t1c.nii.gz": "c2/seg.nii.gz"}, ["c1", "c2"]),
    ({"x_t1ce.nii.gz": "x_seg.nii.gz", "y_t1ce.nii.gz": "y_seg.nii.gz"}, ["x", "y"]),
    ({"imagesTr/x_0000.nii.gz": "labelsTr/x.nii.gz", "imagesTr/y_0000.nii.gz": "labelsTr/y.nii.gz"}, ["x", "y"]),
    ({"imagesTr/x.nii": "labelsTr/x.nii"}, ["x"]),
    (
        {"BraTS-GLI-00005-100/BraTS-GLI-00005-100-t1c.nii": "BraTS-GLI-00005-100/BraTS-GLI-00005-100-seg.nii"},
        ["BraTS-GLI-00005"],
    ),
    (
        {"BraTS20_Training_1/BraTS20_Training_1_t1ce.nii": "BraTS20_Training_1/BraTS20_Training_1_seg.nii"},
        ["BraTS20_Training_1"],
    ),
    ({"images/UPENN-GBM-00012_11_T1GD.nii.gz": "labels/UPENN-GBM-00012_11_segm.nii.gz"}, ["UPENN-GBM-00012"]),
    ({"U-0004/U-0004_T1c.nii.gz": "U-0004/U-0004_tumor_segmentation.nii.gz"}, ["U-0004"]),
    ({"sub-01/anat/sub-01_ce-gd_T1w.nii.gz": "sub-01/anat/sub-01_mask.nii.gz"}, ["sub-01"]),
    ({"TCGA-DU-7294/t1c.nii.gz": "TCGA-DU-7294/seg.nii.gz"}, ["TCGA-DU-7294"]),
    ({"c1/image.nii.gz": "c1/label.nii.gz"}, ["c1"]),
    ({"c1/scan of mine.nii.gz": "c1/tumor.seg.nii.gz"}, ["c1"]),
]


def names(root: Path, *files: str) -> None:
    image, labels = world()
    for name in files:
        save(root, name, stored(labels if any(w in name.lower() for w in ("seg", "label", "mask")) else image, "LPS"))


@pytest.mark.parametrize(("layout", "patients"), CASES, ids=lambda value: str(next(iter(value))))
def test_cases(tmp_path: Path, layout: dict[str, str], patients: list[str]) -> None:
    names(tmp_path, *layout, *layout.values())
    found = listing(tmp_path)
    assert found.problems == ()
    assert {item.files[0].name: item.files[1].name for item in found.items} == layout
    if "scan of mine" not in next(iter(layout)):
        assert [item.patient for item in found.items] == patients
    assert len({item.volume for item in found.items}) == len(layout)
    assert detect(open_tree(tmp_path)).name == "nifti"
    for item in found.items:
        assert SOURCE.read(item, SourceOptions()).slices


def test_t1_with_contrast_is_chosen_among_sequences(tmp_path: Path) -> None:
    names(tmp_path, *(f"c/c_{what}.nii.gz" for what in ("flair", "t1", "t1ce", "t2", "seg", "brain_mask")))
    found = listing(tmp_path)
    assert [item.name for item in found.items] == ["c/c_t1ce.nii.gz"]
    assert {entry.name for entry in found.left_out} == {
        f"c/c_{what}.nii.gz" for what in ("flair", "t1", "t2", "brain_mask")
    }
    assert "1 case with several sequences: the T1 with contrast is read" in found.notes[0]


@pytest.mark.parametrize("contrast", ["t1c", "T1CE", "t1_gd", "T1-post", "CT1", "t1Gd", "ce-gd_T1w", "t1wc"])
def test_names_of_t1_with_contrast(tmp_path: Path, contrast: str) -> None:
    names(tmp_path, f"c/c_{contrast}.nii.gz", "c/c_t1.nii.gz", "c/c_T2.nii.gz", "c/c_FLAIR.nii.gz", "c/c_seg.nii.gz")
    assert [item.name for item in listing(tmp_path).items] == [f"c/c_{contrast}.nii.gz"]


def test_without_contrast_the_user_must_choose(tmp_path: Path) -> None:
    names(tmp_path, *(f"c/{what}.nii.gz" for what in ("flair", "t1", "t2", "seg")))
    found = listing(tmp_path)
    assert found.items == ()
    (problem,) = found.problems
    assert "3 sequences of one case (flair, t1, t2)" in problem.message
    assert "Choose one with --sequence" in problem.message
    chosen = listing(tmp_path, sequence="T2-FLAIR")
    assert [item.name for item in chosen.items] == ["c/flair.nii.gz"]
    (missing,) = listing(tmp_path, sequence="t1ce").problems
    assert "no sequence t1ce in this case (found flair, t1, t2)" in missing.message


def test_dataset_json_names_the_channels_of_nnunet(tmp_path: Path) -> None:
    names(tmp_path, "imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz", "imagesTs/z_0000.nii.gz")
    assert "channel 0, channel 1" in listing(tmp_path).problems[0].message
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T2", "1": "T1-Gd"}}')
    found = listing(tmp_path)
    assert [item.name for item in found.items] == ["imagesTr/x_0001.nii.gz"]
    assert ("imagesTs/z_0000.nii.gz", "a test image without labels") in {(e.name, e.reason) for e in found.left_out}


def test_cases_in_class_folders(tmp_path: Path) -> None:
    names(tmp_path, "HGG/a/t1c.nii.gz", "HGG/a/seg.nii.gz", "Meningioma/b/t1c.nii.gz", "Meningioma/b/seg.nii.gz")
    assert [item.label for item in listing(tmp_path).items] == ["glioma", "meningioma"]


def test_partners_that_are_missing(tmp_path: Path) -> None:
    names(tmp_path, "a_t1c.nii.gz", "a_seg.nii.gz", "b_t1c.nii.gz", "c_t1c.nii.gz", "d_seg.nii.gz")
    found = listing(tmp_path)
    assert [item.name for item in found.items] == ["a_t1c.nii.gz"]
    assert {problem.name: problem.message for problem in found.problems} == {
        "b_t1c.nii.gz": "a volume without its segmentation",
        "c_t1c.nii.gz": "a volume without its segmentation",
        "d_seg.nii.gz": "a segmentation without its image",
    }


# Bad input


def refuse(root: Path, words: str, **options: Any) -> DataError:
    (item,) = listing(root, **options).items
    with pytest.raises(DataError, match=words) as caught:
        SOURCE.read(item, SourceOptions(**options))
    assert caught.value.path == item.name
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan(tmp_path: Path, value: float) -> None:
    image, _ = world()
    values = image.astype(np.float32)
    values[1, 2, 3] = value
    case(tmp_path, image=values)
    assert refuse(tmp_path, "NaN or infinite values .*1 of 720").kind == "not-finite"


@pytest.mark.parametrize("name", ["t1c", "seg"])
def test_truncated_gzip(tmp_path: Path, name: str) -> None:
    case(tmp_path)
    path = tmp_path / f"case1/{name}.nii.gz"
    data = path.read_bytes()
    for length in (20, len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:length])
        refuse(tmp_path, "cut off|not a NIfTI|unpack")


def test_every_flipped_bit_in_the_stream_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 2000, (24, 24, 12)).astype(np.int16)
    path = save(tmp_path, "a.nii.gz", stored(image, "LPS"))
    data = path.read_bytes()
    silent = 0
    for place in rng.integers(12, len(data), 300):  # behind gzip's own header, of which the time stamp may differ
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(0, 8))
        with pytest.raises(DataError):
            read_volume(bytes(broken), "a.nii.gz", 10**6)
        with contextlib.suppress(Exception):
            enough = gzip.GzipFile(fileobj=io.BytesIO(broken)).read(352 + image.nbytes)
            np.asarray(nib.Nifti1Image.from_bytes(enough).dataobj)
            silent += 1
    assert silent > 0  # the trap is real: reading just the voxels would not have noticed


def test_truncated_plain_file(tmp_path: Path) -> None:
    image, _ = world()
    data = stored(image, "LPS").to_bytes()
    for length in (0, 10, 347, 360, len(data) - 1):
        with pytest.raises(DataError):
            read_volume(data[:length], "a.nii", 10**6)
    np.testing.assert_array_equal(read_volume(data, "a.nii", 10**6).voxels, image)


def test_bombs(tmp_path: Path) -> None:
    image, labels = world()
    save(tmp_path, "c/seg.nii.gz", stored(labels, "LPS"))
    raw = stored(image, "LPS").to_bytes()
    path = tmp_path / "c/t1c.nii.gz"
    path.write_bytes(gzip.compress(raw + bytes(50_000_000)))  # more than the header says
    assert refuse(tmp_path, "unpacks to more bytes than its header declares").kind == "zip-bomb"
    huge = bytearray(raw)
    huge[42:48] = struct.pack("<hhh", 30_000, 30_000, 30_000)
    path.write_bytes(gzip.compress(bytes(huge)))
    assert refuse(tmp_path, "30000 x 30000 x 30000 voxels").kind == "too-large"
    case(tmp_path / "small")
    assert refuse(tmp_path / "small", "too large", max_pixels=100).kind == "too-large"


def test_gzip_in_several_members(tmp_path: Path) -> None:
    image, _ = world()
    raw = stored(image, "LPS").to_bytes()
    data = gzip.compress(raw[:500], mtime=0) + gzip.compress(raw[500:]) + bytes(20)
    np.testing.assert_array_equal(read_volume(data, "a.nii.gz", 10**6).voxels, image)


def test_mask_of_another_size(tmp_path: Path) -> None:
    _, labels = world()
    case(tmp_path, labels=labels[:-1])
    error = refuse(tmp_path, r"seg.nii.gz differs in size .*8 x 10 x 8.*9 x 10 x 8")
    assert error.kind == "size-mismatch"


def test_mask_that_lies_elsewhere(tmp_path: Path) -> None:
    case(tmp_path)
    _, labels = world()
    file = stored(labels, "LPS")
    near, far = file.affine.copy(), file.affine.copy()
    near[0, 3] += 0.1
    far[0, 3] += 3
    save(tmp_path, "case1/seg.nii.gz", nib.Nifti1Image(labels, near))
    assert read(tmp_path).slices
    save(tmp_path, "case1/seg.nii.gz", nib.Nifti1Image(labels, far))
    assert refuse(tmp_path, "another position in space .*3 mm").kind == "affine-mismatch"


@pytest.mark.parametrize(
    ("values", "words"),
    [(0.5, "values that are not labels .*0.5"), (-1.0, "values that are not labels .*-1"), (np.inf, "NaN or infinite")],
)
def test_masks_that_are_none(tmp_path: Path, values: float, words: str) -> None:
    _, labels = world()
    wrong = labels.astype(np.float32)
    wrong[0, 0, 0] = values
    case(tmp_path, labels=wrong)
    refuse(tmp_path, words)


def test_no_tumour_and_no_such_label(tmp_path: Path) -> None:
    case(tmp_path / "a", labels=np.zeros(SHAPE, np.uint8))
    assert refuse(tmp_path / "a", "has no tumour .*labels none").kind == "no-tumour"
    case(tmp_path / "b")
    refuse(tmp_path / "b", "has no tumour .*labels 1, 4.*expected 7", foreground=(7,))
    case(tmp_path / "healthy", labels=np.zeros(SHAPE, np.uint8))
    assert len(read(tmp_path / "healthy").slices) == SHAPE[2]


def test_a_map_of_anatomy_is_no_tumour(tmp_path: Path) -> None:
    case(tmp_path, labels=(np.arange(np.prod(SHAPE)) % 90).reshape(SHAPE).astype(np.uint8))
    assert refuse(tmp_path, "anatomical map .*89 labels").kind == "unknown-label"


def test_channels_are_chosen_by_number_or_by_name(tmp_path: Path) -> None:
    image, labels = world()
    channels = np.stack([image, image + 1000, image + 2000], axis=3)
    save(tmp_path, "imagesTr/BRATS_001.nii.gz", nib.Nifti1Image(channels, np.diag([-1, -1, 1, 1])))
    save(tmp_path, "labelsTr/BRATS_001.nii.gz", nib.Nifti1Image(labels, np.diag([-1, -1, 1, 1])))
    error = refuse(tmp_path, "several channels .*3 channels.*--channel 0 to 2")
    assert error.kind == "channels"
    refuse(tmp_path, "no channel 3", channel="3")
    reading = read(tmp_path, channel="2")
    np.testing.assert_array_equal(reading.scope, image + 2000)
    assert "channel 2 of 3 was read" in reading.slices[0].notes
    with pytest.raises(UsageError, match="--channel cannot be 'flair'"):
        listing(tmp_path, channel="flair")
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd"}}')
    assert "channel 2 (t1gd) is read" in listing(tmp_path).notes[0]
    for options, expected in (({}, 2000), ({"channel": "T1W"}, 1000), ({"sequence": "flair"}, 0)):
        np.testing.assert_array_equal(read(tmp_path, **options).scope, image + expected)
    with pytest.raises(UsageError, match=r"expected 0 \(flair\), 1 \(t1w\), 2 \(t1gd\)"):
        listing(tmp_path, channel="t2")


def test_five_dimensions_are_refused(tmp_path: Path) -> None:
    case(tmp_path)
    save(tmp_path, "case1/t1c.nii.gz", nib.Nifti1Image(np.zeros((9, 10, 8, 4, 2), np.int16), np.eye(4)))
    refuse(tmp_path, "more than four dimensions .*9 x 10 x 8 x 4 x 2")


@pytest.mark.parametrize(("axis", "plane"), [(0, "sagittal"), (1, "coronal"), (2, "axial")])
def test_a_volume_of_one_slice_is_read_in_its_own_plane(tmp_path: Path, axis: int, plane: str) -> None:
    image, labels = world()
    case(tmp_path, image=image.take([3], axis), labels=labels.take([3], axis) | labels.take([4], axis))
    for asked in ("axial", "coronal"):
        (slice_,) = read(tmp_path, plane=asked, empty_share=100.0).slices
        assert sorted(slice_.image.shape) == sorted(size for place, size in enumerate(SHAPE) if place != axis)
        assert any(f"one {plane} slice" in note for note in slice_.notes) == (plane != asked)


def test_labels_that_were_rounded_are_labels(tmp_path: Path) -> None:
    _, labels = world()
    case(tmp_path, labels=labels.astype(np.float32) * np.float32(1.00002))
    for options in ({}, {"foreground": (4,)}):
        found = read(tmp_path, **options)
        expected = labels > 0 if not options else labels == 4
        assert sum(int(s.mask.sum()) for s in found.slices if s.mask is not None) == expected.sum()


def test_nan_outside_the_head_is_background(tmp_path: Path) -> None:
    image, labels = world()
    values = image.astype(np.float32) + 50
    values[:, :2] = np.nan
    values[0] = np.nan
    values[4, 9] = 0
    case(tmp_path, image=values, labels=np.where(np.isnan(values), np.nan, labels).astype(np.float32))
    reading = read(tmp_path)
    assert reading.scope is not None
    assert np.isfinite(reading.scope).all()
    np.testing.assert_array_equal(reading.scope, np.nan_to_num(values, nan=0.0))
    assert any("outside the head held NaN" in note for note in reading.slices[0].notes)
    case(tmp_path, image=np.full(SHAPE, np.nan, np.float32))
    refuse(tmp_path, "720 of 720 voxels")


@pytest.mark.parametrize("start", [np.nan, np.inf, -8.0, 1e30])
def test_an_impossible_start_of_the_voxels(tmp_path: Path, start: float) -> None:
    case(tmp_path)
    path = tmp_path / "case1/t1c.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[108:112] = struct.pack("<f", start)
    path.write_bytes(gzip.compress(bytes(raw)))
    refuse(tmp_path, "a damaged volume .*(its voxels start at byte|its header: (cannot convert|vox offset -8))")


def test_empty_gzip_streams_cost_little(tmp_path: Path) -> None:
    case(tmp_path)
    expected = read(tmp_path).scope
    path = tmp_path / "case1/t1c.nii.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b"", mtime=0) * 20_000)
    begin = time.perf_counter()
    np.testing.assert_array_equal(read(tmp_path).scope, expected)
    assert time.perf_counter() - begin < 10


def test_blocks_of_bgzip_are_read(tmp_path: Path) -> None:
    case(tmp_path)
    path = tmp_path / "case1/t1c.nii.gz"
    expected = read(tmp_path).scope
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(
        b"".join(gzip.compress(raw[start : start + 99]) for start in range(0, len(raw), 99)) + gzip.compress(b"")
    )
    np.testing.assert_array_equal(read(tmp_path).scope, expected)


def test_folders_called_like_volumes(tmp_path: Path) -> None:
    """As Kaggle unpacks BraTS 2021."""
    base = "BraTS2021_00495"
    names(
        tmp_path,
        *(f"{base}/{base}_{what}.nii/00000057_brain_{what}.nii" for what in ("flair", "t1", "t1ce", "t2")),
        f"{base}/{base}_seg.nii/00000057_final_seg.nii",
    )
    found = listing(tmp_path)
    assert [item.files[0].name for item in found.items] == [f"{base}/{base}_t1ce.nii/00000057_brain_t1ce.nii"]
    assert [item.files[1].name for item in found.items] == [f"{base}/{base}_seg.nii/00000057_final_seg.nii"]
    assert found.problems == ()
    assert [item.files[0].name for item in listing(tmp_path, sequence="t2").items] == [
        f"{base}/{base}_t2.nii/00000057_brain_t2.nii"
    ]


def test_an_impossible_affine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case(tmp_path)
    path = tmp_path / "case1/t1c.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[280:328] = bytes(48)  # sform of zeros
    path.write_bytes(gzip.compress(bytes(raw)))
    refuse(tmp_path, "its orientation")
    raw[76:80] = struct.pack("<f", 7.0)  # an impossible qfac, which nibabel mends and talks about
    raw[252:256] = struct.pack("<hh", 1, 0)
    path.write_bytes(gzip.compress(bytes(raw)))
    capfd.readouterr()
    listing(tmp_path)
    with contextlib.suppress(DataError):
        read(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_header_without_orientation_is_said(tmp_path: Path) -> None:
    case(tmp_path)
    for name in ("t1c", "seg"):
        path = tmp_path / f"case1/{name}.nii.gz"
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[252:256] = bytes(4)
        path.write_bytes(gzip.compress(bytes(raw)))
    assert "states no orientation" in read(tmp_path).slices[0].notes[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"text\n", "a text file"), (b"", "an empty file"), (gzip.compress(b"x" * 999, mtime=0), "not a NIfTI")],
)
def test_what_is_no_nifti(tmp_path: Path, data: bytes, words: str) -> None:
    case(tmp_path)
    (tmp_path / "case1/t1c.nii.gz").write_bytes(data)
    refuse(tmp_path, words)


# Real data


@pytest.mark.real
def test_a_real_case(real: Path) -> None:
    folder = real / "nifti"
    assert detect(open_tree(folder)).name == "nifti"
    (item,) = listing(folder).items
    assert item.patient == item.volume == "TCGA-DU-7294"
    image, labels = (nib.load(folder / item.volume / name) for name in ("t1c.nii.gz", "seg.nii.gz"))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    voxels, truth = np.asarray(image.dataobj), np.asarray(labels.dataobj)
    reading = SOURCE.read(item, SourceOptions())
    with_tumour = np.flatnonzero(truth.any(axis=(0, 1)))
    assert len(reading.slices) == len(with_tumour) + round(0.2 * len(with_tumour))
    assert set(with_tumour) <= {s.slice_index for s in reading.slices}
    for slice_ in reading.slices:
        np.testing.assert_array_equal(slice_.image, voxels[:, :, slice_.slice_index].T)
        np.testing.assert_array_equal(slice_.mask, truth[:, :, slice_.slice_index].T > 0)
        assert slice_.spacing == (1.0, 1.0)
    np.testing.assert_array_equal(reading.scope, voxels)
