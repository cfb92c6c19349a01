"""Zips read in place, also zips in zips; and what hostile or damaged ones do (nothing)."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import tempfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats import zip as archives
from kerasseg_tfrecords.formats.zip import list_archive
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.tree import open_tree, read_bytes
from kerasseg_tfrecords.workers import ordered_map

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def zipped(files: dict[str, bytes], method: int = DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def content(number: int) -> bytes:
    return random.Random(number).randbytes(1000 + number)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {location.name: read_bytes(location, limit=2**20) for location in open_tree(root).locations}


@pytest.mark.parametrize("outer", [STORED, DEFLATED])
@pytest.mark.parametrize("inner", [STORED, DEFLATED])
def test_zip_of_zips_like_the_official_one(tmp_path: Path, outer: int, inner: int) -> None:
    parts = {
        f"part_{part}.zip": zipped({f"{n}.mat": content(n) for n in range(part * 10, part * 10 + 10)}, inner)
        for part in range(4)
    }
    root = write(tmp_path / "official.zip", zipped({**parts, "cvind.mat": b"c", "README.txt": b"r"}, outer))
    found = contents(root)
    assert {name: data for name, data in found.items() if "part_" in name} == {
        f"official.zip!part_{n // 10}.zip!{n}.mat": content(n) for n in range(40)
    }
    assert found["official.zip!cvind.mat"] == b"c"
    assert len(found) == 42
    assert list(tmp_path.iterdir()) == [root], "nothing is unpacked beside the archive"


def test_zips_in_a_folder_beside_plain_files(tmp_path: Path) -> None:
    write(tmp_path / "2.mat", b"plain")
    write(tmp_path / "PART.ZIP", zipped({"sub/1.mat": b"packed", "__MACOSX/._1.mat": b"", ".DS_Store": b""}))
    assert contents(tmp_path) == {"2.mat": b"plain", "PART.ZIP!sub/1.mat": b"packed"}


def test_odd_names_in_zips(tmp_path: Path) -> None:
    files = {name: name.encode() for name in ("mit Leer.mat", "Größe.mat", "new\nline.mat", "./dot.mat", "a!b.mat")}
    found = contents(write(tmp_path / "ä ö.zip", zipped(files)))
    assert found == {f"ä ö.zip!{name.removeprefix('./')}": data for name, data in files.items()}


def test_names_by_old_windows_tools(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "a.zip", zipped({"folder\\1.mat": b"x"}))) == {"a.zip!folder/1.mat": b"x"}


@pytest.mark.parametrize("name", ["../evil.mat", "a/../../evil.mat", "/etc/evil.mat", "C:\\evil.mat", "..\\evil.mat"])
def test_names_that_lead_out_are_refused_and_the_others_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    tree = open_tree(write(tmp_path / "in" / "a.zip", zipped({name: b"evil", "1.mat": b"good"})))
    assert [location.name for location in tree.locations] == ["a.zip!1.mat"]
    (problem,) = tree.problems
    assert problem.kind == "unsafe-name"
    assert "evil.mat" in problem.name
    # A location made by hand does not get there either.
    with pytest.raises(DataError, match="leads out"):
        read_bytes(Location(tree.root, (name,), name), limit=100)


def test_links_in_zips_are_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("1.mat")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("2.mat", "x")
    tree = open_tree(tmp_path / "a.zip")
    assert [location.name for location in tree.locations] == ["a.zip!2.mat"]
    assert tree.problems[0].kind == "unsafe-name"


def patched(data: bytes, offset: int, value: int, size: str, *, member: int = 0) -> bytes:
    """`data` with a field of the central directory's entry `member` set."""
    place = -1
    for _ in range(member + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return data[: place + offset] + struct.pack(size, value) + data[place + offset + struct.calcsize(size) :]


def test_encrypted_members(tmp_path: Path) -> None:
    data = zipped({"1.mat": b"secret", "2.mat": b"open"})
    tree = open_tree(write(tmp_path / "one.zip", patched(data, 8, 1, "<H")))
    assert [location.name for location in tree.locations] == ["one.zip!2.mat"]
    assert [(problem.name, problem.kind) for problem in tree.problems] == [("one.zip!1.mat", "encrypted")]
    with pytest.raises(DataError, match="whole archive is encrypted"):
        open_tree(write(tmp_path / "all.zip", patched(patched(data, 8, 1, "<H"), 8, 1, "<H", member=1)))


def test_unknown_compression(tmp_path: Path) -> None:
    tree = open_tree(write(tmp_path / "a.zip", patched(zipped({"1.mat": b"x", "2.mat": b"y"}), 10, 9, "<H")))
    assert "deflate64" in tree.problems[0].message


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_that_cannot_be_bounded_is_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(DataError) as caught:
        open_tree(write(tmp_path / "b.zip", zipped({"1.mat": b"x" * 1000}, method)))
    assert "expected stored or deflate" in caught.value.problems[0].message


def test_a_bomb_is_known_from_what_it_declares(tmp_path: Path) -> None:
    root = tmp_path / "bomb.zip"
    with zipfile.ZipFile(root, "w", DEFLATED, compresslevel=1) as archive:
        archive.writestr("2.mat", b"good")
        with archive.open("1.mat", "w") as stream:
            for _ in range(300):
                stream.write(bytes(2**20))
    tree = open_tree(root)
    assert [(problem.name, problem.kind) for problem in tree.problems] == [("bomb.zip!1.mat", "zip-bomb")]
    assert [location.name for location in tree.locations] == ["bomb.zip!2.mat"]


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    data = zipped({"1.mat": bytes(1000), "2.mat": b"x"})
    for value in (2**31, 100_000):
        tree = open_tree(write(tmp_path / f"{value}.zip", patched(data, 24, value, "<L")))
        assert tree.problems[0].kind == "zip-bomb"


def test_a_member_that_lies_about_its_size_gives_no_more_than_it_said(tmp_path: Path) -> None:
    data = patched(zipped({"1.mat": bytes(50_000_000)}), 24, 1000, "<L")
    (location,) = open_tree(write(tmp_path / "a.zip", data)).locations
    tracemalloc.start()
    with pytest.raises(DataError, match="damaged"):
        read_bytes(location, limit=10**6)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    # The bomb that needs no nesting: many names for the same bytes.
    data = zipped({"1.mat": content(1), "2.mat": content(2)})
    with pytest.raises(DataError, match="overlap"):
        open_tree(write(tmp_path / "a.zip", patched(data, 42, 0, "<L", member=1)))


def test_the_limit_of_a_read_holds_in_zips(tmp_path: Path) -> None:
    (location,) = open_tree(write(tmp_path / "a.zip", zipped({"1.mat": content(500)}))).locations
    assert len(read_bytes(location, limit=1500)) == 1500
    with pytest.raises(DataError, match=r"a\.zip!1\.mat: the file is too large"):
        read_bytes(location, limit=1499)


def test_nesting_ends(tmp_path: Path) -> None:
    data = zipped({"1.mat": b"deep"})
    for depth in range(10):
        data = zipped({f"{depth}.zip": data, f"{depth}.mat": b"x"})
    tree = open_tree(write(tmp_path / "a.zip", data))
    assert len(tree.locations) == archives.MAX_DEPTH
    assert ["too deep" in problem.message for problem in tree.problems] == [True]


def test_an_inner_zip_that_shrank_too_well_is_not_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    monkeypatch.setattr(archives, "SPOOL_BYTES", 10_000)
    inner = zipped({"1.mat": bytes(100_000)}, STORED)
    tree = open_tree(write(tmp_path / "a.zip", zipped({"inner.zip": inner, "2.mat": b"x"})))
    assert [problem.kind for problem in tree.problems] == ["zip-bomb"]


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "flip"])
def test_a_damaged_zip_is_named_and_costs_nothing_else(tmp_path: Path, damage: str) -> None:
    good = zipped({f"{n}.mat": content(n) for n in range(3)})
    bad = {
        "cut": good[: len(good) // 2],
        "text": b"<html>not found</html>",
        "empty": b"",
        "flip": good[:60] + bytes([good[60] ^ 255]) + good[61:],
    }[damage]
    write(tmp_path / "bad.zip", bad)
    write(tmp_path / "4.mat", b"x")
    write(tmp_path / "nest.zip", zipped({"bad.zip": bad, "5.mat": b"y"}))
    tree = open_tree(tmp_path)
    problems = {problem.name for problem in tree.problems}
    for location in tree.locations:
        with contextlib.suppress(DataError):
            read_bytes(location, limit=10**6)
            continue
        problems.add(location.name)
    readable = {location.name for location in tree.locations} - problems
    assert {"4.mat", "nest.zip!5.mat"} <= readable
    if damage == "flip":  # the directory is whole: only the member suffers
        assert problems == {"bad.zip!0.mat", "nest.zip!bad.zip!0.mat"}
    else:
        assert problems == {"bad.zip", "nest.zip!bad.zip"}


def test_two_members_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.mat", "first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("1.mat", "second")
    tree = open_tree(tmp_path / "a.zip")
    assert [problem.kind for problem in tree.problems] == ["duplicate-name"]


def test_an_empty_zip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty archive"):
        open_tree(write(tmp_path / "a.zip", zipped({})))
    write(tmp_path / "1.mat", b"x")
    assert [problem.level for problem in open_tree(tmp_path).problems] == ["warning"]


def test_a_replaced_zip_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "a.zip"
    (location,) = open_tree(write(root, zipped({"1.mat": b"old"}))).locations
    assert read_bytes(location, limit=10) == b"old"
    write(tmp_path / "new", zipped({"1.mat": b"newer"})).replace(root)
    assert read_bytes(location, limit=10) == b"newer"
    write(tmp_path / "new", zipped({"2.mat": b"other"})).replace(root)
    with pytest.raises(DataError, match="no longer in its archive"):
        read_bytes(location, limit=10)


def test_an_inner_zip_is_unpacked_once_for_many_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spooled: list[object] = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **k: (spooled.append(k), original(**k))[1])
    parts = {f"{part}.zip": zipped({f"{n}.mat": content(n) for n in range(20)}) for part in range(4)}
    locations = open_tree(write(tmp_path / "a.zip", zipped(parts, DEFLATED))).locations
    order = random.Random(0).choices(locations, k=400)
    for location in order:
        assert read_bytes(location, limit=10**4) == content(int(location.members[-1].split(".")[0]))
    assert len(spooled) == 4
    spooled.clear()
    open_tree(write(tmp_path / "b.zip", zipped(parts, STORED)))
    assert spooled == [], "a stored zip is read where it lies"


def test_few_archives_stay_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    for number in range(3 * archives.KEPT_OPEN):
        write(tmp_path / f"{number}.zip", zipped({"1.mat": content(number)}))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [len(data) for data in contents(tmp_path).values()] == [1000 + n for n in range(3 * archives.KEPT_OPEN)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + archives.KEPT_OPEN + 1


def test_threads_and_processes_read_the_same_archive(tmp_path: Path) -> None:
    parts = {f"{part}.zip": zipped({f"{n}.mat": content(n) for n in range(20)}) for part in range(2)}
    locations = list(open_tree(write(tmp_path / "a.zip", zipped(parts))).locations) * 3
    random.Random(1).shuffle(locations)
    read = partial(read_bytes, limit=10**4)
    expected = [content(int(location.members[-1].split(".")[0])) for location in locations]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, locations)) == expected
    assert list(ordered_map(read, locations, jobs=2)) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_does_not_disturb_its_parent(tmp_path: Path) -> None:
    (a, b) = open_tree(write(tmp_path / "a.zip", zipped({"1.mat": content(1), "2.mat": content(2)}))).locations
    assert read_bytes(a, limit=10**4) == content(1)
    _, archive = archives._open(a.path, ())
    with archive.open("1.mat") as stream:  # half way through a member ...
        first = stream.read(100)
        child = os.fork() if not _threads() else None
        if child == 0:
            os._exit(0 if read_bytes(b, limit=10**4) == content(2) else 1)
        if child is not None:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert first + stream.read() == content(1)


def _threads() -> int:
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else "Threads:\t2"
    return int(text.split("Threads:")[1].split()[0]) - 1


def test_a_member_without_a_name_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"")
        archive.writestr("1.png", b"data")
    raw = path.read_bytes()
    # The name of one byte becomes one of none, and what is left of it extra data.
    for signature, place in ((b"PK\x03\x04", 26), (b"PK\x01\x02", 28)):
        start = raw.find(signature)
        raw = raw[: start + place] + b"\0\0\1\0" + raw[start + place + 4 :]
    path.write_bytes(raw)
    found = list_archive(path, "a.zip")
    assert [location.name for location in found.locations] == ["a.zip!1.png"]
    assert [problem.kind for problem in found.problems] == ["unsafe-name"]


def test_a_directory_of_millions_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg_tfrecords.formats.zip.MAX_MEMBERS", 100)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number}.png", b"")
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", None)
    with pytest.raises(DataError, match="too many files"):
        list_archive(tmp_path / "a.zip", "a.zip")
