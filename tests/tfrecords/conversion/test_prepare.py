"""The pipeline as a whole: deterministic, atomic, resumable, and honest about bad input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from factories import blob, write_cvind, write_figshare, write_mat
from kerasseg_tfrecords import load_manifest, prepare, read_records, verify
from kerasseg_tfrecords.errors import BadInputError, DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import Manifest, PrepareOptions, parse_options
from kerasseg_tfrecords.splitting.splits_file import load
from kerasseg_tfrecords.workers import LocalPool

SMALL = PrepareOptions(size=32, split="60/20/20", records_per_shard=4)
KILLS = int(os.environ.get("KERASSEG_TORTURE", "3"))


def tree(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 slices of 30 patients, 10 a class; each file name with what file systems allow."""
    folder = tmp_path_factory.mktemp("raw") / "scans"
    write_figshare(folder, patients=30, slices_each=3, size=48)
    (folder / "5.mat").rename(folder / "fünf mit Leerzeichen.mat")
    (folder / "6.mat").rename(folder / "six\nlines.mat")
    write_cvind(folder / "cvind.mat", 90)
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("out") / "shards"
    return out, prepare(raw, out, SMALL, jobs=1)


def test_every_slice_is_there_once_and_as_it_was_read(raw: Path, prepared: tuple[Path, Manifest]) -> None:
    """Against a plain reading with h5py: transposed, scaled by minimum and maximum, mask at native size."""
    out, manifest = prepared
    records = {record.slice_id: record for record in read_records(out)}
    assert len(records) == 90
    assert manifest.channels == 1
    for path in raw.glob("*.mat"):
        if path.name == "cvind.mat":
            continue
        with h5py.File(path) as file:
            image, mask = file["cjdata/image"][()].T, file["cjdata/tumorMask"][()].T.astype(bool)
            label = int(file["cjdata/label"][0, 0])
            patient = "".join(chr(code) for code in file["cjdata/PID"][:, 0])
        record = records[f"scans/{path.stem}"]
        assert np.array_equal(record.mask_native, mask)
        assert manifest.classes[record.label] == ("meningioma", "glioma", "pituitary")[label - 1]
        assert record.patient == patient
        small = cv2.resize(image.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
        plain = (small - image.min()) / (image.max() - image.min()) * 255
        assert np.abs(record.image[..., 0] - plain).max() <= 1


def test_no_patient_stands_on_two_sides(prepared: tuple[Path, Manifest]) -> None:
    out, manifest = prepared
    sides: dict[str, set[str]] = {}
    for row in load(out / "splits.csv"):
        sides.setdefault(row.patient, set()).add(row.split)
    assert len(sides) == 30
    assert all(len(splits) == 1 for splits in sides.values())
    assert manifest.split.patients_on_both_sides == 0
    for name in manifest.classes:
        patients = {entry.split: entry.patients for entry in manifest.counts if entry.label == name}
        assert patients == {"train": 6, "val": 2, "test": 2}


def test_the_manifest_tells_what_there_is(prepared: tuple[Path, Manifest]) -> None:
    out, manifest = prepared
    assert load_manifest(out) == manifest
    assert manifest.slices_in("train") + manifest.slices_in("validation") + manifest.slices_in("test") == 90
    assert [name for name, _ in manifest.left_out] == ["scans/cvind.mat"]
    for shard in manifest.shards:
        assert shard.records <= 4
        assert hashlib.sha256((out / shard.path).read_bytes()).hexdigest() == shard.sha256
    assert not out.with_name("shards.partial").exists()


def test_jobs_change_nothing(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    prepare(raw, tmp_path / "again", SMALL, jobs=3)
    assert tree(tmp_path / "again") == tree(prepared[0])


def test_another_place_changes_nothing(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "elsewhere" / "scans")
    prepare(tmp_path / "elsewhere" / "scans", tmp_path / "again", SMALL, jobs=1)
    assert tree(tmp_path / "again") == tree(prepared[0])


def test_another_seed_splits_otherwise(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    prepare(raw, tmp_path / "again", SMALL.model_copy(update={"seed": 7}), jobs=1)
    first, second = load(prepared[0] / "splits.csv"), load(tmp_path / "again" / "splits.csv")
    assert [row.slice_id for row in first] == [row.slice_id for row in second]
    assert [row.split for row in first] != [row.split for row in second]


def test_a_frozen_split_is_used_again(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    """Whatever the seed and the shares say: the file decides."""
    other = PrepareOptions(size=32, split="70/15/15", seed=1, records_per_shard=4)
    prepare(raw, tmp_path / "again", other, splits=prepared[0] / "splits.csv", jobs=1)
    assert load(tmp_path / "again" / "splits.csv") == load(prepared[0] / "splits.csv")


def test_a_frozen_split_refuses_other_data(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    copy = tmp_path / "scans"
    shutil.copytree(raw, copy)
    (copy / "1.mat").unlink()
    with pytest.raises(DataError, match="scans/1"):
        prepare(copy, tmp_path / "out", SMALL, splits=prepared[0] / "splits.csv", jobs=1)
    assert not (tmp_path / "out").exists()
    image, mask = blob(99, 48)
    write_mat(copy / "1.mat", image, mask, 1, "100000")
    with pytest.raises(DataError, match="scans/1"):
        prepare(copy, tmp_path / "out", SMALL, splits=prepared[0] / "splits.csv", jobs=1)


def test_per_class_takes_a_balanced_subset_and_the_frozen_file_repeats_it(raw: Path, tmp_path: Path) -> None:
    options = PrepareOptions(size=32, split="80/10/10", split_by="slice", per_class=20)
    manifest = prepare(raw, tmp_path / "out", options, jobs=1)
    assert {(c.split, c.label): c.slices for c in manifest.counts} == {
        (split, label): count
        for label in ("meningioma", "glioma", "pituitary")
        for split, count in (("train", 16), ("val", 2), ("test", 2))
    }
    assert manifest.split.patients_on_both_sides > 0  # slice-wise splits leak, and it is said
    again = prepare(raw, tmp_path / "again", options, splits=tmp_path / "out" / "splits.csv", jobs=1)
    assert again.counts == manifest.counts


def test_slice_wise_leaks_are_warnings_of_verify(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "out", PrepareOptions(size=32, split_by="slice"), jobs=1)
    found = verify(tmp_path / "out")
    assert found.sound
    assert any("more than one split" in line for line in found.warnings)


def test_duplicates_go_to_one_side(raw: Path, tmp_path: Path) -> None:
    """Equal pixels under other patients' ids, as when one data set hides in another."""
    folder = tmp_path / "scans"
    shutil.copytree(raw, folder)
    for number in range(1, 5):
        with h5py.File(folder / f"{number}.mat") as file:
            image, mask = file["cjdata/image"][()].T, file["cjdata/tumorMask"][()].T
            label = file["cjdata/label"][0, 0]
        write_mat(folder / f"copy{number}.mat", image, mask, label, f"99{number}")
    manifest = prepare(folder, tmp_path / "out", SMALL, jobs=1)
    pairs = {frozenset((pair.first, pair.second)) for pair in manifest.duplicates if pair.kind == "equal"}
    assert {frozenset((f"scans/{n}", f"scans/copy{n}")) for n in range(1, 5)} <= pairs
    split = {row.slice_id: (row.split, row.group) for row in load(tmp_path / "out" / "splits.csv")}
    assert all(split[f"scans/{n}"] == split[f"scans/copy{n}"] for n in range(1, 5))
    assert verify(tmp_path / "out").sound


def test_overlap_with_other_shards_is_left_out(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder = tmp_path / "new"
    write_figshare(folder, patients=9, slices_each=2, size=48, seed=5)
    shutil.copy(raw / "1.mat", folder / "known1.mat")
    shutil.copy(raw / "7.mat", folder / "known7.mat")
    manifest = prepare(folder, tmp_path / "out", SMALL, exclude_overlap=prepared[0], jobs=1)
    assert {(entry.slice_id, entry.other) for entry in manifest.overlap} == {
        ("new/known1", "scans/1"),
        ("new/known7", "scans/7"),
    }
    assert "new/known1" not in {record.slice_id for record in read_records(tmp_path / "out")}
    assert verify(tmp_path / "out").sound


def test_several_inputs_make_one_data_set(raw: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for kind in ("images", "masks"):
        (pictures / kind).mkdir(parents=True)
    for number in range(12):
        image, mask = blob(900 + number, 40)
        cv2.imwrite(str(pictures / "images" / f"p{number}.png"), (image / image.max() * 255).astype(np.uint8))
        cv2.imwrite(str(pictures / "masks" / f"p{number}.png"), mask.astype(np.uint8) * 255)
    manifest = prepare([raw, pictures], tmp_path / "out", SMALL, jobs=1)
    assert [(entry.name, entry.format, entry.slices) for entry in manifest.inputs] == [
        ("scans", "figshare", 90),
        ("pictures", "pairs", 12),
    ]
    assert manifest.classes == ("meningioma", "glioma", "pituitary", "tumor")
    assert manifest.split.slices_without_patient == 12


# ---- bad input


def test_all_bad_files_are_listed_at_once_and_nothing_is_written(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    shutil.copytree(raw, folder)
    (folder / "3.mat").write_bytes((folder / "3.mat").read_bytes()[:900])
    image, mask = blob(3, 48)
    write_mat(folder / "4.mat", image, mask, 7)
    write_mat(folder / "8.mat", image, mask[:40], 1)
    write_mat(folder / "9.mat", np.where(mask, np.nan, 1.0), mask, 1)
    with pytest.raises(BadInputError) as caught:
        prepare(folder, tmp_path / "out", SMALL, jobs=2)
    assert [problem.name for problem in caught.value.problems] == [f"scans/{n}.mat" for n in (3, 4, 8, 9)]
    assert not (tmp_path / "out").exists()
    manifest = prepare(folder, tmp_path / "out", SMALL.model_copy(update={"skip_bad": True}), jobs=2)
    assert [name for name, _, _ in manifest.skipped] == [f"scans/{n}.mat" for n in (3, 4, 8, 9)]
    assert sum(entry.slices for entry in manifest.counts) == 86


def test_bad_members_of_archives_are_not_passed_over(raw: Path, tmp_path: Path) -> None:
    archive = tmp_path / "scans.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(raw.glob("*.mat")):
            file.write(path, path.name)
        file.writestr("../outside.mat", b"climbs out")
    with pytest.raises(BadInputError) as caught:
        prepare(archive, tmp_path / "out", SMALL, jobs=1)
    assert ["outside.mat" in problem.name for problem in caught.value.problems] == [True]
    manifest = prepare(archive, tmp_path / "out", SMALL.model_copy(update={"skip_bad": True}), jobs=1)
    assert len(manifest.skipped) == 1
    assert {record.slice_id for record in read_records(tmp_path / "out")} >= {"scans/1", "scans/2"}
    assert not (tmp_path / "outside.mat").exists()


def test_two_slices_with_one_id(tmp_path: Path) -> None:
    """Two inputs of the same name are told apart; a reader that gives one id twice is not believed."""
    one, two = tmp_path / "a" / "scans", tmp_path / "b" / "scans"
    write_figshare(one, patients=9, slices_each=1, size=32)
    write_figshare(two, patients=9, slices_each=1, size=32, seed=8)
    prepare([one, two], tmp_path / "out", SMALL, jobs=1)
    ids = [record.slice_id for record in read_records(tmp_path / "out")]
    assert len(ids) == len(set(ids)) == 18
    assert "scans-2/1" in ids


@pytest.mark.parametrize("where", [".", "inside"])
def test_shards_inside_the_input_are_not_input(raw: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "scans"
    shutil.copytree(raw, folder)
    out = folder / "shards" if where == "inside" else folder / ".." / "shards"
    prepare(folder, out, SMALL, jobs=1)
    first = tree(out)
    prepare(folder, out, SMALL, jobs=1, overwrite=True)
    assert tree(out) == first


def test_existing_folders_are_not_overwritten(raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    with pytest.raises(UsageError, match="--overwrite"):
        prepare(raw, out, SMALL)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("three years of work")
    with pytest.raises(UsageError, match="not replaced"):
        prepare(raw, foreign, SMALL, overwrite=True)
    assert (foreign / "thesis.tex").exists()
    with pytest.raises(UsageError, match="replace the input"):
        prepare(raw, raw.parent, SMALL, overwrite=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    prepare(raw, empty, SMALL, jobs=1)
    assert tree(empty) == tree(prepared[0])


def test_a_failed_run_keeps_the_earlier_shards(
    raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    before = tree(out)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kerasseg_tfrecords.records.shards.framed", full)
    with pytest.raises(KerassegError, match="no space left"):
        prepare(raw, out, SMALL.model_copy(update={"seed": 3}), overwrite=True, jobs=1)
    assert tree(out) == before
    monkeypatch.undo()
    prepare(raw, out, SMALL, overwrite=True, jobs=1)
    assert tree(out) == before


def test_a_full_disk_says_so_and_the_next_run_continues(
    raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """A real full disk: a file system of its own in memory, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        with pytest.raises(KerassegError, match="no space left") as caught:
            prepare(raw, disk / "shards", SMALL, jobs=1)
        assert "run the same command again" in str(caught.value)
        assert not (disk / "shards").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        prepare(raw, disk / "shards", SMALL, jobs=1)
        assert tree(disk / "shards") == tree(prepared[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_no_permission_names_the_folder(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(KerassegError, match="no permission to write.*--out"):
        prepare(raw, tmp_path / "out", SMALL)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("size", 3, "--size cannot be 3"),
        ("intensity", "histogram", "--intensity.*minmax"),
        ("split_by", "person", "--split-by.*patient"),
        ("plane", "top", "--plane.*axial"),
    ],
)
def test_options_that_cannot_be_meant(name: str, value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_options(**{name: value})


# ---- kill -9

CHILD = """
import sys
from pathlib import Path
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions
options = PrepareOptions(size=32, split="60/20/20", records_per_shard=4)
print("start", flush=True)
prepare(Path(sys.argv[1]), Path(sys.argv[2]), options, jobs=int(sys.argv[3]), progress=lambda *a: print(*a, flush=True))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_gives_the_undisturbed_result(
    python: str, child_environment: dict[str, str], raw: Path, prepared: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """`kill -9` of the whole process group after a random number of progress lines, some while shards are written."""
    expected = tree(prepared[0])
    moments = random.Random(2)
    for number in range(KILLS):
        out = tmp_path / f"run{number}"
        command = [python, "-c", CHILD, str(raw), str(out), str(1 + number % 2)]
        child = subprocess.Popen(
            command, env=child_environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert child.stdout is not None
        for _ in range(moments.randint(1, 9)):
            child.stdout.readline()
        time.sleep(moments.random() * 0.02)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if out.exists():  # it had finished
            assert tree(out) == expected
            continue
        with pytest.raises(DataError):
            load_manifest(out)
        prepare(raw, out, SMALL, jobs=1)
        assert tree(out) == expected
        assert not out.with_name(out.name + ".partial").exists()


def test_an_interrupted_run_reads_nothing_twice(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kerasseg_tfrecords.conversion.prepare as module

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "arrange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, tmp_path / "out", SMALL, jobs=1)
    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    read = []
    original = module.run_task.__globals__["convert_item"]
    monkeypatch.setitem(
        module.run_task.__globals__, "convert_item", lambda item, *rest: read.append(item.name) or original(item, *rest)
    )
    image, mask = blob(4242, 48)
    copy = raw / "2.mat"
    before, stat = copy.read_bytes(), copy.stat()
    try:
        write_mat(copy, image, mask, 1, "100000")
        prepare(raw, tmp_path / "out", SMALL, jobs=1)
    finally:
        copy.write_bytes(before)
        os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # The changed file's chunk of 32 is read again, the other files are not.
    assert "2.mat" in read
    assert len(read) == 32


@pytest.mark.parametrize("path", ["2.mat", None])
def test_a_crash_costs_the_file_that_was_being_read(
    path: str | None, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its name, the files are read one by one."""
    import kerasseg_tfrecords.conversion.prepare as module

    (listed,) = module.list_inputs([raw], SMALL, hidden=())
    conversion = module.Conversion(32, "minmax", module.source_options(SMALL))
    task = module.Task(listed.items[:4], "raw", conversion, tmp_path)

    def run_task(part: Any) -> Any:
        if any(item.name == "2.mat" for item in part.items):
            raise DataError("crashed", path=path, kind="crashed")
        return original(part)

    original = module.run_task
    monkeypatch.setattr(module, "run_task", run_task)
    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    pool = LocalPool(1)
    (found,) = pool.map(run_task, [task], crashed=partial(module._crashed, pool))
    assert [piece.facts.source for piece in found.slices] == ["raw/1.mat", "raw/3.mat", "raw/4.mat"]
    assert [(problem.name, problem.kind) for problem in found.problems] == [("raw/2.mat", "crashed")]


def test_a_second_process_is_refused(raw: Path, tmp_path: Path) -> None:
    from kerasseg_tfrecords.files import lock

    work = tmp_path / "out.partial"
    work.mkdir()
    with lock(work / "lock", "shards"), pytest.raises(KerassegError, match="another process is writing"):
        prepare(raw, tmp_path / "out", SMALL)


# ---- verify


def test_sound_shards_verify(prepared: tuple[Path, Manifest]) -> None:
    found = verify(prepared[0])
    assert found.sound
    assert not found.warnings
    assert found.records == 90


def rewritten(folder: Path, **changes: object) -> None:
    """Changes the manifest behind kerasseg's back."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
def test_verify_finds_each_kind_of_damage(prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    out, manifest = prepared
    shard = manifest.shards[0].path

    def damaged(name: str) -> Path:
        copy = tmp_path / name
        shutil.copytree(out, copy)
        return copy

    copy = damaged("flipped")
    data = bytearray((copy / shard).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / shard).write_bytes(bytes(data))
    assert any(shard in line and "SHA-256" in line for line in verify(copy).errors)

    copy = damaged("truncated")
    (copy / shard).write_bytes((copy / shard).read_bytes()[:-10])
    errors = verify(copy).errors
    assert any("middle of a record" in line for line in errors)
    assert any("but the manifest says" in line for line in errors)

    copy = damaged("missing")
    (copy / shard).unlink()
    assert any(line == f"{shard}: missing" for line in verify(copy).errors)

    copy = damaged("extra")
    shutil.copy(copy / shard, copy / "train" / "more.tfrecord")
    assert "train/more.tfrecord: not in the manifest" in verify(copy).errors

    copy = damaged("moved")  # a training shard where a validation shard was: names and counts alone would not tell
    val = next(entry for entry in manifest.shards if entry.split == "val")
    train = next(entry for entry in manifest.shards if entry.split == "train" and entry.records == val.records)
    shutil.copy(copy / train.path, copy / val.path)
    errors = verify(copy).errors
    assert any("but splits.csv says train" in line for line in errors)
    assert any("is 2 times in the shards" in line for line in errors)
    assert any("in more than one split" in line for line in errors)

    copy = damaged("splits")
    text = (copy / "splits.csv").read_text()
    (copy / "splits.csv").write_text(text.replace(",val", ",train", 1))
    assert any("splits.csv: has changed" in line for line in verify(copy).errors)

    copy = damaged("classes")
    rewritten(copy, classes=["glioma", "meningioma", "pituitary"])
    assert any("in a file of" in line for line in verify(copy).errors)

    copy = damaged("newer")
    rewritten(copy, format_version=99)
    with pytest.raises(DataError, match="newer version of kerasseg"):
        verify(copy)

    copy = damaged("broken")
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        verify(copy)


def test_verify_finds_a_mask_that_disagrees(prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    """Hashes made right again: only looking at the record tells."""
    import tensorflow as tf

    out, manifest = prepared
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    path = copy / manifest.shards[0].path
    records = [bytes(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[0])
    packed = bytearray(example.features.feature["mask"].bytes_list.value[0])
    packed[40] ^= 0xFF
    example.features.feature["mask"].bytes_list.value[0] = bytes(packed)
    records[0] = example.SerializeToString(deterministic=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    state = json.loads((copy / "manifest.json").read_text())
    state["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(state))
    errors = verify(copy).errors
    assert len(errors) == 1
    assert "mask and native mask disagree" in errors[0]


def test_reading_stops_with_words_at_a_damaged_record(prepared: tuple[Path, Manifest], tmp_path: Path) -> None:
    out, manifest = prepared
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    path = copy / manifest.shards[0].path
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"damaged record after {manifest.shards[0].records - 1} good ones"):
        list(read_records(copy, ["train"]))
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match="does not fit the manifest"):
        list(read_records(copy, ["train"]))
