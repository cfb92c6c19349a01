"""`kerasseg predict`: masks for new slices, volumes and series, in the geometry of their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kerasseg_cli.completion import FORMATS, runs
from kerasseg_cli.console import errors, print_json, progress_bar, screen
from kerasseg_cli.options import FLIP_AVERAGE, Cluster, Debug, Json, MaxMemory, Quiet, panel
from kerasseg_tfrecords.errors import UsageError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from kerasseg.prediction.predictor import Engine
    from kerasseg.workflows.predict import PredictionReport
    from kerasseg_tfrecords.intensity import IntensityRule

PLANES = ("axial", "coronal", "sagittal")
INTENSITIES = ("minmax", "percentile", "zscore")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
ENGINES = ("native", "openvino")

_network, _input, _prediction, _output = map(panel, ("Network", "Input", "Prediction", "Output"))


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Slices, volumes or series: folders, files, zip archives or patterns of .mat, PNG, JPEG, TIFF, NIfTI and "
            "DICOM files.",
        ),
    ],
    out: Annotated[Path, _output("Output folder.", "--out", "-o", metavar="DIR")],
    run: Annotated[
        str | None,
        _network(
            "Run whose network is used: its folder or name. [default: the latest run]",
            metavar="RUN",
            autocompletion=runs,
        ),
    ] = None,
    model: Annotated[
        str | None,
        _network(
            "Checkpoint to use instead of a run, with threshold 0.5 unless --threshold is given.", metavar="CHECKPOINT"
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        _network(
            "Average the probabilities of several runs or checkpoints; repeat the option or separate them by commas.",
            metavar="RUN",
        ),
    ] = None,
    format_: Annotated[str | None, _input("Read only files of this format.", "--format", values=FORMATS)] = None,
    plane: Annotated[
        str | None, _input("Plane in which volumes are sliced. [default: that of the run's shards]", values=PLANES)
    ] = None,
    channel: Annotated[
        str | None,
        _input("Channel of volumes with several: a number from 0, or a name. [default: that of the run's shards]"),
    ] = None,
    sequence: Annotated[
        str | None, _input("Sequence of cases with several, such as t1ce. [default: that of the run's shards]")
    ] = None,
    intensity: Annotated[str | None, _input("Intensity rule. [default: that of the run]", values=INTENSITIES)] = None,
    threshold: Annotated[
        float | None, _prediction("Probability threshold, without post-processing. [default: the run's tuned rule]")
    ] = None,
    flip_average: Annotated[bool, _prediction(FLIP_AVERAGE, "--flip-average")] = False,
    augment: Annotated[
        list[str] | None,
        _prediction("Test-time augmentation by name; flip is the same as --flip-average.", metavar="[flip]"),
    ] = None,
    batch_size: Annotated[
        int | None, _prediction("Slices per batch. [default: chosen for this machine]", min=1)
    ] = None,
    precision: Annotated[
        str,
        _prediction(
            "Numeric precision; auto is float32, as in evaluate. mixed_bfloat16 is faster on some processors.",
            values=PRECISIONS,
        ),
    ] = "auto",
    engine: Annotated[
        str,
        _prediction(
            "Engine that computes the network: native is Keras; openvino (extra, float32 only) is used if its masks agree "
            "with those of Keras on the first 16 slices with a tumour.",
            values=ENGINES,
        ),
    ] = "native",
    overlay: Annotated[bool, _output("Also write pictures with the outline of the mask.", "--overlay")] = False,
    probabilities: Annotated[
        bool, _output("Also write probability maps (16-bit PNG, or float32 NIfTI for volumes).", "--probabilities")
    ] = False,
    bids: Annotated[
        bool,
        _output(
            "Name outputs as a BIDS derivative, such as sub-01_label-tumor_mask.nii.gz; for BIDS inputs.", "--bids"
        ),
    ] = False,
    go_on: Annotated[bool, _output("Predict only what is missing in the output folder.", "--continue")] = False,
    overwrite: Annotated[bool, _output("Replace earlier predictions in the output folder.", "--overwrite")] = False,
    max_memory: MaxMemory = None,  # noqa: ARG001 - its callback sets it
    cluster: Cluster = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write a mask for each slice, volume and series, in the geometry of its file. Not for clinical use."""
    networks = _networks(run, model, ensemble)

    from kerasseg.interrupts import stop_on_signals
    from kerasseg.workflows.predict import predict_files
    from kerasseg_tfrecords.cluster import connect

    def told(name: str) -> None:
        errors().print(f"{name}: finishing the slices in progress. Press again to stop at once.")

    with connect(cluster) as client, progress_bar(quiet=quiet or as_json) as progress, stop_on_signals(told) as stop:
        report = predict_files(
            networks,
            inputs,
            out,
            threshold=threshold,
            intensity=cast("IntensityRule | None", intensity),
            flip_average=flip_average,
            augment=[part.strip() for name in augment or () for part in name.split(",") if part.strip()],
            overlay=overlay,
            probabilities=probabilities,
            bids=bids,
            plane=plane,
            channel=channel,
            sequence=sequence,
            format_name=format_,
            batch_size=batch_size,
            precision=precision,
            engine=cast("Engine", engine),
            go_on=go_on,
            overwrite=overwrite,
            cluster=client,
            progress=progress,
            stop=stop,
        )
    if as_json:
        print_json(summary(report))
    else:
        show(report, quiet=quiet)
    if report.interrupted:
        raise typer.Exit(130)
    if report.problems:
        raise typer.Exit(3)


def _networks(run: str | None, model: str | None, ensemble: list[str] | None) -> list[str] | None:
    """Return the networks to use; None for the latest run."""
    given = [name for name, value in (("--run", run), ("--model", model), ("--ensemble", ensemble)) if value]
    if len(given) > 1:
        raise UsageError(
            "--run, --model and --ensemble exclude each other",
            found=" and ".join(given),
            remedy="To average several networks, give all of them to --ensemble; it takes runs and checkpoints.",
        )
    if ensemble:
        return [part.strip() for name in ensemble for part in name.split(",") if part.strip()]
    if model is not None:
        path = Path(model)
        if "://" not in model and (path / "config.json").is_file() and (path / "state").is_dir():
            raise UsageError(f"--model cannot be {model!r}: that is a run", remedy=f"--run {model}")
        if "://" not in model and not path.exists():
            from kerasseg.checkpoints.identify import missing

            raise missing(path)
    only = run or model
    return None if only is None else [only]


def summary(report: PredictionReport) -> dict[str, Any]:
    return {
        "out": str(report.out),
        "networks": report.networks,
        "rule": report.rule.model_dump(),
        "intensity": report.intensity,
        "size": report.size,
        "precision": report.precision,
        "engines": report.engines,
        "flip_average": report.flip_average,
        "total": report.total,
        "done": len(report.files),
        "earlier": report.earlier,
        "interrupted": report.interrupted,
        "seconds": round(report.seconds, 3),
        "files": [
            {
                "file": file.name,
                "slices": len(file.rows),
                "tumour_slices": file.tumour_slices,
                "area_px": sum(row.area_px for row in file.rows),
                "tumours": file.tumours,
                "volume_ml": file.volume_ml,
                "outputs": file.files,
                "notes": file.notes,
            }
            for file in report.files
        ],
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
        "left_out": [dataclasses.asdict(entry) for entry in report.left_out],
        "notes": report.notes,
    }


def show(report: PredictionReport, *, quiet: bool) -> None:
    """Print problems and, unless quiet, what was found and where it was written."""
    for problem in report.problems:
        errors().print(f"  {problem}")
    if not quiet:
        for note in report.notes:
            errors().print(f"Note: {one_line(note)}", style="yellow")
        for line in lines(report):
            screen().print(line, soft_wrap=True)
    if report.problems:
        bad = count(len(report.problems), "input")
        errors().print(f"Error: {bad} could not be read (listed above); all others are done.")
    if report.interrupted:
        errors().print("Interrupted. Run the same command with --continue to predict the rest.")


def lines(report: PredictionReport) -> list[str]:
    slices = sum(len(file.rows) for file in report.files)
    tumours = sum(file.tumour_slices for file in report.files)
    now = len(report.files) - report.earlier
    done = sum(len(file.rows) for file in report.files[-now:]) if now else 0
    inputs = f"{len(report.files):,} of {count(report.total, 'input')}"
    said = [f"{inputs}, {count(slices, 'slice')}: a tumour in {tumours:,} of them."]
    if report.earlier:
        said.append(f"{report.earlier:,} were predicted earlier.")
    elif done and report.seconds > 0:
        said[0] += f" {done / report.seconds:.1f} slices/s."
    rule = f"threshold {report.rule.threshold:g}, {'with' if report.rule.postprocesses else 'no'} post-processing"
    mean = "mean of " if len(report.networks) > 1 else ""
    flip = ", averaged with the mirror image" if report.flip_average else ""
    engines = " and ".join({"native": "Keras", "openvino": "OpenVINO"}.get(name, name) for name in report.engines)
    by = f" by {engines}" if engines else ""
    said.append(
        f"Network: {mean}{', '.join(report.networks)} at {report.size}x{report.size} in {report.precision}{by}, "
        f"{report.intensity}, {rule}{flip}."
    )
    volumes = [file for file in report.files if file.volume_ml]
    said += _first(
        [f"{one_line(f.name)}: {f.volume_ml:.1f} ml, {count(f.tumours or 0, 'tumour')}" for f in volumes], "volume"
    )
    said += _first(
        [f"{one_line(file.name)}: {one_line(note)}" for file in report.files for note in file.notes], "remark"
    )
    if report.left_out:
        first = report.left_out[0]
        name = f"{one_line(first.name)} ({first.reason})"
        skipped = count(len(report.left_out), "file")
        which = "that is not an image:" if len(report.left_out) == 1 else "that are not images, such as"
        said.append(f"Skipped {skipped} {which} {name}.")
    said.append(f"Masks and predictions.csv: {report.out}")
    return said


def _first(texts: list[str], noun: str, limit: int = 5) -> list[str]:
    more = [f"  and {count(len(texts) - limit, f'more {noun}')}, see --json"] if len(texts) > limit else []
    return [*(f"  {text}" for text in texts[:limit]), *more]
