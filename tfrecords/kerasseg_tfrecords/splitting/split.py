"""Assign slices to training, validation and test.

`split_by_group` keeps all slices of a group (a patient) in one split and searches for the assignment that comes closest to
the requested shares in every class. `split_by_slice` reproduces papers that ignore patients.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.splitting.optimise import apportion
from kerasseg_tfrecords.text import count as count_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Shares:
    """Requested shares of the three splits, each in [0, 1]; they sum to 1, and train is more than 0.

    Example:
        >>> Shares.parse("70/15/15").val
        Fraction(3, 20)
    """

    train: Fraction
    val: Fraction
    test: Fraction

    @classmethod
    def parse(cls, text: str) -> Shares:
        """Parse `--split`: train, val and test, separated by `/`, in percent or as parts that sum to 20 at most.

        Raises:
            UsageError: Not three numbers, a negative number, percentages that do not sum to 100, or nothing for train.

        Example:
            >>> str(Shares.parse("80/10/10")), str(Shares.parse("1/1/1")), str(Shares.parse("100/0/0"))
            ('80/10/10', '33.3/33.3/33.3', '100/0/0')
        """
        match = re.fullmatch("/".join([r"\s*([0-9.]+)\s*"] * 3), text)
        try:
            values = [Fraction(number) for number in match.groups()] if match else []
        except ValueError:  # two dots
            values = []
        if not values:
            raise UsageError(
                f"invalid --split {text!r}",
                expected="three shares for train, val and test, such as 80/10/10 or 70/15/15",
            )
        total = sum(values, Fraction(0))
        if not (99 <= total <= 101 or total <= 20):
            raise UsageError(
                f"--split {text!r} sums to {float(total):g}",
                expected="percentages that sum to 100, or parts such as 8/1/1",
            )
        if not values[0]:
            raise UsageError(
                f"--split {text!r} leaves nothing to train on", remedy="Give train, the first share, more than 0."
            )
        return cls(*(value / total for value in values))

    def __str__(self) -> str:
        """Return percentages in the form that `parse` reads."""
        return "/".join(f"{float(share * 100):.3g}" for share in self.values())

    def values(self) -> tuple[Fraction, Fraction, Fraction]:
        """Return the shares in the order of `SPLITS`."""
        return self.train, self.val, self.test

    def used(self) -> tuple[int, ...]:
        """Return the indices into `SPLITS` of splits with a share above 0."""
        return tuple(index for index, share in enumerate(self.values()) if share > 0)


@dataclass(frozen=True, slots=True)
class Split:
    """A split, and how close it is to the requested shares.

    Attributes:
        assignment: `train`, `val` or `test` for each slice.
        worst: Largest deviation from the requested shares, of a class or of all classes together, in percentage points.
        notes: Sentences for the user about requests that could not be met.
    """

    assignment: tuple[str, ...]
    worst: float
    notes: tuple[str, ...] = ()


def split_by_group(
    labels: Sequence[str], groups: Sequence[str], shares: Shares, seed: int, tumours: Sequence[bool] | None = None
) -> Split:
    """Find the best split that keeps each group in one split.

    The criteria, in this order: no split lacks a class, or the slices with tumour of a class, where that can be avoided;
    the largest deviation from the requested shares (over classes, slices with tumour, and all slices), weighed against how
    many groups a split is short of; the mean square of the deviations. With few groups all assignments are tried; otherwise
    a search from several random starting points (see `apportion`).

    The result depends on the set of slices, the shares and the seed, and not on the order of the slices.

    Args:
        labels: Class name of each slice.
        groups: Group of each slice; a group may hold several classes.
        shares: Requested shares.
        seed: Random seed; different seeds give different splits of similar quality.
        tumours: Whether each slice shows a tumour, to stratify classes that have slices both with and without; or None.

    Raises:
        DataError: There are no slices.
        UsageError: There are fewer groups than splits.

    Example:
        >>> split = split_by_group(["a"] * 10, list("1122334455"), Shares.parse("60/20/20"), seed=0)
        >>> sorted(split.assignment), split.worst
        (['test', 'test', 'train', 'train', 'train', 'train', 'train', 'train', 'val', 'val'], 0.0)
    """
    _check_lengths(labels=labels, groups=groups)
    used = shares.used()
    names = sorted(set(groups))
    if not names:
        raise DataError("there are no slices to split")
    if len(names) < len(used):
        raise UsageError(
            f"{count_of(len(names), 'patient group')} cannot be split into {len(used)} parts",
            found=", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else ""),
            remedy="Use --split-by slice to ignore patients (a patient's slices may then end up in several splits), or "
            "--split 100/0/0 for a single split.",
        )
    classes = sorted(set(labels))
    row = {name: k for k, name in enumerate(names)}
    counts, with_tumour = count_slices(labels, [row[group] for group in groups], tumours)
    asked = np.array([float(shares.values()[index]) for index in used])
    where = apportion(counts, asked, seed, with_tumour)
    split_of = {name: SPLITS[used[where[k]]] for name, k in row.items()}
    assignment = tuple(split_of[group] for group in groups)
    there = set(zip(labels, assignment, strict=True))
    notes = []
    for label, column in zip(classes, counts.T, strict=True):
        empty = [SPLITS[index] for index in used if (label, SPLITS[index]) not in there]
        if empty:
            heads = count_of(int((column > 0).sum()), "patient group")
            notes.append(f"Class {label!r} has slices of only {heads}: there are none in {' and '.join(empty)}.")
    return Split(assignment, _worst(labels, assignment, shares), tuple(notes))


def count_slices(
    labels: Sequence[str], rows: Sequence[int], tumours: Sequence[bool] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count slices for `apportion`; `rows` is the index of the group of each slice.

    Returns:
        (groups, classes) all slices, and (groups, k) slices with tumour of the k classes that also have slices without.
    """
    column = {name: k for k, name in enumerate(sorted(set(labels)))}
    counts = np.zeros((max(rows) + 1, len(column)), np.int64)
    columns = [column[label] for label in labels]
    np.add.at(counts, (rows, columns), 1)
    shown = np.zeros_like(counts)
    if tumours is not None:
        np.add.at(shown, (rows, columns), np.asarray(tumours, np.int64))
    total = shown.sum(axis=0)
    return counts, shown[:, (total > 0) & (total < counts.sum(axis=0))]


def split_by_slice(
    labels: Sequence[str], shares: Shares, seed: int, ids: Sequence[str], tumours: Sequence[bool] | None = None
) -> Split:
    """Make a stratified split that ignores patients, as most papers on these data do.

    Calls scikit-learn's `train_test_split` twice: first to take validation and test from train, then to take test from
    validation. Slices are sorted by id first, so the reading order does not matter. scikit-learn's splitters have changed
    between versions; the result is therefore frozen in `splits.csv`.

    Slices of one patient end up in several splits, and test results are too good: report `leaks` with them.

    Args:
        labels: Class name of each slice.
        shares: Requested shares. 700 slices per class at 80/10/10 give exactly 560, 70 and 70.
        seed: `random_state` of both calls.
        ids: Slice ids, unique.
        tumours: As in `split_by_group`.

    Raises:
        DataError: There are no slices, or two have the same id.
        UsageError: There are fewer slices than splits.

    Example:
        >>> split = split_by_slice(["a"] * 10, Shares.parse("60/20/20"), seed=0, ids=list("0123456789"))
        >>> [split.assignment.count(name) for name in ("train", "val", "test")]
        [6, 2, 2]
    """
    _check_lengths(labels=labels, ids=ids)
    _check_unique(ids)
    used = shares.used()
    if not ids:
        raise DataError("there are no slices to split")
    if len(ids) < len(used):
        raise UsageError(
            f"{count_of(len(ids), 'slice')} cannot be split into {len(used)} parts",
            remedy="Use --split 100/0/0 for a single split.",
        )
    order = sorted(range(len(ids)), key=lambda k: ids[k])
    strata = list(labels)
    if tumours is not None:
        pairs = list(zip(labels, tumours, strict=True))
        both = {label for label, shown in set(pairs) if (label, not shown) in set(pairs)}
        strata = [f"{label}\0{shown}" if label in both else label for label, shown in pairs]
    try:
        parts = _stratified([strata[k] for k in order], shares, seed)
    except ValueError as error:
        # scikit-learn refuses strata of one or two slices; the search by group gives them to the largest splits.
        split = split_by_group(labels, [f"slice:{name}" for name in ids], shares, seed, tumours)
        reason = f"The classes are too small for scikit-learn's stratified split ({str(error).rstrip('.')}): "
        return replace(split, notes=(f"{reason}slices were spread by search instead.", *split.notes))
    assignment = [""] * len(ids)
    for name, positions in zip(SPLITS, parts, strict=True):
        for position in positions:
            assignment[order[position]] = name
    return Split(tuple(assignment), _worst(labels, assignment, shares))


def _stratified(labels: Sequence[str], shares: Shares, seed: int) -> list[list[int]]:
    # Takes a second to import, and is not needed to read shards or a frozen split.
    from sklearn.model_selection import train_test_split

    positions = list(range(len(labels)))
    # Whole numbers: 2100 * (1 - 0.8) is not 420 in floating point, and scikit-learn rounds it up.
    held_out = round(len(labels) * (shares.val + shares.test))
    for_test = round(len(labels) * shares.test)
    if not held_out:
        if shares.val + shares.test:
            raise ValueError("nothing would be left for val and test")
        return [positions, [], []]
    train, rest = train_test_split(positions, test_size=held_out, random_state=seed, stratify=labels)
    if not for_test or for_test == held_out:
        if min(shares.val, shares.test):
            raise ValueError("nothing would be left for val or test")
        return [train, [], rest] if for_test else [train, rest, []]
    val, test = train_test_split(rest, test_size=for_test, random_state=seed, stratify=[labels[k] for k in rest])
    return [train, val, test]


def leaks(groups: Iterable[str], assignment: Iterable[str]) -> int:
    """Count the groups with slices in more than one split.

    Example:
        >>> leaks(["a", "a", "b", "b"], ["train", "test", "val", "val"])
        1
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, assignment, strict=True):
        splits[group].add(split)
    return sum(len(seen) > 1 for seen in splits.values())


def worst_deviation(labels: Sequence[str], where: Sequence[str], shares: Shares) -> float:
    """Return the largest difference, in percentage points, between a class's share in a split and the requested share.

    Slices in none of the `SPLITS` do not count.
    """
    worst = 0.0
    for label in set(labels):
        of_class = [split for what, split in zip(labels, where, strict=True) if what == label and split in SPLITS]
        for split, share in zip(SPLITS, shares.values(), strict=True):
            if of_class:
                worst = max(worst, abs(100 * of_class.count(split) / len(of_class) - 100 * float(share)))
    return worst


def take_per_class(
    labels: Sequence[str], ids: Sequence[str], n: int, seed: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Draw a random subset with `n` slices of each class, or all slices of a class that has fewer.

    Slices are drawn uniformly, regardless of their patient. The choice depends on the seed and the ids of the slices of a
    class, and not on their order.

    Returns:
        The indices of the slices, ascending; sentences for the user about classes with too few slices.

    Raises:
        DataError: Two slices have the same id.
        UsageError: `n` is below 1.

    Example:
        >>> take_per_class(["a", "a", "a", "b"], ["1", "2", "3", "4"], n=2, seed=0)[1]
        ("Class 'b' has only 1 slice (--per-class 2): all of them are used.",)
    """
    _check_lengths(labels=labels, ids=ids)
    _check_unique(ids)
    if n < 1:
        raise UsageError(f"invalid --per-class {n}", expected="1 or more")
    indices: list[int] = []
    notes: list[str] = []
    for label in sorted(set(labels)):
        members = sorted((k for k, own in enumerate(labels) if own == label), key=lambda k: ids[k])
        if len(members) < n:
            found = count_of(len(members), "slice")
            notes.append(f"Class {label!r} has only {found} (--per-class {n}): all of them are used.")
        draw = np.random.default_rng([seed, *label.encode("utf-8", "surrogatepass")])
        indices += [members[k] for k in draw.permutation(len(members))[:n]]
    return tuple(sorted(indices)), tuple(notes)


def _worst(labels: Sequence[str], where: Sequence[str], shares: Shares) -> float:
    return max(worst_deviation(labels, where, shares), worst_deviation([""] * len(labels), where, shares))


def _check_lengths(**columns: Sequence[str]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        msg = f"columns must have one entry for each slice. Received: {lengths}"
        raise ValueError(msg)


def _check_unique(ids: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise DataError(f"two slices have the id {twice!r}", expected="ids that are unique across all inputs")
