"""`kerasseg inspect`: what a checkpoint is, drawn as its U."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from kerasseg.freezing import FreezeReport
    from kerasseg.inspection import Inspection, Tensor

__all__ = ["inspect"]


def inspect(
    checkpoint: Annotated[
        str, typer.Argument(help="A .keras or .h5 file, a SavedModel folder, weights, hf://owner/name or https://...")
    ],
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            "-s",
            help="Mark what this would freeze: conservative, moderate, aggressive, or names of blocks and layers with * "
            "and ?, separated by commas (encoder_1,decoder_*).",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output instead.")] = False,
) -> None:
    """Show what a checkpoint is: its origin, its U, and what each strategy would train."""
    from kerasseg_tfrecords.errors import CheckpointError

    from kerasseg.inspection import inspect_checkpoint

    names = [part.strip() for part in strategy.split(",") if part.strip()] if strategy is not None else None
    found = inspect_checkpoint(checkpoint, names)
    if json:
        typer.echo(json_module.dumps(found.to_json(), indent=2))
        if found.problem is not None:
            raise typer.Exit(CheckpointError.exit_code)
        return
    _show(found)
    if found.problem is not None:
        raise CheckpointError(found.problem, path=checkpoint)


def _show(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    from kerasseg.drawing import draw

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(found):
        facts.add_row(name, text)
    console.print(facts)
    if found.blocks is None:
        return
    chosen = found.chosen
    shape = found.inputs[0].shape[1:]
    drawing = draw(
        found.blocks,
        chosen.frozen_blocks if chosen else (),
        partly=[block.name for block in chosen.blocks if block.state == "partly trained"] if chosen else (),
        width=console.width,
        unicode=_unicode(console),
        source=shape if None not in shape else None,
    )
    console.print()
    console.print(drawing, no_wrap=True, overflow="ignore", crop=False)
    console.print()
    parts = Table.grid(padding=(0, 2))
    parts.add_column(style="bold", no_wrap=True)
    parts.add_column(overflow="fold")
    for part, names in found.prefixes.items():
        parts.add_row(part, ", ".join(names) or "no weights")
    console.print(parts)
    console.print()
    console.print(_strategies(found))


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
            rows.append(
                ("comparison", f"outputs differ from the original's by at most {origin.largest_difference:.2g}")
            )
    rows += [("input", _tensor(t)) for t in found.inputs]
    rows += [("output", _tensor(t)) for t in found.outputs]
    rows.append(("weights", f"{found.parameters:,} parameters in {found.variables} variables of {found.layers} layers"))
    return rows


def _tensor(tensor: Tensor) -> str:
    extent = " x ".join("any" if n is None else str(n) for n in tensor.shape[1:])
    return ", ".join(x for x in (extent, tensor.dtype, tensor.activation) if x)


def _unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf") and not console.legacy_windows


def _strategies(found: Inspection):  # type: ignore[no-untyped-def]  # rich is imported when something is shown
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("strategy")
    table.add_column("frozen blocks")
    for name in ("trained", "not trained", "share trained"):
        table.add_column(name, justify="right")
    reports: dict[str, FreezeReport] = dict(found.strategies)
    if found.chosen is not None:
        reports[", ".join(found.chosen.what)] = found.chosen
    for name, report in reports.items():
        mark = found.chosen is not None and report.what == found.chosen.what
        table.add_row(
            name,
            ", ".join(report.frozen_blocks) or ("single layers" if _holds_layers(report) else "none"),
            f"{report.trained:,}",
            f"{report.parameters - report.trained:,}",
            f"{report.trained / max(1, report.parameters):.1%}",
            style="cyan" if mark else None,
        )
    return table


def _holds_layers(report: FreezeReport) -> bool:
    return any(block.frozen_layers for block in report.blocks)
