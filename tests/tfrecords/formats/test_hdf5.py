"""HDF5 from strangers: what reaches outside the file or fills the memory is refused; all else reads as with h5py."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import blob, write_mat
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats import hdf5
from kerasseg_tfrecords.isolation import call, working_on
from kerasseg_tfrecords.workers import ordered_map

LIMIT = 10**8


def numbers(path: Path, key: str = "x", limit: int = LIMIT, **how: bool) -> np.ndarray[Any, Any]:
    with hdf5.open_hdf5(path.read_bytes(), path.name) as root:
        child = hdf5.open_child(root, key, path.name)
        assert child is not None
        return hdf5.read_numbers(child, key, path.name, max_values=limit, **how)


def text(path: Path, key: str = "x") -> str:
    with hdf5.open_hdf5(path.read_bytes(), path.name) as root:
        return hdf5.read_text(hdf5.open_child(root, key, path.name), key, path.name)


def stored(path: Path, data: object = None, **how: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=data, **how)
    return path


# ---- what is refused


@pytest.mark.parametrize("chunks", [None, (1024, 1024)])
def test_two_terabytes_declared_in_five_kilobytes(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    path = stored(tmp_path / "1.mat", shape=(2**20, 2**20), dtype="<i2", chunks=chunks)
    assert path.stat().st_size < 5_000
    tracemalloc.start()
    with pytest.raises(DataError, match=r"1\.mat: x is too large \(found 1048576 x 1048576 values") as caught:
        numbers(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert caught.value.kind == "too-large"


def test_declared_but_never_written(tmp_path: Path) -> None:
    for chunks in (None, (64, 64)):
        with pytest.raises(DataError, match="never written"):
            numbers(stored(tmp_path / "1.mat", shape=(512, 512), dtype="<i2", chunks=chunks))


def test_a_chunk_much_larger_than_its_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        data = file.create_dataset("x", (8, 8), "u1", chunks=(30_000, 30_000), maxshape=(None, None), compression=1)
        data.id.write_direct_chunk((0, 0), b"\0" * 100)
    with pytest.raises(DataError, match="unreasonable chunks"):
        numbers(tmp_path / "1.mat")


def test_a_million_tiny_chunks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file.create_dataset("x", (2000, 2000), "u1", chunks=(1, 1))
    with pytest.raises(DataError, match="unreasonable chunks"):
        numbers(tmp_path / "1.mat")


@pytest.mark.parametrize("soft", [False, True])
def test_links_are_not_followed(tmp_path: Path, soft: bool) -> None:
    stored(tmp_path / "secret.h5", np.arange(16).reshape(4, 4))
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file["other"] = np.arange(4)
        file["x"] = h5py.SoftLink("/other") if soft else h5py.ExternalLink("secret.h5", "/x")
        file["dead"] = h5py.SoftLink("/nowhere")
    with pytest.raises(DataError, match="it was not followed") as caught:
        numbers(tmp_path / "1.mat")
    assert caught.value.kind == "unsafe-link"
    with pytest.raises(DataError, match="it was not followed"):
        numbers(tmp_path / "1.mat", "dead")


def test_external_storage(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(range(16)))
    stored(tmp_path / "1.mat", shape=(4, 4), dtype="u1", external=[(str(tmp_path / "secret.bin"), 0, 16)])
    with h5py.File(tmp_path / "1.mat") as file:
        assert file["x"][0, 3] == 3, "h5py itself reads it"
    with pytest.raises(DataError, match="data in other files"):
        numbers(tmp_path / "1.mat")


@pytest.mark.parametrize("pattern", [False, True])
def test_virtual_data_sets(tmp_path: Path, pattern: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "secret-0.h5", np.arange(16).reshape(4, 4))
    with h5py.File(tmp_path / "1.mat", "w") as file:
        if pattern:  # the shape of such a data set is found by looking for files of that name
            unlimited, source = h5py.h5s.create_simple((4, 4), (h5py.h5s.UNLIMITED, 4)), h5py.h5s.create_simple((4, 4))
            unlimited.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (4, 4), (4, 4))
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_virtual(unlimited, b"secret-%b.h5", b"x", source)
            h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT64, unlimited, plan)
        else:
            layout = h5py.VirtualLayout((4, 4), "i8")
            layout[:] = h5py.VirtualSource("secret-0.h5", "x", (4, 4))
            file.create_virtual_dataset("x", layout)
    with h5py.File(tmp_path / "1.mat") as file:
        assert file["x"][0, 3] == 3, "h5py itself reads it"
    with pytest.raises(DataError, match="data in other files"):
        numbers(tmp_path / "1.mat")


def with_chunks(path: Path, raw: bytes, shape: tuple[int, int] = (512, 512), dtype: str = "<i2") -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", shape, dtype, chunks=shape, compression=3)
        data.id.write_direct_chunk((0, 0), raw)
    return path


@pytest.mark.parametrize("megabytes", [40, 150])
def test_a_chunk_that_inflates_without_end(tmp_path: Path, megabytes: int) -> None:
    path = with_chunks(tmp_path / "1.mat", zlib.compress(bytes(megabytes * 2**20), 9))
    tracemalloc.start()
    with pytest.raises(DataError, match="is damaged"):
        numbers(path)
    # 40 MB from 41 kB are let through to be counted; more is cut off at the size of the chunk.
    assert tracemalloc.get_traced_memory()[1] < (100 if megabytes == 40 else 4) * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 10, 2**19 - 1, 2**19 + 1])
def test_a_chunk_of_another_length(tmp_path: Path, size: int) -> None:
    # HDF5 1.14 reads behind the end of its buffer here, and mostly ends the process.
    with pytest.raises(DataError, match=f"a chunk has {size} bytes instead of 524288"):
        numbers(with_chunks(tmp_path / "1.mat", zlib.compress(bytes(size))))


def test_damaged_chunks(tmp_path: Path) -> None:
    raw = zlib.compress(np.random.default_rng(0).bytes(2**19))
    cases = {"cut": raw[:-100], "flip": raw[:5000] + bytes([raw[5000] ^ 4]) + raw[5001:], "sum": raw[:-1] + b"\0"}
    for name, bad in cases.items():
        with pytest.raises(DataError, match="is damaged"):
            numbers(with_chunks(tmp_path / f"{name}.mat", bad))


def test_filters_that_cannot_be_bounded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compressed in an unsupported way"):
        numbers(stored(tmp_path / "1.mat", np.zeros((64, 64)), compression="lzf"))
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((64, 64))
    plan.set_deflate(1)
    plan.set_deflate(1)
    with h5py.File(tmp_path / "2.mat", "w") as file:
        space = h5py.h5s.create_simple((64, 64))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, space, plan).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.zeros((64, 64), np.uint8)
        )
    with pytest.raises(DataError, match="filters deflate, deflate"):
        numbers(tmp_path / "2.mat")


@pytest.mark.parametrize("data", [np.zeros(4, [("a", "i2"), ("b", "f4")]), np.array([b"abc"]), "text"])
def test_no_numbers(tmp_path: Path, data: object) -> None:
    with pytest.raises(DataError, match="is not numeric"):
        numbers(stored(tmp_path / "1.mat", data))


def test_a_group_is_no_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file.create_group("x")
    with pytest.raises(DataError, match="not an array"):
        numbers(tmp_path / "1.mat")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_cut_off_files(tmp_path: Path, share: float) -> None:
    path = write_mat(tmp_path / "1.mat", *blob())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"1\.mat: the file is (cut off|damaged)"):
        numbers(path, "cjdata")


def outcome(change: tuple[int, int], data: bytes) -> str:
    place, bit = change
    bad = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    try:
        with hdf5.open_hdf5(bad, "1.mat") as root:
            struct = hdf5.open_child(root, "cjdata", "1.mat")
            if struct is not None and hdf5.is_group(struct):
                for key in ("image", "tumorMask", "label"):
                    child = hdf5.open_child(struct, key, "1.mat")
                    if child is not None:
                        hdf5.read_numbers(child, key, "1.mat", max_values=10**6)
    except DataError:
        return "refused"
    return "read"


@pytest.mark.slow
def test_flipped_bits_raise_nothing_else(tmp_path: Path) -> None:
    data = write_mat(tmp_path / "1.mat", *blob(size=32)).read_bytes()
    rng = np.random.default_rng(5)
    changes = [(int(place), int(rng.integers(8))) for place in rng.integers(512, len(data), 2000)]
    # In processes of their own: the HDF5 library itself may fall, and the tests should live to say so.
    found = ordered_map(partial(outcome, data=data), changes, jobs=2, crashed=lambda *_: "crashed")
    assert set(found) <= {"read", "refused", "crashed"}


# ---- what is read, and equals h5py


@st.composite
def arrays(draw: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from(["u1", "<i2", ">i2", "<u4", "<i8", "<f4", ">f8", "<f2", "?"]))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 200, shape).astype(dtype)
    how: dict[str, Any] = {}
    if draw(st.booleans()):
        how["chunks"] = tuple(draw(st.integers(1, length)) for length in shape)
        how["shuffle"] = draw(st.booleans())
        how["fletcher32"] = draw(st.booleans())
        if draw(st.booleans()):
            how["compression"] = draw(st.integers(0, 9))
    return values, how


@given(arrays())
def test_equals_h5py(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[np.ndarray[Any, Any], dict[str, Any]]
) -> None:
    values, how = case
    path = stored(tmp_path_factory.mktemp("h") / "1.mat", values, **how)
    found = numbers(path)
    with h5py.File(path) as file:
        expected = file["x"][()]
    assert found.shape == expected.shape
    assert found.dtype.isnative
    assert found.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, expected)
    turned = numbers(path, transpose=True)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, expected.T)


def test_chunks_that_were_never_written_have_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        data = file.create_dataset("x", (8, 8), "i2", chunks=(4, 4), compression=1, fillvalue=7)
        data[:4, 4:] = 3
    expected = np.full((8, 8), 7)
    expected[:4, 4:] = 3
    np.testing.assert_array_equal(numbers(tmp_path / "1.mat"), expected)
    np.testing.assert_array_equal(numbers(tmp_path / "1.mat", transpose=True), expected.T)


def test_a_chunk_whose_filter_was_skipped(tmp_path: Path) -> None:
    values = np.arange(64, dtype="<i2").reshape(8, 8)
    with h5py.File(tmp_path / "1.mat", "w") as file:
        data = file.create_dataset("x", (8, 8), "<i2", chunks=(8, 8), compression=1)
        data.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=1)
    np.testing.assert_array_equal(numbers(tmp_path / "1.mat"), values)


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    path = stored(tmp_path / "1.mat", np.arange(2**16, dtype="<u2"), chunks=(2**16,), fletcher32=True, shuffle=True)
    data = path.read_bytes()
    at = data.index(bytes(range(1, 40)))  # the low bytes, shuffled together
    path.write_bytes(data[:at] + b"\xaa" + data[at + 1 :])
    with pytest.raises(DataError, match="filter returned failure"):
        numbers(path)


def test_user_blocks(tmp_path: Path) -> None:
    for size in (0, 512, 1024, 2048):
        with h5py.File(tmp_path / "1.mat", "w", userblock_size=size) as file:
            file["x"] = np.arange(3)
        data = (tmp_path / "1.mat").read_bytes()
        assert hdf5.is_hdf5(data[:4096])
        np.testing.assert_array_equal(numbers(tmp_path / "1.mat"), [0, 1, 2])
    assert not hdf5.is_hdf5(b"MATLAB 5.0 MAT-file".ljust(4096))
    assert not hdf5.is_hdf5(b"")


def test_members_leaves_out_matlabs_own(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file["b"], file["a"], file["#refs#/x"] = 1, 2, 3
    with hdf5.open_hdf5((tmp_path / "1.mat").read_bytes(), "1.mat") as root:
        assert hdf5.members(root) == ("a", "b")
        assert hdf5.open_child(root, "c", "1.mat") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[ord(c)] for c in "MR0402B"], np.uint16), "MR0402B"),
        (np.array([[ord(c) for c in "Mü "]], np.uint8), "M"),
        (np.array([[100360.0]]), "100360"),
        (np.array([[1.5]]), "1.5"),
        (np.int32(7), "7"),
        ("vlen ä", "vlen ä"),
        (np.bytes_(b"fixed"), "fixed"),
        (np.zeros((0, 0), np.uint16), ""),
        (np.array([0xD800], np.uint16), "\\x00\\xd8"),
    ],
)
def test_texts(tmp_path: Path, value: object, expected: str) -> None:
    found = text(stored(tmp_path / "1.mat", value))
    assert found.startswith(expected) if expected == "M" else found == expected
    found.encode("utf-8")


def test_matlabs_empty_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file["x"] = np.zeros(2, np.uint64)
        file["x"].attrs["MATLAB_empty"] = np.uint8(1)
    assert text(tmp_path / "1.mat") == ""


@pytest.mark.parametrize("value", [np.arange(3.0), "x" * 5000, np.zeros(5000, np.uint16), np.array([b"a", b"b"])])
def test_no_short_text(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match=r"1\.mat: x is"):
        text(stored(tmp_path / "1.mat", value))


def test_a_text_in_chunks_never_shows_what_lies_in_memory(tmp_path: Path) -> None:
    """A chunk that inflates to one byte of the 1,000 that it declares."""
    with h5py.File(tmp_path / "1.mat", "w") as file:
        made = file.create_dataset("x", (1,), "S1000", chunks=(1,), compression="gzip")
        made.id.write_direct_chunk((0,), zlib.compress(b"P"))
    with pytest.raises(DataError, match="x is chunked text"):
        text(tmp_path / "1.mat")


def text_in_little_time(path: Path) -> str:
    working_on(path.name, 1)
    return text(path)


@pytest.mark.parametrize("damage", ["size", "index", "signature", "address", "length"])
def test_a_heap_of_texts_that_leads_nowhere_is_refused(tmp_path: Path, damage: str) -> None:
    path = stored(tmp_path / "1.mat", "patient 7")
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    entry = data.find(struct.pack("<IQI", 9, heap, 1))
    places = {"size": heap + 24, "index": heap + 16, "signature": heap, "address": heap + 8, "length": entry}
    # More bytes than the entry holds would be other memory.
    value = {"index": 9, "length": 900}.get(damage, 0xFFFFFFF0)
    data[places[damage] : places[damage] + 4] = value.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError):
        call(text_in_little_time, path)
