"""Kill, starve and race the commands that write: `python tests/torture.py --kills 100 --disks 20 --state torture`.

Each attempt starts from a copy of the same folder, disturbs one command, and types the command again as its message says.
What is there then must be what undisturbed runs leave, with nothing beside it. An attempt is determined by its kind and
number, except for the moment at which the signal arrives; finished attempts are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np

from children import Child, Children
from factories import write_figshare

NETWORK = ("--checkpoint", "start.keras", "--strategy", "aggressive", "--batch-size", "2", "--precision", "float32")
TRAINED = ("--shards", "shards", *NETWORK, "--deterministic", "--epochs", "2")
BESIDES = ("*.lock", "*log.jsonl", "*/events/*", "*test-looks.jsonl", "*/state/*", "runs/*")
"""Files that tell of the disturbance, or whose number depends on it."""


CHANGES = ("bytes", "memory_mb", "test_looks", "created", "date_saved", "seconds", "slices_per_second")
"""Values that may differ: size of TensorFlow's fingerprint, memory, the number of looks if the first was complete, and
times, which two undisturbed runs can share by chance."""

Expected: TypeAlias = dict[str, dict[str, dict[str, str]]]
"""Command -> file -> place in it -> value."""


@dataclass(frozen=True)
class Case:
    """A command that writes.

    Attributes:
        typed: Its arguments, in a folder with `raw/`, `start.keras`, `shards/` and `run/`.
        again: Arguments that continue it after a disturbance.
        complete: Whether the disturbed command had ended so far that typing it again is refused.
    """

    typed: tuple[str, ...]
    again: Callable[[Path], tuple[str, ...]] | None = None
    complete: str = ""

    def next(self, folder: Path) -> tuple[str, ...]:
        """Return what to type after a disturbance."""
        return self.typed if self.again is None else self.again(folder)


def _resumed(folder: Path) -> tuple[str, ...]:
    return ("train", "--resume", "--out", "new") if (folder / "new/config.json").exists() else CASES["train"].typed


CASES: dict[str, Case] = {
    "prepare": Case(("prepare", "raw", "--out", "new", "--size", "16"), complete="already exist"),
    "train": Case(("train", *TRAINED, "--out", "new"), _resumed, complete="already finished"),
    "cross-validate": Case(("cross-validate", "--folds", "2", *TRAINED, "--out", "new")),
    "tune-threshold": Case(("tune-threshold", "run")),
    "evaluate": Case(("evaluate", "run", "--no-speed")),
    "predict": Case(
        ("predict", "raw", "--run", "run", "--out", "new"),
        lambda folder: (*CASES["predict"].typed, *(["--continue"] if (folder / "new").exists() else [])),
    ),
    "export": Case(
        ("export", "run", "--format", "savedmodel", "--out", "new"),
        lambda folder: (*CASES["export"].typed, *(["--overwrite"] if (folder / "new").exists() else [])),
    ),
    "convert": Case(("convert", "start.keras", "new.keras"), complete="exists already"),
}


def values(path: Path) -> dict[str, str]:
    """Return the values of a file by their place in it, so that those that hold a time can be left out."""
    return dict(_values(path.name, path.read_bytes()))


def _values(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    match name.rpartition(".")[2]:
        case "json":
            yield from _leaves(json.loads(content), "")
        case "jsonl":
            yield from _leaves([json.loads(line) for line in content.splitlines()], "")
        case "csv":
            for number, row in enumerate(csv.DictReader(io.StringIO(content.decode()))):
                yield from ((f"{number}/{key}", value) for key, value in row.items() if key not in CHANGES)
        case "keras":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for member in archive.namelist():
                    yield from ((f"{member}/{at}", value) for at, value in _values(member, archive.read(member)))
        case "h5":
            with h5py.File(io.BytesIO(content)) as file:
                found: dict[str, str] = {}
                file.visititems(
                    lambda at, one: found.update({at: _digest(one)}) if isinstance(one, h5py.Dataset) else None
                )
            yield from found.items()
        case "md":
            lines = enumerate(content.decode().splitlines())
            yield from ((str(number), line) for number, line in lines if not line.startswith("| files |"))  # sizes
        case "html" | "pb":
            yield "", ""  # hold times, and names that TensorFlow draws
        case _:
            yield "", hashlib.sha256(content).hexdigest()


def _digest(data: h5py.Dataset) -> str:
    return hashlib.sha256(np.asarray(data[()]).tobytes()).hexdigest()


def _leaves(value: object, at: str) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for key, one in value.items():
                if key not in CHANGES:
                    yield from _leaves(one, f"{at}/{key}")
        case list():
            for number, one in enumerate(value):
                yield from _leaves(one, f"{at}/{number}")
        case _:
            yield at, repr(value)


def contents(folder: Path) -> dict[str, dict[str, str]]:
    """Return the values of every file of a folder, except of those that tell of a disturbance."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = [(path.relative_to(folder).as_posix(), path) for path in files]
    return {name: values(path) for name, path in named if not any(fnmatch(name, one) for one in BESIDES)}


class Torture:
    """Attempts in `state`.

    Args:
        state: Folder for the starting point and the record of what was done.
        commands: Names of cases.
    """

    def __init__(self, state: Path, commands: Sequence[str] = tuple(CASES)) -> None:
        self.state = state.resolve()
        self.work, self.base, self.commands = self.state / "work", self.state / "base", tuple(commands)
        self.temporary = self.state / "tmp"
        for folder in (self.work, self.state / "said"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.work, self.temporary, self.state / "said"):
            folder.mkdir(parents=True, exist_ok=True)
        self.children = Children(self.work, self.state / "said")
        if not self.base.exists():
            self._begin()
        note = self.state / "undisturbed.json"
        known: tuple[Expected, dict[str, float]] = json.loads(note.read_text()) if note.exists() else ({}, {})
        self.expected, self.seconds = known
        for name in self.commands:
            if name not in self.expected:
                self._undisturbed(name)
                note.write_text(json.dumps((self.expected, self.seconds)))

    def _begin(self) -> None:
        import kerasseg

        write_figshare(self.work / "raw", patients=12, slices_each=2, size=40)
        kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=0).save(self.work / "start.keras")
        for typed in (
            ("prepare", "raw", "--out", "shards", "--size", "16"),
            ("train", *TRAINED, "--out", "run"),
            ("tune-threshold", "run"),
        ):
            done = self._type(*typed)
            assert done.returncode == 0, done.stderr
        shutil.move(self.work, self.base)

    def _undisturbed(self, name: str) -> None:
        """Run a command twice; what differs between the two is not compared."""
        found = []
        for _ in range(2):
            self._fresh()
            start = time.monotonic()
            done = self._type(*CASES[name].typed)
            self.seconds[name] = time.monotonic() - start
            assert done.returncode == 0, done.stderr
            found.append(contents(self.work))
        one, other = found
        assert one.keys() == other.keys()
        same = {file: {at: v for at, v in one[file].items() if other[file].get(at) == v} for file in one}
        changed = [file for file in one if one[file] and not same[file]]
        assert not changed, changed
        self.expected[name] = same

    def _fresh(self) -> None:
        """Copy the starting point to the folder that all paths name."""
        self.work.mkdir(exist_ok=True)
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.base, self.work, dirs_exist_ok=True)

    def _type(self, *typed: str) -> Child:
        return self._start(*typed).wait()

    def _start(self, *typed: str) -> Child:
        return self.children.start(*typed, TMPDIR=str(self.temporary))

    def kill(self, name: str, rng: random.Random) -> None:
        """Kill a command once or twice, then let it end."""
        self._fresh()
        for _ in range(rng.choice((1, 1, 2))):
            child = self._start(*CASES[name].next(self.work))
            child.process.join(rng.uniform(0, 1.1 * self.seconds[name]))
            child.send(signal.SIGKILL)
            child.wait()
            self._plain(child, killed=True)
        self._finish(name)

    def starve(self, name: str, rng: random.Random) -> None:
        """Run a command on a full disk, one time of two without free inodes, then on one with space."""
        used = sum(path.stat().st_size + 4096 for path in self.base.rglob("*"))
        files = sum(1 for _ in self.base.rglob("*")) + 1
        limit = (
            f"nr_inodes={files + rng.randint(0, 6)}" if rng.random() < 0.5 else f"size={used + rng.randint(0, 80_000)}"
        )
        self._empty()
        subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(self.work)], check=True)
        try:
            self._fresh()
            self._plain(self._type(*CASES[name].typed))
            subprocess.run(["mount", "-o", "remount,size=1g,nr_inodes=100k", str(self.work)], check=True)
            self._finish(name)
        finally:
            subprocess.run(["umount", "-l", str(self.work)], check=True)

    def race(self, name: str, rng: random.Random) -> None:
        """Start a command twice at nearly the same time."""
        self._fresh()
        first = self._start(*CASES[name].typed)
        time.sleep(rng.uniform(0, 0.5 * self.seconds[name]))
        second = self._start(*CASES[name].typed)
        for child in (first, second):
            self._plain(child.wait())
        assert 0 in (first.returncode, second.returncode), first.stderr + second.stderr
        self._same(name)

    def _empty(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    @staticmethod
    def _plain(child: Child, *, killed: bool = False) -> None:
        """Check that a disturbed command ended with a message for the user."""
        assert child.returncode in (0, 1, 2, 3, *((-signal.SIGKILL,) if killed else ())), child.stderr
        assert "Traceback" not in child.stderr, child.stderr
        assert "bug in kerasseg" not in child.stderr, child.stderr

    def _finish(self, name: str) -> None:
        case = CASES[name]
        done = self._type(*case.next(self.work))
        refused = case.complete and case.complete in " ".join(done.stderr.split())
        assert done.returncode == 0 or refused, done.stderr
        self._same(name)

    def _same(self, name: str) -> None:
        hidden = [str(path) for path in self.work.rglob("*") if ".tmp" in path.name or path.name.endswith(".partial")]
        assert not hidden, hidden
        expected, found = self.expected[name], contents(self.work)
        assert found.keys() == expected.keys(), f"files: {sorted(found.keys() ^ expected.keys())}"
        other = [
            f"{file}: {at}: {value}, now {found[file].get(at)}"
            for file, same in expected.items()
            for at, value in same.items()
            if found[file].get(at) != value
        ]
        assert not other, "\n".join(other[:20])


def mounts() -> bool:
    """Return whether file systems can be mounted here."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(probe, capture_output=True, check=False).returncode
    )


def torture(state: Path, commands: Sequence[str] = tuple(CASES), **attempts: int) -> Iterator[str]:
    """Yield a report of each attempt that went wrong; `kill`, `starve` and `race` give their numbers."""
    state.mkdir(parents=True, exist_ok=True)
    note = state / "done.json"
    done: list[str] = json.loads(note.read_text()) if note.exists() else []
    bench = Torture(state, commands)
    for kind, count in attempts.items():
        for number in range(count):
            name = commands[number % len(commands)]
            key = f"{kind} {number} {name}"
            if key in done:
                continue
            try:
                getattr(bench, kind)(name, random.Random(key))
            except AssertionError as error:
                yield f"{key}: {error}"
            done.append(key)
            note.write_text(json.dumps(done))


def main() -> None:
    """Print what went wrong; exit with 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--commands", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--state", type=Path, default=Path("torture"), help="folder for progress")
    asked = parser.parse_args()
    disks = asked.disks if mounts() else 0
    found = 0
    for report in torture(asked.state, asked.commands, kill=asked.kills, starve=disks, race=asked.pairs):
        found += 1
        sys.stdout.write(report + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"{asked.kills} kills, {disks} full disks, {asked.pairs} pairs: {found} findings\n")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
