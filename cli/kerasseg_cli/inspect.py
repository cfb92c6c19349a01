"""`kerasseg inspect`: show what a checkpoint contains, with a drawing of its U."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.completion import strategies_and_blocks
from kerasseg_cli.console import print_json, screen, wants_unicode
from kerasseg_cli.options import AllowPartial, Architecture, Checkpoint, Json, MaxMemory, option
from kerasseg_tfrecords.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from rich.table import Table

    from kerasseg.models.inspection import Inspection, Strategy, Tensor


def inspect(
    checkpoint: Checkpoint,
    strategy: Annotated[
        str | None,
        option(
            "Mark the blocks that a strategy freezes: conservative, moderate, aggressive, or names of blocks and "
            "layers with * and ?, comma-separated (encoder_1,decoder_*).",
            "--strategy",
            "-s",
            metavar="STRATEGY",
            autocompletion=strategies_and_blocks,
        ),
    ] = None,
    architecture: Architecture = None,
    allow_partial: AllowPartial = False,
    max_memory: MaxMemory = None,  # noqa: ARG001 - its callback sets it
    as_json: Json = False,
) -> None:
    """Show the origin and structure of a checkpoint, and what each strategy would train."""
    from kerasseg.models.inspection import inspect_checkpoint

    names = [part.strip() for part in strategy.split(",") if part.strip()] if strategy is not None else None
    found = inspect_checkpoint(checkpoint, names, architecture=architecture, allow_partial=allow_partial)
    if as_json:
        print_json(found.to_json())
        if found.problem is not None:
            raise typer.Exit(CheckpointError.exit_code)
        return
    _show(found)
    if found.problem is not None:
        raise CheckpointError(found.problem, path=checkpoint)


def _show(found: Inspection) -> None:
    from rich import box
    from rich.table import Table

    from kerasseg.models.drawing import draw

    console = screen()
    console.print(facts_table(_facts(found)))
    if found.blocks is None:
        return
    shape = found.inputs[0].shape[1:]
    drawing = draw(
        found.blocks,
        [name for name, state in found.states.items() if state == "frozen"],
        partly=[name for name, state in found.states.items() if state == "partly trained"],
        width=console.width,
        unicode=wants_unicode(console),
        source=shape if len(shape) == 3 else None,
    )
    console.print()
    console.print(drawing, no_wrap=True, overflow="ignore", crop=False)
    console.print()
    console.print(facts_table([(part, ", ".join(names) or "no weights") for part, names in found.prefixes.items()]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    table.add_column("frozen blocks", overflow="fold")
    for name in ("trained", "frozen", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in found.strategies:
        table.add_row(*_row(strategy), style="cyan" if strategy == found.chosen else None)
    if found.chosen is not None and found.chosen not in found.strategies:
        table.add_row(*_row(found.chosen, name="as asked"), style="cyan")
    console.print(table)


def facts_table(rows: list[tuple[str, str]]) -> Table:
    """Return a table with names in bold and texts wrapped next to them."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        # Names come from untrusted files: `Text` is not markup, and control characters are escaped.
        grid.add_row(name, Text(one_line(text)))
    return grid


def _facts(found: Inspection) -> list[tuple[str, str]]:
    origin = found.provenance
    rows = [("checkpoint", found.path)]
    if origin is not None:
        if origin.path != found.path:
            rows.append(("made from", origin.path))
        rows += [("kind", origin.kind), ("written by", origin.writer), ("SHA-256", origin.file_sha256 or origin.sha256)]
        rows += [("translated", text) for text in origin.translated]
        rows += [("changed", text) for text in origin.changes]
        if origin.intensity is not None:
            rows.append(("intensity", origin.intensity))
        if origin.largest_difference is not None:
            difference = origin.largest_difference
            same = f"outputs differ from the original's by at most {difference:.2g}"
            rows.append(("comparison", same if difference else "outputs identical to the original's"))
    rows += [("input", _tensor(t)) for t in found.inputs]
    if found.scaling is not None:
        rows.append(("expects", f"{found.scaling}; kerasseg multiplies its images in 0..1 by {found.scaling.white:g}"))
    rows += [("output", _tensor(t)) for t in found.outputs]
    rows.append(("weights", f"{found.parameters:,} parameters in {found.variables} variables of {found.layers} layers"))
    return rows


def _tensor(tensor: Tensor) -> str:
    extent = " x ".join("any" if n is None else str(n) for n in tensor.shape[1:])
    return ", ".join(x for x in (extent, tensor.dtype, tensor.activation) if x)


def _row(strategy: Strategy, *, name: str | None = None) -> tuple[str, ...]:
    blocks = ", ".join(strategy.frozen_blocks) or ("single layers" if strategy.frozen else "none")
    return (
        name or strategy.name,
        blocks,
        f"{strategy.trained:,}",
        f"{strategy.frozen:,}",
        f"{strategy.share_trained:.1%}",
    )
