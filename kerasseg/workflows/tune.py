"""`tune_run`: a run's network and its baseline, tuned on the run's validation slices, written to `threshold.json`."""

from __future__ import annotations

import gc
from pathlib import Path

from kerasseg.checkpoints import open_checkpoint
from kerasseg.evaluation.joined import JoinedPredictions
from kerasseg.evaluation.predictions import Predictions, SplitPredictions, predict_split
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.search import tune
from kerasseg.tuning.threshold_file import NetworkRule, ThresholdFile, network_sha256, save_threshold
from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.records.manifest import Manifest, load_manifest
from kerasseg_tfrecords.text import Progress

__all__ = ["tune_run"]


def tune_run(
    run: RunDirectory,
    *,
    per_class: bool = False,
    shards: Path | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> ThresholdFile:
    """Tunes the rule of a run's network, and in the same way that of its baseline, on validation; writes both.

    The split is not to be chosen: what was tuned on the test split says nothing about new slices. The networks of an
    ensemble of folds have learnt from validation slices; its rule is tuned out of fold, on what each fold's network says of
    the slices that it held out.

    Args:
        run: A run that is not being trained.
        per_class: Also look for a threshold for each class.
        shards: Where the run's shards lie now; None for where they lay. They must hold the same data.
        batch_size: Slices at once.
        progress: Told a stage, what is done, and how much there is: "predict NAME", "sweep NAME" and "search NAME", with
            `model` and `baseline` as names.

    Raises:
        KerassegError: The run is being trained, or the file cannot be written.
        DataError: The run has no network, the shards are others or damaged, or no validation slice has a tumour.
        UsageError: A network that puts out no probabilities, or one of another size.
    """
    run.require_rest()
    config = run.config()
    for file in (run.model_file, run.baseline_file):
        if not file.is_file():
            remedy = f"Go on with the run: kerasseg train --resume --out {run.root}"
            raise DataError("this run has no such network", path=file, remedy=remedy)
    folder = Path(config.settings.shards) if shards is None else shards
    manifest = _manifest(folder, config.resolved.fingerprint, moved=shards is None)

    def tuned(name: str, file: Path) -> NetworkRule:
        digest = network_sha256(file)
        predictions = _predictions(run, file.name, folder, batch_size, _named(progress, name))
        found = tune(predictions, per_class=per_class, progress=_named(progress, name))
        if network_sha256(file) != digest:
            raise KerassegError("the network was replaced while it was tuned", path=file, remedy="Run this again.")
        return NetworkRule(**dict(found), network=file.name, sha256=digest)

    result = ThresholdFile(
        folds=len(run.folds),
        shards=str(folder),
        fingerprint=manifest.fingerprint,
        classes=manifest.classes,
        model=tuned("model", run.model_file),
        baseline=tuned("baseline", run.baseline_file),
    )
    return save_threshold(run, result)


def _predictions(
    run: RunDirectory, network: str, shards: Path, batch_size: int, progress: Progress | None
) -> Predictions:
    """Of slices that the network, or the fold of it that speaks, has not learnt from."""
    if not run.folds:
        return _predict(run.root / network, shards, batch_size, progress)
    parts = []
    for fold in run.folds:
        settings = fold.config().settings
        parts.append(_predict(fold.root / network, Path(settings.shards), batch_size, progress))
    return JoinedPredictions(parts)


def _predict(file: Path, shards: Path, batch_size: int, progress: Progress | None) -> SplitPredictions:
    model = open_checkpoint(file)
    on_batch = None if progress is None else lambda done, total: progress("predict", done, total)
    try:
        return predict_split(model, shards, "val", batch_size=batch_size, on_batch=on_batch)
    finally:
        del model
        gc.collect()


def _manifest(folder: Path, fingerprint: str, *, moved: bool) -> Manifest:
    try:
        manifest = load_manifest(folder)
    except DataError as error:
        if not moved:
            raise
        raise DataError(
            "the shards of the run are not there any more",
            path=folder,
            found=error.sentence(with_path=False),
            remedy="Say where they lie now: --shards FOLDER",
        ) from None
    if manifest.fingerprint != fingerprint:
        raise DataError(
            "these are not the shards of the run: its validation slices may be others, or slices it was trained on",
            path=folder,
            found=f"fingerprint {manifest.fingerprint[:12]}",
            expected=fingerprint[:12],
            remedy="Name the run's own with --shards, or prepare them again with the same options.",
        )
    return manifest


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"{stage} {name}", done, total)
