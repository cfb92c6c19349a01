"""What `prepare` and `verify` say about splits that are too small, or hold no tumour."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from factories import blob, write_mat
from kerasseg_cli.prepare import lines
from kerasseg_cli.verify import _sentence
from kerasseg_tfrecords import check_data, load_manifest, prepare, verify
from kerasseg_tfrecords.conversion.folds import write_folds
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import Manifest, PrepareOptions

SMALL = PrepareOptions(size=32)


def write(folder: Path, patients: int, with_tumour: int, classes: int = 1) -> Path:
    """Two slices for each patient; only the first `with_tumour` patients have a tumour, in one of the two."""
    for number in range(2 * patients):
        image, mask = blob(number, 40)
        if number % 2 or number // 2 >= with_tumour:
            mask = np.zeros_like(mask)
        write_mat(folder / f"{number}.mat", image, mask, 1 + number // 2 % classes, f"{100_000 + number // 2}")
    return folder


def tumours(manifest: Manifest) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for entry in manifest.counts:
        found[entry.split] += entry.slices - entry.empty
    return dict(found)


def warnings(manifest: Manifest) -> str:
    return " ".join(note for note in manifest.notes if note.startswith("Warning: "))


def test_tumours_go_to_every_split_and_fold(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", patients=40, with_tumour=5)
    for seed in range(3):
        options = SMALL.model_copy(update={"seed": seed, "split": "60/20/20"})
        manifest = prepare(raw, tmp_path / f"{seed}", options, jobs=1)
        assert min(tumours(manifest).values()) >= 1
        assert warnings(manifest) == ""
        assert "percentage points" in lines(manifest)[0]
    held = sum(count for split, count in tumours(manifest).items() if split != "test")
    folds = write_folds(tmp_path / "0", [tmp_path / f"fold-{k}" for k in range(2)])
    assert sorted(tumours(fold)["val"] for fold in folds) in ([held // 2, held - held // 2], [1, 2], [2, 2])
    assert list(write_folds(tmp_path / "0", [tmp_path / f"fold-{k}" for k in range(2)])) == list(folds)


def test_a_split_without_tumour_is_named(tmp_path: Path) -> None:
    manifest = prepare(write(tmp_path / "raw", patients=30, with_tumour=2), tmp_path / "shards", SMALL, jobs=1)
    (without,) = [split for split, count in tumours(manifest).items() if count == 0]
    assert f"{without} holds no tumour" in warnings(manifest)
    assert "percentage points" not in lines(manifest)[0]
    found = verify(tmp_path / "shards")
    assert found.sound
    assert any(f"{without} holds no tumour" in line for line in found.warnings)


def test_black_masks_are_noticed_everywhere(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", patients=30, with_tumour=0)
    manifest = prepare(raw, tmp_path / "shards", SMALL, jobs=1)
    assert "no mask holds a tumour" in warnings(manifest)
    assert any("no mask holds a tumour" in line for line in verify(tmp_path / "shards").warnings)
    report = check_data([raw])
    assert report.with_tumour == 0
    assert [problem.kind for problem in report.warnings if "no mask holds a tumour" in problem.message] == ["no-tumour"]
    assert _sentence(report).endswith("but no mask holds a tumour.")


@pytest.mark.parametrize(("patients", "classes"), [(12, 1), (34, 2), (9, 3)])
def test_few_patients_are_a_warning_with_a_remedy(tmp_path: Path, patients: int, classes: int) -> None:
    raw = write(tmp_path / "raw", patients, with_tumour=patients, classes=classes)
    manifest = prepare(raw, tmp_path / "shards", SMALL, jobs=1)
    for words in ("too few patients for reliable results", " in test", "--split 60/20/20", "kerasseg cross-validate"):
        assert words in warnings(manifest)
    first, second, *_ = lines(manifest)
    assert first == "Split by patient, seed 42."
    assert second.startswith("Warning: ")


def test_unknown_patients_are_not_called_a_split_by_patient(tmp_path: Path) -> None:
    for name, seed in (("images", 0), ("masks", 0)):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(60):
            image, mask = blob(number + seed, 40)
            data = image.astype(np.uint8) if name == "images" else mask.astype(np.uint8) * 255
            cv2.imwrite(str(tmp_path / "raw" / name / f"{number}.png"), data)
    manifest = prepare(tmp_path / "raw", tmp_path / "shards", SMALL, jobs=1)
    said = lines(manifest)
    assert said[0].startswith("Split without patient ids, seed 42.")
    assert any(line.startswith("No patient id is known") for line in said)


def test_a_mistyped_input_is_named_before_existing_shards(tmp_path: Path) -> None:
    prepare(write(tmp_path / "raw", patients=30, with_tumour=30), tmp_path / "shards", SMALL, jobs=1)
    with pytest.raises(DataError, match="no such file or folder"):
        prepare(tmp_path / "nothere", tmp_path / "shards", SMALL)
    with pytest.raises(DataError, match="nothere.csv"):
        prepare(tmp_path / "raw", tmp_path / "shards", SMALL, splits=tmp_path / "nothere.csv")
    with pytest.raises(UsageError, match="shards already exist"):
        prepare(tmp_path / "raw", tmp_path / "shards", SMALL)
    assert load_manifest(tmp_path / "shards").slices_in("train")
