"""`kerasseg convert`: any checkpoint as a Keras 3 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kerasseg_tfrecords.errors import one_line

__all__ = ["convert"]


def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A .keras or .h5 file, a SavedModel folder, weights, hf://owner/name or https://...")
    ],
    out: Annotated[Path, typer.Argument(help="The file to write; ends in .keras.", metavar="OUT.keras")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.keras where it exists.")] = False,
) -> None:
    """Write a checkpoint as a Keras 3 file and show how it compares."""
    from rich.console import Console
    from rich.table import Table

    from kerasseg.conversion import convert_checkpoint

    made = convert_checkpoint(checkpoint, out, overwrite=overwrite)
    rows = [("written", f"{made.out} ({made.bytes / 1e6:.1f} MB, {made.parameters:,} parameters)")]
    origin = made.provenance
    if origin is not None:
        rows.append(("from", f"{made.source} ({origin.kind}, {origin.writer})"))
        rows += [("translated", text) for text in origin.translated]
        if origin.largest_difference is not None:
            rows.append(("original, opened", f"outputs differ by at most {origin.largest_difference:.2g}"))
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in made.compared)
    equal = "all weights equal" if made.weights_equal else "weights differ"
    rows.append(
        (
            "opened, written",
            f"outputs differ by at most {made.largest_difference:.2g} on random input {shapes}; {equal}",
        )
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, one_line(text))
    Console(highlight=False, markup=False, emoji=False).print(table)
