"""List the inputs of a data set: their formats, items and problems, before any slice is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.records.manifest import PrepareOptions
from kerasseg_tfrecords.sources import find_items
from kerasseg_tfrecords.sources.base import Item, LeftOut, SourceOptions
from kerasseg_tfrecords.sources.tree import input_names, open_tree


@dataclass(frozen=True, slots=True)
class ListedInput:
    """One input with its items."""

    name: str
    format: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def source_options(options: PrepareOptions) -> SourceOptions:
    """Return those options that concern the readers."""
    names = {field.name for field in fields(SourceOptions)} & PrepareOptions.model_fields.keys()
    return SourceOptions(**{name: getattr(options, name) for name in names})


def list_inputs(roots: Sequence[Path], options: PrepareOptions, hidden: Iterable[Path]) -> list[ListedInput]:
    """Find the items of every input, except in the `hidden` folders."""
    names = input_names(roots)
    listed = []
    for root, name in zip(roots, names, strict=True):
        found = find_items(open_tree(root).without(hidden), source_options(options), options.format)
        listed.append(
            ListedInput(
                name=name,
                format=options.format or (found.items[0].format if found.items else ""),
                items=found.items,
                problems=tuple(
                    replace(problem, name=name if problem.name == "." else f"{name}/{problem.name}")
                    for problem in found.problems
                    if problem.level == "error"
                ),
                left_out=tuple(replace(entry, name=f"{name}/{entry.name}") for entry in found.left_out),
                notes=(
                    *(f"{name}/{problem}" for problem in found.problems if problem.level == "warning"),
                    *(f"{name}: {note}" for note in found.notes),
                ),
            )
        )
    return listed
