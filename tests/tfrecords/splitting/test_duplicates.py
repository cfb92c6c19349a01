"""Copies are found however they were made, slices that are no copies are not, and the index loses nothing."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.splitting.duplicates import (
    HASH_RADIUS,
    MIN_CORRELATION,
    find_duplicates,
    merge_groups,
    overlap,
)
from kerasseg_tfrecords.splitting.fingerprints import (
    ORIENTATIONS,
    Fingerprint,
    Fingerprints,
    fingerprint,
    turn_details,
    turn_hashes,
)
from kerasseg_tfrecords.splitting.hash_index import HashIndex
from kerasseg_tfrecords.splitting.patients import group_of

Image = np.ndarray


def normalised(image: Image) -> Image:
    image = image.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    return np.rint((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def head(seed: int, size: int = 128) -> Image:
    """A drawn head: an oval, always much the same, with contents of its own."""
    draw = np.random.default_rng(seed)
    inside = sum(
        cv2.resize(draw.normal(0, 1, (n, n)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        for n in (6, 12, 24)
    )
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return normalised(np.where((rows / 0.85) ** 2 + (columns / 0.7) ** 2 < 1, inside + 6, 0))


def jpeg(image: Image, quality: int) -> Image:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def levels(image: Image, gain: float, offset: float) -> Image:
    return np.clip(np.rint(image.astype(np.float32) * gain + offset), 0, 255).astype(np.uint8)


def resized(image: Image, size: int) -> Image:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


COPIES = {
    "jpeg-95": lambda x: jpeg(x, 95),
    "jpeg-75": lambda x: jpeg(x, 75),
    "jpeg-50": lambda x: jpeg(x, 50),
    "half": lambda x: resized(x, x.shape[0] // 2),
    "double": lambda x: cv2.resize(x, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    "half-jpeg": lambda x: jpeg(resized(x, x.shape[0] // 2), 60),
    "darker": lambda x: levels(x, 0.5, 0),
    "brighter": lambda x: levels(x, 0.7, 50),
    "clipped": lambda x: levels(x, 1.3, 0),
    "colour": lambda x: np.dstack([x] * 3),
    "mirrored": lambda x: jpeg(np.ascontiguousarray(x[:, ::-1]), 80),
    "upside-down": lambda x: x[::-1],
    "transposed": lambda x: x.T,
    "turned": lambda x: jpeg(np.ascontiguousarray(np.rot90(x)), 80),
}


def prints_of(images: list[Image]) -> Fingerprints:
    return Fingerprints.of(fingerprint(image) for image in images)


HEADS = [head(k) for k in range(40)]


def unit(details: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(details).reshape(len(details), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def all_pairs(prints: Fingerprints) -> set[tuple[int, int]]:
    """Near-equal pairs by looking at all of them."""
    found: set[tuple[int, int]] = set()
    for k in range(len(ORIENTATIONS)):
        alike = unit(prints.details) @ unit(turn_details(prints.details, k)).T >= MIN_CORRELATION
        apart = prints.hashes[:, None].astype(int) - turn_hashes(prints.hashes, k)[None]
        near = np.linalg.norm(apart, axis=-1) <= HASH_RADIUS * 127
        found |= {(int(a), int(b)) for a, b in np.argwhere(alike & near) if a < b}
    return found


def connected(count: int, pairs: set[tuple[int, int]]) -> set[tuple[int, ...]]:
    name = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            name[a] = name[b] = min(name[a], name[b])
    sets: dict[int, list[int]] = {}
    for k, own in enumerate(name):
        sets.setdefault(own, []).append(k)
    return {tuple(s) for s in sets.values() if len(s) > 1}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_every_copy_is_found_and_nothing_else(copy) -> None:
    images = [*HEADS, *(normalised(copy(image)) for image in HEADS)]
    report = find_duplicates(prints_of(images))
    assert report.clusters == tuple((k, k + 40) for k in range(40))
    assert not report.chains
    others = overlap(prints_of(images[40:]), prints_of(HEADS))
    assert [(match.first, match.second) for match in others] == [(k, k) for k in range(40)]


def test_equal_pixels_are_called_equal_and_share_one_original() -> None:
    report = find_duplicates(prints_of([HEADS[0], HEADS[1], HEADS[0].copy(), HEADS[0], jpeg(HEADS[0], 80)]))
    assert [(p.first, p.second, p.kind) for p in report.pairs] == [(0, 2, "equal"), (0, 3, "equal"), (0, 4, "near")]
    assert report.clusters == ((0, 2, 3, 4),)


def test_the_orientation_is_named() -> None:
    for k, word in enumerate(ORIENTATIONS):
        other = jpeg(np.ascontiguousarray(turn_details(HEADS[3][None], k)[0]), 90)
        # How the second must lie to match the first: the way back.
        (pair,) = find_duplicates(prints_of([other, HEADS[3]])).pairs
        assert pair.orientation == word


@given(st.integers(0, 7), st.integers(0, 100))
def test_a_turned_picture_has_the_turned_fingerprint(orientation: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (64, 96), dtype=np.uint8)
    plain, turned = prints_of([image]), prints_of([turn_details(image[None], orientation)[0]])
    assert np.abs(turn_hashes(plain.hashes, orientation).astype(int) - turned.hashes).max() <= 1
    assert np.abs(turn_details(plain.details, orientation).astype(int) - turned.details).max() <= 1


def bent(image: Image, by: float, seed: int) -> Image:
    draw = np.random.default_rng(seed)
    shift = [
        cv2.resize(draw.normal(0, by, (5, 5)).astype(np.float32), image.shape, interpolation=cv2.INTER_CUBIC)
        for _ in range(2)
    ]
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    return cv2.remap(image, columns + shift[0], rows + shift[1], cv2.INTER_LINEAR)


def test_neighbours_with_moderately_other_content_are_not_merged() -> None:
    images = [image for k in range(20) for image in (HEADS[k], bent(HEADS[k], 1.5, k))]
    whole = np.corrcoef([resized(image, 32).ravel().astype(float) for image in images])
    # They are alike indeed, as whole pictures.
    assert np.median([whole[2 * k, 2 * k + 1] for k in range(20)]) > 0.95
    assert not find_duplicates(prints_of(images)).pairs


def mixture(seed: int, count: int) -> list[Image]:
    """Heads, copies of copies, slight bendings at the edge of likeness, in random order."""
    draw = np.random.default_rng(seed)
    images = [head(1000 * seed + k, 96) for k in range(count // 2)]
    ways = list(COPIES.values())
    while len(images) < count:
        image = images[draw.integers(len(images))]
        image = image if image.ndim == 2 else image[..., 0]
        if draw.random() < 0.6:
            images.append(normalised(ways[draw.integers(len(ways))](image)))
        else:
            images.append(bent(image, float(draw.uniform(0.1, 1)), int(draw.integers(1 << 30))))
    return [images[k] for k in draw.permutation(count)]


@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_what_looking_at_all_pairs_finds(seed: int) -> None:
    prints = prints_of(mixture(seed, 160))
    report = find_duplicates(prints, max_share=1)
    expected = all_pairs(prints)
    assert len(expected) > 40
    first = {bytes(d): k for k, d in reversed(list(enumerate(prints.digests)))}
    assert {(p.first, p.second) for p in report.pairs} >= {
        (a, b) for a, b in expected if first[bytes(prints.digests[a])] == a and first[bytes(prints.digests[b])] == b
    }
    assert set(report.clusters) == connected(len(prints), expected)


def test_the_order_of_the_slices_does_not_matter() -> None:
    images = mixture(9, 120)
    order = np.random.default_rng(0).permutation(120)
    plain = {frozenset(c) for c in find_duplicates(prints_of(images)).clusters}
    other = find_duplicates(prints_of([images[k] for k in order])).clusters
    assert {frozenset(int(order[k]) for k in cluster) for cluster in other} == plain


def morph(count: int) -> list[Image]:
    """A chain: each picture is like the next, the ends are not alike."""
    a, b = head(1).astype(np.float32), head(2).astype(np.float32)
    return [normalised(a + (b - a) * k / (count - 1)) for k in range(count)]


def test_a_chain_is_reported_and_not_merged() -> None:
    chain = morph(30)
    twin = chain[10].copy()
    report = find_duplicates(prints_of([*HEADS[5:], *chain, twin]))
    assert report.chains == (tuple(range(35, 66)),)
    # Equal pixels are no matter of likeness.
    assert report.clusters == ((45, 65),)
    assert len(report.pairs) >= 29


def test_the_same_chain_is_merged_where_it_is_little_of_the_data() -> None:
    report = find_duplicates(prints_of([*HEADS[5:], *morph(30)]), max_share=0.9)
    assert not report.chains
    assert report.clusters == (tuple(range(35, 65)),)


def test_many_copies_of_one_slice_are_no_chain() -> None:
    copies = [jpeg(HEADS[0], quality) for quality in range(60, 96, 3)]
    report = find_duplicates(prints_of([*HEADS[:20], *copies]))
    assert report.clusters == ((0, *range(20, 32)),)
    assert not report.chains


def test_near_uniform_slices_are_left_out() -> None:
    draw = np.random.default_rng(0)
    flat = [np.full((128, 128), k, np.uint8) for k in (0, 9)] + [np.zeros((128, 128), np.uint8)]
    dim = [draw.integers(0, 12, (128, 128)).astype(np.uint8) for _ in range(2)]
    hot = np.zeros((128, 128), np.uint8)
    hot[3, 5] = 255
    report = find_duplicates(prints_of([*flat, *dim, hot, HEADS[0], HEADS[0]]))
    assert report.left_out == (0, 1, 2, 3, 4, 5)
    assert report.clusters == ((6, 7),)
    found = overlap(prints_of([*flat, HEADS[1]]), prints_of([*flat, HEADS[0]]))
    assert found == ()


def test_a_dark_slice_with_a_hot_pixel_is_still_compared() -> None:
    dark = levels(HEADS[0], 0.25, 0)
    dark[0, 0] = 255
    again = jpeg(dark, 90)
    report = find_duplicates(prints_of([dark, again, HEADS[1]]))
    assert report.clusters == ((0, 1),)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_slice(count: int) -> None:
    prints = prints_of(HEADS[:count])
    assert find_duplicates(prints).pairs == ()
    assert overlap(prints, prints_of([])) == ()
    assert overlap(prints_of([]), prints) == ()


def test_overlap_prefers_equal_pixels_then_the_best() -> None:
    theirs = prints_of([jpeg(HEADS[0], 50), HEADS[0], jpeg(HEADS[1], 30), jpeg(HEADS[1], 95)])
    found = overlap(prints_of([HEADS[0], HEADS[1], HEADS[2]]), theirs)
    assert [(p.first, p.second, p.kind) for p in found] == [(0, 1, "equal"), (1, 3, "near")]


def synthetic(count: int, twins: int, seed: int = 0) -> np.ndarray:
    """Hashes of unlike slices, with the leaning to common signs that heads have, and `twins` near copies."""
    draw = np.random.default_rng(seed)
    size = fingerprint(HEADS[0]).hash.shape[0]
    lean = draw.normal(0, 0.7, size)
    values = lean + draw.normal(0, 1, (count, size))
    values = np.concatenate([values, values[:twins] + draw.normal(0, 0.05, (twins, size))])
    return np.rint(values * (127 / np.linalg.norm(values, axis=1, keepdims=True))).astype(np.int8)


def test_the_search_is_indexed() -> None:
    examined = []
    for count in (2_000, 4_000, 8_000):
        hashes = synthetic(count, count // 20)
        found = HashIndex(hashes).near(hashes, HASH_RADIUS)
        once = found.once()
        assert set(zip(once.first.tolist(), once.second.tolist(), strict=True)) >= {
            (k, count + k) for k in range(count // 20)
        }
        examined.append(found.examined)
        # All pairs in eight orientations would be this many.
        assert found.examined < 0.01 * 8 * len(hashes) ** 2
    # Four times the slices would be sixteen times the pairs.
    assert examined[2] / examined[0] < 8


def test_a_crowd_of_look_alikes_stays_affordable_and_connected() -> None:
    draw = np.random.default_rng(0)
    base = fingerprint(HEADS[0])
    crowd = Fingerprints.of(
        Fingerprint(
            draw.bytes(16),
            base.hash,
            np.clip(base.detail + draw.integers(-2, 3, base.detail.shape), -127, 127).astype(np.int8),
            base.variance,
        )
        for _ in range(600)
    )
    report = find_duplicates(crowd)
    assert report.clusters == (tuple(range(600)),)
    assert report.compared < 600 * 70


def test_columns_keep_what_the_fingerprints_hold() -> None:
    single = [fingerprint(image) for image in HEADS[:3]]
    columns = Fingerprints.of(single)
    assert len(columns) == 3
    for k, one in enumerate(single):
        again = Fingerprint.from_bytes(one.to_bytes())
        for this in (again, one):
            assert columns.digests[k].tobytes() == this.digest
            assert np.array_equal(columns.hashes[k], this.hash)
            assert np.array_equal(columns.details[k], this.detail)
            assert columns.variances[k] == this.variance
    with pytest.raises(ValueError, match="a fingerprint has"):
        Fingerprint.from_bytes(single[0].to_bytes()[:-1])


def test_digests_tell_shapes_apart() -> None:
    image = np.arange(64, dtype=np.uint8)
    assert len({fingerprint(image.reshape(shape)).digest for shape in ((8, 8), (4, 16), (8, 8, 1))}) == 3


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.uint16)]
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        fingerprint(image)


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4), max_size=6),
)
def test_merged_groups_are_the_connected_ones(groups: list[str], clusters: list[list[int]]) -> None:
    clusters = [[k % len(groups) for k in cluster] for cluster in clusters]
    merged = merge_groups(groups, clusters)
    links = {(a, b) for cluster in clusters for a, b in combinations(sorted(set(cluster)), 2)}
    links |= {(a, b) for a, b in combinations(range(len(groups)), 2) if groups[a] == groups[b]}
    expected = list(groups)
    for together in connected(len(groups), links):
        for k in together:
            expected[k] = min(groups[j] for j in together)
    assert list(merged) == expected


def cheng(real: Path) -> tuple[list[str], list[Image]]:
    with (real / "figshare-png" / "index.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    images = [cv2.imread(str(real / "figshare-png" / row["image"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    return [group_of(row["patient"]) for row in rows], [normalised(image) for image in images]


@pytest.fixture(scope="module")
def cheng_prints(real: Path) -> tuple[list[str], list[Image], Fingerprints]:
    groups, images = cheng(real)
    return groups, images, prints_of(images)


@pytest.mark.real
def test_brisc_is_partly_cheng_mirrored(real: Path, cheng_prints) -> None:
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((real / "brisc" / "images").glob("*.jpg"))]
    sides = [max(image.shape) for image in images]
    square = [
        np.pad(image, [((side - n) // 2, side - n - (side - n) // 2) for n in image.shape])
        for image, side in zip(images, sides, strict=True)
    ]
    theirs = [normalised(resized(image, 256)) for image in square]
    found = overlap(prints_of(theirs), cheng_prints[2])
    # Counted without fingerprints: plain correlation of mirrored 64 x 64 pictures with every original.
    mirrored = unit(np.stack([resized(np.ascontiguousarray(image[:, ::-1]), 64) for image in theirs]))
    plain = mirrored @ unit(np.stack([resized(image, 64) for image in cheng_prints[1]])).T
    expected = [(int(k), int(plain[k].argmax())) for k in np.flatnonzero(plain.max(axis=1) > 0.99)]
    assert [(match.first, match.second) for match in found] == expected
    assert len(expected) == 29
    assert {match.orientation for match in found} == {"mirrored"}
    assert min(match.correlation for match in found) > 0.999


@pytest.mark.real
def test_no_two_cheng_slices_are_copies(cheng_prints) -> None:
    groups, _, prints = cheng_prints
    report = find_duplicates(prints)
    assert (report.pairs, report.chains, report.left_out) == ((), (), ())
    alike = unit(prints.details) @ unit(prints.details).T
    other = np.array(groups)[:, None] != np.array(groups)[None]
    assert alike[other].max() < 0.85


@pytest.mark.real
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_copies_of_cheng_slices_are_found_among_all(copy, cheng_prints) -> None:
    _, images, prints = cheng_prints
    chosen = np.random.default_rng(0).choice(len(images), 60, replace=False)
    copies = prints_of([normalised(copy(images[k])) for k in chosen])
    assert [(m.first, m.second) for m in overlap(copies, prints)] == list(enumerate(chosen.tolist()))
