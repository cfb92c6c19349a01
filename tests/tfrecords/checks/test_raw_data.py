"""What check_slice and check_data find, and that they find nothing in good data."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from children import PATIENCE
from factories import blob, write_cvind, write_figshare, write_mat
from kerasseg_tfrecords.checks import raw_data as integrity
from kerasseg_tfrecords.checks.raw_data import check_data, check_slice
from kerasseg_tfrecords.slices import Slice
from kerasseg_tfrecords.sources.base import Listing

IMAGE, MASK = blob(3, 96)


def kinds(image: Any, mask: Any = MASK, **facts: Any) -> list[tuple[str, str]]:
    piece = Slice(np.asarray(image), mask, "1", "folder/1.mat", **facts)
    found = check_slice(piece)
    assert all(problem.name == "folder/1.mat" for problem in found)
    return [(problem.kind, problem.level) for problem in found]


@given(st.integers(0, 200), st.sampled_from([np.int16, np.uint16, np.float32, np.float64]), st.booleans())
def test_good_slices(seed: int, dtype: type, column_major: bool) -> None:
    image, mask = blob(seed, 64)
    image = image.astype(dtype)
    if column_major:
        image, mask = np.asfortranarray(image), np.asfortranarray(mask)
    assert kinds(image, mask, label="glioma") == []
    assert kinds(np.dstack([image] * 3), mask) == []
    assert kinds(image, None) == []


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((0, 5)), "empty-image"),
        (np.zeros(5), "empty-image"),
        (np.zeros((4, 4, 2)), "empty-image"),
        (np.full((96, 96), 7, np.int16), "constant-image"),
        (np.full((96, 96), 0.5), "constant-image"),
        (np.where(MASK, np.nan, 1.0), "not-finite"),
        (np.where(MASK, np.inf, 1.0), "not-finite"),
        (np.where(MASK, -np.inf, 1.0), "not-finite"),
        (np.full((96, 96), np.nan), "not-finite"),
    ],
)
def test_images_that_cannot_be_used(image: Any, kind: str) -> None:
    assert kinds(image, None) == [(kind, "error")]


def test_a_mask_of_another_size() -> None:
    assert kinds(IMAGE, MASK[1:]) == [("size-mismatch", "error")]
    assert kinds(np.dstack([IMAGE] * 3), MASK[:, 1:]) == [("size-mismatch", "error")]


def test_masks_to_look_at() -> None:
    assert kinds(IMAGE, MASK & False, label="glioma") == [("empty-mask", "warning")]
    for harmless in ({"label": "no_tumor"}, {"label": ""}, {"label": "glioma", "volume": "v", "slice_index": 3}):
        assert kinds(IMAGE, MASK & False, **harmless) == []
    assert kinds(IMAGE, MASK, label="no_tumor") == [("mask-in-healthy", "warning")]
    assert ("large-mask", "warning") in kinds(IMAGE, ~MASK)
    corner = np.zeros_like(MASK)
    corner[:8, :8] = True
    assert kinds(IMAGE, corner) == [("mask-outside", "warning")]
    assert kinds(IMAGE - 1000, corner) == [("mask-outside", "warning")], "background need not be 0"
    assert kinds(np.dstack([IMAGE * 0, IMAGE, IMAGE * 0]), corner) == [("mask-outside", "warning")]


def spoil(folder: Path) -> dict[str, str]:
    """Writes one bad file of each sort into `folder`; name -> kind of its problem."""
    good = write_mat(folder / "good.mat", IMAGE, MASK).read_bytes()
    (folder / "cut.mat").write_bytes(good[: len(good) // 2])
    (folder / "text.mat").write_text("no MATLAB")
    write_mat(folder / "label.mat", IMAGE, MASK, 7)
    write_mat(folder / "size.mat", IMAGE, MASK[1:])
    write_mat(folder / "nan.mat", np.where(MASK, np.nan, IMAGE), MASK)
    write_mat(folder / "constant.mat", IMAGE * 0, MASK)
    write_mat(folder / "neue\nZeile ü.mat", IMAGE, None)
    with h5py.File(folder / "huge.mat", "w") as file:
        file.create_dataset("cjdata/image", (2**20, 2**20), "<i2", chunks=(512, 512))
        file["cjdata/tumorMask"] = MASK
    with h5py.File(folder / "link.mat", "w") as file:
        file["cjdata"] = h5py.ExternalLink("good.mat", "/cjdata")
    with h5py.File(folder / "other.mat", "w") as file:
        file["image"] = IMAGE
    return {
        "cut.mat": "unreadable",
        "text.mat": "unreadable",
        "label.mat": "unknown-label",
        "size.mat": "size-mismatch",
        "nan.mat": "not-finite",
        "constant.mat": "constant-image",
        "neue\nZeile ü.mat": "missing-mask",
        "huge.mat": "too-large",
        "link.mat": "unsafe-link",
        "other.mat": "no-cjdata",
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_bad_files_at_once_and_the_good_ones_counted(tmp_path: Path, jobs: int) -> None:
    expected = spoil(write_figshare(tmp_path, patients=3, slices_each=2, size=32))
    write_cvind(tmp_path / "cvind.mat")
    write_mat(tmp_path / "nothing.mat", IMAGE, MASK & False)
    seen: list[tuple[int, int]] = []
    report = check_data([tmp_path], jobs=jobs, progress=lambda done, total: seen.append((done, total)))
    assert {problem.name: problem.kind for problem in report.problems} == expected
    assert [(problem.name, problem.kind) for problem in report.warnings] == [("nothing.mat", "empty-mask")]
    assert [left.name for left in report.left_out] == ["cvind.mat"]
    assert not report.ok
    # "constant" could be read, too: only then could it be seen to be constant.
    assert (report.items, report.slices, report.patients) == (19, 9, 4)
    assert report.labels == {"glioma": 2, "meningioma": 5, "pituitary": 2}
    assert report.inputs == ((str(tmp_path), "figshare"),)
    assert seen == [(done, 19) for done in range(1, 20)]
    for problem in report.problems:
        line = str(problem)
        assert "\n" not in line
        assert problem.message.count(problem.name) == 0


def test_good_data(tmp_path: Path) -> None:
    report = check_data([write_figshare(tmp_path, patients=2, slices_each=2, size=32)])
    assert report.ok
    assert (report.problems, report.warnings, report.left_out) == ((), (), ())
    assert (report.slices, report.slices_without_patient) == (4, 0)


def test_a_bad_input_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    good = write_figshare(tmp_path / "good", 1, 1)
    report = check_data([tmp_path / "empty", tmp_path / "gone", tmp_path / "broken.zip", good])
    assert [problem.kind for problem in report.problems] == ["empty", "missing-file", "unreadable"]
    assert [name for _, name in report.inputs] == ["", "", "", "figshare"]
    assert report.slices == 1


def test_problems_of_the_listing_are_in_the_report(tmp_path: Path) -> None:
    write_figshare(tmp_path, 1, 1)
    (tmp_path / "2.mat").symlink_to(tmp_path / "gone")
    assert [problem.kind for problem in check_data([tmp_path]).problems] == ["missing-file"]


def test_two_slices_with_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No folder of .mat files can have them; an index table can.
    original = integrity.find_items

    def find_items(*arguments: Any) -> Listing:
        listing = original(*arguments)
        return replace(listing, items=tuple(replace(item, slice_id="7") for item in listing.items))

    monkeypatch.setattr(integrity, "find_items", find_items)
    (problem,) = check_data([write_figshare(tmp_path, 1, 2)]).problems
    assert (problem.name, problem.kind) == ("2.mat", "duplicate-id")
    assert "1.mat has the same slice id '7'" in problem.message


def test_inputs_may_share_ids(tmp_path: Path) -> None:
    for name in "ab":
        write_figshare(tmp_path / name, 1, 2)
    assert check_data([tmp_path / "a", tmp_path / "b"]).ok


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_interrupting_leaves_no_processes(tmp_path: Path, python: str, child_environment: dict[str, str]) -> None:
    write_figshare(tmp_path, 20, 20, size=16)
    script = tmp_path / "check.py"
    script.write_text(
        "from kerasseg_tfrecords.checks.raw_data import check_data\n"
        "if __name__ == '__main__':\n"
        f"    while True: check_data([{str(tmp_path)!r}], jobs=2, progress=lambda d, t: print(d, flush=True))\n"
    )
    child = subprocess.Popen(
        [python, str(script)],
        env=child_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    os.killpg(child.pid, signal.SIGINT)  # as a terminal sends it: to all processes
    _, stderr = child.communicate(timeout=PATIENCE)
    assert stderr.decode().count("KeyboardInterrupt") >= 1
    assert "Process SpawnProcess" not in stderr.decode(), "the workers are silent"
    deadline = time.monotonic() + PATIENCE
    while alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child.pid), "the workers are gone, too"


@pytest.mark.real
@pytest.mark.slow
def test_real_data_is_sound(real: Path) -> None:
    report = check_data([real / "figshare-mat"])
    assert report.ok
    assert report.warnings == ()
    assert report.labels == {"glioma": 102, "meningioma": 104, "pituitary": 102}
    assert report.patients == 38
