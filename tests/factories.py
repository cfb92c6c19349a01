"""Makers of small input files for tests: slices as the figshare data set stores them, and folders of them.

`from factories import write_mat` works in every test (`tests` is on pytest's `pythonpath`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

MAT73_HEADER = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Mon Aug 03 21:51:33 2015 HDF5 schema 1.00 ."
LABELS = {"meningioma": 1, "glioma": 2, "pituitary": 3}


def blob(seed: int = 0, size: int | tuple[int, int] = 64) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A head-like ellipse with one bright blob inside: int16 image (maxima in the thousands, background 0) and its mask.

    The same seed and size give the same slice; other seeds differ in place, size and texture.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    head = ((rows - height / 2) / (0.45 * height)) ** 2 + ((columns - width / 2) / (0.4 * width)) ** 2 <= 1
    row, column = height * rng.uniform(0.35, 0.65), width * rng.uniform(0.35, 0.65)
    # At least one and a half pixels, so that even the smallest slice has a tumour.
    radii = np.maximum(rng.uniform(0.06, 0.15, 2) * (height, width), 1.5)
    mask = ((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 <= 1
    image = np.where(head, rng.integers(300, 900, (height, width)), 0) + np.where(mask, rng.integers(1500, 4000), 0)
    return image.astype(np.int16), mask & head


def write_mat(
    path: Path,
    image: NDArray[Any] | None,
    mask: NDArray[Any] | None,
    label: float | None = 1,
    pid: str | None = "MR040240",
    *,
    user_block: bool = True,
    gzip: bool = True,
    extra: dict[str, NDArray[Any]] | None = None,
) -> Path:
    """Writes one slice as MATLAB 7.3 does (column-major, HDF5 behind a 512-byte header). None leaves a field out.

    Args:
        path: Where; its folder is made.
        image: (height, width), upright; stored transposed like MATLAB's.
        mask: Likewise; bool or integer.
        label: 1 meningioma, 2 glioma, 3 pituitary.
        pid: Patient id, stored as uint16 character codes.
        user_block: False for a bare HDF5 file, as other tools write it.
        gzip: Chunks and filter of the real files; False stores contiguously.
        extra: More fields of `cjdata`, as h5py is to show them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512 if user_block else 0) as file:
        struct = file.create_group("cjdata")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, value in (("image", image), ("tumorMask", mask)):
            if value is None:
                continue
            stored = np.ascontiguousarray(np.asarray(value).T)
            if stored.dtype == bool:
                stored = stored.astype(np.uint8)
            chunks = (
                (max(stored.shape[0], 1), max(stored.shape[1] // 8, 1))
                if gzip and stored.ndim == 2 and stored.size
                else None
            )
            struct.create_dataset(name, data=stored, chunks=chunks, compression=3 if chunks else None)
        if label is not None:
            struct["label"] = np.full((1, 1), label, np.float64)
        if pid is not None:
            struct["PID"] = np.array([[ord(c)] for c in pid], np.uint16).reshape(-1, 1)
        for name, value in (extra or {}).items():
            struct[name] = value
    if user_block:
        with path.open("r+b") as stream:
            stream.write(MAT73_HEADER.ljust(124) + b"\x00\x02IM")
    return path


def write_mat5(
    path: Path,
    image: NDArray[Any],
    mask: NDArray[Any],
    label: float = 1,
    pid: str = "MR040240",
    *,
    compress: bool = True,
) -> Path:
    """The same slice in the older MATLAB 5 form (no HDF5), as `save -v6` or `-v7` and SciPy write it."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "PID": pid,
        "image": image,
        "label": float(label),
        "tumorBorder": np.zeros((8, 1)),
        "tumorMask": np.asarray(mask).astype(np.uint8),
    }
    savemat(path, {"cjdata": fields}, do_compression=compress)
    return path


def write_cvind(path: Path, slices: int = 3064) -> Path:
    """The one file of the full archive that is no slice: fold numbers 1-5, one a slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cvind"] = np.resize(np.arange(1.0, 6.0), (1, slices))
    with path.open("r+b") as stream:
        stream.write(MAT73_HEADER.ljust(124) + b"\x00\x02IM")
    return path


def write_figshare(folder: Path, patients: int = 4, slices_each: int = 3, size: int = 64, seed: int = 0) -> Path:
    """A small data set in the figshare layout: `1.mat` ..., patients round-robin over the classes, one file a slice."""
    number = 0
    for patient in range(patients):
        for _ in range(slices_each):
            number += 1
            image, mask = blob(seed * 100_003 + number, size)
            write_mat(folder / f"{number}.mat", image, mask, 1 + patient % 3, f"{100_000 + patient}")
    return folder
