"""The rule from probabilities to a mask, as it is tuned, kept in `threshold.json`, and applied everywhere alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.validation import complaint

__all__ = ["MaskRule"]

_Length = Annotated[float, Field(ge=0, le=1)]
_Threshold = Annotated[float, Field(gt=0, le=1)]


class RuleError(UsageError, ValueError):
    """A rule that cannot be meant; a ValueError too, so that a file which holds such a rule is called damaged."""


class MaskRule(BaseModel):
    """From probabilities to a mask: a threshold, then post-processing, in the order of the attributes.

    Lengths are shares of the slice's width, so that a rule suits any resolution.

    Attributes:
        threshold: A pixel is tumour where its probability is at least this, (0, 1].
        class_thresholds: Class -> its own threshold instead; empty for one for all. Needs the class at prediction time.
        min_diameter: Objects smaller in area than a disk of this diameter are removed; 0 for none.
        close_radius: Of the disk that closes gaps; 0 for none.
        fill_holes: Whether holes are filled.
        keep_largest: Whether only the largest object stays.
        open_radius: Of the disk that opens (removes thin parts); 0 for none.

    Raises:
        UsageError: A name that is not known, or a number out of its range.

    Example:
        >>> MaskRule(threshold=0.4, min_diameter=0.02).without_postprocessing()
        MaskRule(threshold=0.4)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: _Threshold = 0.5
    class_thresholds: Mapping[str, _Threshold] = {}
    min_diameter: _Length = 0.0
    close_radius: _Length = 0.0
    fill_holes: bool = False
    keep_largest: bool = False
    open_radius: _Length = 0.0

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = complaint(error, list(MaskRule.model_fields))
            if wrong.kind == "unknown":
                raise RuleError(f"a rule has no {wrong.where!r}", remedy=wrong.remedy) from None
            raise RuleError(
                f"{wrong.where} of a rule cannot be used", found=wrong.found, expected=wrong.expected
            ) from None

    def without_postprocessing(self) -> MaskRule:
        """The thresholds alone."""
        return MaskRule(threshold=self.threshold, class_thresholds=self.class_thresholds)

    @property
    def postprocesses(self) -> bool:
        """Whether anything follows the threshold."""
        return self != self.without_postprocessing()

    def threshold_for(self, name: str | None) -> float:
        """The threshold for a class; the one for all where the class is unknown or has none of its own."""
        return self.threshold if name is None else self.class_thresholds.get(name, self.threshold)

    def __repr_args__(self) -> list[tuple[str | None, object]]:
        """What differs from doing nothing, and the threshold."""
        plain = type(self).model_fields
        return [(k, v) for k, v in self if k == "threshold" or v != plain[k].default]
