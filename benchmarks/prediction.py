"""Slices per second of `kerasseg predict` compared with simple scripts, in turn in one run.

    python -m benchmarks.prediction [--quick]

The peers read, resize, predict and write one after another: the original SavedModel's signature one slice at a time; Keras'
`model.predict`, OpenVINO, LiteRT, ONNX Runtime and PyTorch in batches of 8. PyTorch has the same weights in the same
layers, channels-last; the other engines convert the network themselves. These have a process each. All read the same
files, with the network already in memory. Peers in bfloat16 or int8 are compared only with kerasseg in bfloat16. "Network
alone" is one batch without files. `KERASSEG_REAL_DATA` contains the SavedModel (`checkpoints/unet-lgg-savedmodel`) and the
slices; without it, a synthetic network of the same shape and synthetic slices are used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from benchmarks.measure import ROOT, costs, make_slices, rounds_of
from benchmarks.result import Result, compared, show
from benchmarks.turns import contenders

ROUNDS, COUNT, BATCH = 5, 48, 8
GOAL = 1.2
LOOP = "the SavedModel's signature in a loop"
PYTORCH = {  # name -> bfloat16 autocast
    "PyTorch, float32, channels-last, batches": False,
    "PyTorch, bfloat16, channels-last, batches": True,
}

Answer = Callable[[np.ndarray], np.ndarray]


def write_masks(answer: Answer, files: list[Path], out: Path, batch: int) -> None:
    """Write masks with a simple loop; `answer` maps (batch, 256, 256, 3) to probabilities (batch, 256, 256, 1)."""
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(files), batch):
        part = files[start : start + batch]
        images = [read(path) for path in part]
        found = answer(batch_of(images))
        for path, image, probability in zip(part, images, found, strict=True):
            whole = cv2.resize(probability[..., 0], image.shape[::-1])
            cv2.imwrite(str(out / f"{path.stem}_mask.png"), (whole >= 0.5).astype(np.uint8) * 255)


def batch_of(images: list[np.ndarray]) -> np.ndarray:
    """Return (batch, 256, 256, 3) float32 of images of any size."""
    small = np.stack([cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA) for image in images])
    return np.repeat(small[..., None], 3, axis=3)


def read(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        image = np.asarray(file["cjdata/image"]).T.astype(np.float32)
    return (image - image.min()) / max(float(image.max() - image.min()), 1e-6)


def equal_pixels(one: Path, other: Path) -> tuple[float, float]:
    """Return the share of equal pixels, and Dice pooled over all slices."""
    same = total = both = either = 0
    for path in sorted(one.glob("*_mask.png")):
        a, b = (cv2.imread(str(folder / path.name), cv2.IMREAD_UNCHANGED) > 0 for folder in (one, other))
        same, total = same + int((a == b).sum()), total + a.size
        both, either = both + 2 * int((a & b).sum()), either + int(a.sum()) + int(b.sum())
    return same / total, both / either if either else 1.0


def by_signature(savedmodel: Path) -> Answer:
    """Return the function of a SavedModel that TensorFlow has loaded."""
    import tensorflow as tf

    signature = tf.saved_model.load(str(savedmodel)).signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    return lambda batch: np.asarray(next(iter(signature(**{name: tf.constant(batch)}).values())))


def peers(savedmodel: Path, network: Any) -> dict[str, tuple[Answer, int]]:
    """Return name -> (function, batch size) of the peers within this process."""

    def by_keras(batch: np.ndarray) -> np.ndarray:
        return np.asarray(network.predict(batch, verbose=0))

    return {LOOP: (by_signature(savedmodel), 1), "Keras model.predict, batches": (by_keras, BATCH)}


def engines(network: Any, folder: Path) -> dict[str, tuple[str, str, bool]]:
    """Export the network; return name -> (engine, file, whether in bfloat16), see `benchmarks.peers.engines`."""
    from benchmarks.peers.engines import available

    network(np.zeros((1, 256, 256, 3), np.float32))  # Keras exports only called models
    network.export(str(folder / "exported"), verbose=False)
    files = {"litert": folder / "network.tflite", "onnx": folder / "network.onnx"}
    for format_, file in files.items():
        with contextlib.suppress(ImportError):
            network.export(str(file), format=format_, verbose=False)
    return available(folder / "exported", files["litert"], files["onnx"])


def networks_alone(
    found: dict[str, tuple[str, str, bool]], precisions: list[str], savedmodel: Path, files: list[str], rounds: int
) -> list[Result]:
    """Compare one batch through kerasseg's network and through other engines."""
    ours = {precision: ("kerasseg", str(savedmodel), precision != "float32") for precision in precisions}
    makers = {name: ("benchmarks.peers.engines:alone", *one, files, BATCH) for name, one in (found | ours).items()}
    with contenders(makers) as running:
        times = rounds_of(running, rounds)
    return [
        compared(
            "prediction", f"network alone, {precision}", name, times[precision], times[name], slices=BATCH, goal=1.0
        )
        for precision in ours
        for name in found
        if name in times and found[name][2] == (precision != "float32")
    ]


def results(*, quick: bool) -> list[Result]:
    import kerasseg
    from kerasseg.prediction.predictor import open_network
    from kerasseg.training.precision import processor_has_bfloat16

    real = Path(os.environ.get("KERASSEG_REAL_DATA", ROOT.parent / "shared" / "data"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        savedmodel, slices = real / "checkpoints" / "unet-lgg-savedmodel", real / "figshare-mat"
        if not savedmodel.is_dir():
            savedmodel, slices = folder / "network", folder / "slices"
            kerasseg.unet((256, 256, 3), filters=16, seed=0).export(str(savedmodel), verbose=False)
            make_slices(slices, COUNT)
        files = sorted(slices.glob("*.mat"))[: BATCH if quick else COUNT]
        network = kerasseg.open_checkpoint(savedmodel, compare=False)
        others = peers(savedmodel, network)
        precisions = ["float32", *(["mixed_bfloat16"] if processor_has_bfloat16() else [])]
        opened = {p: open_network(network, threshold=0.5, intensity="minmax", precision=p) for p in precisions}
        number = itertools.count()

        def predict(precision: str) -> Path:
            out = folder / f"out-{next(number)}"
            kerasseg.predict_files(opened[precision], files, out)
            return out

        def ask(peer: str) -> None:
            write_masks(others[peer][0], files, folder / "peer", others[peer][1])

        made = {precision: predict(precision) for precision in precisions}
        for peer in reversed(others):  # warm up; the masks of the loop remain
            ask(peer)
        actions = {peer: lambda peer=peer: costs(lambda: ask(peer)) for peer in others}
        actions |= {p: lambda p=p: costs(lambda: predict(p)) for p in precisions}
        np.savez(folder / "weights.npz", *network.get_weights())
        names = [str(path) for path in files]
        makers = {
            peer: (
                "benchmarks.peers.pytorch:masks",
                str(folder / "weights.npz"),
                names,
                str(folder / peer),
                BATCH,
                short,
            )
            for peer, short in PYTORCH.items()
            if importlib.util.find_spec("torch")
        }
        found = engines(network, folder)
        makers |= {
            name: ("benchmarks.peers.engines:masks", *one, names, str(folder / name), BATCH)
            for name, one in found.items()
        }
        with contenders(makers) as running:
            times = rounds_of(actions | running, 2 if quick else ROUNDS)
        masks = {LOOP: folder / "peer", **{peer: folder / peer for peer in running}}
        lines = []
        for precision in precisions:
            for peer in [*others, *running]:
                if ("bfloat16" in peer or "int8" in peer) and precision == "float32":
                    continue
                remark = ""
                if peer in masks:
                    pixels, overlap = equal_pixels(masks[peer], made[precision])
                    remark = f"{pixels:.4%} of pixels and Dice {overlap:.4f} in common with its masks"
                lines.append(
                    compared(
                        "prediction",
                        f"predict, {precision}",
                        peer,
                        times[precision],
                        times[peer],
                        slices=len(files),
                        goal=GOAL if peer == LOOP else 1.0,
                        remark=remark,
                    )
                )
        return lines + networks_alone(found, precisions, savedmodel, names, 2 if quick else 3 * ROUNDS)


if __name__ == "__main__":
    show(results)
