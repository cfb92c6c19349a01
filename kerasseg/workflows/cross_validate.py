"""Cross-validation: a run for each fold of the training and validation slices; the test split is not read.

runs/NAME/
cross-validation.json   settings, and the scores once all folds have finished
out-of-fold.csv         every slice with its Dice from the fold that held it out
fold-1/ ...             run directories; fold-1/shards contains the fold's slices, its splits.csv the frozen list
ensemble/               a run directory with the mean of all folds as its network
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kerasseg.checkpoints.open import open_checkpoint, reopen
from kerasseg.data.split import Caching, open_split
from kerasseg.evaluation.figures import USUAL
from kerasseg.evaluation.schema import Mean
from kerasseg.models.ensemble import ensemble
from kerasseg.runs.config import RunConfig
from kerasseg.runs.directory import RunDirectory, new_folder
from kerasseg.runs.settings import TrainSettings
from kerasseg.runs.state import StateStore
from kerasseg.training.events import Evaluated, Event, Message, Observer
from kerasseg.training.state import Progress
from kerasseg.workflows.train import resume, train, with_absolute_paths
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.cluster import cluster_pool, tell
from kerasseg_tfrecords.conversion.folds import write_folds
from kerasseg_tfrecords.documents import read_document
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import check_utf8, lock, make_folder, write_atomically
from kerasseg_tfrecords.records.manifest import load_manifest
from kerasseg_tfrecords.storage import refuse_url
from kerasseg_tfrecords.tables import format_csv

if TYPE_CHECKING:
    from distributed import Client

FORMAT_VERSION = 2
"""Version 2 added the scores of the last epochs."""
FILE = "cross-validation.json"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scores(_Model):
    """Dice over a set of slices, each predicted by the network that was not trained on it.

    Attributes:
        before: Dice of the checkpoint before training.
        after: Dice of the fold's best epoch. It was chosen on these slices and may be epoch 0, so it is slightly too high.
        gain: Paired difference of `after`; never negative within a fold.
        last, last_gain: Dice of the fold's last epoch, which nothing chose, and its paired difference; None if an earlier
            version trained a fold.
    """

    before: Mean
    after: Mean
    gain: Mean
    last: Mean | None = None
    last_gain: Mean | None = None


class FoldResult(_Model):
    """One fold.

    Attributes:
        name: Its folder.
        slices: Number of held-out slices.
        before, after, last: Mean Dice over them, as in `Scores`.
        epochs: Number of epochs trained.
        best_epoch: Epoch with the highest Dice over the held-out slices.
        text: Why training ended.
    """

    name: str
    slices: int
    before: float
    after: float
    last: float | None = None
    epochs: int
    best_epoch: int
    text: str


class OutOfFold(_Model):
    """Scores over all slices at threshold 0.5 and the network's resolution.

    Attributes:
        all: Scores over all slices.
        tumour: Scores over slices with tumour in reference or prediction.
        classes: Class -> scores over its slices.
        folds: Scores of each fold.
        spread: Standard deviation of the folds' mean Dice.
    """

    all: Scores
    tumour: Scores
    classes: dict[str, Scores]
    folds: tuple[FoldResult, ...]
    spread: float


class CrossValidation(_Model):
    """Content of `cross-validation.json`.

    Attributes:
        format_version: Increased when readers of an earlier version could misread the file.
        kerasseg, created: Version of kerasseg, and time of the start.
        folds: Number of folds.
        fingerprint: Fingerprint of the shards.
        settings: Settings of every fold, except `shards`.
        out_of_fold: Scores; None until all folds have finished.
    """

    format_version: int = FORMAT_VERSION
    kerasseg: str
    created: str
    folds: Annotated[int, Field(ge=2)]
    fingerprint: str
    settings: TrainSettings
    out_of_fold: OutOfFold | None = None


def cross_validate(
    settings: TrainSettings,
    folds: int = 5,
    out: Path | str | None = None,
    observers: Iterable[Observer] = (),
    *,
    cluster: Client | None = None,
) -> tuple[CrossValidation, Path]:
    """Train once for each fold of the training and validation slices, and resume an interrupted call.

    A finished fold is not trained again; a killed one resumes from its last saved state.

    Args:
        settings: Settings of every fold; `shards` is the shard directory to divide.
        folds: Number of folds, 2 or more.
        out: The folder; None for `runs/<date-time>-cv<folds>-<strategy>`.
        observers: Functions that receive events; on a cluster, from threads of their own and only messages.
        cluster: Dask client of a cluster whose workers each train a fold; they must see `out` and the files in `settings`.

    Returns:
        The content of `cross-validation.json`, without scores if training was interrupted; and the folder.

    Raises:
        UsageError: There are fewer groups than folds, or the folder is not empty.
        KerassegError: As `kerasseg.workflows.train.train`.
    """
    manifest = load_manifest(settings.shards)
    root = new_folder(f"cv{folds}-{settings.strategy}") if out is None else Path(out)
    refuse_url(root)
    check_utf8(root.absolute())  # as the folds' settings have it
    with_absolute_paths(settings)  # for its checks: nothing is written before
    root = root if cluster is None else root.absolute()
    asked = CrossValidation(
        kerasseg=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        folds=folds,
        fingerprint=manifest.fingerprint,
        settings=settings,
    )
    watching = tuple(observers)
    make_folder(root)
    busy = "another process cross-validates in this folder"
    with lock(root / ".lock", "runs", busy=busy):
        state = _begin(root, asked)
        runs = [root / f"fold-{k + 1}" for k in range(folds)]
        for run in runs:
            run.mkdir(exist_ok=True)
        write_folds(settings.shards, [run / "shards" for run in runs], settings.seed)
        finished = (
            _train_all(runs, settings, watching) if cluster is None else _train_far(cluster, runs, settings, watching)
        )
        if not finished:
            return state, root
        table = [entry for k, run in enumerate(runs) for entry in _held_out(run, k + 1)]
        write_atomically(root / "out-of-fold.csv", _csv(table))
        _write_ensemble(root, runs, settings)
        done = state.model_copy(update={"out_of_fold": _figures(table, runs, manifest.classes)})
        write_atomically(root / FILE, done.model_dump_json(indent=1) + "\n")
    return done, root


def read_cross_validation(root: Path) -> CrossValidation:
    return read_document(root / FILE, CrossValidation, FORMAT_VERSION, "the cross-validation")


# --- the folder ----------------------------------------------------------------------------------------------------------


def _begin(root: Path, asked: CrossValidation) -> CrossValidation:
    """Open a cross-validation with the same settings, or start it."""
    if not (root / FILE).exists():
        strange = sorted(path.name for path in root.iterdir() if path.name != ".lock")
        if strange:
            raise UsageError(
                "the folder of a cross-validation must be new or empty",
                path=root,
                found=", ".join(strange[:3]),
                remedy="Choose another --out.",
            )
        write_atomically(root / FILE, asked.model_dump_json(indent=1) + "\n")
        return asked
    there = read_cross_validation(root)
    before, now = there.settings.model_dump(), asked.settings.model_dump()
    before["folds"], now["folds"] = there.folds, asked.folds
    before["slices"], now["slices"] = there.fingerprint[:12], asked.fingerprint[:12]
    # The same shards may have moved.
    other = [
        f"{name} {before[name]!r}, now {now[name]!r}" for name in now if name != "shards" and before[name] != now[name]
    ]
    if other:
        raise UsageError(
            "the folder holds another cross-validation",
            path=root,
            found="; ".join(other[:3]),
            remedy=f"Resume it: kerasseg cross-validate --resume --out {root}. Or choose another --out.",
        )
    return there


# --- one fold ------------------------------------------------------------------------------------------------------------


def _train_all(runs: Sequence[Path], settings: TrainSettings, observers: Sequence[Observer]) -> bool:
    """Train the folds one after another; False if training was interrupted."""
    for k, run in enumerate(runs):
        for observer in observers:
            observer(Message("note", "fold", f"Fold {k + 1} of {len(runs)}"))
        if not _train_fold(run, settings, observers):
            return False
        # Networks, optimizers and compiled steps of one fold are not needed for the next.
        keras.utils.clear_session()
    return True


def _train_far(client: Client, runs: Sequence[Path], settings: TrainSettings, observers: Sequence[Observer]) -> bool:
    """Train the folds on the workers of a cluster; False if training was interrupted."""

    def heard(said: Sequence[Any]) -> None:
        for observer in observers:
            observer(Message(*said))

    settings = with_absolute_paths(settings)
    files = [Path(name) for name in (settings.shards, settings.checkpoint, settings.encoder_weights) if name]
    reads = [path for path in files if path.exists()]
    try:
        with cluster_pool(client, reads=reads, writes=runs[0].parent, tensorflow=True, gpu=True) as pool:
            train_one = partial(_train_apart, settings)
            return all(list(pool.map(train_one, runs, isolated=True, crashed=_ended, heard=heard)))
    except KeyboardInterrupt:
        _wait_for(runs)
        return False


def _train_apart(settings: TrainSettings, root: Path) -> bool:
    """Train one fold in a process of its own on a worker."""
    _wait_for([root])
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # nothing is written into the folder of the worker
        return _train_fold(root, settings, [partial(_report, root.name)])


def _report(name: str, event: Event) -> None:
    match event:
        case Evaluated(row=row):
            best = ", the best so far" if row.best else ""
            tell(["note", "fold", f"{name}: epoch {row.epoch}, validation Dice {row.val_dice:.4f}{best}"])
        case Message():
            tell([event.level, event.kind, f"{name}: {event.text}"])
        case _:
            return


def _wait_for(runs: Sequence[Path], seconds: float = 60) -> None:
    """Wait until the processes that train these folds have saved and ended."""
    deadline = time.monotonic() + seconds
    while any(RunDirectory(run).is_running() for run in runs) and time.monotonic() < deadline:
        time.sleep(0.5)


def _ended(root: Path, error: DataError) -> bool:
    remedy = "Check the memory of the workers, then run the same command again: it resumes the fold."
    raise KerassegError("the process that trained this fold was killed", path=root, remedy=remedy) from error


def _train_fold(root: Path, settings: TrainSettings, observers: Sequence[Observer]) -> bool:
    """Train one fold to its end; False if it was interrupted."""
    run = RunDirectory(root)
    if run.config_file.is_file():
        progress = _progress(run)
        if progress is not None and progress.finished:
            return True
        ended, _ = resume(run, observers)
    else:
        own = settings.model_copy(update={"shards": str(root / "shards")})
        ended, _ = train(own, root, observers, latest=False)  # a fold is no run of its own
    return ended.reason != "interrupted"


def _progress(run: RunDirectory) -> Progress | None:
    saved = StateStore(run.state_folder).newest()
    return None if saved is None else Progress.from_saved(saved.facts, saved.arrays)


def _finished(run: RunDirectory) -> Progress:
    progress = _progress(run)
    if progress is None or progress.first_table is None or progress.best_table is None:
        raise DataError("the fold has no finished state", path=run.root, remedy="Run the same command again.")
    return progress


class _Entry(_Model):
    """A slice and its Dice from the fold that held it out."""

    slice_id: str
    patient: str
    group: str
    label: str
    fold: int
    before: float
    after: float
    last: float | None
    tumour: bool


def _held_out(root: Path, fold: int) -> list[_Entry]:
    progress = _finished(RunDirectory(root))
    first, best, last = progress.first_table, progress.best_table, progress.last_table
    assert first is not None  # noqa: S101 - checked by `_finished`
    assert best is not None  # noqa: S101 - checked by `_finished`
    slices = open_split(root / "shards", "val", Caching("none"), check=False)
    found = []
    for place, number in enumerate(best.slice.tolist()):
        record = slices.record(number)
        found.append(
            _Entry(
                slice_id=record.slice_id,
                patient=record.patient,
                group=record.group,
                label=slices.manifest.classes[record.label],
                fold=fold,
                before=float(first.dice[place]),
                after=float(best.dice[place]),
                last=None if last is None else float(last.dice[place]),
                tumour=any(t.tumour[place] > 0 for t in (first, best, last) if t is not None),
            )
        )
    return found


# --- all folds -----------------------------------------------------------------------------------------------------------


def _figures(table: Sequence[_Entry], runs: Sequence[Path], classes: Sequence[str]) -> OutOfFold:
    results = []
    for k, root in enumerate(runs):
        held = [entry for entry in table if entry.fold == k + 1]
        progress = _finished(RunDirectory(root))
        results.append(
            FoldResult(
                name=root.name,
                slices=len(held),
                before=float(np.mean([entry.before for entry in held])),
                after=float(np.mean([entry.after for entry in held])),
                last=None if (last := _last(held)) is None else float(np.mean(last)),
                epochs=sum(row.epoch > 0 for row in progress.history),
                best_epoch=progress.best[1],
                text=progress.text,
            )
        )
    return OutOfFold(
        all=_scores(table),
        tumour=_scores([entry for entry in table if entry.tumour]),
        classes={name: _scores([entry for entry in table if entry.label == name]) for name in classes},
        folds=tuple(results),
        spread=float(np.std([result.after for result in results], ddof=1)),
    )


def _scores(entries: Sequence[_Entry]) -> Scores:
    before, after = [entry.before for entry in entries], [entry.after for entry in entries]
    groups = [entry.group or entry.patient for entry in entries]
    last = _last(entries)
    return Scores(
        before=USUAL.of(before, groups, 1.0),
        after=USUAL.of(after, groups, 1.0),
        gain=USUAL.paired(before, after, groups),
        last=None if last is None else USUAL.of(last, groups, 1.0),
        last_gain=None if last is None else USUAL.paired(before, last, groups),
    )


def _last(entries: Sequence[_Entry]) -> list[float] | None:
    found = [entry.last for entry in entries if entry.last is not None]
    return found if len(found) == len(entries) else None


def _csv(table: Sequence[_Entry]) -> str:
    header = ("slice_id", "patient", "group", "label", "fold", "dice_epoch_0", "dice_best", "dice_last")
    rows = [
        (e.slice_id, e.patient, e.group, e.label, e.fold, e.before, e.after, "" if e.last is None else e.last)
        for e in sorted(table, key=lambda entry: entry.slice_id)
    ]
    return format_csv([header, *rows])


def _write_ensemble(root: Path, runs: Sequence[Path], settings: TrainSettings) -> None:
    """Write a run directory for evaluate and predict, whose network is the mean over the folds."""
    run = RunDirectory(root / "ensemble")
    if run.config_file.is_file():
        return
    parts = [RunDirectory(path) for path in runs]
    make_folder(run.state_folder)
    with run.locked():  # which also deletes what a killed process left
        run.save_model(ensemble([open_checkpoint(part.model_file) for part in parts]), run.model_file)
        run.save_model(reopen(parts[0].baseline_file), run.baseline_file)
    first: RunConfig = parts[0].config()
    manifest = load_manifest(settings.shards)
    resolved = first.resolved.model_copy(
        update={
            "changes": (*first.resolved.changes, f"the mean of the networks of {len(runs)} folds"),
            "fingerprint": manifest.fingerprint,
            "parameters": sum(part.config().resolved.parameters for part in parts),
            "trained": sum(part.config().resolved.trained for part in parts),
            "slices": {
                split: {count.label: count.slices for count in manifest.counts if count.split == split}
                for split in ("train", "val")
            },
        }
    )
    # Written last, since it makes the folder a run.
    run.write_config(first.model_copy(update={"settings": settings, "resolved": resolved}))
