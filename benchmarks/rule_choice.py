"""Rules tuned on few patients, compared with 0.5 without post-processing, on new patients.

Four small networks are trained on a third of the patients of the figshare data (`KERASSEG_REAL_DATA`, 64 x 64), with two
losses and several lengths; without the data, probability maps are simulated. Of the other patients, k are drawn for tuning,
and the rule is evaluated on the rest. "Highest mean" is the choice of earlier versions: the threshold nearest to 0.5 among
those within noise of the best, then each step of post-processing that raises the mean without loss for a class.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.result import Result, Spread, show
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.tuning.search import tune

SIZE = 64
PATIENTS = (3, 5, 8, 15, 30)
_SETTINGS: dict[str, tuple[float | bool, ...]] = {
    "min_diameter": (0.01, 0.02, 0.04, 0.06, 0.1),
    "close_radius": (0.016, 0.032),  # below one pixel at this size, a radius does nothing
    "fill_holes": (True,),
    "keep_largest": (True,),
    "open_radius": (0.016, 0.032),
}
_THRESHOLDS = np.arange(2, 99, 2) / 100


@dataclass(eq=False)
class Maps:
    """Probability maps of one network on patients that it was not trained on."""

    name: str
    probabilities: NDArray[np.float32]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    people: NDArray[np.int64]

    def dice(self, rule: MaskRule, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the Dice of the chosen slices."""
        masks = self.masks[chosen]
        found = np.stack([apply_rule(probability, rule) for probability in self.probabilities[chosen]])
        sizes = found.sum((1, 2)) + masks.sum((1, 2))
        return np.asarray(np.where(sizes > 0, 2 * (found & masks).sum((1, 2)) / np.maximum(sizes, 1), 1.0))


def real_slices(data: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Return images, masks, class and patient of the figshare slices; ids that differ by a trailing letter are equal."""
    folder = data / "figshare-png"
    with (folder / "index.csv").open() as stream:
        rows = list(csv.DictReader(stream))

    def read(name: str) -> NDArray[np.uint8]:
        picture = cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
        return np.asarray(cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA))

    images = np.stack([read(row["image"]) for row in rows]).astype(np.float32)[..., np.newaxis] / 255
    masks = np.stack([read(row["mask"]) for row in rows]) > 127
    _, labels = np.unique([row["label"] for row in rows], return_inverse=True)
    _, people = np.unique([re.sub(r"(?<=\d)[A-Z]+$", "", row["patient"]) for row in rows], return_inverse=True)
    return images, masks, labels, people


def trained(data: Path, *, quick: bool) -> list[Maps]:
    import keras

    import kerasseg

    images, masks, labels, people = real_slices(data)
    seen = np.isin(people, np.random.default_rng(0).permutation(people.max() + 1)[: people.max() // 3])
    kept = first_of_each(people[~seen])
    found = []
    for name, loss, epochs in (
        ("cross-entropy, 4 epochs", "binary_crossentropy", 4),
        ("cross-entropy, 12 epochs", "binary_crossentropy", 12),
        ("Dice and cross-entropy, 6 epochs", kerasseg.DiceBCELoss(), 6),
        ("Dice and cross-entropy, 16 epochs", kerasseg.DiceBCELoss(), 16),
    )[: 1 if quick else 4]:
        keras.utils.set_random_seed(len(found))
        model = kerasseg.unet((SIZE, SIZE, 1), depth=3, filters=8, seed=len(found))
        model.compile(keras.optimizers.Adam(2e-3), loss)
        model.fit(images[seen], masks[seen][..., None].astype(np.float32), 16, 1 if quick else epochs, verbose=0)
        values = np.asarray(model.predict(images[~seen], 32, verbose=0))[..., 0]
        found.append(Maps(name, values[kept], masks[~seen][kept], labels[~seen][kept], people[~seen][kept]))
    return found


def first_of_each(people: NDArray[np.int64], most: int = 4) -> NDArray[np.bool_]:
    """Return which slices are among the first few of their patient."""
    numbers = np.zeros(people.max() + 1, np.int64)
    kept = np.zeros(len(people), bool)
    for i, person in enumerate(people.tolist()):
        numbers[person] += 1
        kept[i] = numbers[person] <= most
    return kept


def simulated(*, quick: bool) -> list[Maps]:
    """Simulate maps with soft tumours, false alarms and differing patients; each network has its own bias."""
    found = []
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    for number, bias in enumerate((0.0,) if quick else (-1.5, -0.5, 0.0, 0.8)):
        rng = np.random.default_rng(number)
        people = np.repeat(np.arange(100), rng.integers(1, 6, 100))
        own = rng.normal(0, 0.8, 100)
        probabilities = np.empty((len(people), SIZE, SIZE), np.float32)
        masks = np.empty((len(people), SIZE, SIZE), bool)
        for i, person in enumerate(people):
            y, x, radius = rng.uniform(16, 48), rng.uniform(16, 48), rng.uniform(3, 8)
            distance = np.hypot(rows - y, columns - x) - radius
            masks[i] = distance < 0
            wave = cv2.resize(rng.normal(0, 1, (8, 8)).astype(np.float32), (SIZE, SIZE))
            score = np.clip(-distance, -8, 3) + 1.2 * wave + bias + own[person] + rng.normal(0, 1)
            for _ in range(rng.integers(0, 3)):
                spot = np.hypot(rows - rng.uniform(8, 56), columns - rng.uniform(8, 56)) - rng.uniform(0.5, 3)
                score = np.maximum(score, np.clip(-spot, -8, 2) + rng.normal(0, 1))
            probabilities[i] = 1 / (1 + np.exp(-score))
        found.append(Maps(f"simulated, bias {bias:g}", probabilities, masks, people % 3, people))
    return found


def highest_mean(maps: Maps, drawn: NDArray[np.bool_]) -> MaskRule:
    """Choose a rule on the drawn slices as earlier versions did."""
    _, people = np.unique(maps.people[drawn], return_inverse=True)
    counts = np.bincount(people)
    labels = maps.labels[drawn]

    def dice(rule: MaskRule) -> NDArray[np.float64]:
        return maps.dice(rule, drawn)

    table = np.stack([dice(MaskRule(threshold=float(t))) for t in _THRESHOLDS], axis=1)
    mean = table.mean(0)
    best = int(mean.argmax())
    change = table[:, [best]] - table
    sums = np.stack([np.bincount(people, column) for column in change.T], axis=1)
    residual = sums - counts[:, None] * change.mean(0)
    noise = np.sqrt(len(counts) / (len(counts) - 1) * (residual**2).sum(0)) / len(people)
    good = np.flatnonzero(change.mean(0) <= np.minimum(noise, 0.005))
    rule = MaskRule(threshold=float(_THRESHOLDS[good[np.abs(_THRESHOLDS[good] - 0.5).argmin()]]))
    tried = {0.5, *(float(t) for t in _THRESHOLDS[4::5] if mean[np.abs(_THRESHOLDS - t).argmin()] >= mean[best] - 0.05)}
    for name, settings in _SETTINGS.items():
        standing = dice(rule)
        gains = []
        for setting in settings:
            for threshold in sorted({*tried, rule.threshold}):
                new = rule.model_copy(update={name: setting, "threshold": threshold})
                change = dice(new) - standing
                if min(change[labels == label].mean() for label in np.unique(labels)) >= -1e-9:
                    gains.append((float(change.mean()), new))
        gain, new = max(gains, key=lambda one: one[0], default=(0.0, rule))
        if gain >= 1e-4:
            rule = new
    return rule


def beyond_noise(maps: Maps, drawn: NDArray[np.bool_]) -> MaskRule:
    """Choose a rule as `kerasseg tune-threshold` does."""
    people = [str(person) for person in maps.people[drawn]]
    given = ArrayPredictions(maps.probabilities[drawn], maps.masks[drawn], maps.labels[drawn], people, list("abc"))
    return tune(given, resamples=1, jobs=1).rule


def results(*, quick: bool) -> list[Result]:
    data = Path(os.environ.get("KERASSEG_REAL_DATA", ""))
    real = (data / "figshare-png" / "index.csv").is_file()
    networks = trained(data, quick=quick) if real else simulated(quick=quick)
    return compared_on(networks, draws=3 if quick else 60)


def compared_on(networks: list[Maps], draws: int) -> list[Result]:
    rng = np.random.default_rng(0)
    lines = []
    for patients in PATIENTS:
        gains = np.empty((len(networks) * draws, 2))
        for i in range(len(gains)):
            maps = networks[i % len(networks)]
            drawn = np.isin(maps.people, rng.choice(np.unique(maps.people), patients, replace=False))
            plain = maps.dice(MaskRule(), ~drawn).mean()
            gains[i] = [
                maps.dice(choice(maps, drawn), ~drawn).mean() - plain for choice in (beyond_noise, highest_mean)
            ]
        ours, before = gains.mean(0)
        worse = 100 * (gains < -0.01).mean(0)
        remark = (
            f"worse than 0.5 by more than 0.01 in {worse[0]:.1f} % of {len(gains)} draws; "
            f"highest mean {worse[1]:.1f} %; {len(networks)} networks"
        )
        name = f"gain over 0.5 on new patients, rule tuned on {patients} patients"
        spread = Spread(1.0, 1.0, 1.0)
        scaled = 100 * float(ours), 100 * float(before)
        lines.append(Result("rule_choice", name, "highest mean", *scaled, spread, 1, "points of Dice", remark=remark))
    return lines


if __name__ == "__main__":
    show(results)
