"""Slices a second of `kerasseg predict` against a loop over the original SavedModel, in turn in one run.

    python -m benchmarks.prediction

The loop is what one writes first: `tf.saved_model.load`, then for each file read, resize, call the signature, write the
mask. Both read the same files, put out the same masks, and start when the network is in memory. `KERASSEG_REAL_DATA` names
the SavedModel (`checkpoints/unet-lgg-savedmodel`) and the slices; without it, a synthetic network of the same shape and
synthetic slices are taken.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import cv2
import h5py
import numpy as np

from benchmarks.measure import make_slices, seconds, spread

ROUNDS, COUNT = 5, 48
GOAL = 1.2


def loop(signature: object, files: list[Path], out: Path) -> None:
    import tensorflow as tf

    out.mkdir(parents=True, exist_ok=True)
    (name,) = signature.structured_input_signature[1]  # type: ignore[attr-defined]
    for path in files:
        with h5py.File(path) as file:
            image = np.asarray(file["cjdata/image"]).T.astype(np.float32)
        image = (image - image.min()) / max(float(image.max() - image.min()), 1e-6)
        small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
        answer = signature(**{name: tf.constant(np.repeat(small[None, ..., None], 3, axis=3))})  # type: ignore[operator]
        probability = cv2.resize(next(iter(answer.values())).numpy()[0, ..., 0], image.shape[::-1])
        cv2.imwrite(str(out / f"{path.stem}_mask.png"), (probability >= 0.5).astype(np.uint8) * 255)


def equal_pixels(one: Path, other: Path) -> tuple[float, float]:
    """Share of equal pixels, and Dice over all slices together."""
    same = total = both = either = 0
    for path in sorted(one.glob("*_mask.png")):
        a, b = (cv2.imread(str(folder / path.name), cv2.IMREAD_UNCHANGED) > 0 for folder in (one, other))
        same, total = same + int((a == b).sum()), total + a.size
        both, either = both + 2 * int((a & b).sum()), either + int(a.sum()) + int(b.sum())
    return same / total, both / either if either else 1.0


def main() -> None:
    import tensorflow as tf

    import kerasseg
    from kerasseg.prediction.networks import open_network
    from kerasseg.training.precision import processor_has_bfloat16

    real = Path(os.environ.get("KERASSEG_REAL_DATA", "../shared/data"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        savedmodel, slices = real / "checkpoints" / "unet-lgg-savedmodel", real / "figshare-mat"
        if not savedmodel.is_dir():
            savedmodel, slices = folder / "network", folder / "slices"
            kerasseg.unet((256, 256, 3), filters=16, seed=0).export(str(savedmodel), verbose=False)
            make_slices(slices, COUNT)
        files = sorted(slices.glob("*.mat"))[:COUNT]
        signature = tf.saved_model.load(str(savedmodel)).signatures["serving_default"]
        network = kerasseg.open_checkpoint(savedmodel, compare=False)
        number = iter(range(1000))

        def predict(precision: str) -> Path:
            out = folder / f"out-{next(number)}"
            kerasseg.predict_files(opened[precision], files, out)
            return out

        precisions = ["float32", *(["mixed_bfloat16"] if processor_has_bfloat16() else [])]
        opened = {
            precision: open_network(network, threshold=0.5, intensity="minmax", precision=precision)
            for precision in precisions
        }
        loop(signature, files[:2], folder / "loop")
        made = {precision: predict(precision) for precision in precisions}
        loop(signature, files, folder / "loop")
        print(f"{len(files)} slices of 512x512, a network of {network.count_params():,} parameters at 256x256")
        for precision, out in made.items():
            share, dice = equal_pixels(folder / "loop", out)
            print(f"  masks in {precision} and the loop's: {share:.6%} of pixels equal, Dice {dice:.5f}")
        times: dict[str, list[float]] = {precision: [] for precision in ["loop", *precisions]}
        for _ in range(ROUNDS):
            times["loop"].append(seconds(lambda: loop(signature, files, folder / "loop")))
            for precision in precisions:
                times[precision].append(seconds(lambda precision=precision: predict(precision)))  # type: ignore[misc]
        for name_, values in times.items():
            print(f"  {name_}: {len(files) / statistics.median(values):.1f} slices/s")
        for precision in precisions:
            ratios = [a / b for a, b in zip(times["loop"], times[precision], strict=True)]
            print(f"  {precision} is {spread(ratios)} times as fast as the loop (goal {GOAL})")


if __name__ == "__main__":
    main()
