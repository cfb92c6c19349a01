"""Scores of masks that another program made, nnU-Net's for instance: Dice, HD95, missed tumours, intervals over patients.

    python docs/examples/score_masks.py [PREDICTIONS REFERENCES]

Both folders hold files of the same names: NIfTI volumes (`.nii`, `.nii.gz`), one a patient, or PNG pictures, named after
their patient with a number behind (`patient3_07.png`). 0 is background. No network takes part, and TensorFlow is not
imported. Without folders it draws some masks and scores those.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import nibabel
import numpy as np
from numpy.typing import NDArray

import kerasseg

Mask = NDArray[np.bool_]
ENDINGS = (".nii.gz", ".nii", ".png")


def slices_of(path: Path) -> Iterator[tuple[Mask, tuple[float, float]]]:
    """The slices of a file, and the millimetres of a pixel (1, 1 for a picture, which does not tell)."""
    if path.name.endswith(".png"):
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise kerasseg.DataError("not a picture", path=path)
        yield picture > 0, (1.0, 1.0)
        return
    volume = nibabel.load(path)
    labels = np.asarray(volume.dataobj) > 0
    rows, columns, _ = (float(size) for size in volume.header.get_zooms()[:3])
    for index in range(labels.shape[2]):
        yield labels[:, :, index], (rows, columns)


def patient_of(path: Path) -> str:
    """Slices of one patient are alike: intervals are drawn over patients, not over slices."""
    return re.sub(r"[_-]\d+$", "", path.stem) if path.suffix == ".png" else path.name


def score(predictions: Path, references: Path) -> None:
    """Prints the table."""
    files = sorted(path for path in references.iterdir() if path.name.endswith(ENDINGS))
    dice, distances, diagonals, patients, missed = [], [], [], [], 0
    millimetres = True
    for reference in files:
        prediction = predictions / reference.name
        if not prediction.exists():
            # A case that the program left out is no reason to leave it out of the mean.
            raise kerasseg.DataError("no prediction for a reference", path=prediction)
        pairs = zip(slices_of(prediction), slices_of(reference), strict=True)
        for (found, _), (true, spacing) in pairs:
            if not found.any() and not true.any():
                continue  # most slices of a volume: they would lift the mean
            millimetres &= not reference.name.endswith(".png")
            one = kerasseg.surface_distances(found, true, spacing)
            dice.append(float(kerasseg.dice(found, true)))
            distances.append(one.hd95 if np.isfinite(one.hd95) else np.nan)
            diagonals.append(one.hd95_or_diagonal)
            patients.append(patient_of(reference))
            missed += one.outcome == "missed"
    unit = "mm" if millimetres else "pixels"
    sys.stdout.write(f"{len(dice)} slices with tumour, {len(set(patients))} patients\n")
    sys.stdout.write(f"Dice                   {kerasseg.bootstrap_interval(dice, patients)}\n")
    sys.stdout.write(f"HD95 of found, {unit:<6}  {kerasseg.bootstrap_interval(distances, patients)}, {missed} missed\n")
    sys.stdout.write(f"HD95, misses diagonal  {kerasseg.bootstrap_interval(diagonals, patients)}\n")


def draw(folder: Path) -> tuple[Path, Path]:
    """Twelve patients with two pictures each, and masks as a program might make them: shifted, one tumour missed."""
    predictions, references = folder / "predictions", folder / "references"
    predictions.mkdir(parents=True)
    references.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        name = f"patient{number // 2}_{number % 2:02}.png"
        centre = rng.integers(24, 40, 2)
        for where, shift, grey in (
            (references, 0, 255),
            (predictions, rng.integers(-3, 4, 2), 0 if number == 7 else 255),
        ):
            mask = np.zeros((64, 64), np.uint8)
            cv2.circle(mask, [int(place) for place in centre + shift], 9, grey, -1)
            cv2.imwrite(str(where / name), mask)
    return predictions, references


def main() -> None:
    if len(sys.argv) > 2:
        try:
            score(Path(sys.argv[1]), Path(sys.argv[2]))
        except kerasseg.KerassegError as error:
            sys.exit(str(error))
        return
    with tempfile.TemporaryDirectory() as folder:
        score(*draw(Path(folder)))


if __name__ == "__main__":
    main()
