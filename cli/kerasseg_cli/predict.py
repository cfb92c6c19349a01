"""`kerasseg predict`: masks for new slices, volumes and series, in the geometry of their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kerasseg_cli.console import errors, print_json, progress_bar, screen
from kerasseg_cli.options import Debug, Json, Quiet
from kerasseg_tfrecords.errors import UsageError, one_line

if TYPE_CHECKING:
    from kerasseg.workflows.predict import PredictionReport
    from kerasseg_tfrecords.intensity import IntensityRule

__all__ = ["predict"]

WHO, READ, HOW, WRITE = "Which network", "What is read", "How it is asked", "What is written"


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Folders, files, zips or patterns: .mat, PNG, JPEG, TIFF, NIfTI, DICOM."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The output folder.", rich_help_panel=WRITE)],
    run: Annotated[
        str | None, typer.Option(help="A run's folder or name; the latest one.", rich_help_panel=WHO)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Any checkpoint instead of a run, cut at 0.5 or --threshold.", rich_help_panel=WHO),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN", help="Average several networks: once for each, or with commas.", rich_help_panel=WHO
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Read this alone: figshare, pairs, nifti or dicom.", rich_help_panel=READ),
    ] = None,
    plane: Annotated[
        str | None,
        typer.Option(help="Of volumes: axial, coronal, sagittal; as the run's shards.", rich_help_panel=READ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="Channel of a volume with several: number from 0, or name; default that of the run's data.",
            rich_help_panel=READ,
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            help="Sequence of a case with several, such as t1ce; default that of the run's data.", rich_help_panel=READ
        ),
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(help="minmax, percentile or zscore, instead of what the run says.", rich_help_panel=READ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Instead of the run's tuned rule, without post-processing.", rich_help_panel=HOW),
    ] = None,
    flip_average: Annotated[
        bool,
        typer.Option("--flip-average", help="Average image and mirror image: twice the time.", rich_help_panel=HOW),
    ] = False,
    augment: Annotated[
        list[str] | None,
        typer.Option(help="flip is --flip-average; others are refused, with the reason.", rich_help_panel=HOW),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Slices at once; as fits this machine.", rich_help_panel=HOW)
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="auto (the run's), float32, mixed_bfloat16 or mixed_float16.", rich_help_panel=HOW),
    ] = "auto",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Pictures with the outline, too.", rich_help_panel=WRITE)
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="16-bit PNG or float32 NIfTI, too.", rich_help_panel=WRITE)
    ] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Do only what is missing in --out.", rich_help_panel=WRITE)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in --out.", rich_help_panel=WRITE)
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write a mask for every slice, volume and series, in the geometry of its file. Not for clinical use."""
    networks = _networks(run, model, ensemble)

    from kerasseg.interrupts import stop_on_signals
    from kerasseg.workflows.predict import predict_files

    def told(name: str) -> None:
        errors().print(f"{name}: finishing the slices that are under way. Once more stops at once.", markup=False)

    with progress_bar(quiet=quiet or as_json) as progress, stop_on_signals(told) as stop:
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
            plane=plane,
            channel=channel,
            sequence=sequence,
            format_name=format_,
            batch_size=batch_size,
            precision=precision,
            go_on=go_on,
            overwrite=overwrite,
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
    """What is asked; None for the latest run."""
    given = [name for name, value in (("--run", run), ("--model", model), ("--ensemble", ensemble)) if value]
    if len(given) > 1:
        raise UsageError(
            "more than one network is named",
            found=" and ".join(given),
            expected="one of --run, --model and --ensemble",
            remedy="To average several, name all of them with --ensemble; it takes runs and checkpoints.",
        )
    if ensemble:
        return [part.strip() for name in ensemble for part in name.split(",") if part.strip()]
    if model is not None:
        path = Path(model)
        if "://" not in model and (path / "config.json").is_file() and (path / "state").is_dir():
            raise UsageError(f"--model cannot be {model!r}: that is a run", remedy=f"--run {model}")
        if "://" not in model and not path.exists():
            from kerasseg_tfrecords.errors import CheckpointError

            raise CheckpointError("no such file", path=model, expected="a checkpoint")
    only = run or model
    return None if only is None else [only]


def summary(report: PredictionReport) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "out": str(report.out),
        "networks": report.networks,
        "rule": report.rule.model_dump(),
        "intensity": report.intensity,
        "size": report.size,
        "precision": report.precision,
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
    """Problems always; otherwise what was found, and where it lies."""
    for problem in report.problems:
        errors().print(f"  {problem}", markup=False)
    if not quiet:
        for note in report.notes:
            errors().print(f"Note: {one_line(note)}", markup=False, style="yellow")
        for line in lines(report):
            screen().print(line, markup=False, soft_wrap=True)
    if report.problems:
        count = len(report.problems)
        some = f"{count} input{'s' if count > 1 else ''} could not be read, as listed above"
        errors().print(f"Error: {some}; the others are done.", markup=False)
    if report.interrupted:
        errors().print("Interrupted. Go on with the same command and --continue.", markup=False)


def lines(report: PredictionReport) -> list[str]:
    """The sentences of the summary."""
    slices = sum(len(file.rows) for file in report.files)
    tumours = sum(file.tumour_slices for file in report.files)
    now = len(report.files) - report.earlier
    done = sum(len(file.rows) for file in report.files[-now:]) if now else 0
    said = [f"{len(report.files):,} of {report.total:,} inputs, {slices:,} slices: a tumour in {tumours:,} of them."]
    if report.earlier:
        said.append(f"{report.earlier:,} were done earlier.")
    elif done and report.seconds > 0:
        said[0] += f" {done / report.seconds:.1f} slices/s."
    rule = f"threshold {report.rule.threshold:g}"
    rule += ", then post-processing" if report.rule.postprocesses else ", no post-processing"
    mean = "the mean of " if len(report.networks) > 1 else ""
    flip = ", averaged with the mirror image" if report.flip_average else ""
    said.append(
        f"Network: {mean}{', '.join(report.networks)} at {report.size}x{report.size}, {report.intensity}, {rule}{flip}."
    )
    remarks = [(file.name, note) for file in report.files for note in file.notes]
    said += [f"  {one_line(name)}: {one_line(note)}" for name, note in remarks[:5]]
    said += [f"  and {len(remarks) - 5} more remarks, in --json"] if len(remarks) > 5 else []
    if report.left_out:
        first = report.left_out[0]
        some = f"for instance {one_line(first.name)}: {first.reason}"
        said.append(f"Passed over {len(report.left_out):,} files that are no images to predict, {some}.")
    said.append(f"Masks and predictions.csv: {report.out}")
    return said
