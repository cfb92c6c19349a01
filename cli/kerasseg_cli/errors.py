"""From exceptions to one clear line and an exit code. No traceback reaches the terminal without --debug.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed |
| 2 | usage: an option or argument that cannot be meant |
| 3 | the data are bad |
| 4 | a target was missed |
| 130 | interrupted by Ctrl-C |
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from kerasseg_cli.console import errors, print_json
from kerasseg_tfrecords.errors import BadInputError, KerassegError, one_line

__all__ = ["guarded"]

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Wraps a command so that errors become messages and exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("json") or kwargs.get("as_json"))
        debug = bool(kwargs.get("debug") or os.environ.get("KERASSEG_DEBUG"))
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KerassegError as error:
            if debug:
                traceback.print_exc()
            _show(error, as_json=as_json)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _plain("Interrupted. Run the same command again to go on.")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nothing to say, and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if debug:
                traceback.print_exc()
            _plain(f"Error: {one_line(error) or type(error).__name__} ({type(error).__name__}).")
            _plain("This is a fault of kerasseg: please report it with the output of the same command and --debug.")
            raise typer.Exit(1) from None

    return run


def _plain(text: str) -> None:
    errors().print(text, markup=False)


def _show(error: KerassegError, *, as_json: bool) -> None:
    problems = error.problems if isinstance(error, BadInputError) else ()
    if as_json:
        print_json(
            {
                "error": str(error),
                "exit_code": error.exit_code,
                "problems": [{"name": p.name, "kind": p.kind, "message": p.message} for p in problems],
            }
        )
        return
    for problem in problems:
        _plain(f"  {problem}")
    _plain(f"Error: {error}")
