"""Listing files: what is found, in which order, and what odd names, links and folders do to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import BadInputError, DataError
from kerasseg_tfrecords.sources.tree import natural_key, open_tree, read_bytes, suffix_of

ODD_NAMES = ["with space.mat", "Größe é.mat", "new\nline.mat", "quote'\".mat", "#1!.mat", "tab\t.mat"]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def names(root: Path) -> list[str]:
    return [location.name for location in open_tree(root).locations]


def test_recursive_in_natural_order_without_system_files(tmp_path: Path) -> None:
    fill(tmp_path, "10.mat", "2.mat", "b/11.mat", "b/9.mat", "a 1/x.mat")
    fill(tmp_path, ".hidden", ".git/config", "__MACOSX/._2.mat", "b/._9.mat", "Thumbs.db", "b/desktop.ini", ".DS_Store")
    assert names(tmp_path) == ["2.mat", "10.mat", "a 1/x.mat", "b/9.mat", "b/11.mat"]


def test_a_hidden_root_is_listed_all_the_same(tmp_path: Path) -> None:
    fill(tmp_path / ".cache" / "data", "1.mat")
    assert names(tmp_path / ".cache" / "data") == ["1.mat"]


@given(st.lists(st.text(alphabet="0129ab²٣./ ", max_size=6), unique=True, max_size=8), st.randoms())
def test_natural_order_is_total(texts: list[str], random) -> None:
    shuffled = texts.copy()
    random.shuffle(shuffled)
    assert sorted(texts, key=natural_key) == sorted(shuffled, key=natural_key)
    assert len({natural_key(text) for text in texts}) == len(texts)


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_natural_order_is_that_of_numbers(a: int, b: int) -> None:
    assert (natural_key(f"s{a}.mat") < natural_key(f"s{b}.mat")) == (a < b)


def test_natural_order_takes_digits_that_python_refuses() -> None:
    huge = "9" * 10_000
    assert natural_key("1") < natural_key(huge) < natural_key("1" + huge)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("1.mat", ".mat"),
        ("a/T1.NII.GZ", ".nii.gz"),
        ("a.b/IM1", ""),
        ("x.zip!2.PNG", ".png"),
        (".mat", ""),
        ("a.gz", ".gz"),
    ],
)
def test_suffix(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_end_to_end(tmp_path: Path, name: str) -> None:
    fill(tmp_path, f"sub/{name}")
    (location,) = open_tree(tmp_path).locations
    assert location.name == f"sub/{name}"
    assert read_bytes(location, limit=100) == f"sub/{name}".encode()


def test_a_name_that_is_no_utf8_can_be_shown_and_read(tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/bad\xff.mat", "wb") as stream:  # noqa: PTH123
            stream.write(b"x")
    except OSError:
        pytest.skip("this file system refuses such names")
    (location,) = open_tree(tmp_path).locations
    assert location.name.encode("utf-8") == b"bad\\udcff.mat"
    assert read_bytes(location, limit=10) == b"x"


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, "data/real/1.mat", "elsewhere/2.mat")
    root = tmp_path / "data"
    (root / "loop").symlink_to(root)
    (root / "a_link").symlink_to(root / "real")  # sorts before the folder it points to
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "out_again").symlink_to(tmp_path / "elsewhere")
    (root / "file.mat").symlink_to(root / "real" / "1.mat")
    assert names(root) == ["file.mat", "out/2.mat", "real/1.mat"]


def test_a_broken_link_is_a_problem_and_costs_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, "1.mat")
    (tmp_path / "2.mat").symlink_to(tmp_path / "annex")
    (tmp_path / "3.mat").symlink_to("3.mat")  # to itself
    tree = open_tree(tmp_path)
    assert [location.name for location in tree.locations] == ["1.mat"]
    assert [(problem.name, problem.kind) for problem in tree.problems] == [(f"{n}.mat", "missing-file") for n in (2, 3)]


def test_a_link_to_a_device_is_named_as_one(tmp_path: Path) -> None:
    fill(tmp_path, "1.mat")
    (tmp_path / "2.mat").symlink_to("/dev/zero")
    (problem,) = open_tree(tmp_path).problems
    assert problem.message.startswith("a link to a device or pipe. ")


def test_pipes_are_no_files(tmp_path: Path) -> None:
    fill(tmp_path, "1.mat")
    os.mkfifo(tmp_path / "2.mat")
    assert names(tmp_path) == ["1.mat"]


def test_a_closed_folder_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests run as root, for whom no folder is closed.
    fill(tmp_path, "1.mat", "closed/2.mat")
    scandir = os.scandir

    def refuse(path: str):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    monkeypatch.setattr(os, "scandir", refuse)
    tree = open_tree(tmp_path)
    assert [location.name for location in tree.locations] == ["1.mat"]
    assert "Permission denied" in str(tree.problems[0])
    assert tree.problems[0].name == "closed"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_tree(tmp_path / "x")
    with pytest.raises(DataError, match="an empty folder"):
        open_tree(tmp_path)
    (tmp_path / "sub").mkdir()
    fill(tmp_path, ".DS_Store")
    with pytest.raises(DataError, match="an empty folder"):
        open_tree(tmp_path)


def test_all_reasons_where_nothing_can_be_listed(tmp_path: Path) -> None:
    fill(tmp_path, "a.zip", "b.zip")
    with pytest.raises(BadInputError) as caught:
        open_tree(tmp_path)
    assert [problem.name for problem in caught.value.problems] == ["a.zip", "b.zip"]


def test_one_file(tmp_path: Path) -> None:
    assert names(fill(tmp_path, "ä 1.mat") / "ä 1.mat") == ["ä 1.mat"]


@pytest.mark.parametrize("name", ["data.tar.gz", "data.RAR", "data.7z"])
def test_other_archives_are_named_for_what_they_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="Unpack it"):
        open_tree(fill(tmp_path, name) / name)


def test_the_limit_is_checked_before_reading(tmp_path: Path) -> None:
    sparse = tmp_path / "1.mat"
    with sparse.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(DataError, match="too large") as caught:
        read_bytes(open_tree(sparse).locations[0], limit=1000)
    assert caught.value.kind == "too-large"
    assert caught.value.path == "1.mat"


def test_a_file_that_went_away(tmp_path: Path) -> None:
    (location,) = open_tree(fill(tmp_path, "1.mat")).locations
    location.path.unlink()
    with pytest.raises(DataError, match=r"1\.mat: cannot be read \(found No such file"):
        read_bytes(location, limit=10)


def test_listing_asks_the_disk_once_a_folder_not_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{folder}/{number}.mat" for folder in range(3) for number in range(50)))
    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    asked: list[str] = []
    for name in ("stat", "lstat"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, _original=original, **k: (asked.append(str(a[0])), _original(*a, **k))[1]
        )
    assert len(open_tree(tmp_path).locations) == 150
    assert len(asked) < 10


def test_files_below_some_folders_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "1.mat", "out/2.mat", "output/3.mat", "a/out/4.mat")
    monkeypatch.chdir(tmp_path)
    tree = open_tree(".")
    kept = tree.without([Path("out"), tmp_path / "a" / "out", tmp_path, tmp_path.parent / "elsewhere"])
    assert [location.name for location in kept.locations] == ["1.mat", "output/3.mat"]
