"""Images find their masks, classes and patients in every layout that is out there, and nothing bad passes in silence."""

from __future__ import annotations

import csv
import gzip
import hashlib
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.sources import detect, read_item
from kerasseg_tfrecords.sources.base import Item, Listing, SourceOptions
from kerasseg_tfrecords.sources.pairs import SOURCE
from kerasseg_tfrecords.sources.tree import open_tree

MASK = np.zeros((12, 16), np.uint8)
MASK[3:7, 4:9] = 255
OPTIONS = SourceOptions()


def image(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)


def put(root: Path, *names: str) -> None:
    """Writes small pictures: masks where the name says so, else images, each of its own pixels."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_mask = any(word in name.lower() for word in ("mask", "label", "seg", "annot", "ground", "_gt", "gt/"))
        save(path, MASK if is_mask else image(number))


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(cv2.imencode(path.suffix, pixels)[1]))


def listing(root: Path, **options: Any) -> Listing:
    return SOURCE.find_items(open_tree(root), SourceOptions(**options))


def pairs(found: Listing) -> dict[str, str]:
    return {item.files[0].name: item.files[1].name if len(item.files) > 1 else "" for item in found.items}


def problems(found: Listing) -> dict[str, str]:
    return {problem.name: problem.message for problem in found.problems}


LAYOUTS = [
    {"images/1.png": "masks/1.png", "images/2.png": "masks/2.png"},
    {"image/1.jpg": "mask/1.png"},
    {"Images/1.png": "Labels/1.png"},
    {"imgs/1.png": "annotations/1.png"},
    {"img/1.png": "ground_truth/1.png"},
    {"inputs/1.png": "GT/1.png"},
    {"train/images/1.png": "train/masks/1.png", "test/images/1.png": "test/masks/1.png"},
    {"images/train/1.png": "masks/train/1.png", "images/test/1.png": "masks/test/1.png"},
    {"train/1.png": "train_masks/1.png", "val/1.png": "val_masks/1.png"},
    {"train_images/1.png": "train_labels/1.png"},
    {"segmentation_task/train/images/1.png": "segmentation_task/train/masks/1.png"},
    {"1.tif": "1_mask.tif", "12.tif": "12_mask.tif"},
    {"a/1.tif": "a/1_mask.tif", "b/1.tif": "b/1_mask.tif"},
    {"x.png": "x_seg.png"},
    {"x.png": "x-label.png"},
    {"x y.png": "x y mask.png"},
    {"x.jpg": "x_segmentation.png"},
    {"image_1.png": "mask_1.png", "image_2.png": "mask_2.png"},
    {"images/img_1.png": "masks/mask_1.png"},
    {"images/1.png": "masks/1_mask.png"},
    {"images/1.png": "masks/1_m.png"},
    {"image/1.png": "annot/1.tif"},
    {"IMAGES/A.PNG": "masks/a.png"},
    {"1.png": "masks/1.png"},
    {"train/images/1.png": "masks/1.png"},
    {"segmentation/1.png": "segmentation/1_mask.png"},
    {"Brain Tumor Segmentation/images/1.png": "Brain Tumor Segmentation/masks/1.png"},
    {"case_1/image.png": "case_1/mask.png", "case_2/image.png": "case_2/mask.png"},
    {"images/1.png": "masks/1.png", "images/01.png": "masks/01.png"},
    {"images/img_1.png": "masks/img_1.png", "images/1.png": "masks/1.png"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: " ".join(next(iter(layout.items()))))
def test_layouts(tmp_path: Path, layout: dict[str, str]) -> None:
    put(tmp_path, *layout, *layout.values())
    found = listing(tmp_path)
    assert pairs(found) == layout
    assert found.problems == ()
    assert len({item.slice_id for item in found.items}) == len(layout)
    assert {item.label for item in found.items} == {""}
    tree = open_tree(tmp_path)
    assert detect(tree).name == "pairs"
    for item in found.items:
        reading = SOURCE.read(item, OPTIONS)
        assert reading.scope is None
        (slice_,) = reading.slices
        assert slice_.image.shape == (12, 16)
        assert slice_.slice_id == item.slice_id
        assert slice_.mask is not None
        np.testing.assert_array_equal(slice_.mask, MASK > 0)


def test_a_zip_is_read_like_the_folder_in_it(tmp_path: Path) -> None:
    put(tmp_path / "in", "glioma/images/1.png", "glioma/masks/1.png", "pituitary/images/1.png", "pituitary/masks/1.png")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in (tmp_path / "in").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "in").as_posix())
    found = listing(tmp_path / "data.zip")
    plain = listing(tmp_path / "in")
    assert [item.label for item in found.items] == ["glioma", "pituitary"]
    for mine, theirs in zip(found.items, plain.items, strict=True):
        left, right = (SOURCE.read(item, OPTIONS).slices[0].image for item in (mine, theirs))
        np.testing.assert_array_equal(left, right)


def test_digest_is_of_image_then_mask(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    (item,) = listing(tmp_path).items
    data = (tmp_path / "images/1.png").read_bytes() + (tmp_path / "masks/1.png").read_bytes()
    assert SOURCE.read(item, OPTIONS).sha256 == hashlib.sha256(data).hexdigest()


def test_names_with_spaces_umlauts_and_newlines(tmp_path: Path) -> None:
    names = ["images/a b.png", "images/Gehirn Müller.png", "images/line\nbreak.png", "images/wow!.png"]
    put(tmp_path, *names, *(name.replace("images", "masks") for name in names))
    found = listing(tmp_path)
    assert len(found.items) == 4
    assert found.problems == ()
    for item in found.items:
        SOURCE.read(item, OPTIONS)
    put(tmp_path, "masks/lonely\nmask.png")
    (problem,) = listing(tmp_path).problems
    assert "\n" not in str(problem)


def test_composed_and_decomposed_umlauts_are_one_name(tmp_path: Path) -> None:
    put(tmp_path, "images/Mu\u0308ller.png", "masks/M\u00fcller.png")
    assert len(pairs(listing(tmp_path))) == 1


# Classes


def test_class_folders_at_any_level(tmp_path: Path) -> None:
    names = ["Glioma Tumor/images/1.png", "train/images/meningioma/1.png", "images/pituitary_tumour/7.png"]
    put(tmp_path, *names, "Glioma Tumor/masks/1.png", "train/masks/meningioma/1.png", "masks/pituitary_tumour/7.png")
    found = listing(tmp_path)
    assert {item.name: item.label for item in found.items} == dict(
        zip(names, ("glioma", "meningioma", "pituitary"), strict=True)
    )
    assert {item.slice_id for item in found.items} == {
        "Glioma Tumor/images/1.png",
        "train/images/meningioma/1.png",
        "7",
    }


def test_healthy_images_need_no_mask(tmp_path: Path) -> None:
    put(tmp_path, "glioma/1.png", "glioma/1_mask.png", "notumor/1.png", "notumor/2.png")
    found = listing(tmp_path)
    assert found.problems == ()
    assert Counter(item.label for item in found.items) == {"glioma": 1, "no_tumor": 2}
    assert "2 images of class no_tumor without a mask file" in found.notes[0]
    healthy = next(item for item in found.items if item.label == "no_tumor")
    (slice_,) = SOURCE.read(healthy, OPTIONS).slices
    assert slice_.mask is not None
    assert not slice_.mask.any()
    assert "empty mask" in slice_.notes[0]


def test_codes_in_names_count_when_most_files_have_them(tmp_path: Path) -> None:
    names = ["images/Te-me_0010.png", "images/Tr-gl_0010.png", "images/Tr-piTr_0001.png"]
    put(tmp_path, *names, *(name.replace("images", "masks") for name in names))
    assert [item.label for item in listing(tmp_path).items] == ["meningioma", "glioma", "pituitary"]
    put(tmp_path, "images/other_1.png", "masks/other_1.png")
    found = listing(tmp_path)
    assert len(found.items) == 3
    assert "no class" in problems(found)["images/other_1.png"]


def test_the_word_no_alone_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, "images/scan_no_1.png", "images/scan_no_2.png", "masks/scan_no_1.png", "masks/scan_no_2.png")
    assert {item.label for item in listing(tmp_path).items} == {""}


def test_numbers_of_folders_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "1/a.png", "1/a_mask.png", "2/b.png", "2/b_mask.png")
    assert {item.label for item in listing(tmp_path).items} == {""}


def test_the_inputs_own_name_may_be_the_class(tmp_path: Path) -> None:
    put(tmp_path / "glioma", "images/1.png", "masks/1.png")
    found = listing(tmp_path / "glioma")
    assert [item.label for item in found.items] == ["glioma"]
    assert "glioma" in found.notes[0]


def test_a_misspelt_class_folder_is_one_problem_with_a_hint(tmp_path: Path) -> None:
    names = ["glioma/1.png", "pitutary/2.png", "pitutary/3.png"]
    put(tmp_path, *names, *(name.replace(".png", "_mask.png") for name in names))
    found = listing(tmp_path)
    assert [item.name for item in found.items] == ["glioma/1.png"]
    assert list(problems(found)) == ["pitutary"]
    assert "2 images" in problems(found)["pitutary"]
    assert "Did you mean pituitary?" in problems(found)["pitutary"]


def test_the_users_classes(tmp_path: Path) -> None:
    put(tmp_path, "cyst/1.png", "cyst/1_mask.png", "Lesion_A/2.png", "Lesion_A/2_mask.png")
    found = listing(tmp_path, classes=("lesion a", "cyst"))
    assert [item.label for item in found.items] == ["lesion a", "cyst"]


# Patients and volumes


def test_lgg_names_tell_patient_volume_and_place(tmp_path: Path) -> None:
    folder = "TCGA_CS_4943_20000902"
    names = [f"{folder}/{folder}_{number}.tif" for number in (1, 2, 10)]
    put(tmp_path, *names, *(name.replace(".tif", "_mask.tif") for name in names))
    (tmp_path / "data.csv").write_text("Patient,gender,death01\nTCGA_CS_4943,2,1\n")
    found = listing(tmp_path)
    assert [(item.patient, item.volume, item.slice_index) for item in found.items] == [
        ("TCGA_CS_4943", folder, 0),
        ("TCGA_CS_4943", folder, 1),
        ("TCGA_CS_4943", folder, 9),
    ]
    assert [(entry.name, entry.reason) for entry in found.left_out] == [("data.csv", "a table without images")]


def test_volumes_counted_from_zero(tmp_path: Path) -> None:
    names = [f"v/v_{number}.png" for number in range(3)]
    put(tmp_path, *names, *(name.replace(".png", "_mask.png") for name in names))
    assert [item.slice_index for item in listing(tmp_path).items] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("patient_12/7.png", "patient_12"),
        ("Subject 3/images/7.png", "Subject 3"),
        ("sub-01/anat/sub-01_7.png", "sub-01"),
        ("images/TCGA-DU-7294_7.png", "TCGA-DU-7294"),
        ("images/7.png", ""),
        ("images/case.png", ""),
    ],
)
def test_patients_in_names(tmp_path: Path, name: str, patient: str) -> None:
    put(tmp_path, name, name.replace(".png", "_mask.png"))
    assert [item.patient for item in listing(tmp_path).items] == [patient]


def test_the_patient_pattern_has_the_first_word(tmp_path: Path) -> None:
    put(
        tmp_path,
        "images/p7_1.png",
        "images/p7_2.png",
        "images/x.png",
        "masks/p7_1.png",
        "masks/p7_2.png",
        "masks/x.png",
    )
    found = listing(tmp_path, patient_pattern=r"p(\d+)_")
    assert [item.patient for item in found.items] == ["7", "7", ""]
    assert "matches 2 of 3" in found.notes[0]
    assert [item.patient for item in listing(tmp_path, patient_pattern="p[0-9]+").items] == ["p7", "p7", ""]
    with pytest.raises(UsageError, match="not a valid regular expression"):
        listing(tmp_path, patient_pattern="(")


# Index tables


def table(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_an_index_names_everything(tmp_path: Path) -> None:
    put(tmp_path, "data/a/1.png", "data/b/x.png", "data/a/2.png", "data/b/y.png", "data/unused.png")
    for name in ("x", "y"):
        save(tmp_path / f"data/b/{name}.png", MASK)
    table(
        tmp_path / "data/index.csv", "image,mask,label,patient", "a/1.png,b/y.png,2,P1", "a/2.png,b/x.png,Meningioma,P2"
    )
    found = listing(tmp_path)
    assert pairs(found) == {"data/a/1.png": "data/b/y.png", "data/a/2.png": "data/b/x.png"}
    assert [(item.label, item.patient) for item in found.items] == [("glioma", "P1"), ("meningioma", "P2")]
    assert {entry.name for entry in found.left_out} == {"data/index.csv", "data/unused.png"}
    assert found.problems == ()


@pytest.mark.parametrize(
    "rows",
    [
        ["\ufeffImage Path;Mask_Path;Class;Patient ID;age", "images/1.png;masks/1.png;gl;P;50"],
        ["filename\tsegmentation\tdiagnosis\tpid", "images\\1.png\tmasks\\1.png\tglioma tumour\tP"],
        ["id,img,msk,tumor_type,subject", "7,./images/1.png,./masks/1.png,Glioma,P"],
        ["image,mask,label,patient", "/home/someone/data/images/1.png,/home/someone/data/masks/1.png,glioma,P"],
        ["image,mask,label,patient", "C:\\data\\images\\1.png,C:\\data\\masks\\1.png,glioma,P"],
        ["image,mask,label,patient", '"images/1.png","masks/1.png","glioma","P"', "", ",,,"],
        ["image,label,patient", "1.png,glioma,P"],
        ["image,label,patient", "images/1,glioma,P"],
    ],
)
def test_tables_of_many_hands(tmp_path: Path, rows: list[str]) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    table(tmp_path / ("index.tsv" if "\t" in rows[0] else "index.csv"), *rows)
    found = listing(tmp_path)
    assert pairs(found) == {"images/1.png": "masks/1.png"}
    assert [(item.label, item.patient) for item in found.items] == [("glioma", "P")]
    assert found.problems == ()


def test_bad_rows_are_named_with_their_line(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{number}.png" for kind in ("images", "masks") for number in range(6)))
    table(
        tmp_path / "index.csv",
        "image,mask,label",
        "images/0.png,masks/0.png,glioma",
        "images/9.png,masks/0.png,glioma",
        "images/1.png,masks/9.png,glioma",
        "images/2.png,masks/2.png,7",
        "images/3.png,,glioma",
        "../images/4.png,masks/4.png,glioma",
        "images/5.png,images/5.png,glioma",
    )
    found = listing(tmp_path)
    assert pairs(found) == {"images/0.png": "masks/0.png"}
    lines = [str(problem) for problem in found.problems]
    for words in (
        "line 3: the image 'images/9.png' does not exist",
        "line 4: the mask 'masks/9.png' of images/1.png does not exist",
        "images/2.png: index.csv line 5: unknown class 7",
        "images/3.png: an image without its mask",
        "line 7: the image '../images/4.png' does not exist",
        "images/5.png is given as its own mask",
    ):
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == 6


def test_two_rows_for_one_image_and_two_images_for_one_mask(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{number}.png" for kind in ("images", "masks") for number in range(4)))
    rows = ["images/0.png,masks/0.png,glioma", "images/1.png,masks/1.png,glioma"]
    table(
        tmp_path / "a.csv",
        "image,mask,label",
        *rows,
        "images/2.png,masks/3.png,glioma",
        "images/3.png,masks/3.png,glioma",
    )
    table(tmp_path / "b.csv", "image,mask,label", rows[0], rows[1].replace("glioma", "pituitary"))
    found = listing(tmp_path)
    assert list(pairs(found)) == ["images/0.png"]
    assert "listed twice with different entries" in problems(found)["images/1.png"]
    assert "2 images for one mask" in problems(found)["images/2.png"]
    assert "2 images for one mask" in problems(found)["images/3.png"]


# Bad input


def test_partners_that_are_missing(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/2.png", "masks/1.png", "masks/3.png")
    found = listing(tmp_path)
    assert pairs(found) == {"images/1.png": "masks/1.png"}
    assert problems(found) == {"images/2.png": "an image without its mask", "masks/3.png": "a mask without its image"}


def test_two_images_for_one_mask(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/1.jpg", "masks/1.png", "images/2.png", "masks/2.png")
    found = listing(tmp_path)
    assert pairs(found) == {"images/2.png": "masks/2.png"}
    assert "2 images for one mask" in problems(found)["images/1.png"]
    assert "images/1.png" in problems(found)["images/1.jpg"]


def test_two_masks_for_one_image(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "masks/1.png", "masks/1.tif")
    found = listing(tmp_path)
    assert found.items == ()
    assert "2 masks for one image" in problems(found)["images/1.png"]


def test_stems_of_other_patients_are_never_paired(tmp_path: Path) -> None:
    put(tmp_path, "p1/images/1.png", "p2/masks/1.png")
    found = listing(tmp_path)
    assert found.items == ()
    assert len(found.problems) == 2


def test_a_folder_without_any_mask_is_one_problem(tmp_path: Path) -> None:
    put(tmp_path / "scans", *(f"glioma/{number}.png" for number in range(30)))
    found = listing(tmp_path / "scans")
    assert found.items == ()
    assert len(found.problems) == 1
    assert str(found.problems[0]).startswith(".: 30 images without masks")  # the input itself


def test_a_mask_of_another_size_names_both_files(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    save(tmp_path / "masks/1.png", MASK[:-1])
    (item,) = listing(tmp_path).items
    with pytest.raises(DataError, match=r"images/1.png: its mask masks/1.png .*11 x 16.*12 x 16") as caught:
        SOURCE.read(item, OPTIONS)
    assert caught.value.kind == "size-mismatch"
    assert caught.value.path == "images/1.png"


@pytest.mark.parametrize("which", ["images", "masks"])
def test_damaged_files_are_named(tmp_path: Path, which: str) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    path = tmp_path / which / "1.png"
    for data, words in (
        (path.read_bytes()[:-20], "damaged PNG"),
        (b"no picture", "a text file"),
        (b"", "an empty file"),
    ):
        path.write_bytes(data)
        (item,) = listing(tmp_path).items
        with pytest.raises(DataError, match=words) as caught:
            SOURCE.read(item, OPTIONS)
        assert caught.value.path == "images/1.png"
        assert f"{which}/1.png" in str(caught.value)


def test_image_and_mask_swapped(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    save(tmp_path / "masks/1.png", image())
    (item,) = listing(tmp_path).items
    with pytest.raises(DataError, match="not a mask"):
        SOURCE.read(item, OPTIONS)


def test_prediction_needs_no_masks(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/2.png", "masks/1.png", "masks/3.png")
    found = listing(tmp_path, masks=False)
    assert pairs(found) == {"images/1.png": "masks/1.png", "images/2.png": ""}
    assert found.problems == ()
    options = SourceOptions(masks=False)
    assert [SOURCE.read(item, options).slices[0].mask is None for item in found.items] == [False, True]


def test_one_image_file_is_an_input(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    found = listing(tmp_path / "1.png", masks=False)
    assert [item.name for item in found.items] == ["1.png"]


def test_other_files_are_left_out_with_their_reason(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    found = listing(tmp_path)
    assert {(entry.name, entry.reason) for entry in found.left_out} == {
        ("LICENSE", "not an image"),
        ("notes.csv", "a table without images"),
    }


def test_many_files_are_paired_fast(tmp_path: Path) -> None:
    # Quadratic pairing would take minutes here; nothing is timed, because the machine may be busy.
    from kerasseg_tfrecords.slices import Location
    from kerasseg_tfrecords.sources.roles import name_files, pair_by_name

    names = [f"{folder}/{number}.png" for number in range(20_000) for folder in ("train/images", "masks")]
    found = pair_by_name(name_files([Location(tmp_path / name, (), name) for name in names]))
    assert len(found.pairs) == 20_000


# Real data


@pytest.mark.real
def test_figshare_png(real: Path) -> None:
    folder = real / "figshare-png"
    found = listing(folder)
    with (folder / "index.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(found.items) == len(rows) == 1963
    assert found.problems == ()
    for item in found.items:
        row = rows[item.name]
        assert (item.files[1].name, item.label, item.patient) == (row["mask"], row["label"], row["patient"])
    for item in found.items[::150]:
        (slice_,) = SOURCE.read(item, OPTIONS).slices
        assert slice_.mask is not None
        np.testing.assert_array_equal(slice_.image, cv2.imread(str(folder / item.name), cv2.IMREAD_GRAYSCALE))
        theirs = cv2.imread(str(folder / item.files[1].name), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(slice_.mask, theirs == 255)
        assert slice_.notes == ()


@pytest.mark.real
def test_lgg(real: Path) -> None:
    folder = real / "lgg-tiff"
    found = listing(folder)
    assert found.problems == ()
    assert len(found.items) == 62
    assert {item.patient for item in found.items} == {"TCGA_CS_4943", "TCGA_CS_6669", "TCGA_HT_7884"}
    assert {item.label for item in found.items} == {""}
    for item in found.items:
        (slice_,) = SOURCE.read(item, OPTIONS).slices
        assert slice_.image.shape == (256, 256, 3)
        assert slice_.mask is not None
        theirs = cv2.imread(str(folder / item.files[0].name))
        np.testing.assert_array_equal(slice_.image, theirs[..., ::-1])
        number = int(Path(item.name).stem.rsplit("_", 1)[1])
        assert (slice_.volume, slice_.slice_index) == (Path(item.name).parent.name, number - 1)


@pytest.mark.real
def test_brisc(real: Path) -> None:
    folder = real / "brisc"
    found = listing(folder)
    assert found.problems == ()
    assert Counter(item.label for item in found.items) == {"glioma": 15, "meningioma": 15, "pituitary": 15}
    assert {item.patient for item in found.items} == {""}
    for item in found.items:
        (slice_,) = SOURCE.read(item, OPTIONS).slices
        assert slice_.image.ndim == 2  # one of them is stored as colour
        theirs = cv2.imread(str(folder / item.files[1].name), cv2.IMREAD_GRAYSCALE)
        assert ((theirs < 10) | (theirs > 245)).all()
        np.testing.assert_array_equal(slice_.mask, theirs > 245)
        assert any("cut at 128" in note for note in slice_.notes)


def test_items_are_read_alike_in_any_process(tmp_path: Path) -> None:
    import pickle

    put(tmp_path, "images/1.png", "masks/1.png")
    (item,) = listing(tmp_path).items
    again: Item = pickle.loads(pickle.dumps(item))
    assert again == item
    assert SOURCE.read(again, OPTIONS).sha256 == SOURCE.read(item, OPTIONS).sha256


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"images/1.png": True, "masks/1.png": True}, "pairs"),
        ({"c/t1c.nii.gz": True, "c/seg.nii.gz": True, "preview.png": True}, "nifti"),
        ({"1.nii": True, **{f"images/{n}.png": True for n in range(5)}}, "pairs"),
        ({"images/1.png": False, "masks/1.png": False}, "pairs"),
        ({"c/t1c.nii.gz": False}, "nifti"),
    ],
)
def test_formats_are_told_apart(tmp_path: Path, files: dict[str, bool], expected: str) -> None:
    volume = gzip.compress(bytes(344) + b"n+1\0" + bytes(100))
    for name, real_content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = volume if ".nii" in name else bytes(cv2.imencode(".png", image())[1])
        path.write_bytes(content if real_content else b"not what it seems")
    assert detect(open_tree(tmp_path)).name == expected


def test_reading_png_pairs_loads_neither_pydicom_nor_nibabel_nor_tensorflow(
    tmp_path: Path, python: str, child_environment: dict[str, str]
) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    script = (
        "import sys\nfrom kerasseg_tfrecords.sources import SourceOptions, find_items, read_item\n"
        "from kerasseg_tfrecords.sources.tree import open_tree\n"
        f"item = find_items(open_tree({str(tmp_path)!r}), SourceOptions()).items[0]\nread_item(item, SourceOptions())\n"
        "print(sorted({'pydicom', 'nibabel', 'tensorflow', 'keras', 'scipy', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([python, "-c", script], env=child_environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Names that people use


@pytest.mark.parametrize(
    "layout",
    [
        {"x.jpg": "x_m.png", "y 2.jpg": "y 2_m.png"},
        {"image1.png": "mask1.png", "image12.png": "mask12.png"},
        {"JPEGImages/a.jpg": "SegmentationClass/a.png"},
        {"X/1.png": "Y/1.png", "X/2.png": "Y/2.png"},
        {"train_x/1.png": "train_y/1.png", "test_x/1.png": "test_y/1.png"},
        {"imagesTr/case_1_0000.png": "labelsTr/case_1.png", "imagesTr/case_2_0000.png": "labelsTr/case_2.png"},
        {"input/1.png": "target/1.png"},
        {"images/1.bmp": "masks/1.gif"},
    ],
    ids=lambda layout: " ".join(next(iter(layout.items()))),
)
def test_layouts_of_other_hands(tmp_path: Path, layout: dict[str, str]) -> None:
    for number, (name, mask) in enumerate(layout.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mask).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(tmp_path / name)
        Image.fromarray(MASK).save(tmp_path / mask)
    found = listing(tmp_path)
    assert pairs(found) == layout
    assert found.problems == ()
    assert detect(open_tree(tmp_path)).name == "pairs"
    for item in found.items:
        (slice_,) = SOURCE.read(item, OPTIONS).slices
        np.testing.assert_array_equal(slice_.mask, MASK > 0)


def test_single_letters_are_folders_like_any_other(tmp_path: Path) -> None:
    put(tmp_path, "x/1.png", "x/1_mask.png", "z/1.png", "z/1_mask.png")
    assert pairs(listing(tmp_path)) == {"x/1.png": "x/1_mask.png", "z/1.png": "z/1_mask.png"}


def test_several_masks_of_one_image_are_united(tmp_path: Path) -> None:
    other = np.roll(MASK, 6, axis=1)
    save(tmp_path / "benign (1).png", image())
    save(tmp_path / "benign (1)_mask.png", MASK)
    save(tmp_path / "benign (1)_mask_1.png", other)
    (item,) = listing(tmp_path).items
    assert len(item.files) == 3
    np.testing.assert_array_equal(SOURCE.read(item, OPTIONS).slices[0].mask, (MASK | other) > 0)
    save(tmp_path / "b/0f3a/images/0f3a.png", image())
    save(tmp_path / "b/0f3a/masks/9c.png", MASK)
    save(tmp_path / "b/0f3a/masks/d1.png", other)
    save(tmp_path / "b/77aa/images/77aa.png", image())
    save(tmp_path / "b/77aa/masks/11.png", other)
    found = listing(tmp_path / "b")
    assert found.problems == ()
    assert [len(item.files) for item in found.items] == [3, 2]
    np.testing.assert_array_equal(SOURCE.read(found.items[0], OPTIONS).slices[0].mask, (MASK | other) > 0)


def test_masks_of_other_images_are_not_taken_for_parts(tmp_path: Path) -> None:
    put(tmp_path, "glioma/images/1.png", "glioma/masks/2.png", "glioma/masks/3.png")
    assert listing(tmp_path).items == ()


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.png", "imagesTr/a_0001.png", "imagesTs/z_0000.png"):
        save(tmp_path / name, image())
    save(tmp_path / "labelsTr/a.png", MASK // 255)
    assert "Choose one with --channel" in problems(listing(tmp_path))["."]
    assert pairs(listing(tmp_path, channel="1")) == {"imagesTr/a_0001.png": "labelsTr/a.png"}
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1ce", "1": "FLAIR"}}')
    found = listing(tmp_path)
    assert pairs(found) == {"imagesTr/a_0000.png": "labelsTr/a.png"}
    assert ("imagesTs/z_0000.png", "a test image without labels") in {(e.name, e.reason) for e in found.left_out}
    assert pairs(listing(tmp_path, channel="flair")) == {"imagesTr/a_0001.png": "labelsTr/a.png"}


def test_masks_of_a_type_that_is_not_read_are_named(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/2.png")
    for name in ("1.webp", "2.webp"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / "masks" / name).write_bytes(b"RIFF")
    assert "2 images without masks (not read: 2 masks/*.webp" in problems(listing(tmp_path))["."]


@pytest.mark.parametrize("name", ["_annotations.coco.json", "outlines/1.json", "outlines/1.xml"])
def test_outlines_instead_of_masks_are_named(name: str, tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/2.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert f"Outlines, as {name} may hold, are not read" in problems(listing(tmp_path))["."]


def test_objects_of_pascal_voc_are_no_masks(tmp_path: Path) -> None:
    put(tmp_path, "JPEGImages/1.png", "SegmentationClass/1.png", "SegmentationObject/1.png")
    assert pairs(listing(tmp_path)) == {"JPEGImages/1.png": "SegmentationClass/1.png"}


# What pictures hold


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_they_were_shown_when_the_mask_was_drawn(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((12, 16), np.uint8)
    stored[2:5, 3:12] = 255
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(stored).save(tmp_path / "images/1.jpg", exif=exif(orientation), quality=100)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "images/1.jpg")))
    Image.fromarray((shown > 128).astype(np.uint8) * 255).save(tmp_path / "masks/1.png")
    (item,) = listing(tmp_path).items
    (slice_,) = SOURCE.read(item, OPTIONS).slices
    np.testing.assert_array_equal(slice_.image > 128, slice_.mask)
    assert bool(slice_.notes) == (orientation > 1)
    # A mask of the size that is stored was drawn on the stored pixels, and so was a mask that is turned itself.
    if orientation >= 5:
        Image.fromarray((stored > 128).astype(np.uint8) * 255).save(tmp_path / "masks/1.png")
        (slice_,) = SOURCE.read(item, OPTIONS).slices
        np.testing.assert_array_equal(slice_.image > 128, slice_.mask)
        assert "not turned" in slice_.notes[-1]
    Image.fromarray((stored > 128).astype(np.uint8) * 255).save(tmp_path / "masks/1.png", exif=exif(orientation))
    (slice_,) = SOURCE.read(item, OPTIONS).slices
    np.testing.assert_array_equal(slice_.image > 128, slice_.mask)


def test_pages_are_the_slices_of_a_volume(tmp_path: Path) -> None:
    images, masks = [image(seed) for seed in range(3)], [MASK, np.roll(MASK, 2), np.zeros_like(MASK)]
    for name, pages in (("images", images), ("masks", masks)):
        (tmp_path / name).mkdir()
        assert cv2.imwritemulti(str(tmp_path / name / "s.tif"), pages)
    (item,) = listing(tmp_path).items
    reading = SOURCE.read(item, OPTIONS)
    assert [(s.slice_id, s.volume, s.slice_index) for s in reading.slices] == [
        ("s#0", "s", 0),
        ("s#1", "s", 1),
        ("s#2", "s", 2),
    ]
    assert reading.scope is not None
    for slice_, pixels, mask in zip(reading.slices, images, masks, strict=True):
        np.testing.assert_array_equal(slice_.image, pixels)
        np.testing.assert_array_equal(slice_.mask, mask > 0)
    assert cv2.imwritemulti(str(tmp_path / "masks/s.tif"), masks[:2])
    with pytest.raises(DataError, match="another number of pages .*2, expected 3"):
        SOURCE.read(item, OPTIONS)


def test_arrays_are_pictures(tmp_path: Path) -> None:
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(12, 16)))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "images/1.npy", values)
    np.save(tmp_path / "masks/1.npy", (MASK > 0)[None])
    (item,) = listing(tmp_path).items
    (slice_,) = SOURCE.read(item, OPTIONS).slices
    np.testing.assert_array_equal(slice_.image, values)
    np.testing.assert_array_equal(slice_.mask, MASK > 0)
    np.save(tmp_path / "images/1.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="unsupported kind of it .*Object arrays cannot be loaded"):
        SOURCE.read(item, OPTIONS)
    np.save(tmp_path / "images/1.npy", values.astype(complex))
    with pytest.raises(DataError, match="this type of array is not supported"):
        SOURCE.read(item, OPTIONS)
    (tmp_path / "images/1.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999, 99999)}".ljust(128)
    )
    with pytest.raises(DataError, match=r"1\.npy: a damaged NPY file .*more values than its 128 bytes"):
        read_item(item, OPTIONS)


def test_shades_of_grey_are_judged_for_the_whole_data_set(tmp_path: Path) -> None:
    regions = np.zeros((12, 16), np.uint8)
    regions[1:9, 1:9], regions[6:8, 6:8] = 128, 255
    thin = np.zeros((12, 16), np.uint8)
    thin[2:4, 2:9], thin[4:6, 2:9] = 100, 255
    for number, mask in enumerate((regions, thin, thin)):
        save(tmp_path / f"images/{number}.png", image(number))
        save(tmp_path / f"masks/{number}.png", mask)
    masks = [SOURCE.read(item, OPTIONS).slices[0].mask for item in listing(tmp_path).items]
    np.testing.assert_array_equal(masks[1], thin > 0)
    save(tmp_path / "masks/0.png", thin)
    masks = [SOURCE.read(item, OPTIONS).slices[0].mask for item in listing(tmp_path).items]
    np.testing.assert_array_equal(masks[1], thin > 128)


def test_a_table_with_an_unclosed_quote_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "masks/1.png")
    (tmp_path / "index.csv").write_text('image,mask\nimages/1.png,"' + "x" * 200_000)
    assert "the table cannot be read" in problems(listing(tmp_path))["index.csv"]
