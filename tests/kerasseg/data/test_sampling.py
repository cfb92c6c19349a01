"""Every sentence about stratified batches, as a property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.data.sampling import stratified_batches
from kerasseg_tfrecords.errors import UsageError

counts_of_classes = st.lists(st.integers(1, 40), min_size=1, max_size=6)
sizes = st.integers(1, 17)


def labels_of(counts, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def per_batch(labels, batches, classes):
    return np.stack([(labels[batches] == c).sum(axis=1) for c in range(classes)], axis=1)


def within_whole_numbers(found, above, below):
    """Whether found is floor or ceil of above / below, in whole numbers."""
    return (above // below <= found) & (found <= -(-above // below))


@given(counts=counts_of_classes, size=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_proportional(counts, size, seed, epoch):
    labels, n = labels_of(counts), sum(counts)
    batches = stratified_batches(labels, size, seed=seed, epoch=epoch)
    assert batches.dtype == np.int64
    assert batches.shape == (-(-n // size), size)  # no partial batch, and no batch more than needed

    seen = np.bincount(batches.ravel(), minlength=n)
    assert seen.min() >= 1  # each slice ...
    redraws = batches.size - n
    assert redraws <= size - 1
    if redraws <= n:
        assert set(seen) <= {1, 2}  # ... once ...
        assert (seen == 2).sum() == redraws  # ... but at most one batch less one slice is seen twice
    before = batches[:-1].ravel()
    assert len(set(before.tolist())) == len(before)  # and only the last batch is filled up

    each = per_batch(labels, batches, len(counts))
    share = size * np.array(counts)
    assert within_whole_numbers(each, share, n).all()  # every batch as near to the mix as whole numbers allow
    k = np.arange(1, len(batches) + 1)[:, None]
    assert within_whole_numbers(each.cumsum(axis=0), k * share, n).all()  # and so all batches so far


@pytest.mark.parametrize(("counts", "size"), [([4, 4, 5, 5], 3), ([6, 6, 3, 7, 7], 4)])
def test_mixes_for_which_the_earliest_deadline_alone_does_not_do(counts, size):
    # Found by search: the first needs the first of the rules that break ties, the second also the second.
    labels, n = labels_of(counts), sum(counts)
    for seed in range(40):
        batches = stratified_batches(labels, size, seed=seed)
        each = per_batch(labels, batches, len(counts))
        k = np.arange(1, len(batches) + 1)[:, None]
        assert within_whole_numbers(each, size * np.array(counts), n).all()
        assert within_whole_numbers(each.cumsum(axis=0), k * size * np.array(counts), n).all()


@given(counts=counts_of_classes, size=sizes, seed=st.integers(0, 99))
def test_balanced(counts, size, seed):
    labels, classes = labels_of(counts), len(counts)
    batches = stratified_batches(labels, size, "balanced", seed=seed)
    assert batches.shape == (-(-classes * max(counts) // size), size)
    each = per_batch(labels, batches, classes)
    assert within_whole_numbers(each, size, classes).all()
    k = np.arange(1, len(batches) + 1)[:, None]
    assert within_whole_numbers(each.cumsum(axis=0), k * size, classes).all()
    seen = np.bincount(batches.ravel(), minlength=len(labels))
    for c in range(classes):
        assert seen[labels == c].max() - seen[labels == c].min() <= 1
    assert seen.min() >= 1


@given(counts=counts_of_classes, size=sizes, mode=st.sampled_from(["proportional", "balanced"]), seed=st.integers(0, 9))
def test_no_slice_twice_in_a_batch_without_need(counts, size, mode, seed):
    labels = labels_of(counts)
    batches = stratified_batches(labels, size, mode, seed=seed)
    for batch in batches:
        for c, available in enumerate(counts):
            mine = batch[labels[batch] == c]
            assert len(set(mine.tolist())) == min(len(mine), available)


@given(seed=st.integers(0, 200))
def test_three_equal_classes_and_batch_8_never_lack_a_class(seed):
    labels = np.repeat(["glioma", "meningioma", "pituitary"], 50)
    for mode in ("proportional", "balanced"):
        batches = stratified_batches(labels, 8, mode, seed=seed)
        assert all(len(set(labels[batch])) == 3 for batch in batches)


def test_as_the_cheng_data_set():
    counts = [708, 1426, 930]
    batches = stratified_batches(labels_of(counts), 8, seed=1)
    each = per_batch(labels_of(counts), batches, 3)
    assert each.min(axis=0).tolist() == [1, 3, 2]
    assert each.max(axis=0).tolist() == [2, 4, 3]


def test_epochs_and_seeds_differ_and_repeat():
    labels = labels_of([20, 30, 10])
    one = stratified_batches(labels, 8, seed=1, epoch=1)
    assert (one == stratified_batches(labels, 8, seed=1, epoch=1)).all()
    for seed, epoch in ((1, 2), (2, 1), (2, 2)):
        assert (one != stratified_batches(labels, 8, seed=seed, epoch=epoch)).mean() > 0.8


def test_names_and_numbers_are_the_same_thing():
    numbers = labels_of([9, 5, 7])
    names = np.array(["a", "b", "c"])[numbers]
    assert (stratified_batches(numbers, 4) == stratified_batches(names.tolist(), 4)).all()


def test_places_within_a_batch_are_random():
    # The replicas share a batch by halves: a class must not always stand in the first.
    labels = np.repeat([0, 1], 400)
    batches = stratified_batches(labels, 8, seed=3)
    assert abs((labels[batches[:, :4]] == 0).mean() - 0.5) < 0.05
    redrawn = stratified_batches(np.zeros(9, int), 8, seed=3)
    assert len(set(redrawn[-1].tolist())) == 8


def test_same_numbers_on_every_machine():
    # Written down once: a change of these would change every stored run.
    assert stratified_batches([0, 0, 0, 0, 1, 1], 4, seed=7, epoch=3).tolist() == [[0, 2, 1, 4], [2, 5, 0, 3]]


def test_large_sets_are_covered_like_small_ones():
    """100,000 slices of 7 classes: each once, in the mix of the whole; work that grows with the square would not end."""
    labels = np.arange(100_000) % 7
    table = stratified_batches(labels, 8)
    assert table.shape == (12_500, 8)
    assert np.array_equal(np.sort(table, axis=None), np.arange(100_000))
    assert all(len(set(labels[batch].tolist())) == 7 for batch in table[::500])


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": []},
        {"labels": [[1, 2]]},
        {"batch_size": 0},
        {"batch_size": 2.0},
        {"batch_size": True},
        {"mode": "random"},
        {"seed": -1},
        {"epoch": 1.5},
    ],
)
def test_refuses_arguments(arguments):
    with pytest.raises(UsageError):
        stratified_batches(**{"labels": [0, 1], **arguments})
