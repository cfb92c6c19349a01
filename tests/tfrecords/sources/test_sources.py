"""Finding the right reader, and the guard around all of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from factories import blob, write_cvind, write_figshare, write_mat
from kerasseg_tfrecords import sources
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.sources import SOURCES, detect, find_items, read_item, source_for
from kerasseg_tfrecords.sources.base import Item, SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree


def test_every_format_is_there_under_its_name() -> None:
    assert set(SOURCES) == {"figshare", "pairs", "nifti", "dicom"}
    for name, source in SOURCES.items():
        assert source.name == name
        assert source == source_for(name)


def test_an_unknown_format_names_the_known() -> None:
    with pytest.raises(UsageError, match="figshare, pairs, nifti, dicom"):
        source_for("bmp")


def test_figshare_is_recognised_by_content(tmp_path: Path) -> None:
    write_figshare(tmp_path, 1, 2)
    write_cvind(tmp_path / "0.mat")
    (tmp_path / "preview.png").write_bytes(b"")
    assert detect(open_tree(tmp_path)).name == "figshare"


def test_png_pairs_are_recognised(tmp_path: Path) -> None:
    image, mask = blob()
    for folder, pixels in (("images", image // 32), ("masks", mask * 255)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), pixels.astype(np.uint8))
    assert detect(open_tree(tmp_path)).name == "pairs"


def test_nothing_that_anybody_knows(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.docx", "README"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError) as caught:
        detect(open_tree(tmp_path))
    message = str(caught.value)
    assert caught.value.kind == "unknown-format"
    for word in ("2 .txt", "1 .docx", "1 without suffix", "figshare: ", "pairs: ", "nifti: ", "dicom: ", "--format"):
        assert word in message
    assert len(message.splitlines()) == 1


def test_a_folder_without_any_mask(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), (blob(number)[0] // 32).astype(np.uint8))
    listing = find_items(open_tree(tmp_path), SourceOptions())
    assert listing.items == ()
    assert [problem.kind for problem in listing.problems] == ["no-masks"]


def test_naming_the_wrong_format(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="nothing to read"):
        find_items(open_tree(tmp_path), SourceOptions(), "figshare")


def test_what_a_reader_did_not_foresee_becomes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        name = "figshare"

        def read(self, item: Item, options: SourceOptions) -> None:
            raise ZeroDivisionError("of\nall")

    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    monkeypatch.setattr(sources, "SOURCES", {"figshare": Careless()})
    with pytest.raises(DataError, match=r"1\.mat: cannot be read \(found ZeroDivisionError: of\\nall\)"):
        read_item(Item("figshare", "1.mat", ()), SourceOptions())


def test_interrupts_are_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def read(self, item: Item, options: SourceOptions) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    monkeypatch.setattr(sources, "SOURCES", {"figshare": Interrupted()})
    with pytest.raises(KeyboardInterrupt):
        read_item(Item("figshare", "1.mat", ()), SourceOptions())


def test_listing_opens_only_a_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_figshare(tmp_path, 20, 5, size=8)
    from kerasseg_tfrecords.sources import figshare

    opened: list[str] = []
    original = figshare.read_bytes
    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)
    monkeypatch.setattr(figshare, "read_bytes", lambda loc, **k: (opened.append(loc.name), original(loc, **k))[1])
    assert len(find_items(open_tree(tmp_path), SourceOptions()).items) == 100
    assert len(opened) <= 16


def test_items_are_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_mat(tmp_path / f"{number}.mat", *blob(size=8))
    names = [item.name for item in find_items(open_tree(tmp_path), SourceOptions()).items]
    assert names == ["1.mat", "2.mat", "10.mat"]


def test_a_folder_of_several_formats_says_what_was_not_read(tmp_path: Path) -> None:
    write_figshare(tmp_path / "mat", patients=3, slices_each=1, size=32)
    image, mask = blob(1, 32)
    for kind, picture in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
        (tmp_path / "png" / kind).mkdir(parents=True)
        for number in range(5):
            cv2.imwrite(str(tmp_path / "png" / kind / f"{number}.png"), picture.astype(np.uint8))
    listing = find_items(open_tree(tmp_path), SourceOptions())
    assert len(listing.items) == 5
    assert any("3 .mat files (figshare) not read" in note for note in listing.notes)
    assert not any("not read" in note for note in find_items(open_tree(tmp_path / "mat"), SourceOptions()).notes)
