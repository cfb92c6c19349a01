"""What is asked about: pictures, volumes and series, each with the name of what is written for it."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.sources.base import Item
from kerasseg_tfrecords.sources.naming import split_name, without_suffix
from kerasseg_tfrecords.sources.tree import natural_key, suffix_of
from kerasseg_tfrecords.unlabelled import ImageInput

__all__ = ["Unit", "check_folder", "check_inputs", "check_name", "plan_units"]


@dataclass(frozen=True, slots=True)
class Unit:
    """What becomes one mask file.

    Attributes:
        name: As shown to users; unique.
        kind: A picture, a volume in one file, or a DICOM series of one file a slice.
        items: One; of a series its slices in order.
        stem: Where its files go: a path below the output folder, without ending.
        prefix: What stands before the names of its items where there are several inputs.
    """

    name: str
    kind: Literal["picture", "volume", "series"]
    items: tuple[Item, ...]
    stem: str
    prefix: str = ""

    @property
    def stamp(self) -> list[list[int]]:
        """Size and time of its files, by which a changed one is known; [] for one that is not there."""
        stamps = []
        for path in dict.fromkeys(item.files[0].path for item in self.items):
            try:
                facts = path.stat()
            except OSError:
                return []
            stamps.append([facts.st_size, facts.st_mtime_ns])
        return stamps


def plan_units(inputs: Sequence[ImageInput]) -> list[Unit]:
    """Units in the order of the inputs and of the names within them; with several inputs, each has its own folder.

    Raises:
        UsageError: Two of them would be written to the same file.
    """
    units: list[Unit] = []
    for entry in inputs:
        prefix = f"{entry.name}/" if len(inputs) > 1 else ""
        series: defaultdict[str, list[Item]] = defaultdict(list)
        for item in entry.items:
            if item.format == "dicom":
                series[item.volume or item.name].append(item)
            else:
                kind: Literal["picture", "volume"] = "volume" if item.format == "nifti" else "picture"
                units.append(Unit(prefix + item.name, kind, (item,), _stem(prefix + item.name)))
        units += _series(series, prefix, entry)
    units.sort(key=lambda unit: natural_key(unit.name))
    units = _told_apart(units)
    _check_names(units)
    return units


def check_inputs(out: Path, given: Iterable[Path | str]) -> None:
    """Whether what was typed can be meant, before anything is listed.

    Raises:
        UsageError: An input is the output folder or lies right in it, or is a run.
    """
    for path in map(Path, given):
        _refuse_same(out, path if path.is_dir() else path.parent)
        if (path / "config.json").is_file() and (path / "model.keras").is_file():
            raise UsageError(
                "this is a run, and no folder of images",
                path=path,
                remedy="A run is named with --run; several networks with --ensemble A --ensemble B, or --ensemble A,B.",
            )


def check_folder(out: Path, inputs: Sequence[ImageInput]) -> None:
    """Whether masks would be written into one of the inputs.

    Raises:
        UsageError: They would: the next time, masks and overlays would be taken for images.
    """
    for entry in inputs:
        root = entry.root if entry.root.is_dir() else entry.root.parent
        _refuse_same(out, root)
        if len(inputs) > 1:
            _refuse_same(out / entry.name, root)


def check_name(unit: Unit) -> None:
    """Whether files can be named after a unit.

    Raises:
        DataError: Its name is too long for what is written beside it.
    """
    longest = len(f"{unit.stem.rsplit('/', 1)[-1]}_probabilities.nii.gz".encode())
    if longest > _NAME:
        raise DataError(
            "the name is too long: masks are named after it",
            path=unit.name,
            expected=f"{longest - _NAME} bytes less",
            remedy="Rename the file.",
            kind="name",
        )


_NAME = 240
"""Bytes of a file name: 255 is what file systems take, and files are written under a longer name first."""


def _refuse_same(out: Path, root: Path) -> None:
    if out.exists() and root.is_dir() and os.path.samefile(out, root):  # noqa: PTH121 - as the file system sees it
        raise UsageError(
            "the output folder is the input folder",
            path=out,
            expected="another folder",
            remedy=f"The next time, masks would be taken for images. For instance --out {out / 'predictions'}",
        )


def _told_apart(units: Sequence[Unit]) -> list[Unit]:
    """`1.png` beside `1.jpg`: masks are named after the endings as well where names alone do not tell files apart."""
    groups: defaultdict[tuple[str, bool], list[Unit]] = defaultdict(list)
    for unit in units:
        groups[_place(unit)].append(unit)
    found = []
    for unit in units:
        alike = groups[_place(unit)]
        endings = {suffix_of(one.items[0].name) for one in alike}
        single = all(len(one.items) == 1 for one in alike)
        if len(alike) > 1 and single and len(endings) == len(alike):
            unit = replace(unit, stem=f"{unit.stem}-{suffix_of(unit.items[0].name).lstrip('.')}")
        found.append(unit)
    return found


def _place(unit: Unit) -> tuple[str, bool]:
    # Some file systems do not tell cases apart. Masks of pictures and of volumes have other endings.
    return unit.stem.casefold(), unit.kind == "picture"


def _stem(name: str) -> str:
    # Members of a zip lie below a folder of its name.
    folders, base = split_name(name)
    parts = [re.sub(r"\.zip$", "", folder, flags=re.IGNORECASE) for folder in folders]
    return "/".join([*(part for part in parts if part not in {"", ".", ".."}), without_suffix(base)])


def _series(series: dict[str, list[Item]], prefix: str, entry: ImageInput) -> list[Unit]:
    """A series is named after its folder, and its number where the folder holds several; a single file after itself."""
    named: defaultdict[str, list[tuple[str, list[Item]]]] = defaultdict(list)
    for uid, items in series.items():
        items.sort(key=lambda item: item.slice_index)
        folder = os.path.commonpath([os.path.dirname(item.name) for item in items])  # noqa: PTH120 - no files of ours
        named[folder].append((uid, items))
    units = []
    for folder, members in named.items():
        for uid, items in members:
            if len(items) == 1:
                units.append(
                    Unit(prefix + items[0].name, "series", tuple(items), _stem(prefix + items[0].name), prefix)
                )
                continue
            base = _stem(prefix + folder) if folder else prefix + (entry.root.resolve().stem or "series")
            if len(members) > 1:
                base = f"{base}-{uid.rsplit('.', 1)[-1]}"
            name = f"{prefix}{items[0].name} and {len(items) - 1} more"
            units.append(Unit(name, "series", tuple(items), base, prefix))
    return units


def _check_names(units: Sequence[Unit]) -> None:
    taken: dict[tuple[str, bool], Unit] = {}
    for unit in units:
        other = taken.setdefault(_place(unit), unit)
        if other is not unit:
            raise UsageError(
                "two inputs would be written to the same file",
                path=unit.name,
                found=f"{other.name} has the name {unit.stem} too",
                remedy="Predict them one after another into two folders (--out), or rename one.",
            )
