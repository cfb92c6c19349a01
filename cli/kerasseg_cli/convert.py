"""`kerasseg convert`: write any checkpoint as a Keras 3 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.console import print_json, screen
from kerasseg_cli.options import AllowPartial, Architecture, Checkpoint, Json, Quiet, option

if TYPE_CHECKING:
    from kerasseg.checkpoints.conversion import Conversion


def convert(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="File to write, ending in .keras.", metavar="OUT.keras")],
    overwrite: Annotated[bool, option("Replace an existing file.", "--overwrite")] = False,
    architecture: Architecture = None,
    allow_partial: AllowPartial = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint to a Keras 3 file, and compare the two."""
    from kerasseg.checkpoints.conversion import convert_checkpoint

    made = convert_checkpoint(
        checkpoint, out, overwrite=overwrite, architecture=architecture, allow_partial=allow_partial
    )
    if as_json:
        print_json(made.to_json())
    elif not quiet:
        _show(made)


def _show(made: Conversion) -> None:
    from kerasseg_cli.inspect import facts_table

    rows = [("written", f"{made.out} ({made.bytes / 1e6:.1f} MB, {made.parameters:,} parameters)")]
    origin = made.provenance
    if origin is not None:
        rows.append(("from", f"{made.source} ({origin.kind}, {origin.writer})"))
        rows += [("translated", text) for text in origin.translated]
        if origin.largest_difference is not None:
            rows.append(("original, opened", f"outputs differ by at most {origin.largest_difference:.2g}"))
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in made.compared)
    equal = "all weights equal" if made.weights_equal else "weights differ"
    difference = f"outputs differ by at most {made.largest_difference:.2g} on random input {shapes}; {equal}"
    rows.append(("opened, written", difference))
    screen().print(facts_table(rows))
