"""`kerasseg export`: write a run's network for other software, and compare it with the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kerasseg_cli.console import errors, print_json, progress_bar, screen
from kerasseg_cli.evaluate import threshold_of
from kerasseg_cli.options import Debug, Json, Quiet, RunArgument, option, panel

if TYPE_CHECKING:
    from kerasseg.export.export_run import Exported
    from kerasseg.export.schema import Comparison, Int8Facts

MASKS, EIGHT_BITS, CHECKS, HUB = map(panel, ("Masks", "8 bits (LiteRT)", "Comparison", "Model card and Hub"))
FORMS = ("savedmodel", "onnx", "litert", "keras", "app")


def export(
    run: RunArgument = "latest",
    form: Annotated[
        str,
        option(
            "Format. A SavedModel takes stored slices of any size and returns masks; app is a folder for a Hugging "
            "Face Space; the others take prepared slices and return probabilities.",
            "--format",
            values=FORMS,
        ),
    ] = "savedmodel",
    out: Annotated[Path | None, option("Output folder. [default: export/FORMAT in the run]", metavar="DIR")] = None,
    overwrite: Annotated[bool, option("Replace an earlier export.", "--overwrite")] = False,
    with_postprocessing: Annotated[
        bool,
        MASKS(
            "Include the run's rule: all of it in a SavedModel, the threshold in ONNX and LiteRT.",
            "--with-postprocessing",
        ),
    ] = False,
    threshold: Annotated[
        str, MASKS("Probability threshold without post-processing, or auto for the tuned rule.", metavar="NUMBER|auto")
    ] = "auto",
    int8: Annotated[bool, EIGHT_BITS("Compute with 8-bit integers, and measure the cost in Dice.", "--int8")] = False,
    calibration: Annotated[int, EIGHT_BITS("Training slices for calibration.", min=1)] = 100,
    max_loss: Annotated[float, EIGHT_BITS("Largest allowed loss of mean validation Dice.")] = 0.05,
    slices: Annotated[int, CHECKS("Validation slices for the comparison.", min=1)] = 32,
    shards: Annotated[Path | None, CHECKS("Shard directory of the run, if it was moved.")] = None,
    licence: Annotated[
        str | None, HUB("License of the weights for the model card, such as cc-by-4.0.", "--license", metavar="LICENSE")
    ] = None,
    push: Annotated[
        str | None,
        HUB("Upload the export to the Hugging Face Hub; @BRANCH and /FOLDER may follow.", metavar="hf://OWNER/NAME"),
    ] = None,
    private: Annotated[bool, HUB("Make a repository created by --push private.", "--private")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Export a run's network as SavedModel, ONNX, LiteRT, Keras file or web page, with a model card."""
    asked = threshold_of(threshold)
    from kerasseg.runs.directory import RunDirectory

    # A missing run is reported before TensorFlow is loaded.
    directory = RunDirectory.find(run)
    from kerasseg.export.export_run import export_model

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
        errors().print(f"Warning: {warning}", style="yellow")
    if not quiet:
        _show(made)


def _show(made: Exported) -> None:
    from kerasseg_cli.inspect import facts_table

    metadata = made.metadata
    rows = [("written", f"{made.folder} ({made.bytes / 1e6:.1f} MB)")]
    rows += [("compared", text) for text in _compared(metadata.comparison, int8=metadata.int8 is not None)]
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


def _compared(found: Comparison, *, int8: bool) -> list[str]:
    where = "validation slices" if found.source == "validation" else "synthetic slices"
    bound = "" if found.allowed_difference is None else f" (allowed {found.allowed_difference:g})"
    computed = f"{'network' if int8 else 'both'} in {found.precision}"
    text = (
        f"{found.slices} {where}, {computed}: probabilities differ by at most {found.largest_difference:.2g}{bound}, "
    )
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
