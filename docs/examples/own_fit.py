"""Fine-tuning inside somebody's own `model.fit`: kerasseg gives batches, freezing, loss, scores and schedule, Keras trains.

    python docs/examples/own_fit.py FOLDER

Draws 36 small slices of 12 patients, makes shards of them, and trains a small U-Net for a few epochs. Whoever wants the
whole recipe, with epoch 0, the best weights and the interval of the gain, takes `kerasseg.fine_tune` instead.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import cv2
import keras
import numpy as np

import kerasseg
from kerasseg_tfrecords import PrepareOptions, prepare

SIZE, CLASSES = 32, ("glioma", "meningioma", "pituitary")


def write_slices(folder: Path) -> None:
    """Grey heads with a bright tumour as PNG files, and the table that says whose they are and what they show."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "index.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "mask", "label", "patient"])
        for number in range(36):
            image = rng.normal(40, 8, (SIZE, SIZE))
            mask = np.zeros((SIZE, SIZE), np.uint8)
            cv2.ellipse(image, (SIZE // 2, SIZE // 2), (11, 14), 0, 0, 360, 110, -1)
            centre = [int(place) for place in rng.integers(11, 21, 2)]
            cv2.circle(mask, centre, int(rng.integers(3, 6)), 255, -1)
            image[mask > 0] = 200
            for kind, picture in (("images", np.clip(image, 0, 255).astype(np.uint8)), ("masks", mask)):
                cv2.imwrite(str(folder / kind / f"{number}.png"), picture)
            patient = number // 3
            table.writerow([f"images/{number}.png", f"masks/{number}.png", CLASSES[patient % 3], f"patient-{patient}"])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "own-fit-output")
    shutil.rmtree(folder, ignore_errors=True)
    write_slices(folder / "data")
    prepare(folder / "data", folder / "shards", PrepareOptions(size=SIZE, split="60/20/20"), jobs=1)

    # Stratified, safely augmented batches; each time Keras iterates them they are the next epoch's.
    train = kerasseg.load_split(folder / "shards", "train", batch_size=8, channels=3, seed=1)
    validation = kerasseg.load_split(folder / "shards", "val", batch_size=8, channels=3)

    # Yours comes from kerasseg.open_checkpoint(...), or from your own code.
    model = kerasseg.unet((SIZE, SIZE, 3), filters=4, depth=2, seed=1)
    sys.stdout.write(f"{kerasseg.freeze(model, 'conservative')}\n")
    model.compile(
        kerasseg.DecayedAdam(0.01),
        loss=kerasseg.DiceBCELoss(),
        metrics=[kerasseg.DiceScore(), kerasseg.DiceScore(subset="tumour")],
    )

    # The untouched network is what every epoch is held against.
    before = model.evaluate(validation, verbose=0, return_dict=True)["dice"]
    schedule = kerasseg.PlateauSchedule("val_dice", stages=[(2, 1e-3)], stop_after=3, baseline=before)
    best = folder / "best.keras"
    keep = keras.callbacks.ModelCheckpoint(best, "val_dice", save_best_only=True, initial_value_threshold=before)
    history = model.fit(
        train, validation_data=validation, epochs=6, shuffle=False, verbose=2, callbacks=[schedule, keep]
    ).history
    sys.stdout.write(f"validation Dice {before:.3f} before, {max(history['val_dice']):.3f} at best\n")
    if best.exists():
        # Loss, score and optimizer are found again, since their modules are imported.
        again = keras.saving.load_model(best).evaluate(validation, verbose=0, return_dict=True)["dice"]
        sys.stdout.write(f"{best} opened again: {again:.3f}\n")


if __name__ == "__main__":
    main()
