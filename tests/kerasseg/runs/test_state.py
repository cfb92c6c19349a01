"""The state of a run: every damage is noticed, two generations are kept, and a full disk costs neither of them."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.state import StateStore
from kerasseg_tfrecords.errors import KerassegError

FACTS = {"epoch": 3, "text": "später", "numbers": [0.1, None, 1e-300]}
ARRAYS = {
    "variables/model/0001/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "variables/optimizer/0000/iteration": np.array(7, np.int64),
    "best/dice": np.array([0.5, np.nan], np.float32),
}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name], equal_nan=True) for name in one
    )


def test_what_was_saved_comes_back(tmp_path):
    store = StateStore(tmp_path / "new" / "folder")
    assert store.newest() is None
    store.save(FACTS, ARRAYS)
    saved = store.newest()
    assert saved.facts == FACTS
    assert same(saved.arrays, ARRAYS)
    assert (saved.generation, saved.skipped) == (1, ())


@given(
    array=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.float16]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    fact=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)
@settings(max_examples=40)
def test_any_arrays_and_facts_come_back(tmp_path_factory, array, fact):
    store = StateStore(tmp_path_factory.mktemp("state"))
    store.save({"fact": fact}, {"a/b": array})
    saved = store.newest()
    assert saved.facts == {"fact": fact}
    assert same(saved.arrays, {"a/b": array})


def test_two_generations_are_kept(tmp_path):
    store = StateStore(tmp_path)
    for epoch in range(5):
        store.save({"epoch": epoch}, ARRAYS)
        assert StateStore(tmp_path).newest().facts == {"epoch": epoch}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-00000004.npz", "state-00000005.npz"]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for epoch in (1, 2):
        StateStore(folder).save({"epoch": epoch}, ARRAYS)
    return folder


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path):
    """Some bits of a zip say nothing (its dates, say): then what is read is what was written."""
    arrays = {"a/b": np.arange(6, dtype=np.float32), "steps": np.array(7)}
    for epoch in (1, 2):
        newest = StateStore(tmp_path).save({"epoch": epoch}, arrays)
    content, passed_over = newest.read_bytes(), 0
    # A thirteenth of all bits, and all of those that say how a member is packed, which lead to the rarest errors.
    packed = [match.start() + place for match in re.finditer(b"PK\x01\x02", content) for place in range(8, 12)]
    places = {*range(0, 8 * len(content), 13), *(8 * byte + bit for byte in packed for bit in range(8))}
    for place in sorted(places):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        newest.write_bytes(flipped)
        saved = StateStore(tmp_path).newest()
        assert same(saved.arrays, arrays), place
        assert saved.facts == {"epoch": saved.generation}, place
        assert [str(newest) in sentence for sentence in saved.skipped] == [True] * (2 - saved.generation), place
        passed_over += len(saved.skipped)
    assert passed_over > len(places) / 2


@given(keep=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_a_state_that_was_cut_off_is_passed_over(tmp_path_factory, two, keep):
    folder = tmp_path_factory.mktemp("cut")
    for file in two.iterdir():
        shutil.copy(file, folder)
    newest = folder / "state-00000002.npz"
    os.truncate(newest, int(keep * newest.stat().st_size))
    assert StateStore(folder).newest().facts == {"epoch": 1}


def test_a_change_that_the_zip_itself_does_not_notice_is_noticed(tmp_path):
    """Somebody who edits a number and packs it again properly."""
    store = StateStore(tmp_path)
    store.save(FACTS, ARRAYS)
    path = store.save(FACTS, ARRAYS)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    document = json.loads(members["facts.json"])
    document["facts"]["epoch"] = 4
    members["facts.json"] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "SHA-256" in store.newest().skipped[0]


def test_when_no_state_can_be_read_it_says_what_is_left(tmp_path):
    store = StateStore(tmp_path)
    store.save(FACTS, ARRAYS).write_bytes(b"")
    with pytest.raises(KerassegError, match=r"no saved state can be read \(found 1 damaged\).*model.keras"):
        store.newest()


def test_a_state_that_unpacks_to_more_than_its_size_is_not_read(tmp_path):
    store = StateStore(tmp_path)
    path = store.save(FACTS, ARRAYS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(1 << 20))
    with pytest.raises(KerassegError, match="1 damaged"):
        store.newest()
    assert "unpacks to more" in next(iter(skipped_of(store)))


def skipped_of(store: StateStore) -> list[str]:
    skipped: list[str] = []
    list(store._readable(skipped))
    return skipped


def test_a_state_of_a_newer_version_is_refused_and_not_passed_over(tmp_path):
    store = StateStore(tmp_path)
    store.save(FACTS, ARRAYS)
    path = store.save(FACTS, ARRAYS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("facts.json", json.dumps({"format_version": 2, "state": "of another kind"}))
    with pytest.raises(KerassegError, match=r"newer version of kerasseg \(found state version 2.*pip install"):
        store.newest()


def test_a_good_state_is_not_deleted_for_a_damaged_one(tmp_path):
    store = StateStore(tmp_path)
    for epoch in (1, 2):
        path = store.save({"epoch": epoch}, ARRAYS)
    path.write_bytes(b"damaged")
    assert store.newest().facts == {"epoch": 1}
    StateStore(tmp_path).save({"epoch": 3}, ARRAYS).write_bytes(b"damaged too")
    assert StateStore(tmp_path).newest().facts == {"epoch": 1}


# --- a full disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """After a call, a file may have so many bytes; the kernel says so as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel's word for a limit is EFBIG; what is under test must not tell the two apart but in the message.
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def network():
    import keras

    import kerasseg

    keras.utils.set_random_seed(1)
    return kerasseg.unet((16, 16, 1), filters=4, depth=1)


@pytest.fixture
def run(tmp_path, network):
    found = RunDirectory.create(tmp_path / "run", "scratch")
    found.save_model(network, found.best_file("0-00001"))
    found.use_best("0-00001")
    StateStore(found.state_folder).save({"epoch": 1}, ARRAYS)
    return found


def files(run):
    return {str(p.relative_to(run.root)): p.read_bytes() for p in run.root.rglob("*") if p.is_file()}


def test_no_space_for_the_state_leaves_the_earlier_one(run, full):
    before = files(run)
    full(1000)
    with pytest.raises(KerassegError, match="state-00000002.npz"):
        StateStore(run.state_folder).save({"epoch": 2}, {"big": np.zeros(10_000)})
    full(resource.RLIM_INFINITY)
    assert files(run) == before


def test_no_space_for_the_network_leaves_the_earlier_best(run, full, network):
    before = files(run)
    full(1000)
    with pytest.raises(KerassegError, match=r"best-0-00002.keras: .*limit"):
        run.save_model(network, run.best_file("0-00002"))
    full(resource.RLIM_INFINITY)
    assert files(run) == before
    assert not list(run.root.rglob(".tmp-*"))


@pytest.mark.parametrize("which", ["state", "network"])
def test_a_disk_that_is_really_full(tmp_path, network, which):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False)
    if done.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        run = RunDirectory.create(disk / "run", "scratch")
        run.save_model(network, run.best_file("0-00001"))
        run.use_best("0-00001")
        StateStore(run.state_folder).save({"epoch": 1}, ARRAYS)
        before = files(run)

        def write():
            if which == "state":
                StateStore(run.state_folder).save({"epoch": 2}, {"big": np.zeros(100_000)})
            for number in range(100):
                run.save_model(network, run.state_folder / f"best-1-{number:05d}.keras")

        with pytest.raises(KerassegError, match=r"no space left on the disk.*Free some space"):
            write()
        for number in range(100):
            (run.state_folder / f"best-1-{number:05d}.keras").unlink(missing_ok=True)
        assert files(run) == before
        assert StateStore(run.state_folder).newest().facts == {"epoch": 1}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_no_second_name_and_no_space_leaves_the_earlier_model(run, network, monkeypatch):
    """On file systems without hard links the best weights are copied."""
    run.save_model(network, run.best_file("0-00002"))
    before = run.model_file.read_bytes()

    def refuses(*_):
        raise OSError(errno.EPERM, "no links here")

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", refuses)
    with monkeypatch.context() as patched:
        patched.setattr("kerasseg.runs.directory.shutil.copyfileobj", no_space)
        with pytest.raises(KerassegError, match="no space left on the disk"):
            run.use_best("0-00002")
    assert run.model_file.read_bytes() == before
    run.use_best("0-00002")
    assert run.model_file.read_bytes() == run.best_file("0-00002").read_bytes()
