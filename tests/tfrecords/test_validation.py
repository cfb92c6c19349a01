"""What pydantic finds wrong is told in our words."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kerasseg_tfrecords.records.manifest import PrepareOptions
from kerasseg_tfrecords.validation import complaint, did_you_mean


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: Literal["small", "large"] = "small"
    one: Literal["val"] = "val"
    number: Annotated[int, Field(ge=2, lt=9)] = 3
    share: float = 0.0
    flag: bool = False
    name: str = ""
    names: tuple[str, ...] = ()
    weights: Literal["balanced"] | dict[str, float] | None = None
    perhaps: int | None = None
    inner: Inner = Inner()
    digest: Annotated[str, Field(pattern="^[0-9a-f]+$")] = "0"
    few: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)] = (1,)
    own: int = 0

    @field_validator("own")
    @classmethod
    def _own(cls, value: int) -> int:
        if value:
            msg = "nothing but 0"
            raise ValueError(msg)
        return value


CASES = [
    ({"kind": "smal"}, "kind", "'smal'", "small or large", "Did you mean 'small'?"),
    ({"kind": 3}, "kind", "3", "small or large", None),
    ({"one": "test"}, "one", "'test'", "val", None),
    ({"number": 1}, "number", "1", "at least 2", None),
    ({"number": 9}, "number", "9", "less than 9", None),
    ({"number": "many"}, "number", "'many'", "a whole number", None),
    ({"number": 2.5}, "number", "2.5", "a whole number", None),
    ({"share": "x"}, "share", "'x'", "a number", None),
    ({"share": float("nan")}, "share", "nan", "a finite number", None),
    ({"flag": "perhaps"}, "flag", "'perhaps'", "true or false", None),
    ({"name": 3}, "name", "3", "text", None),
    ({"names": 3}, "names", "3", "a list", None),
    ({"weights": 3}, "weights", "3", "balanced or named values", None),
    ({"perhaps": "x"}, "perhaps", "'x'", "a whole number", None),
    ({"inner": {"rate": 2}}, "inner.rate", "2", "at most 1", None),
    ({"inner": {"rate": 0}}, "inner.rate", "0", "more than 0", None),
    ({"inner": 1}, "inner", "1", "named values", None),
    ({"digest": "xyz"}, "digest", "'xyz'", "text of the form ^[0-9a-f]+$", None),
    ({"few": ()}, "few", "()", "at least 1 values", None),
    ({"few": (1, 2, 3)}, "few", "(1, 2, 3)", "at most 2 values", None),
]


@pytest.mark.parametrize(("values", "where", "found", "expected", "remedy"), CASES, ids=str)
def test_every_kind_is_told_in_our_words(values, where, found, expected, remedy) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer(**values)
    told = complaint(caught.value)
    assert (told.where, told.kind, told.found, told.expected, told.remedy) == (where, "wrong", found, expected, remedy)
    assert str(told) == f"{where} {found}, expected {expected}"


def test_missing_and_unknown_fields_are_told_apart() -> None:
    class Needs(BaseModel):
        model_config = ConfigDict(extra="forbid")
        size: int

    with pytest.raises(ValidationError) as caught:
        Needs()
    assert str(complaint(caught.value)) == "size is missing"
    with pytest.raises(ValidationError) as caught:
        Outer(numbr=3)
    told = complaint(caught.value, list(Outer.model_fields))
    assert (str(told), told.remedy) == ("numbr is unknown", "Did you mean 'number'?")


def test_a_check_of_our_own_speaks_for_itself() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer(own=1)
    told = complaint(caught.value)
    assert (str(told), told.found, told.expected) == ("own: nothing but 0", "1", "nothing but 0")


def test_long_values_are_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        PrepareOptions(size="x" * 5000)
    assert len(str(complaint(caught.value))) < 120


def test_what_is_far_off_is_not_guessed() -> None:
    assert did_you_mean("zebra", ["conservative", "moderate"]) is None
