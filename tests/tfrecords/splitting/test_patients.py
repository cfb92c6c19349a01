"""One head is one group, whatever its ids."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.splitting.patients import compile_pattern, group_of, groups_of


@pytest.mark.parametrize(
    ("patient", "group"),
    [
        ("MR040240B", "MR040240"),
        ("MR040240", "MR040240"),
        ("100416", "100416"),
        ("100416C", "100416"),
        ("TCGA_CS_4943_20000902", "TCGA_CS_4943_20000902"),
        ("TCGA-DU-7294", "TCGA-DU-7294"),
        ("sub-07b", "sub-07b"),
        ("MR", "MR"),
        ("MRB", "MRB"),
        ("MR040240B\n", "MR040240B\n"),
        ("12-3a", "12-3a"),
    ],
)
def test_only_ids_of_the_cheng_form_lose_their_suffix(patient: str, group: str) -> None:
    assert group_of(patient) == group


@given(st.from_regex(r"(MR)?[0-9]{1,8}[A-Z]?", fullmatch=True))
def test_a_group_is_its_own_group(patient: str) -> None:
    assert group_of(group_of(patient)) == group_of(patient)


@given(st.from_regex(r"(MR)?[0-9]{1,8}", fullmatch=True), st.sampled_from("ABCDEFG"))
def test_a_family_is_one_group(base: str, suffix: str) -> None:
    assert group_of(base + suffix) == group_of(base) == base


def test_a_pattern_names_the_group_and_others_keep_the_rule() -> None:
    pattern = compile_pattern(r"(sub-\d+)_ses-\d+")
    assert group_of("sub-1_ses-2", pattern) == "sub-1"
    assert group_of("MR1B", pattern) == "MR1"


@pytest.mark.parametrize("text", ["(", "abc", "[(]"])
def test_a_bad_pattern_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="patient-pattern"):
        compile_pattern(text)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="matches none of the 2 patient ids"):
        groups_of(["a", "b"], ["1", "2"], pattern=compile_pattern("(x).*"))


def test_unknown_patients_are_grouped_by_volume_or_alone_and_a_note_says_what_follows() -> None:
    grouping = groups_of(["", "", "", "MR1B"], ["1", "2", "3", "4"], ["v", "v", "", ""])
    assert grouping.groups[0] == grouping.groups[1]
    assert len(set(grouping.groups)) == 3
    assert "3 of 4 slices" in grouping.notes[0]
    assert "several splits" in grouping.notes[0]


def test_no_note_where_all_patients_are_known() -> None:
    assert groups_of(["MR1", "MR1B"], ["1", "2"]).notes == ()


def test_a_patient_called_like_a_slice_is_another_group() -> None:
    assert len(set(groups_of(["7", ""], ["6", "7"]).groups)) == 2


def test_by_id_takes_ids_as_they_stand() -> None:
    assert groups_of(["MR1", "MR1B"], ["1", "2"], by="id").groups == ("MR1", "MR1B")


@pytest.mark.real
def test_families_in_the_cheng_data(real: Path) -> None:
    with (real / "figshare-png" / "index.csv").open(newline="") as lines:
        ids = {row["patient"] for row in csv.DictReader(lines)}
    groups = {group_of(patient) for patient in ids}
    # Counted by hand in the list of ids: 156 ids, 18 of which are further scans of a head with another id.
    assert (len(ids), len(groups)) == (156, 138)
    assert {p for p in ids if group_of(p) == "MR040240"} == {"MR040240", "MR040240B", "MR040240C", "MR040240D"}
