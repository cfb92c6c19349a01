"""Labels of all spellings become the right class, and near misses are never guessed silently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.classes import (
    TUMOUR_CLASSES,
    class_code,
    class_in_file_name,
    class_name,
    suggest_class,
    unknown_class,
)

SPELLINGS = {
    "meningioma": [
        "Meningioma",
        "MENINGIOMA",
        "meningioma_tumor",
        "Meningioma Tumour",
        "meningiomas",
        "1",
        "1.0",
        "01_meningioma",
    ],
    "glioma": ["glioma", "Glioma-Tumor", "glioma_tumour", "gliomas", "LGG", "hgg", "Glioblastoma", "2", "02. Glioma"],
    "pituitary": ["pituitary", "pituitary tumour", "Pituitary_Tumor", "pituitary adenoma", "Pituitary Tumors", "3"],
    "no_tumor": [
        "no_tumor",
        "notumor",
        "No Tumor",
        "no-tumour",
        "NoTumor",
        "healthy",
        "Normal",
        "non-tumor",
        "0",
        "no tumors",
    ],
}


@pytest.mark.parametrize(("expected", "text"), [(name, text) for name, texts in SPELLINGS.items() for text in texts])
def test_spellings(expected: str, text: str) -> None:
    assert class_name(text) == expected
    assert class_name(text, TUMOUR_CLASSES) == expected


@pytest.mark.parametrize(
    "value",
    ["", " ", "tumor", "brain tumor", "no", "me", "gl", "yes", "kidney", "4", "-1", "1.5", 7, 1.5, "pitutary", "x1"],
)
def test_what_is_no_class(value: str | float) -> None:
    assert class_name(value) is None


def test_numbers_of_numpy() -> None:
    assert class_name(np.float64(2.0)) == "glioma"
    assert class_name(np.uint8(0)) == "no_tumor"
    assert class_name(float("nan")) is None


@given(
    name=st.sampled_from(sorted(SPELLINGS)),
    separator=st.sampled_from([" ", "_", "-", "", "  "]),
    tail=st.sampled_from(["", "tumor", "Tumour", "TUMORS"]),
    upper=st.booleans(),
)
def test_case_separators_and_the_word_tumour_do_not_count(name: str, separator: str, tail: str, upper: bool) -> None:
    text = name if name == "no_tumor" else name + separator + tail
    assert class_name(text.upper() if upper else text) == name


@given(st.text(max_size=30))
def test_any_text_gives_a_class_or_none(text: str) -> None:
    assert class_name(text) in {*TUMOUR_CLASSES, None}
    assert class_in_file_name(text) in {*TUMOUR_CLASSES, None}
    assert suggest_class(text) in {*TUMOUR_CLASSES, None}
    assert "\n" not in unknown_class(text)


def test_user_classes_by_name_and_number() -> None:
    mine = ("Lesion A", "cyst")
    assert class_name("lesion_a", mine) == "Lesion A"
    assert class_name("CYST", mine) == "cyst"
    assert [class_name(n, mine) for n in (0, 1, 2, 3)] == [None, "Lesion A", "cyst", None]
    assert class_name("glioma", mine) is None


def test_a_class_may_be_called_by_a_number() -> None:
    assert [class_name(v, ("0", "1")) for v in ("0", "1")] == ["0", "1"]


def test_tumour_classes_keep_their_published_numbers_in_any_order() -> None:
    mine = ("Glioma", "meningioma_tumor")
    assert [class_name(n, mine) for n in (1, 2, 3, 0)] == ["meningioma_tumor", "Glioma", None, None]


def test_the_users_own_class_wins_over_a_synonym() -> None:
    assert class_name("LGG", ("lgg", "hgg")) == "lgg"
    assert class_name("glioma", ("lgg", "hgg")) is None  # both are gliomas: which one is not known
    assert class_name("notumor", ("tumour_free", "glioma")) == "tumour_free"


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("brisc2025_train_00159_gl_ax_t1", "glioma"),
        ("brisc2025_train_01302_me_ax_t1", "meningioma"),
        ("brisc2025_train_04274_pi_co_t1", "pituitary"),
        ("Te-me_0010", "meningioma"),
        ("Tr-gl_0010", "glioma"),
        ("Tr-piTr_0010", "pituitary"),
        ("Te-noTr_0001", "no_tumor"),
        ("BraTS-GLI-00000-000-t1c", "glioma"),
        ("BraTS-MEN-00004-000", "meningioma"),
        ("glioma (12)", "glioma"),
        ("no_tumor_7", "no_tumor"),
        ("NoTumor12", "no_tumor"),
        ("p01_meningioma_t1", "meningioma"),
        ("gl_me_1", None),  # two codes
        ("glioma_me_1", "glioma"),  # the word wins
        ("12", None),
        ("image_12", None),
        ("TCGA_CS_4943_20000902_12", None),
    ],
)
def test_codes_in_file_names(stem: str, expected: str | None) -> None:
    assert class_in_file_name(stem) == expected


def test_codes_are_codes_only_where_the_caller_says_so() -> None:
    assert class_code("ME") == "meningioma"
    assert class_code("me", ("glioma", "pituitary")) is None
    assert class_name("me") is None


def test_near_misses_are_suggested() -> None:
    assert suggest_class("meningoma") == "meningioma"
    assert suggest_class("Pitutary Tumor") == "pituitary"
    assert suggest_class("lesoin", ("lesion", "cyst")) == "lesion"
    assert suggest_class("kidney") is None
    assert "Did you mean glioma?" in unknown_class("gliom")
    assert "--classes" in unknown_class(7)
    assert unknown_class(7, ("a", "b")).startswith("unknown class 7 (expected a = 1, b = 2)")
