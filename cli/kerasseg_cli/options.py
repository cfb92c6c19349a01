"""Options that several commands have, declared once, so that they read and behave alike."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Debug", "Json", "Quiet"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table; errors still show.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]
