"""Report progress from raw slices to masks, from the files in a folder, within milliseconds.

Only light modules are imported, and files are not validated (`kerasseg doctor` does that).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.tables import read_csv

_LARGEST = 1 << 26  # bytes of the facts of a state
SHARDS, RUNS, PREDICTIONS = "shards", "runs", "predictions.csv"
State = Literal["done", "open", "old", "unfinished", "damaged", "any time"]


@dataclass(frozen=True, slots=True)
class StatusLine:
    """One step of the workflow.

    Attributes:
        name: The command.
        purpose: Purpose of the command.
        state: "done"; "open"; "old" (its input has changed since); "unfinished"; "damaged"; "any time".
        when: Local time at which it was done; None if it was not.
        figure: The main figure as text; "" without one.
    """

    name: str
    purpose: str
    state: State
    when: datetime | None = None
    figure: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of a folder."""

    steps: tuple[StatusLine, ...]
    run: str | None
    next: str
    runs: int = 0

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; times in ISO 8601."""
        steps = [
            asdict(step) | {"when": None if step.when is None else step.when.isoformat(timespec="seconds")}
            for step in self.steps
        ]
        return {"run": self.run, "runs": self.runs, "next": self.next, "steps": steps}


@dataclass(slots=True)
class _Found:
    """What was found of a step."""

    state: State = "open"
    when: datetime | None = None
    figure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def look_around(folder: Path | str = ".", *, shards: str = SHARDS) -> Overview:
    """Report what was done in a folder, and what comes next.

    Example:
        >>> import tempfile
        >>> found = look_around(tempfile.mkdtemp())
        >>> [step.state for step in found.steps]
        ['open', 'any time', 'open', 'open', 'open', 'open']
        >>> found.next
        'kerasseg fetch figshare'
    """
    here = Path(folder)
    run = _latest(here / RUNS)
    prepared = _shards(here / shards)
    train = _training(run) if run is not None else _Found()
    tuned = _threshold(run) if run is not None else _Found()
    evaluated = _evaluation(run, tuned) if run is not None else _Found()
    predicted = _predictions(here)
    parts = {
        "prepare": ("turn raw slices into shards with a frozen split", prepared),
        "inspect": ("optional: show a checkpoint and what each strategy trains", _Found("any time")),
        "train": ("fine-tune the checkpoint on the shards", train),
        "tune-threshold": ("find the best threshold on the validation split", tuned),
        "evaluate": ("score the test split, compared with the checkpoint", evaluated),
        "predict": ("predict masks for new slices", predicted),
    }
    steps = tuple(StatusLine(name, purpose, f.state, f.when, f.figure) for name, (purpose, f) in parts.items())
    name = None if run is None else run.name
    return Overview(steps, name, _next(here, {step.name: step.state for step in steps}), len(run_names(here / RUNS)))


def run_names(runs: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted.

    Example:
        >>> run_names(Path("nowhere"))
        []
    """
    return sorted(path.parent.name for path in runs.glob("*/config.json"))


def newest_facts(state: Path) -> dict[str, Any] | None:
    """Return the facts of the newest readable state of a run, without its arrays; None without one."""
    for path in sorted(state.glob("state-*.npz"), reverse=True):
        try:
            with zipfile.ZipFile(path) as archive, archive.open("facts.json") as member:
                facts = parse_json(member.read(_LARGEST))["facts"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            continue
        if isinstance(facts, dict):
            return facts
    return None


def _latest(runs: Path) -> Path | None:
    """Return the latest run, as `RunDirectory.find` does."""
    try:
        run = runs / read_file(runs / "latest", 4096).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return run.resolve() if (run / "config.json").is_file() else None


def _shards(folder: Path) -> _Found:
    found = _document(folder / "manifest.json")
    if found.state != "done":
        return found
    try:
        counts = found.facts["counts"]
        each = {split: sum(c["slices"] for c in counts if c["split"] == split) for split in ("train", "val", "test")}
        classes = len(found.facts["classes"])
    except (KeyError, TypeError):
        return _Found("damaged", found.when)
    split = " + ".join(f"{number:,}" for number in each.values())
    found.figure = f"{split} slices (train, val, test), {classes} class{'es' if classes != 1 else ''}"
    return found


def _training(run: Path) -> _Found:
    found = _document(run / "config.json")
    rows = _rows(run / "history.csv")
    if found.state != "done" or not rows:
        # An ensemble has no history of its own.
        if found.state == "done" and not (run / "model.keras").is_file():
            found.state = "unfinished"
        return found
    best = max(rows, key=lambda row: row["val_dice"])
    trained = max(row["epoch"] for row in rows)
    found.figure = f"Dice {rows[0]['val_dice']:.3f} -> {best['val_dice']:.3f} on validation, epoch {best['epoch']:.0f}"
    found.when = _time(run / "history.csv") or found.when
    facts = newest_facts(run / "state")
    if facts is not None and not facts.get("finished"):
        found.state = "unfinished"
        found.figure += f", stopped after {trained:.0f}"
    return found


def _rows(path: Path) -> list[dict[str, float]]:
    columns = ("epoch", "val_dice")
    try:
        return [{name: float(row[name]) for name in columns} for row in read_csv(path, "a history", columns)]
    except (DataError, ValueError):
        return []


def _threshold(run: Path) -> _Found:
    found = _document(run / "threshold.json")
    if found.state != "done":
        return found
    try:
        tuned = found.facts["model"]
        before, after = tuned["raw"]["mean"], tuned["dice"]["mean"]
        change = f"{before:.3f}" if before == after else f"{before:.3f} -> {after:.3f}"
        found.figure = f"threshold {tuned['rule']['threshold']:g}, Dice {change} on validation"
        if _is_other(run / tuned["network"], run / "threshold.json", tuned["sha256"]):
            found.state = "old"
    except (KeyError, TypeError, ValueError):
        return _Found("damaged", found.when)
    return found


def _is_other(network: Path, written: Path, sha256: str) -> bool:
    """Return whether a network has another hash; it is read only if it is newer than the file that names it."""
    try:
        if network.stat().st_mtime <= written.stat().st_mtime:
            return False
        with network.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() != sha256
    except OSError:
        return False


def _evaluation(run: Path, tuned: _Found) -> _Found:
    found = _document(run / "evaluation" / "test" / "metrics.json")
    if found.state != "done":
        return found
    try:
        figures = found.facts
        final = next(stage for stage in figures["model"]["stages"] if stage["name"] == figures["final"])
        dice = final["all"]["measures"]["dice"]
        found.figure = f"Dice {dice['mean']:.3f} on test"
        if dice["low"] is not None:
            found.figure += f" ({dice['low']:.3f} to {dice['high']:.3f})"
        ruled = str(tuned.facts.get("created", ""))
        # Unlike times of files, these survive copying. Both are ISO 8601, UTC.
        if figures["threshold"] == "auto" and (tuned.state == "old" or str(figures["created"]) < ruled):
            found.state = "old"
    except (KeyError, TypeError, ValueError, StopIteration):
        return _Found("damaged", found.when)
    return found


def _predictions(here: Path) -> _Found:
    tables = sorted(here.glob(f"*/{PREDICTIONS}"), key=lambda path: path.stat().st_mtime)
    if not tables:
        return _Found()
    return _Found("done", _time(tables[-1]), f"in {tables[-1].parent.name}/")


def _document(path: Path) -> _Found:
    try:
        facts = parse_json(read_file(path))
    except FileNotFoundError:
        return _Found()
    except (OSError, ValueError):
        return _Found("damaged", _time(path))
    if not isinstance(facts, dict):
        return _Found("damaged", _time(path))
    return _Found("done", _time(path), facts=facts)


def _time(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except OSError:
        return None


def _holds_data(folder: Path) -> bool:
    """Return whether a folder contains files and no interrupted download."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return any(not name.startswith(".") for name in names) and not any(name.endswith(".part") for name in names)


def _next(here: Path, states: dict[str, State]) -> str:
    if states["prepare"] == "damaged":
        return "kerasseg verify"
    if "damaged" in states.values():
        return "kerasseg doctor"
    if states["train"] == "unfinished":
        return "kerasseg train --resume"
    if states["prepare"] == "open" and states["train"] == "open":
        return "kerasseg prepare data/" if _holds_data(here / "data") else "kerasseg fetch figshare"
    if states["train"] == "open":
        return "kerasseg train --checkpoint FILE"
    if states["tune-threshold"] != "done":
        return "kerasseg tune-threshold"
    if states["evaluate"] != "done":
        return "kerasseg evaluate --threshold auto"
    return "kerasseg predict INPUT --out predictions"
