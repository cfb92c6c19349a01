"""What is done, a line each, so that an interrupted prediction goes on where it was.

The first line says how masks are made; who goes on must make the others in the same way. Each further line is a unit with
its files and what was found in it. A line counts only whole, and only while its files are there and its input is as it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kerasseg.prediction.inputs import Unit
from kerasseg.prediction.table import FoundTumour
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.files import explain_os_error, write_atomically

__all__ = ["JOURNAL", "Done", "Journal"]

JOURNAL = ".predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Done:
    """A unit that is done.

    Attributes:
        files: Role ("mask", "seg", "overlay", "probabilities") -> files, relative to the output folder.
        rows: Its slices.
        notes: What had to be decided.
    """

    files: dict[str, list[str]]
    rows: tuple[FoundTumour, ...]
    notes: tuple[str, ...] = ()


class Journal:
    """The journal of an output folder; use `begin`."""

    def __init__(self, out: Path, done: dict[str, Done], others: dict[str, Done]) -> None:
        self.out, self.done, self.others = out, done, others
        self._path = out / JOURNAL

    @classmethod
    def begin(cls, out: Path, how: dict[str, Any], units: Sequence[Unit], *, go_on: bool) -> Journal:
        """Opens the journal, with the units that are done already.

        Args:
            out: The output folder.
            how: How masks are made, as JSON values.
            units: What is asked for.
            go_on: Whether units that are done are kept.

        Raises:
            UsageError: It is to go on, and masks were made differently before.
            KerassegError: It cannot be written.
        """
        how = json.loads(json.dumps(how))
        lines = _lines(out / JOURNAL) if go_on else []
        if lines and lines[0] != {"how": how}:
            raise UsageError(
                "the masks that lie there were made differently",
                path=out,
                found=_difference(lines[0].get("how") or {}, how),
                expected="the same network, rule and options",
                remedy="Give the same options to --continue, choose another --out, or make all anew with --overwrite.",
            )
        known = {unit.name: unit for unit in units}
        kept: list[dict[str, Any]] = []
        done: dict[str, Done] = {}
        others: dict[str, Done] = {}
        for line in lines[1:]:
            name, unit = line.get("name", ""), known.get(line.get("name", ""))
            # What was made of other inputs stays in the table while its files are there.
            as_it_was = unit is None or (line["stamp"] and line["stamp"] == unit.stamp)
            if as_it_was and _are_there(out, line["sizes"]):
                rows = tuple(FoundTumour(**row) for row in line["rows"])
                (others if unit is None else done)[name] = Done(line["files"], rows, tuple(line["notes"]))
                kept.append(line)
        write_atomically(out / JOURNAL, "".join(json.dumps(line) + "\n" for line in [{"how": how}, *kept]))
        return cls(out, done, others)

    def add(self, unit: Unit, stamp: list[list[int]], done: Done) -> None:
        """Notes that a unit is done.

        Args:
            unit: Whose files are written.
            stamp: Of its input, from before it was read.
            done: What was written and found.

        Raises:
            KerassegError: It cannot be written.
        """
        try:
            line = {
                "name": unit.name,
                "stamp": stamp,
                "sizes": {name: (self.out / name).stat().st_size for names in done.files.values() for name in names},
                "files": done.files,
                "rows": [asdict(row) for row in done.rows],
                "notes": done.notes,
            }
            # At the end of the file: a process that is killed, or a full disk, leaves a part without end at most.
            with self._path.open("ab") as stream:
                stream.write((json.dumps(line) + "\n").encode())
        except OSError as error:
            raise explain_os_error(error, self._path) from error
        self.done[unit.name] = done


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; [] where there is no journal."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    lines = []
    for text in data.split(b"\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and (
            "how" in line or line.keys() >= {"name", "stamp", "sizes", "files", "rows", "notes"}
        ):
            lines.append(line)
    return lines


def _are_there(out: Path, sizes: dict[str, int]) -> bool:
    try:
        return bool(sizes) and all((out / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    name = names[0] if names else "format"
    return f"{name} {json.dumps(before.get(name))[:80]}, now {json.dumps(now.get(name))[:80]}"
