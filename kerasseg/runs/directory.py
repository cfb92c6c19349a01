"""Run directories: their files, and how commands find them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from kerasseg.runs.config import RunConfig, read_config
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import (
    check_utf8,
    explain_os_error,
    lock,
    open_atomically,
    read_file,
    sync_folder,
    write_atomically,
)
from kerasseg_tfrecords.storage import refuse_url

if TYPE_CHECKING:
    import keras

RUNS = Path("runs")
"""Default folder of runs."""

_ENSEMBLE, _FOLDS = "ensemble", "cross-validation.json"
_CONFIG, _LATEST, _LOCK, _STATE, _TEMPORARY = "config.json", "latest", ".lock", "state", ".tmp-"


class RunDirectory:
    """The folder of one run; `docs/runs.md` describes its files.

    Use `create`, `open` or `find`.

    Attributes:
        root: The folder.
        config_file: Settings, as given and as resolved.
        model_file: Best weights so far.
        baseline_file: The checkpoint, fitted to the task, before training.
        threshold_file: The rule from probabilities to masks.
        history_file, curves_file: One row per epoch; plot of the training curves.
        validation_file: Dice of every validation slice at epoch 0 and at the best epoch.
        log_file: Messages, one JSON object per line.
        events_folder: TensorBoard events.
        state_folder: State for resuming.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config_file, self.threshold_file = root / _CONFIG, root / "threshold.json"
        self.model_file, self.baseline_file = root / "model.keras", root / "baseline.keras"
        self.history_file, self.curves_file = root / "history.csv", root / "training.png"
        self.validation_file, self.log_file = root / "validation.csv", root / "log.jsonl"
        self.events_folder, self.state_folder = root / "events", root / _STATE

    # --- finding ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path | None, strategy: str) -> RunDirectory:
        """Create the folder of a new run, without a configuration yet."""
        root = new_folder(strategy) if root is None else root
        cls.check_free(root)
        try:
            (root / _STATE).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            found = error.strerror or str(error)
            raise KerassegError("the folder of the run cannot be created", path=root, found=found) from error
        return cls(root)

    @staticmethod
    def check_free(root: Path) -> None:
        """Check that a folder can hold a new run."""
        refuse_url(root)
        check_utf8(root)
        if (root / _CONFIG).exists():
            raise UsageError(
                "the folder already holds a run",
                path=root,
                remedy=f"Resume it: kerasseg train --resume --out {root}. Or choose another --out.",
            )
        # A run that was killed before its first state left nothing worth keeping.
        strange = [p.name for p in root.iterdir() if not _before_config(p.name)] if root.is_dir() else []
        if strange or (root.exists() and not root.is_dir()):
            found = ", ".join(sorted(strange)[:3]) or "a file"
            raise UsageError(
                "a run needs a new or empty folder", path=root, found=found, remedy="Choose another --out."
            )

    @classmethod
    def open(cls, root: Path | str) -> RunDirectory:
        run = cls(Path(root))
        if not run.config_file.is_file():
            raise DataError(
                "not a run directory", path=root, expected=f"a folder with {_CONFIG}", remedy=_how_to_begin()
            )
        return run

    @classmethod
    def find(cls, name: str | Path | None = None, runs: Path = RUNS) -> RunDirectory:
        """Find a run by folder or name.

        Args:
            name: A folder, the name of one below `runs`, or "latest" (also None) for the run started last.
            runs: Folder of runs.

        Raises:
            DataError: There is no such run; the message names the existing ones.
        """
        if name is not None and str(name) != _LATEST:
            for root in (Path(name), runs / name):
                if (root / _CONFIG).is_file():
                    return cls(root)
            known = _names(runs)
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            remedy = f"The runs in {runs} are {_listed(known)}.{hint}" if known else _how_to_begin()
            raise DataError("no such run", path=name, remedy=remedy)
        try:
            root = runs / read_file(runs / _LATEST, 4096).decode().strip()
        except (OSError, UnicodeDecodeError):
            raise DataError("no run found", path=runs, remedy=_how_to_begin()) from None
        if not (root / _CONFIG).is_file():
            known = _names(runs)
            remedy = f"Name a run: {_listed(known)}." if known else _how_to_begin()
            raise DataError("the latest run was deleted", path=root, remedy=remedy)
        return cls(root)

    def point_latest(self) -> None:
        """Make this the default run of later commands."""
        RUNS.mkdir(parents=True, exist_ok=True)
        write_atomically(RUNS / _LATEST, os.path.relpath(self.root.absolute(), RUNS.absolute()) + "\n")

    def is_latest(self) -> bool:
        """Return whether this is the default run of commands."""
        try:
            return RunDirectory.find().root.samefile(self.root)
        except (KerassegError, OSError):
            return False

    # --- files -----------------------------------------------------------------------------------------------------------

    @property
    def folds(self) -> tuple[RunDirectory, ...]:
        """Runs of a cross-validation whose networks this one averages, in order; empty for an ordinary run."""
        parent = self.root.absolute().parent
        if self.root.absolute().name != _ENSEMBLE or not (parent / _FOLDS).is_file():
            return ()
        return tuple(RunDirectory(p) for p in sorted(parent.glob("fold-*"), key=lambda p: (len(p.name), p.name)))

    def config(self) -> RunConfig:
        """Read the configuration; see `read_config`."""
        return read_config(self.config_file)

    def write_config(self, config: RunConfig) -> None:
        write_atomically(self.config_file, config.model_dump_json(indent=1) + "\n")

    # --- one process at a time -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run against other training processes while the block runs, and remove files of a killed one."""
        remedy = "Wait for it, or choose another --out."
        with lock(self.root / _LOCK, "run", busy="another process is training in this run", remedy=remedy):
            for folder in (self.root, self.state_folder):
                for left in folder.glob(f"{_TEMPORARY}*"):
                    if left.is_dir():
                        shutil.rmtree(left, ignore_errors=True)
                    else:
                        left.unlink(missing_ok=True)
            yield

    def is_running(self) -> bool:
        if not (self.root / _LOCK).is_file():
            return False
        # Opened for reading, so that a finished run in a read-only folder does not count as running.
        with (self.root / _LOCK).open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    # --- networks --------------------------------------------------------------------------------------------------------

    def require_rest(self) -> None:
        """Refuse a run that is still being trained."""
        if self.is_running():
            raise KerassegError(
                "this run is still being trained, and its weights change",
                path=self.root,
                remedy="Wait until it has finished, or stop it with Ctrl-C, which keeps what was trained.",
            )

    def require_network(self) -> None:
        """Refuse a run that has no weights yet."""
        if not self.model_file.is_file():
            raise DataError(
                "this run has no network yet",
                path=self.root,
                expected=self.model_file.name,
                remedy=f"Resume training: kerasseg train --resume --out {self.root}",
            )

    def save_model(self, model: keras.Model, path: Path) -> None:
        """Write a network as a `.keras` file without its optimizer, atomically."""
        from keras.saving import save_model  # here, because finding a run needs no Keras

        # Keras only writes to paths that end in `.keras`.
        try:
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=path.parent, ignore_cleanup_errors=True) as folder:
                copy = Path(folder) / "model.keras"
                save_model(model, copy)
                with copy.open("rb+") as stream:
                    os.fsync(stream.fileno())
                os.replace(copy, path)  # noqa: PTH105
                sync_folder(path.parent)
        except OSError as error:
            raise explain_os_error(error, path) from error

    def best_file(self, tag: str) -> Path:
        return self.state_folder / f"best-{tag}.keras"

    def use_best(self, tag: str) -> None:
        """Make `model.keras` a hard link to the best weights with this tag."""
        source, temporary = self.best_file(tag), self.root / f"{_TEMPORARY}model-{os.getpid()}"
        try:
            if self.model_file.exists() and self.model_file.samefile(source):
                return
            temporary.unlink(missing_ok=True)
            try:
                temporary.hardlink_to(source)
            except OSError as error:
                # Some file systems (FAT, network drives) do not support hard links.
                if error.errno == errno.ENOENT:
                    raise
                with source.open("rb") as old, open_atomically(temporary) as new:
                    shutil.copyfileobj(old, new)
            os.replace(temporary, self.model_file)  # noqa: PTH105
            sync_folder(self.root)
        except OSError as error:
            raise explain_os_error(error, self.model_file) from error

    def prune_best(self, tags: Collection[str]) -> None:
        """Delete best weights except those with these tags."""
        keep = {self.best_file(tag).name for tag in tags}
        for path in self.state_folder.glob("best-*.keras"):
            if path.name not in keep:
                path.unlink(missing_ok=True)


def new_folder(ending: str) -> Path:
    """Return a folder in `runs` that does not exist, named after date and time."""
    name = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{ending}"
    root, number = RUNS / name, 2
    while root.exists():
        root, number = RUNS / f"{name}-{number}", number + 1
    return root


def _before_config(name: str) -> bool:
    """Return whether a run may have left this file before its configuration was written."""
    # The shards of a fold are in its run from the start.
    return name in {_STATE, _LOCK, "baseline.keras", "shards"} or name.startswith(_TEMPORARY)


def _names(runs: Path) -> list[str]:
    return sorted(p.parent.name for p in runs.glob(f"*/{_CONFIG}"))


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[-most:]) + (f" or one of {len(names) - most} more" if len(names) > most else "")


def _how_to_begin() -> str:
    return "Start one: kerasseg train --shards shards --checkpoint FILE"
