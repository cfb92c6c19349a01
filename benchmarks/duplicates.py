"""Search for duplicate slices, compared with correlating all pairs, and its cost per slice for more slices.

The data are synthetic heads, distorted at random; one in forty has a copy, mirrored and compressed with JPEG.

`python -m benchmarks.duplicates [--slices 100000]` prints the figures in docs/split.md for the real slices in
KERASSEG_REAL_DATA (default ../shared/data): correlations of copies after each disturbance and of different slices, the
number of BRISC images found among the Cheng slices, and the cost of the search over the given number of slices.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import h5py
import nibabel
import numpy as np

from benchmarks.measure import Cost, costs, rounds_of
from benchmarks.result import Result, compared
from kerasseg_tfrecords.splitting.duplicates import MIN_CORRELATION, find_duplicates, overlap
from kerasseg_tfrecords.splitting.fingerprints import ORIENTATIONS, Fingerprints, fingerprint, turn_details, turn_hashes
from kerasseg_tfrecords.splitting.patients import group_of

REAL = Path(os.environ.get("KERASSEG_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
Image = np.ndarray


def prepared(image: Image, size: int = 256) -> Image:
    """Convert a slice as `prepare` does: minimum to maximum onto 0..255, padded to a square, area interpolation."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    grey = grey.astype(np.float32)
    grey = (grey - grey.min()) * (255 / max(float(grey.max() - grey.min()), 1e-6))
    side = max(grey.shape)
    top, left = (side - grey.shape[0]) // 2, (side - grey.shape[1]) // 2
    square = np.pad(grey, [(top, side - grey.shape[0] - top), (left, side - grey.shape[1] - left)])
    if side != size:
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(square), 0, 255).astype(np.uint8)


def cheng() -> Iterator[tuple[str, str, Image]]:
    """Yield (name, group, image) of each Cheng slice."""
    with (REAL / "figshare-png" / "index.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            path = REAL / "figshare-png" / row["image"]
            yield path.name, group_of(row["patient"]), prepared(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    for path in sorted((REAL / "figshare-mat").glob("*.mat")):
        with h5py.File(path) as file:
            patient = "".join(map(chr, file["cjdata/PID"][()].ravel()))
            yield path.name, group_of(patient), prepared(file["cjdata/image"][()].T)


def brisc() -> Iterator[tuple[str, Image]]:
    for path in sorted((REAL / "brisc" / "images").glob("*.jpg")):
        yield path.name, prepared(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def volumes() -> Iterator[tuple[str, list[Image]]]:
    """Yield the name and the slices of each volume, in order."""
    for folder in sorted((REAL / "lgg-tiff").glob("TCGA*")):
        files = [path for path in folder.glob("*.tif") if not path.stem.endswith("_mask")]
        files.sort(key=lambda path: int(path.stem.rsplit("_", 1)[1]))
        yield folder.name, [prepared(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in files]
    for path in sorted((REAL / "nifti").glob("*/t1c.nii.gz")):
        volume = nibabel.load(path).get_fdata(dtype=np.float32)
        for axis, plane in enumerate(("sagittal", "coronal", "axial")):
            slices = (np.take(volume, k, axis) for k in range(volume.shape[axis]))
            inside = [s for s in slices if (s > 0.05 * volume.max()).mean() > 0.02]
            yield f"{path.parent.name}, 1 mm, {plane}", [prepared(s) for s in inside]


def jpeg(image: Image, quality: int) -> Image:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def scaled(image: Image, side: int, how: int = cv2.INTER_AREA) -> Image:
    return cv2.resize(image, (side, side), interpolation=how)


def levels(image: Image, gain: float, offset: float) -> Image:
    return np.clip(np.rint(image.astype(np.float32) * gain + offset), 0, 255).astype(np.uint8)


def z_scored(image: Image) -> Image:
    spread = max(float(image.std()), 1e-6)
    return levels((np.clip((image - image.mean()) / spread, -3, 3) + 3) * 42.5, 1, 0)


DISTURBANCES: dict[str, Callable[[Image], Image]] = {
    "JPEG quality 95": lambda x: jpeg(x, 95),
    "JPEG quality 75": lambda x: jpeg(x, 75),
    "JPEG quality 50": lambda x: jpeg(x, 50),
    "doubled in size, JPEG 50": lambda x: jpeg(scaled(x, 512, cv2.INTER_CUBIC), 50),
    "half size": lambda x: scaled(x, 128),
    "half size, JPEG 50": lambda x: jpeg(scaled(x, 128), 50),
    "192 pixels, nearest": lambda x: scaled(x, 192, cv2.INTER_NEAREST),
    "half the contrast, brighter by 60": lambda x: levels(x, 0.5, 60),
    "contrast x 1.3, clipped": lambda x: levels(x, 1.3, 0),
    "contrast x 1.6, clipped": lambda x: levels(x, 1.6, 0),
    "darker by 20, clipped": lambda x: levels(x, 1, -20),
    "gamma 0.7": lambda x: levels(255 * (x / 255) ** 0.7, 1, 0),
    "gamma 1.4": lambda x: levels(255 * (x / 255) ** 1.4, 1, 0),
    "percentile rule": lambda x: levels(np.clip(x, *np.percentile(x, (0.5, 99.5))), 1, 0),
    "zscore rule": z_scored,
    "mirrored, JPEG 75": lambda x: jpeg(np.ascontiguousarray(x[:, ::-1]), 75),
    "transposed, JPEG 75": lambda x: jpeg(np.ascontiguousarray(x.T), 75),
    "contrast x 2.5, clipped (not promised)": lambda x: levels(x, 2.5, 0),
    "local histogram equalisation (not promised)": lambda x: cv2.createCLAHE(2.0, (8, 8)).apply(x),
    "turned by 1 degree (out of scope)": lambda x: cv2.warpAffine(
        x, cv2.getRotationMatrix2D((128, 128), 1, 1), (256, 256)
    ),
    "cropped by 2 % (out of scope)": lambda x: scaled(np.ascontiguousarray(x[5:-5, 5:-5]), 256),
}


def unit(details: np.ndarray) -> np.ndarray:
    flat = details.reshape(len(details), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def taken_from(prints: Fingerprints, chosen: np.ndarray) -> Fingerprints:
    """The fingerprints with some numbers."""
    columns = (prints.digests, prints.hashes, prints.details, prints.variances)
    return Fingerprints(*(column[chosen] for column in columns))


def best_correlation(a: Fingerprints, b: Fingerprints, orientations: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Return (len(a), len(b)) largest detail correlation over the orientations, of all pairs."""
    left = unit(a.details)
    tables = (left @ unit(np.ascontiguousarray(turn_details(b.details, k))).T for k in orientations)
    table = next(tables)
    for other in tables:
        np.maximum(table, other, out=table)
    return table


def print_copies(images: list[Image], prints: Fingerprints) -> None:
    chosen = np.random.default_rng(0).choice(len(images), min(300, len(images)), replace=False)
    originals = taken_from(prints, chosen)
    print(
        f"{'copies of ' + str(len(chosen)) + ' slices':46} detail corr.: min   1 %    median  hash distance: max  found"
    )
    for name, disturb in DISTURBANCES.items():
        copies = Fingerprints.of(fingerprint(prepared(disturb(images[k]))) for k in chosen)
        values = np.max([(unit(originals.details) * unit(turn_details(copies.details, k))).sum(1) for k in range(8)], 0)
        apart = np.min(
            [
                np.linalg.norm(originals.hashes.astype(float) - turn_hashes(copies.hashes, k), axis=1) / 127
                for k in range(8)
            ],
            0,
        )
        # Searched among all slices, not only the original.
        right = sum(chosen[match.first] == match.second for match in overlap(copies, prints))
        print(
            f"{name:46}          {values.min():7.4f} {np.quantile(values, 0.01):6.4f} {np.median(values):7.4f}"
            f"          {apart.max():7.3f}  {right / len(chosen):7.1%}"
        )


def print_strangers(groups: list[str], prints: Fingerprints) -> None:
    table = best_correlation(prints, prints)
    np.fill_diagonal(table, -1)
    same = np.array(groups)[:, None] == np.array(groups)[None]
    for title, choice in (("different groups", ~same), ("the same group", same)):
        values = table[choice]
        counts = ", ".join(f"{int((values >= t).sum()) // 2} >= {t}" for t in (0.7, 0.8, 0.9, 0.95, MIN_CORRELATION))
        print(f"{title}: {len(values) // 2} pairs, largest correlation {values.max():.4f}; {counts}")
    report = find_duplicates(prints)
    print(
        f"find_duplicates: {len(report.pairs)} pairs, {report.examined} hashes and "
        f"{report.compared} details compared; flattest variance {prints.variances.min():.0f}"
    )


def print_neighbours() -> None:
    for name, slices in volumes():
        prints = Fingerprints.of(map(fingerprint, slices))
        a, b = unit(prints.details[1:]), unit(prints.details[:-1])
        values = (a * b).sum(1)
        report = find_duplicates(prints)
        print(
            f"{name}: {len(slices)} slices, neighbours correlate at {np.median(values):.3f} median, {values.max():.4f} "
            f"largest; {len(report.clusters)} clusters, {len(report.chains)} chains, {len(report.left_out)} left out"
        )


def print_brisc(names: list[str], prints: Fingerprints) -> None:
    theirs, images = zip(*brisc(), strict=True)
    others = Fingerprints.of(map(fingerprint, images))
    found = overlap(others, prints)
    lowest = min((match.correlation for match in found), default=float("nan"))
    lying = {word: sum(match.orientation == word for match in found) for word in ORIENTATIONS}
    print(f"BRISC: {len(found)} of {len(theirs)} are Cheng slices, correlation {lowest:.4f} or more;", end=" ")
    print(", ".join(f"{count} {word}" for word, count in lying.items() if count))
    upright = best_correlation(others, prints, (0,))
    print(f"  without mirroring: {int((upright.max(1) >= MIN_CORRELATION).sum())} found")
    rest = [k for k in range(len(theirs)) if k not in {match.first for match in found}]
    table = best_correlation(others, prints)
    for k in rest:
        print(f"  near miss {theirs[k]}: {table[k].max():.3f} with {names[int(table[k].argmax())]}")


def bodies(count: int, *, drawn: bool = False) -> Iterator[Image]:
    """Yield any number of different slices: real ones, or synthetic ones if there are none, distorted at random."""
    draw = np.random.default_rng(0)
    real = REAL.is_dir() and not drawn
    sources = [image for _, _, image in cheng()] if real else [blobs(draw) for _ in range(500)]
    for k in range(count):
        turn = cv2.getRotationMatrix2D((128, 128), draw.uniform(-20, 20), draw.uniform(0.85, 1.15))
        turn[:, 2] += draw.uniform(-12, 12, 2)
        turn[:, :2] += draw.normal(0, 0.03, (2, 2))
        yield cv2.warpAffine(sources[k % len(sources)], turn, (256, 256))


def blobs(draw: np.random.Generator) -> Image:
    """Create a synthetic head: an oval with smooth random contents."""
    noise = sum(
        cv2.resize(draw.normal(0, 1, (n, n)).astype(np.float32), (256, 256), interpolation=cv2.INTER_CUBIC)
        for n in (6, 12, 24, 48)
    )
    rows, columns = np.mgrid[-1:1:256j, -1:1:256j]
    inside = (rows / draw.uniform(0.7, 0.9)) ** 2 + (columns / draw.uniform(0.6, 0.8)) ** 2 < 1
    return prepared(np.where(inside, noise + 6, 0))


def with_copies(count: int) -> Fingerprints:
    """Return fingerprints of synthetic slices, of which every fortieth is a copy of the previous one."""

    def images() -> Iterator[Image]:
        before = None
        for k, image in enumerate(bodies(count, drawn=True)):
            before = jpeg(np.ascontiguousarray(before[:, ::-1]), 75) if k % 40 == 39 and before is not None else image
            yield before

    return Fingerprints.of(map(fingerprint, images()))


def all_pairs(prints: Fingerprints) -> set[tuple[int, int]]:
    """Find copies by correlating all pairs in all orientations."""
    table = best_correlation(prints, prints)
    return {(int(a), int(b)) for a, b in np.argwhere(np.triu(table >= MIN_CORRELATION, 1))}


def results(*, quick: bool) -> list[Result]:
    cv2.setNumThreads(1)
    few, many, rounds = (500, 2000, 1) if quick else (2000, 16_000, 3)
    prints = with_copies(many)
    some = taken_from(prints, np.arange(few))
    found = {(pair.first, pair.second) for pair in find_duplicates(some).pairs}
    searches: dict[str, Callable[[], Cost]] = {
        "few": lambda: costs(lambda: find_duplicates(some)),
        "all": lambda: costs(lambda: all_pairs(some)),
        "many": lambda: costs(lambda: find_duplicates(prints)),
    }
    times = rounds_of(searches, rounds)
    both = all_pairs(some)
    remark = f"{len(found & both)} of the {len(both)} copies that all pairs give, {len(found - both)} others"
    each = {"few": [cost.each(few) for cost in times["few"]], "many": [cost.each(many) for cost in times["many"]]}
    what, unit = "search for copies among {:,} slices", {"unit": "ms per slice", "scale": 1000.0}
    return [
        compared("duplicates", what.format(few), "all pairs correlated", times["few"], times["all"], remark=remark),
        compared("duplicates", what.format(many), f"{few:,} slices", each["many"], each["few"], **unit),
    ]


def print_cost(most: int) -> None:
    start = time.perf_counter()
    prints = Fingerprints.of(map(fingerprint, bodies(most)))
    print(f"{most} distorted slices and their fingerprints: {time.perf_counter() - start:.0f} s")
    sizes = [most // 4, most // 2, most]
    for size in sizes:
        some = taken_from(prints, np.random.default_rng(1).permutation(most)[:size])
        start = time.perf_counter()
        report = find_duplicates(some)
        taken = time.perf_counter() - start
        print(
            f"{size:7} slices: {taken:6.1f} s, {report.examined / size:.0f} pairs of hashes examined "
            f"and {report.compared / size:.2f} correlated per slice, {report.examined / size**2:.1e} of all, "
            f"{len(report.pairs)} found"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=20_000, help="slices for measuring the cost; 0 skips it")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if REAL.is_dir():
        names, groups, images = map(list, zip(*cheng(), strict=True))
        prints = Fingerprints.of(map(fingerprint, images))
        start = time.perf_counter()
        for image in images:
            fingerprint(image)
        print(f"fingerprint: {(time.perf_counter() - start) / len(images) * 1e3:.2f} ms per slice of 256 x 256")
        print_copies(images, prints)
        print_strangers(groups, prints)
        print_neighbours()
        print_brisc(names, prints)
    if arguments.slices:
        print_cost(arguments.slices)


if __name__ == "__main__":
    main()
