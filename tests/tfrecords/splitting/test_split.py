"""The split keeps groups together, comes as near to the asked shares as can be, and depends on nothing else."""

from __future__ import annotations

import csv
import hashlib
import random
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.splitting import optimise as apportion_module
from kerasseg_tfrecords.splitting.optimise import apportion, rows_of, score
from kerasseg_tfrecords.splitting.patients import groups_of
from kerasseg_tfrecords.splitting.split import (
    SPLITS,
    Shares,
    Split,
    leaks,
    split_by_group,
    split_by_slice,
    take_per_class,
)

EIGHTY = Shares.parse("80/10/10")
SHARES = st.sampled_from(["80/10/10", "70/15/15", "1/1/1", "80/20/0", "80/0/20", "100/0/0", "60/30/10"]).map(
    Shares.parse
)
SLICES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("1234567890")), min_size=1, max_size=60)


def members(split: Split) -> Counter[str]:
    return Counter(split.assignment)


def plain_worst(labels: list[str], assignment: tuple[str, ...], shares: Shares) -> float:
    """Largest deviation in percentage points, counted naively."""
    worst = 0.0
    for label in [*set(labels), None]:
        own = [s for own_label, s in zip(labels, assignment, strict=True) if label in (None, own_label)]
        for name, asked in zip(SPLITS, shares.values(), strict=True):
            worst = max(worst, abs(100 * own.count(name) / len(own) - 100 * float(asked)))
    return worst


@pytest.mark.parametrize(
    ("text", "train", "test"),
    [
        ("80/10/10", 0.8, 0.1),
        ("0.8/0.1/0.1", 0.8, 0.1),
        ("1/1/1", 1 / 3, 1 / 3),
        (" 70 / 15/15", 0.7, 0.15),
        ("100/0/0", 1, 0),
        ("33.3/33.3/33.3", 1 / 3, 1 / 3),
    ],
)
def test_shares_are_read(text: str, train: float, test: float) -> None:
    shares = Shares.parse(text)
    assert (float(shares.train), float(shares.test)) == pytest.approx((train, test))
    assert sum(shares.values()) == 1
    assert [float(v) for v in Shares.parse(str(shares)).values()] == pytest.approx([float(v) for v in shares.values()])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "80/20",
        "80/10/5/5",
        "a/b/c",
        "80/-10/30",
        "0/50/50",
        "0/0/0",
        "nan/1/1",
        "80/10/20",
        "1//1",
        "inf/1/1",
        "1_0/1/1",
    ],
)
def test_shares_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--split"):
        Shares.parse(text)


@given(SLICES, SHARES, st.integers(0, 5))
def test_no_group_crosses_and_every_slice_is_placed_in_an_asked_split(
    slices: list[tuple[str, str]], shares: Shares, seed: int
) -> None:
    labels, groups = map(list, zip(*slices, strict=True))
    if len(set(groups)) < len(shares.used()):
        with pytest.raises(UsageError, match="--split-by slice") as refused:
            split_by_group(labels, groups, shares, seed)
        assert "--split 100/0/0" in str(refused.value)
        return
    split = split_by_group(labels, groups, shares, seed)
    assert leaks(groups, split.assignment) == 0
    assert set(split.assignment) == {SPLITS[k] for k in shares.used()}
    assert split.worst == pytest.approx(plain_worst(labels, split.assignment, shares))


@settings(max_examples=30)
@given(SLICES, SHARES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_slices_does_not_matter(
    slices: list[tuple[str, str]], shares: Shares, seed: int, shuffle: random.Random
) -> None:
    if len({group for _, group in slices}) < len(shares.used()):
        return
    ids = [f"{k:03}" for k in range(len(slices))]
    order = shuffle.sample(range(len(slices)), len(slices))

    def by_id(at: list[int]) -> list[dict[str, str]]:
        labels, groups, names = [slices[k][0] for k in at], [slices[k][1] for k in at], [ids[k] for k in at]
        grouped = split_by_group(labels, groups, shares, seed)
        by_slice = split_by_slice(labels, shares, seed, names)
        return [dict(zip(names, s.assignment, strict=True)) for s in (grouped, by_slice)]

    assert by_id(list(range(len(slices)))) == by_id(order)


def random_groups(seed: int, groups: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 12, (groups, 3)) * (draw.random((groups, 3)) < 0.5)
    counts[counts.sum(1) == 0, 0] = 1
    return counts[:, counts.sum(0) > 0]


def brute_force(counts: np.ndarray, asked: np.ndarray) -> float:
    rows = rows_of(counts)
    least = np.inf
    for choice in product(range(len(asked)), repeat=len(counts)):
        held = np.stack([rows[np.array(choice) == k].sum(0) for k in range(len(asked))], -1)
        least = min(least, float(score(held, asked)))
    return least


def score_of(counts: np.ndarray, where: np.ndarray, asked: np.ndarray) -> float:
    rows = rows_of(counts)
    return float(score(np.stack([rows[where == k].sum(0) for k in range(len(asked))], -1), asked))


@pytest.mark.parametrize("seed", range(6))
def test_few_groups_get_the_best_of_all_assignments(seed: int) -> None:
    counts, asked = random_groups(seed, 7), np.array([0.8, 0.1, 0.1])
    assert score_of(counts, apportion(counts, asked, seed), asked) == pytest.approx(brute_force(counts, asked))


@pytest.mark.slow
def test_the_search_finds_the_best_or_nearly_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apportion_module, "_ALL", 0)
    asked = np.array([0.7, 0.15, 0.15])
    behind = []
    for seed in range(12):
        counts = random_groups(100 + seed, 8)
        behind.append(score_of(counts, apportion(counts, asked, 0), asked) - brute_force(counts, asked))
    assert min(behind) > -1e-9
    assert sum(gap < 1e-9 for gap in behind) >= 9
    assert max(behind) < 0.03


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(3, 25))
def test_every_split_gets_every_class_that_has_enough_groups(seed: int, groups: int) -> None:
    draw = np.random.default_rng(seed)
    # Single-class groups: then three groups of a class are enough for three splits, whatever the other classes do.
    labels, names = [], []
    for group in range(groups):
        for _ in range(int(draw.integers(1, 15))):
            labels.append("abc"[group % 3] if groups >= 9 else "a")
            names.append(f"g{group}")
    split = split_by_group(labels, names, EIGHTY, seed)
    assert set(zip(labels, split.assignment, strict=True)) == set(product(set(labels), SPLITS))
    assert split.notes == ()


def test_a_class_with_too_few_groups_is_named() -> None:
    labels = ["a"] * 30 + ["rare"] * 4
    split = split_by_group(labels, [f"g{k}" for k in range(30)] + ["r1", "r1", "r2", "r2"], EIGHTY, 0)
    assert len(split.notes) == 1
    assert "'rare' has slices of only 2 patient groups" in split.notes[0]


def test_seeds_differ_and_agree_with_themselves() -> None:
    labels, groups = ["ab"[k % 2] for k in range(200)], [f"g{k // 4}" for k in range(200)]
    splits = [split_by_group(labels, groups, EIGHTY, seed).assignment for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len(set(splits)) == 3


def test_two_hundred_thousand_slices_are_split_within_whole_slices() -> None:
    draw = np.random.default_rng(0)
    owner = draw.integers(0, 30_000, 200_000)
    kind = draw.integers(0, 4, 200_000)
    split = split_by_group([f"c{k}" for k in kind], [f"p{k}" for k in owner], EIGHTY, 0)
    assert split.worst < 0.1


def test_no_slices_is_an_error_not_a_crash() -> None:
    with pytest.raises(DataError, match="no slices"):
        split_by_group([], [], EIGHTY, 0)
    with pytest.raises(DataError, match="no slices"):
        split_by_slice([], EIGHTY, 0, [])


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry for each slice"):
        split_by_group(["a"], ["1", "2"], EIGHTY, 0)


def balanced(per_class: int) -> tuple[list[str], list[str]]:
    labels = [label for label in ("glioma", "meningioma", "pituitary") for _ in range(per_class)]
    return labels, [f"{k}.mat" for k in range(len(labels))]


def test_seven_hundred_a_class_give_exactly_560_70_70() -> None:
    labels, ids = balanced(930)
    taken, _ = take_per_class(labels, ids, 700, seed=42)
    own = [labels[k] for k in taken]
    split = split_by_slice(own, EIGHTY, 42, [ids[k] for k in taken])
    assert Counter(zip(own, split.assignment, strict=True)) == {
        (label, name): count for label in set(labels) for name, count in zip(SPLITS, (560, 70, 70), strict=True)
    }
    assert split.worst == 0


def test_by_slice_is_train_test_split_twice() -> None:
    from sklearn.model_selection import train_test_split

    labels, ids = balanced(100)
    order = sorted(range(300), key=lambda k: ids[k])
    train, rest = train_test_split(order, test_size=60, random_state=7, stratify=[labels[k] for k in order])
    val, test = train_test_split(rest, test_size=30, random_state=7, stratify=[labels[k] for k in rest])
    split = split_by_slice(labels, EIGHTY, 7, ids)
    for name, expected in zip(SPLITS, (train, val, test), strict=True):
        assert {k for k, own in enumerate(split.assignment) if own == name} == set(expected)


@pytest.mark.parametrize("shares", ["80/10/10", "80/20/0", "80/0/20", "100/0/0"])
@pytest.mark.parametrize("sizes", [(1, 20), (2, 2, 2), (1, 1, 1), (3,), (9,), (1, 1, 100)])
def test_by_slice_copes_with_tiny_classes(sizes: tuple[int, ...], shares: str) -> None:
    labels = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    split = split_by_slice(labels, Shares.parse(shares), 0, [str(k) for k in range(len(labels))])
    assert set(split.assignment) == {SPLITS[k] for k in Shares.parse(shares).used()}


def test_two_slices_with_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="'x'"):
        split_by_slice(["a"] * 3, EIGHTY, 0, ["x", "y", "x"])
    with pytest.raises(DataError, match="'x'"):
        take_per_class(["a"] * 3, ["x", "y", "x"], 1, 0)


@given(SLICES, st.integers(1, 30), st.integers(0, 3), st.randoms(use_true_random=False))
def test_per_class_takes_what_is_there_in_any_order(
    slices: list[tuple[str, str]], n: int, seed: int, shuffle: random.Random
) -> None:
    labels = [label for label, _ in slices]
    ids = [str(k) for k in range(len(slices))]
    taken, notes = take_per_class(labels, ids, n, seed)
    have = Counter(labels)
    assert Counter(labels[k] for k in taken) == {label: min(n, count) for label, count in have.items()}
    assert len(notes) == sum(count < n for count in have.values())
    order = shuffle.sample(range(len(slices)), len(slices))
    again, _ = take_per_class([labels[k] for k in order], [ids[k] for k in order], n, seed)
    assert {ids[k] for k in taken} == {ids[order[k]] for k in again}


def test_per_class_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--per-class 0"):
        take_per_class(["a"], ["1"], 0, 0)


def test_leaks_counts_groups_on_several_sides() -> None:
    assert leaks("aabbc", ["train", "val", "test", "test", "train"]) == 1


def cheng(real: Path) -> tuple[list[str], list[str], list[str]]:
    with (real / "figshare-png" / "index.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [r["label"] for r in rows], [r["patient"] for r in rows], [r["image"] for r in rows]


@pytest.mark.real
@pytest.mark.parametrize("text", ["80/10/10", "70/15/15"])
@pytest.mark.parametrize("seed", [0, 42])
def test_every_cheng_class_is_within_two_points(real: Path, text: str, seed: int) -> None:
    labels, patients, ids = cheng(real)
    groups = groups_of(patients, ids).groups
    shares = Shares.parse(text)
    split = split_by_group(labels, groups, shares, seed)
    assert leaks(groups, split.assignment) == 0
    assert plain_worst(labels, split.assignment, shares) == pytest.approx(split.worst)
    assert split.worst < 0.2


@pytest.mark.real
def test_heads_are_shared_out_as_slices_are(real: Path) -> None:
    """Intervals are over heads: a tenth of the slices from two heads of fifty would say little."""
    labels, patients, ids = cheng(real)
    groups = groups_of(patients, ids).groups
    split = split_by_group(labels, groups, EIGHTY, 42)
    for name in set(labels):
        heads = {group for group, label in zip(groups, labels, strict=True) if label == name}
        for part in ("val", "test"):
            own = {g for g, where in zip(groups, split.assignment, strict=True) if where == part} & heads
            assert len(own) >= int(0.1 * len(heads))


@pytest.mark.real
def test_what_the_other_splits_leak_on_the_cheng_data(real: Path) -> None:
    labels, patients, ids = cheng(real)
    groups = groups_of(patients, ids).groups
    by_slice = split_by_slice(labels, EIGHTY, 42, ids)
    assert leaks(groups, by_slice.assignment) > 100
    by_id = split_by_group(labels, patients, EIGHTY, 42)
    assert leaks(patients, by_id.assignment) == 0
    assert leaks(groups, by_id.assignment) > 0


@pytest.mark.real
def test_a_balanced_subset_is_split_as_well(real: Path) -> None:
    labels, patients, ids = cheng(real)
    groups = groups_of(patients, ids).groups
    taken, _ = take_per_class(labels, ids, 400, 42)
    split = split_by_group([labels[k] for k in taken], [groups[k] for k in taken], EIGHTY, 42)
    assert split.worst < 2


# --- tumours -------------------------------------------------------------------------------------------------------------


def slices_of(kinds: str, each: int = 4) -> tuple[list[str], list[str], list[bool]]:
    """One patient for each letter, with `each` slices: t has tumours in half of them, o in none."""
    labels = ["a"] * (len(kinds) * each)
    groups = [f"p{k}" for k in range(len(kinds)) for _ in range(each)]
    return labels, groups, [kind == "t" and i % 2 == 0 for kind in kinds for i in range(each)]


@pytest.mark.parametrize("kinds", ["ttt" + "o" * 21, "t" * 5 + "o" * 40, "tottotoo"])
def test_every_split_has_tumours(kinds: str) -> None:
    labels, groups, tumours = slices_of(kinds)
    for seed in range(4):
        found = split_by_group(labels, groups, EIGHTY, seed, tumours).assignment
        assert {where for where, shown in zip(found, tumours, strict=True) if shown} == set(SPLITS)
        assert leaks(groups, found) == 0


def test_slices_are_stratified_by_tumours() -> None:
    labels, _, tumours = slices_of("t" * 10 + "o" * 20, each=10)
    found = split_by_slice(labels, EIGHTY, 3, [str(k) for k in range(300)], tumours).assignment
    assert Counter(where for where, shown in zip(found, tumours, strict=True) if shown) == {
        "train": 40,
        "val": 5,
        "test": 5,
    }


def test_splits_stay_what_they_were_where_tumours_make_no_difference() -> None:
    """Classes that have tumours in all of their slices or in none: the assignment of earlier versions."""
    draw = random.Random(5)
    labels, groups = [], []
    for k in range(60):
        for _ in range(draw.randint(1, 25)):
            labels.append("abc"[k % 3])
            groups.append(f"p{k}")
    ids = [str(k) for k in range(len(labels))]
    for tumours in (None, [label != "b" for label in labels]):
        by_group = split_by_group(labels, groups, EIGHTY, 42, tumours).assignment
        by_slice = split_by_slice(labels, EIGHTY, 42, ids, tumours).assignment
        digests = [hashlib.sha256(",".join(found).encode()).hexdigest()[:16] for found in (by_group, by_slice)]
        assert digests == ["50d3a0c8263a620b", "f853a45b79abee6d"]
