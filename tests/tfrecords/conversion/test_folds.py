"""Folds: groups whole, classes even, the test split closed, and each fold a sound shard directory of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import write_figshare
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.checks.shards import verify
from kerasseg_tfrecords.conversion.folds import assign_folds, write_folds
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import Manifest, PrepareOptions, load_manifest
from kerasseg_tfrecords.records.shards import read_records
from kerasseg_tfrecords.splitting.splits_file import load


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    raw = write_figshare(folder / "raw", patients=18, slices_each=3, size=48)
    prepare(raw, folder / "shards", PrepareOptions(size=32, split="60/20/20", records_per_shard=5), jobs=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def folds(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("dealt")
    targets = [root / f"fold-{k}" / "shards" for k in (1, 2, 3)]
    write_folds(shards, targets)
    return targets


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 11)), min_size=12, max_size=60),
    st.integers(2, 4),
    st.randoms(),
)
def test_groups_stay_whole_whatever_the_order(slices: list[tuple[str, int]], folds: int, random: object) -> None:
    slices = [*slices, *(("a", g) for g in range(folds))]
    labels, groups = [c for c, _ in slices], [f"g{g}" for _, g in slices]
    found = assign_folds(labels, groups, folds)
    of = dict(zip(groups, found.tolist(), strict=True))
    assert [of[group] for group in groups] == found.tolist()
    assert set(found.tolist()) == set(range(folds))
    order = list(range(len(slices)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = assign_folds([labels[i] for i in order], [groups[i] for i in order], folds)
    assert again.tolist() == [found[i] for i in order]


def test_classes_are_dealt_evenly_and_the_seed_matters() -> None:
    labels, groups = ["a", "b", "c"] * 40, [str(i // 3) for i in range(120)]
    found = assign_folds(labels, groups, 5)
    for name in "abc":
        assert np.bincount(found[np.array(labels) == name]).tolist() == [8] * 5
    assert assign_folds(labels, groups, 5, seed=1).tolist() != found.tolist()


def test_too_many_folds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2 patient groups cannot be divided into 3 folds\. Use --folds 2"):
        assign_folds(["a"] * 4, list("1122"), 3)
    with pytest.raises(UsageError, match=r"found 1, expected 2 or more"):
        assign_folds(["a"] * 4, list("1122"), 1)
    assert sorted(assign_folds(["a"] * 2, ["", ""], 2).tolist()) == [0, 1]


def test_each_fold_is_a_sound_shard_directory(folds: list[Path]) -> None:
    for target in folds:
        found = verify(target)
        assert found.errors == ()
        assert found.warnings == ()


def test_every_slice_is_held_out_once_and_no_test_slice_is_there(shards: Path, folds: list[Path]) -> None:
    source = {row.slice_id: row for row in load(shards / "splits.csv")}
    used = {name for name, row in source.items() if row.split in ("train", "val")}
    closed = {name for name, row in source.items() if row.split == "test"}
    assert closed
    held: list[str] = []
    for target in folds:
        val = {record.slice_id: record for record in read_records(target, "val")}
        train = {record.slice_id: record for record in read_records(target, "train")}
        assert val.keys() | train.keys() == used
        assert not {r.group for r in val.values()} & {r.group for r in train.values()}
        assert list(read_records(target, "test")) == []
        rows = {row.slice_id: row.split for row in load(target / "splits.csv")}
        assert rows.keys() == source.keys()
        assert {rows[name] for name in closed} == {"left_out"}
        assert {name for name, split in rows.items() if split == "val"} == set(val)
        held += val
    assert sorted(held) == sorted(used)


def test_records_and_counts_are_those_of_the_source(shards: Path, folds: list[Path]) -> None:
    source = {r.slice_id: r for r in read_records(shards, ["train", "val"])}
    for target in folds:
        manifest = load_manifest(target)
        for split in ("train", "val"):
            records = list(read_records(target, split))
            for record in records:
                other = source[record.slice_id]
                assert np.array_equal(record.image, other.image)
                assert np.array_equal(record.mask_native, other.mask_native)
                assert (record.label, record.group, record.spacing) == (other.label, other.group, other.spacing)
            for count in (c for c in manifest.counts if c.split == split):
                mine = [r for r in records if manifest.classes[r.label] == count.label]
                assert (count.slices, count.tumour_pixels) == (len(mine), sum(int(r.mask_native.sum()) for r in mine))
                assert count.patients == len({r.group for r in mine})
        assert manifest.options.split == "66.6667/33.3333/0"
        assert manifest.split.patients_on_both_sides == 0
        assert manifest.notes[-1].startswith(f"fold {target.parent.name[-1]} of 3")
    assert len({load_manifest(target).fingerprint for target in (*folds, shards)}) == 4


def test_all_folds_share_their_files(folds: list[Path]) -> None:
    first = {path.name: path.stat().st_ino for path in folds[0].rglob("*.tfrecord")}
    for target in folds[1:]:
        assert {path.name: path.stat().st_ino for path in target.rglob("*.tfrecord")} == first
    assert [path.name for path in folds[0].parent.iterdir()] == ["shards"]


def test_a_second_call_keeps_what_is_there_and_mends_what_is_not(
    shards: Path, folds: list[Path], tmp_path: Path
) -> None:
    targets = [tmp_path / f"fold-{k}" / "shards" for k in (1, 2, 3)]

    def facts() -> list[Manifest]:
        return [load_manifest(target) for target in folds]

    assert list(write_folds(shards, targets)) == facts()
    times = [(target / "manifest.json").stat().st_mtime_ns for target in targets]
    targets[1].rename(tmp_path / "gone")
    for target in targets:
        (target.parent / ".tmp-kerasseg-dead" / "new").mkdir(parents=True)
    assert list(write_folds(shards, targets)) == facts()
    again = [(target / "manifest.json").stat().st_mtime_ns for target in targets]
    assert (again[0], again[2]) == (times[0], times[2])
    for target in targets:
        assert [path.name for path in target.parent.iterdir()] == ["shards"]
    with pytest.raises(DataError, match="another fold already exists"):
        write_folds(shards, targets, seed=7)


def test_without_hard_links_files_are_copied(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    targets = [tmp_path / f"fold-{k}" / "shards" for k in (1, 2)]
    write_folds(shards, targets)
    assert all(verify(target).sound for target in targets)


def test_damaged_shards_are_not_dealt(shards: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    path = next((copy / "train").glob("*.tfrecord"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    target = tmp_path / "out" / "fold-1" / "shards"
    with pytest.raises(DataError, match="its bytes have changed"):
        write_folds(copy, [target, tmp_path / "out" / "fold-2" / "shards"])
    assert not target.exists()
