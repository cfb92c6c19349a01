"""A journal of finished inputs, so that an interrupted prediction can be continued.

The first line records how masks are made; a continued prediction must make them in the same way. Each further line is an
input with its files and rows. A line is valid only if it is complete, its files exist and its input is unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kerasseg.prediction.inputs import Unit
from kerasseg.prediction.table import FoundTumour
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.files import explain_os_error, read_file, write_atomically

JOURNAL = ".predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Done:
    """A finished input.

    Attributes:
        files: Role ("mask", "seg", "overlay", "probabilities") -> files, relative to the output folder.
        rows: Rows of its slices.
        notes: Remarks for users.
        engines: Engines that computed it, "native" or "openvino"; none for inputs of earlier versions.
    """

    files: dict[str, list[str]]
    rows: tuple[FoundTumour, ...]
    notes: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: a finished input, its stamp from before it was read, and the sizes of its files in bytes."""

    name: str
    stamp: list[list[int]]
    sizes: dict[str, int]
    done: Done


class Journal:
    """The journal of an output folder; created by `begin`."""

    def __init__(self, out: Path, done: dict[str, Done], others: dict[str, Done]) -> None:
        self.out, self.done, self.others = out, done, others
        self._path = out / JOURNAL

    @classmethod
    def begin(cls, out: Path, how: dict[str, Any], units: Sequence[Unit], *, go_on: bool) -> Journal:
        """Open the journal with the inputs that are finished already.

        Raises:
            UsageError: Earlier masks in the folder were made differently.
            KerassegError: The journal cannot be written.
        """
        how = json.loads(json.dumps(how))
        lines = _lines(out / JOURNAL) if go_on else []
        if lines and lines[0] != {"how": how}:
            raise UsageError(
                "the masks in the output folder were made differently",
                path=out,
                found=_difference(lines[0].get("how") or {}, how),
                expected="the same network, rule and options",
                remedy="Use the same options with --continue, choose another --out, or replace all with --overwrite.",
            )
        known = {unit.name: unit for unit in units}
        kept: list[dict[str, Any]] = []
        done: dict[str, Done] = {}
        others: dict[str, Done] = {}
        for line in lines[1:]:
            name, unit = line.get("name", ""), known.get(line.get("name", ""))
            # Masks of other inputs stay in the table as long as their files exist.
            as_it_was = unit is None or (line["stamp"] and line["stamp"] == unit.stamp)
            if as_it_was and _are_there(out, line["sizes"]):
                rows = tuple(FoundTumour(**row) for row in line["rows"])
                engines = tuple(line.get("engines", ()))
                (others if unit is None else done)[name] = Done(line["files"], rows, tuple(line["notes"]), engines)
                kept.append(line)
        write_atomically(out / JOURNAL, "".join(json.dumps(line) + "\n" for line in [{"how": how}, *kept]))
        return cls(out, done, others)

    def add(self, unit: Unit, stamp: list[list[int]], done: Done) -> None:
        """Record a finished input."""
        try:
            sizes = {name: (self.out / name).stat().st_size for names in done.files.values() for name in names}
        except OSError as error:
            raise explain_os_error(error, self._path) from error
        self.append(Entry(unit.name, stamp, sizes, done))

    def append(self, entry: Entry) -> None:
        """Record a finished input, possibly one that a worker of a cluster has finished."""
        done = entry.done
        rows = [asdict(row) for row in done.rows]
        line = {"name": entry.name, "stamp": entry.stamp, "sizes": entry.sizes, "files": done.files, "rows": rows}
        try:
            # Appended: a killed process or a full disk leaves at most an incomplete last line.
            with self._path.open("ab") as stream:
                stream.write((json.dumps({**line, "notes": done.notes, "engines": done.engines}) + "\n").encode())
        except OSError as error:
            raise explain_os_error(error, self._path) from error
        self.done[entry.name] = done


class Collected(Journal):
    """Finished inputs of a worker, for the journal of the caller."""

    def __init__(self, out: Path) -> None:
        super().__init__(out, {}, {})
        self.entries: list[Entry] = []

    def append(self, entry: Entry) -> None:
        """Keep a finished input."""
        self.entries.append(entry)
        self.done[entry.name] = entry.done


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        data = read_file(path, 1 << 32)
    except OSError:
        return []
    lines = []
    for text in data.split(b"\n")[:-1]:
        try:
            line = parse_json(text)
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
