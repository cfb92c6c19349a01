"""Tune the rules of a run's network and of its baseline on validation slices, and write them to `threshold.json`."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.evaluation.joined import JoinedPredictions
from kerasseg.evaluation.predictions import SplitPredictions, predict_split
from kerasseg.runs.config import manifest_of
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.search import tune
from kerasseg.tuning.threshold_file import NetworkRule, ThresholdFile, network_sha256, save_threshold
from kerasseg.workflows.cross_validate import read_cross_validation
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import Manifest, local_shards
from kerasseg_tfrecords.storage import url_of
from kerasseg_tfrecords.text import Progress, without_credentials


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Slices that a network was not trained on."""

    folder: Path
    shards: Path


def tune_run(
    run: RunDirectory,
    *,
    per_class: bool = False,
    force: bool = False,
    cross_validation: Path | None = None,
    shards: Path | None = None,
    batch_size: int = 8,
    flip_average: bool = False,
    progress: Progress | None = None,
) -> ThresholdFile:
    """Tune the rule of a run's network and of its baseline on validation slices, and write both to `threshold.json`.

    A baseline that was not pretrained as a whole has no rule: there is nothing to compare with.

    The split cannot be chosen: tuning on the test split would invalidate the test figures. The rule of a cross-validation's
    ensemble is tuned on out-of-fold predictions.

    Args:
        run: A run that is not being trained.
        per_class: Whether to choose a threshold for each class.
        force: Whether to keep the rule without a test that its gain is beyond noise.
        cross_validation: Folder of a finished cross-validation of the run's shards, whose out-of-fold predictions are used
            instead of the run's validation slices: more patients, none of them seen by the network that predicts them.
        shards: New location of the run's shards; None if they have not moved.
        batch_size: Slices per batch.
        flip_average: Whether to average the predictions of each image and its mirror image.
        progress: Called with a stage, the amount done and the total; stages are "predict NAME", "sweep NAME" and "search
            NAME", with `model` and `baseline` as names.

    Raises:
        KerassegError: The run is being trained, or the file cannot be written.
        DataError: The run has no network, the shards differ or are damaged, or no validation slice has a tumour.
        UsageError: The network returns no probabilities or has another size, or the cross-validation is of other data.
    """
    run.require_rest()
    config = run.config()
    for file in (run.model_file, run.baseline_file)[: 1 + config.pretrained]:
        if not file.is_file():
            remedy = f"Resume the run: kerasseg train --resume --out {run.root}"
            raise DataError("the run has no such network", path=file, remedy=remedy)
    folder = Path(config.settings.shards) if shards is None else shards
    manifest = manifest_of(config, shards)
    local_shards(folder, ["val"], progress=progress)
    if cross_validation is not None:
        held_out = _folds_of(cross_validation, manifest)
    elif run.folds:
        held_out = [_HeldOut(fold.root, Path(fold.config().settings.shards)) for fold in run.folds]
    else:
        held_out = [_HeldOut(run.root, folder)]

    def tuned(name: str, file: Path) -> NetworkRule:
        digest = network_sha256(file)
        told = _named(progress, name)
        parts = [_predict(one, file.name, batch_size, told, flip_average=flip_average) for one in held_out]
        predictions = parts[0] if len(parts) == 1 else JoinedPredictions(parts)
        found = tune(predictions, per_class=per_class, force=force, progress=told)
        if network_sha256(file) != digest:
            raise KerassegError("the network was replaced during tuning", path=file, remedy="Run this again.")
        return NetworkRule(**dict(found), network=file.name, sha256=digest)

    result = ThresholdFile(
        folds=len(held_out) if run.folds or cross_validation is not None else 0,
        shards=without_credentials(url_of(folder) or str(folder)),
        fingerprint=manifest.fingerprint,
        classes=manifest.classes,
        model=tuned("model", run.model_file),
        baseline=tuned("baseline", run.baseline_file) if config.pretrained else None,
        flip_average=flip_average or None,
    )
    return save_threshold(run, result)


def _folds_of(root: Path, manifest: Manifest) -> list[_HeldOut]:
    """Return the folds of a finished cross-validation of the same shards."""
    found = read_cross_validation(root)
    if found.out_of_fold is None:
        raise UsageError(
            "the cross-validation has not finished",
            path=root,
            remedy=f"Finish it: kerasseg cross-validate --resume --out {root}",
        )
    if found.fingerprint != manifest.fingerprint:
        raise UsageError(
            "the cross-validation used other shards than the run",
            path=root,
            found=f"fingerprint {found.fingerprint[:12]}",
            expected=manifest.fingerprint[:12],
        )
    folders = [root / f"fold-{k}" for k in range(1, found.folds + 1)]
    return [_HeldOut(folder, folder / "shards") for folder in folders]


def _predict(
    held_out: _HeldOut, network: str, batch_size: int, progress: Progress | None, *, flip_average: bool
) -> SplitPredictions:
    model = open_checkpoint(held_out.folder / network)
    on_batch = None if progress is None else lambda done, total: progress("predict", done, total)
    try:
        return predict_split(
            model, held_out.shards, "val", batch_size=batch_size, on_batch=on_batch, flip_average=flip_average
        )
    finally:
        del model
        gc.collect()


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"{stage} {name}", done, total)
