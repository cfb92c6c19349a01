"""Options that several commands have, declared once, so that they read and behave alike.

`COMMON` are the options of every command: `kerasseg_cli.errors.guarded` gives them to each one that is registered, whether
its function names them or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kerasseg_tfrecords.errors import UsageError

__all__ = ["COMMON", "AllowPartial", "Architecture", "Checkpoint", "Debug", "Json", "Quiet", "Verbose", "one_of"]

_PANEL = "Every command has"

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document for machines, and nothing else.", rich_help_panel=_PANEL),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no table; errors still show.", rich_help_panel=_PANEL)
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also say what is being done and with what.", rich_help_panel=_PANEL)
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error, and what TensorFlow says.", rich_help_panel=_PANEL),
]

COMMON: dict[str, Any] = {"as_json": Json, "quiet": Quiet, "verbose": Verbose, "debug": Debug}
"""Name of the parameter -> its declaration, in the order of the help."""

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


def one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Refuses a value of an option that is not among those known, and proposes the near one.

    Raises:
        UsageError: It is not.

    Example:
        >>> one_of("--split", "test", ("test", "train"))
    """
    if value not in known:
        from kerasseg_tfrecords.validation import did_you_mean

        expected = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"{option} cannot be {value!r}", expected=expected, remedy=did_you_mean(value, known))
