"""Options that several commands have, declared once, so that they read and behave alike."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AllowPartial", "Architecture", "Checkpoint", "Debug", "Json", "Quiet"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table; errors still show.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]

Checkpoint = Annotated[
    str,
    typer.Argument(help="A .keras or .h5 file, a SavedModel folder, hf://owner/name[@revision] or https://..."),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        help="For files that hold weights alone, the network they belong to: 'unet(depth=4)', a .json configuration or "
        "another checkpoint. Needed only where it cannot be read off the shapes.",
    ),
]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="For files that hold weights alone: take what fits the network.")
]
