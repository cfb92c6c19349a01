"""The group of all commands: what is mistyped is told as every other error is, with what is near."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from kerasseg_cli.errors import FAILED, INTERRUPTED, complain, output_lost
from kerasseg_tfrecords.errors import one_line

__all__ = ["Commands"]

_USAGE: Any = typer.BadParameter.__mro__[2]
"""What every error of parsing derives from. Some versions of typer bring a click of their own, so it is found this way."""


class Commands(TyperGroup):
    """Ends the process as `docs/command-line.md` says."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs what was typed; see click."""

        def run() -> Any:
            return super(Commands, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        typed = list(sys.argv[1:] if args is None else args)
        try:
            code = run()
        except _USAGE as error:
            _tell(error, as_json="--json" in typed)
            code = error.exit_code
        except typer.Abort:
            complain("Aborted.", kind="interrupted", exit_code=INTERRUPTED, as_json="--json" in typed)
            code = INTERRUPTED
        except OSError as error:
            if not output_lost(error):
                raise
            code = FAILED
        # What is written last may still stand in a buffer.
        sys.exit(FAILED if output_lost() else code if isinstance(code, int) else 0)


def _tell(error: Any, *, as_json: bool) -> None:
    near = next(iter(getattr(error, "possibilities", None) or ()), None)
    text = one_line(error.message if near else error.format_message()).rstrip(".")
    if near:
        text += f". Did you mean {near}?"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "kerasseg"
    lines = [f"Error: {text}" + ("" if text.endswith("?") else "."), f"See: {path} --help"]
    complain(*lines, kind="usage", exit_code=error.exit_code, as_json=as_json, remedy=f"See: {path} --help")
