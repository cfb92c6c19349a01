"""`export_model`: write a run's network in another format, compare it with the original, and write a model card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import keras

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance, public_name, sha256_of
from kerasseg.export.atomic_folder import check_place, placed
from kerasseg.export.card import CARD, card
from kerasseg.export.metadata import callings, data_facts, evaluations, origin, recipe, steps_of, without_paths
from kerasseg.export.parity import (
    Samples,
    Shards,
    calibration_images,
    check,
    compare,
    comparison_samples,
    find_shards,
    measure_int8,
    native,
    network_images,
)
from kerasseg.export.push import parse_address, push, write_space
from kerasseg.export.schema import (
    FORMATS,
    METADATA,
    SCHEMA,
    ExportFormat,
    ExportMetadata,
    FileFacts,
    Int8Facts,
    MaskFacts,
    NetworkFacts,
    Preprocessing,
)
from kerasseg.export.serving import (
    LITERT_FILE,
    ONNX_PACKAGES,
    Network,
    check_backend,
    need_extra,
    open_keras_export,
    open_litert,
    open_onnx,
    serving_model,
    write_keras,
    write_litert,
    write_onnx,
)
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.config import RunConfig, software
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.threshold_file import ThresholdFile, load_threshold
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.files import explain_os_error
from kerasseg_tfrecords.intensity import IntensityRule
from kerasseg_tfrecords.text import Progress

_REASONS = {
    "onnx": "they need loops over pixels, but the file contains only arithmetic that every runtime supports",
    "litert": "they need loops over pixels, which runtimes of small devices do not support",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes:
        folder: Folder with the network's files, `README.md` and `metadata.json`.
        metadata: Content of `metadata.json`.
        pushed: Address on the Hub; None if it was not pushed.

    Example:
        `export_model(...)` returns:

        >>> sorted(name for name in vars(Exported) if not name.startswith("_"))
        ['bytes', 'folder', 'metadata', 'pushed']
    """

    folder: Path
    metadata: ExportMetadata
    pushed: str | None = None

    @property
    def bytes(self) -> int:
        """Total size of the network's files."""
        return sum(file.bytes for file in self.metadata.files)


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything that is known before writing."""

    form: ExportFormat
    run: RunDirectory
    config: RunConfig
    model: keras.Model
    digest: str
    mask: MaskFacts
    shards: Shards | None
    samples: Samples
    int8: bool
    calibration: int
    max_loss: float
    progress: Progress | None

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return int(self.model.inputs[0].shape[-1])

    @property
    def intensity(self) -> IntensityRule:
        return cast("IntensityRule", self.config.resolved.intensity)


def export_model(
    run: RunDirectory | Path | str | None = None,
    format: str = "savedmodel",  # noqa: A002 - as in Keras
    out: Path | str | None = None,
    *,
    with_postprocessing: bool = False,
    threshold: Literal["auto"] | float = "auto",
    int8: bool = False,
    calibration: int = 100,
    max_loss: float = 0.05,
    slices: int = 32,
    shards: Path | str | None = None,
    license: str | None = None,  # noqa: A002 - as on the Hub
    overwrite: bool = False,
    push_to: str | None = None,
    private: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export the best network of a run, with a model card.

    The export is opened again from disk and compared with the network on validation slices before the folder appears; an
    export that differs is removed.

    Args:
        run: The run, its folder or name; None for the latest run.
        format: "savedmodel" (takes stored slices of any size, returns masks), "onnx", "litert" or "keras" (take the
            network's input, float32 in [0, 1], (batch, size, size, channels), and return probabilities), or "app" (a
            Hugging Face Space: `app.py`, `requirements.txt` and the network).
        out: Output folder; None for `export/<format>` in the run.
        with_postprocessing: Include the run's rule: all of it in a SavedModel, its threshold in ONNX and LiteRT.
        threshold: "auto" for the rule in the run's `threshold.json`, or a threshold in (0, 1] without post-processing.
        int8: Compute with 8-bit integers (LiteRT only).
        calibration: Number of training slices for calibrating 8-bit ranges.
        max_loss: Largest allowed loss of mean Dice on validation with `int8`.
        slices: Number of validation slices for the comparison.
        shards: Shard directory of the run if it was moved. Without shards, synthetic slices are compared, and the card
            states this.
        license: License of the weights for the card, such as "cc-by-4.0".
        overwrite: Whether to replace an earlier export in `out`.
        push_to: `hf://owner/name` to upload the export to.
        private: Whether a repository created for the upload is private.
        progress: Called with the stage ("compare", "int8"), finished items and all items.

    Returns:
        The folder and the content of its `metadata.json`.

    Raises:
        UsageError: The format is unknown, options contradict each other, a package is missing, or an export exists already.
        DataError: The run has no network or rule, or its shards are missing, different or damaged.
        KerassegError: The run is being trained, the export differs from the network, 8 bits cost too much, or the export
            cannot be written or uploaded.

    Example:
        >>> export_model("my-run", "pickle")
        Traceback (most recent call last):
        kerasseg_tfrecords.errors.UsageError: ...
    """
    form = _format(format, int8=int8, with_postprocessing=with_postprocessing)
    address = None if push_to is None else parse_address(push_to)
    _check_numbers(slices, calibration, max_loss)
    directory = run if isinstance(run, RunDirectory) else RunDirectory.find(run)
    target = Path(out) if out is not None else directory.root / "export" / (f"{form}-int8" if int8 else form)
    check_place(target, overwrite=overwrite)
    directory.require_rest()
    config = directory.config()
    directory.require_network()
    tuned, mask = _rule(directory, form, threshold, with_postprocessing=with_postprocessing)
    found = _shards(directory, config, shards, int8=int8)
    job = _Job(
        form=form,
        run=directory,
        config=config,
        model=_network(directory, config),
        digest=sha256_of(directory.model_file),
        mask=mask,
        shards=found,
        samples=comparison_samples(found, config, slices),
        int8=int8,
        calibration=calibration,
        max_loss=max_loss,
        progress=progress,
    )
    with placed(target, overwrite=overwrite, need=2 * directory.model_file.stat().st_size) as folder:
        metadata = _write(job, folder, target, tuned, license)
    pushed = None if address is None else push(target, address, private=private, space=form == "app")
    return Exported(target, metadata, pushed)


def _format(name: str, *, int8: bool, with_postprocessing: bool) -> ExportFormat:
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}", expected=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if int8 and name != "litert":
        raise UsageError("--int8 is available for LiteRT only", found=f"format {name}", expected="litert")
    if name == "keras" and with_postprocessing:
        raise UsageError(
            "a .keras file cannot include post-processing, because it is meant for training",
            remedy="Omit --with-postprocessing (the rule is in metadata.json), or use --format savedmodel.",
        )
    form = cast("ExportFormat", name)
    if form == "onnx":
        need_extra("onnx", *ONNX_PACKAGES)
    if form not in ("keras", "app"):
        check_backend()
    return form


def _shards(run: RunDirectory, config: RunConfig, moved: Path | str | None, *, int8: bool) -> Shards | None:
    found = find_shards(run, config, None if moved is None else Path(moved))
    if int8 and found is None:
        raise DataError(
            "--int8 needs the run's shards for calibration, and they are missing",
            path=config.settings.shards,
            remedy="Give their new location with --shards, or omit --int8.",
        )
    return found


def _check_numbers(slices: int, calibration: int, max_loss: float) -> None:
    for name, value in (("slices to compare on", slices), ("slices for calibration", calibration)):
        if value < 1:
            raise UsageError(f"too few {name}", found=value, expected="at least 1")
    if not 0 <= max_loss <= 1:  # also catches NaN
        raise UsageError("invalid --max-loss", found=max_loss, expected="a Dice in [0, 1]")


def _rule(
    run: RunDirectory, form: ExportFormat, threshold: Literal["auto"] | float, *, with_postprocessing: bool
) -> tuple[ThresholdFile | None, MaskFacts]:
    makes_masks = form == "savedmodel" or with_postprocessing
    tuned: ThresholdFile | None = None
    source: Literal["threshold.json", "given", "default"]
    if threshold != "auto":
        if not 0 < threshold <= 1:
            raise UsageError("invalid threshold", found=threshold, expected="auto, or a probability in (0, 1]")
        rule, source = MaskRule(threshold=float(threshold)), "given"
    elif makes_masks or run.threshold_file.exists():
        tuned = load_threshold(run)
        rule, source = tuned.model.rule, "threshold.json"
    else:
        rule, source = MaskRule(), "default"
    steps = steps_of(rule)
    if with_postprocessing and steps and form in _REASONS:
        raise UsageError(
            f"{', '.join(steps)} cannot be included in {form}: {_REASONS[form]}",
            remedy="Omit --with-postprocessing (the rule is in metadata.json), use --format savedmodel, which includes all "
            f"of it, or give only a threshold: --threshold {rule.threshold:g}",
        )
    # The page applies the whole rule, and people can switch its steps off.
    inside = (("threshold",) if makes_masks or form == "app" else ()) + (
        steps if with_postprocessing or form == "app" else ()
    )
    every = ("threshold", *(("class_thresholds",) if rule.class_thresholds else ()), *steps)
    left = tuple(name for name in every if name not in inside)
    return tuned, MaskFacts(rule=rule, source=source, inside=inside, left=left)


def _network(run: RunDirectory, config: RunConfig) -> keras.Model:
    """Return the best network, with a provenance that contains no folder of this machine."""
    from kerasseg.checkpoints.provenance import attach

    model = open_checkpoint(run.model_file)
    size = model.inputs[0].shape[1]
    if size is not None and size != config.resolved.size:
        raise DataError(
            "the network and the run have different slice sizes",
            path=run.model_file,
            found=f"{size}x{size}",
            expected=f"{config.resolved.size}x{config.resolved.size}",
            remedy="The file was replaced: restore it from a copy of the run, or train again.",
        )
    record = provenance(run.model_file)
    writer = f"Keras {config.software.get('keras', '')}".strip()
    return attach(model, origin(record, run, sha256_of(run.model_file), config.resolved.intensity, writer))


def _write(job: _Job, folder: Path, target: Path, tuned: ThresholdFile | None, license_: str | None) -> ExportMetadata:
    raw = None
    opened = _write_network(job, folder)
    if job.form == "savedmodel":
        from kerasseg.export.savedmodel_format import open_savedmodel_raw

        raw = open_savedmodel_raw(folder)
    network = native(job.model)
    comparison = compare(
        network,
        opened(),
        job.samples,
        job.mask.rule.without_postprocessing(),
        channels=job.channels,
        intensity=job.intensity,
        raw=raw,
        raw_rule=job.mask.inner_rule,
        bounded=not job.int8,
        progress=job.progress,
    )
    check(comparison, target)
    cost = _int8(job, folder, target, network, opened()) if job.int8 else None
    resolved = job.config.resolved
    record = provenance(job.model)
    if record is None:
        msg = "the network has no provenance"
        raise AssertionError(msg)
    folders = [job.run.root, *job.run.root.absolute().parents, Path(job.config.settings.shards), Path.home()]
    metadata = ExportMetadata(
        schema=SCHEMA,
        software=software(),
        name=job.run.root.absolute().name,
        license=license_,
        format=job.form,
        int8=cost,
        files=_files(folder),
        network=NetworkFacts(
            parameters=job.model.count_params(),
            size=resolved.size,
            channels=job.channels,
            sha256=job.digest,
            checkpoint=None if resolved.checkpoint is None else public_name(resolved.checkpoint),
            checkpoint_sha256=None if resolved.provenance is None else resolved.provenance.get("sha256"),
        ),
        preprocessing=Preprocessing(
            inside=job.form in ("savedmodel", "app"),
            intensity=resolved.intensity,
            window_of="volume" if job.samples.volumes else "slice",
            size=resolved.size,
            channels=resolved.channels,
        ),
        mask=job.mask,
        calling=callings(job.form, job.mask, resolved.size, job.channels, resolved.channels),
        data=data_facts(job.config, job.shards),
        training=without_paths(recipe(job.config), folders),
        comparison=comparison,
        evaluations=evaluations(job.run, job.mask, tuned),
        tuning=None if tuned is None else {"raw": tuned.model.raw, "dice": tuned.model.dice, "gain": tuned.model.gain},
        provenance=record.to_json(),
        warnings=without_paths(tuple(_warnings(job)), folders),
    )
    try:
        (folder / METADATA).write_text(metadata.to_json(), encoding="utf-8")
        (folder / CARD).write_text(card(metadata), encoding="utf-8", errors="replace")
    except OSError as error:
        raise explain_os_error(error, target) from error
    return metadata


def _write_network(job: _Job, folder: Path) -> Callable[[], Network]:
    """Write the network's files, and return a function that opens them."""
    threshold = job.mask.rule.threshold if job.mask.inside else None
    if job.form in ("keras", "app"):
        write_keras(job.model, folder)
        if job.form == "app":
            write_space(folder)
        return lambda: open_keras_export(folder)
    if job.form == "savedmodel":
        from kerasseg.export.savedmodel_format import FromStored, open_savedmodel_export, write_savedmodel

        around = FromStored(job.intensity, job.config.resolved.size, job.config.resolved.channels, job.mask.inner_rule)
        write_savedmodel(job.model, folder, around)
        return lambda: open_savedmodel_export(folder)
    if job.form == "onnx":
        write_onnx(serving_model(job.model, job.config.resolved.size, threshold), folder, _notes(job))
        return lambda: open_onnx(folder)
    images = None
    if job.int8 and job.shards is not None:
        images = network_images(calibration_images(job.shards, job.calibration), job.channels)
    write_litert(serving_model(job.model, job.config.resolved.size, threshold), folder, images)
    return lambda: open_litert(folder)


def _int8(job: _Job, folder: Path, target: Path, network: Network, exported: Network) -> Int8Facts:
    if job.shards is None:
        msg = "8 bits need shards"
        raise AssertionError(msg)
    beside = folder / "float32"
    beside.mkdir()
    write_litert(serving_model(job.model, job.config.resolved.size, None), beside, None)
    size = (beside / LITERT_FILE).stat().st_size
    shutil.rmtree(beside)
    return measure_int8(
        network,
        exported,
        job.shards,
        job.mask.rule,
        channels=job.channels,
        calibration=min(job.calibration, job.shards.manifest.slices_in("train")),
        allowed=job.max_loss,
        bytes_float=size,
        path=target,
        progress=job.progress,
    )


def _notes(job: _Job) -> dict[str, str]:
    resolved = job.config.resolved
    return {
        "run": job.run.root.absolute().name,
        "intensity": resolved.intensity,
        "size": str(resolved.size),
        "scale": "1/255",
        "rule": job.mask.rule.model_dump_json(),
        "use": "research; not for clinical use",
    }


def _files(folder: Path) -> tuple[FileFacts, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileFacts(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    )


def _warnings(job: _Job) -> list[str]:
    found = []
    if job.samples.source == "synthetic":
        found.append("The run's shards are missing: the export was compared with the network on synthetic slices.")
    if job.mask.source == "default":
        found.append("The threshold 0.5 is not tuned for this network: kerasseg tune-threshold.")
    if job.samples.volumes and job.form == "savedmodel":
        found.append(
            "The run was trained on slices that were scaled over their whole volume: use the signature `volume`. "
            "`serving_default` scales each slice separately, which gives other masks."
        )
    return found
