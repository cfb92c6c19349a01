"""`kerasseg export`: write a run's network for other software, and compare it with the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.completion import proposing, runs
from kerasseg_cli.console import errors, print_json, progress_bar, screen
from kerasseg_cli.evaluate import threshold_of
from kerasseg_cli.options import Debug, Json, Quiet, choices

if TYPE_CHECKING:
    from kerasseg.export.export_run import Exported
    from kerasseg.export.schema import Comparison, Int8Facts

__all__ = ["export"]

MASKS, EIGHT_BITS, CHECKS, HUB = "Masks", "8 bits (LiteRT)", "Comparison", "Model card and Hub"
FORMS = ("savedmodel", "onnx", "litert", "keras", "app")


def export(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Run to export: its folder, its name or latest. [default: latest]",
            show_default=False,
            autocompletion=runs,
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar=choices(FORMS),
            help="Format. A SavedModel takes stored slices of any size and returns masks; app is a folder for a Hugging "
            "Face Space; the others take prepared slices and return probabilities.",
            autocompletion=proposing(FORMS),
        ),
    ] = "savedmodel",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output folder. [default: export/FORMAT in the run]", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    with_postprocessing: Annotated[
        bool,
        typer.Option(
            "--with-postprocessing",
            help="Include the run's rule: all of it in a SavedModel, the threshold in ONNX and LiteRT.",
            rich_help_panel=MASKS,
        ),
    ] = False,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|auto",
            help="Probability threshold without post-processing, or auto for the tuned rule.",
            rich_help_panel=MASKS,
        ),
    ] = "auto",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Compute with 8-bit integers, and measure the cost in Dice.", rich_help_panel=EIGHT_BITS
        ),
    ] = False,
    calibration: Annotated[
        int, typer.Option(min=1, help="Training slices for calibration.", rich_help_panel=EIGHT_BITS)
    ] = 100,
    max_loss: Annotated[
        float, typer.Option(help="Largest allowed loss of mean validation Dice.", rich_help_panel=EIGHT_BITS)
    ] = 0.05,
    slices: Annotated[
        int, typer.Option(min=1, help="Validation slices for the comparison.", rich_help_panel=CHECKS)
    ] = 32,
    shards: Annotated[
        Path | None,
        typer.Option(help="Shard directory of the run, if it was moved.", show_default=False, rich_help_panel=CHECKS),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="LICENSE",
            help="License of the weights for the model card, such as cc-by-4.0.",
            show_default=False,
            rich_help_panel=HUB,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="hf://OWNER/NAME",
            help="Upload the export to the Hugging Face Hub; @BRANCH and /FOLDER may follow.",
            show_default=False,
            rich_help_panel=HUB,
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a repository created by --push private.", rich_help_panel=HUB)
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Export a run's network as SavedModel, ONNX, LiteRT, Keras file or web page, with a model card."""
    asked = threshold_of(threshold)
    from kerasseg.runs.directory import RunDirectory

    # A missing run is reported before TensorFlow is loaded.
    directory = RunDirectory.find(run)
    from kerasseg.export import export_model

    with progress_bar(quiet=quiet or as_json) as progress:
        made = export_model(
            directory,
            form,
            out,
            with_postprocessing=with_postprocessing,
            threshold=asked,
            int8=int8,
            calibration=calibration,
            max_loss=max_loss,
            slices=slices,
            shards=shards,
            license=licence,
            overwrite=overwrite,
            push_to=push,
            private=private,
            progress=progress,
        )
    if as_json:
        metadata = made.metadata.model_dump(mode="json", by_alias=True)
        print_json({"folder": str(made.folder), "pushed": made.pushed, **metadata})
        return
    for warning in made.metadata.warnings:
        errors().print(f"Warning: {warning}", markup=False, style="yellow")
    if not quiet:
        _show(made)


def _show(made: Exported) -> None:
    from kerasseg_cli.inspect import facts_table

    metadata = made.metadata
    rows = [("written", f"{made.folder} ({made.bytes / 1e6:.1f} MB)")]
    rows += [("compared", text) for text in _compared(metadata.comparison)]
    if metadata.int8 is not None:
        rows.append(("8 bits", _cost(metadata.int8, made.bytes)))
    inside, left = metadata.mask.inside, metadata.mask.left
    rows.append(("included", ", ".join(inside) or "network only"))
    if left:
        rows.append(("not included", f"{', '.join(left)} (the rule is in metadata.json)"))
    figures = [e for e in metadata.evaluations if e.split == "test"] or list(metadata.evaluations)
    if figures:
        mean = figures[0].measures["dice"]
        rows.append(("card", f"README.md, metadata.json; Dice {mean.mean or 0:.4f} on {figures[0].name}"))
    else:
        rows.append(("card", "README.md, metadata.json; not evaluated yet: kerasseg evaluate"))
    if made.pushed is not None:
        rows.append(("pushed", made.pushed))
    screen().print(facts_table(rows))


def _compared(found: Comparison) -> list[str]:
    where = "validation slices" if found.source == "validation" else "synthetic slices"
    bound = "" if found.allowed_difference is None else f" (allowed {found.allowed_difference:g})"
    text = f"{found.slices} {where}: probabilities differ by at most {found.largest_difference:.2g}{bound}, "
    texts = [text + f"{100 * found.equal_pixels:.4f} % of mask pixels equal"]
    if found.raw_slices and found.raw_equal_pixels is not None:
        texts.append(
            f"{found.raw_slices} of them as stored, in several sizes: {100 * found.raw_equal_pixels:.4f} % of mask "
            f"pixels equal, probabilities differ by at most {found.raw_largest_difference:.2g}"
        )
    return texts


def _cost(found: Int8Facts, size: int) -> str:
    limits = "" if found.cost.low is None else f" (95 % {found.cost.low:+.4f} to {found.cost.high:+.4f})"
    return (
        f"{size / 1e6:.1f} instead of {found.bytes_float / 1e6:.1f} MB; validation Dice {found.dice_float.mean:.4f} -> "
        f"{found.dice_int8.mean:.4f}, cost {found.cost.mean:+.4f}{limits}; {found.slices:,} slices, "
        f"{found.patients:,} patients"
    )
