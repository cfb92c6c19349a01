"""Turn errors of pydantic into messages: which field, what was found, what was expected, and the closest valid name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "bytes": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "iterable": "a list",
    "dict": "named values",
    "mapping": "named values",
    "model": "named values",
    "none": "nothing",
    "path": "a path",
    "json": "JSON",
}
"""First word of the type of an error -> what was expected."""
_ERRORS = {"missing": "missing", "extra_forbidden": "unknown", "value_error": "judged"}
_LONG = 60


@dataclass(frozen=True, slots=True)
class Complaint:
    """The first invalid field.

    Attributes:
        where: Names from the outermost to the innermost, separated by dots; "" for the whole document.
        kind: "unknown" or "missing" for a field, "judged" for a message of our own checks (in `expected`), else "wrong".
        found: The value as Python writes it, shortened; None if there is none.
        expected: What is allowed; None if nothing is.
        remedy: A question that names a similar name; None if there is none.
    """

    where: str
    kind: str
    found: str | None
    expected: str | None
    remedy: str | None

    def __str__(self) -> str:
        """Return a sentence without full stop, for messages about damaged files."""
        if self.kind == "judged":
            return f"{self.where}: {self.expected}".removeprefix(": ")
        if self.kind != "wrong":
            return f"{self.where or 'a field'} is {self.kind}"
        place = f"{self.where} " if self.where else ""
        return f"{place}{self.found}, expected {self.expected}"


def complaint(error: ValidationError, names: Sequence[str] = ()) -> Complaint:
    """Return the first error of a validation, without pydantic's own wording.

    Example:
        >>> from pydantic import BaseModel, Field, ValidationError
        >>> class Recipe(BaseModel):
        ...     epochs: int = Field(ge=1)
        >>> try: Recipe(epochs=0)
        ... except ValidationError as error: complaint(error)
        Complaint(where='epochs', kind='wrong', found='0', expected='at least 1', remedy=None)
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    where = _where(first["loc"])
    kind = _ERRORS.get(first["type"], "wrong")
    found = None if kind == "missing" else _short(first["input"])
    if kind == "unknown":
        return Complaint(where, kind, found, None, did_you_mean(where.rpartition(".")[2], names))
    # A field with several possible types has an error for each.
    same = [one for one in errors if _where(one["loc"]) == where]
    expected = " or ".join(dict.fromkeys(_expected(one) for one in same if one["type"] != "none_required"))
    choices = [name for one in same for name in _choices(one)]
    remedy = did_you_mean(first["input"], choices) if isinstance(first["input"], str) else None
    return Complaint(where, kind, found, expected or _expected(first), remedy)


def did_you_mean(given: str, known: Sequence[str]) -> str | None:
    """Return a question that names the most similar known name; None if none is similar.

    Example:
        >>> did_you_mean("agressive", ["conservative", "moderate", "aggressive"])
        "Did you mean 'aggressive'?"
    """
    near = get_close_matches(given, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else None


def _where(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location if not _is_type_tag(part))


def _is_type_tag(part: object) -> bool:
    """Whether pydantic added this part for one of several possible types: `literal['balanced']`, `dict[str,float]`."""
    return isinstance(part, str) and ("[" in part or part in {"int", "float", "str", "bool", "none"})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _choices(error: Mapping[str, Any]) -> list[str]:
    if error["type"] not in {"literal_error", "enum"}:
        return []
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _expected(error: Mapping[str, Any]) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    if names := _choices(error):
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    for key, words in _LIMITS.items():
        if key in context:
            limit = context[key]
            return f"{words} {limit:g}" if isinstance(limit, float) else f"{words} {limit}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "a value"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if "min_length" in context:
        return f"at least {context['min_length']} values"
    if "max_length" in context:
        return f"at most {context['max_length']} values"
    return _KINDS.get(kind.split("_")[0], "another value")
