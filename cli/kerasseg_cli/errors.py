"""Turn exceptions into one message, or one JSON document, and an exit code; `docs/command-line.md` lists the codes.

No traceback reaches the terminal without --debug.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kerasseg_cli.console import errors, print_json
from kerasseg_cli.help import HELP_ALL, help_text, is_advanced, with_metavar
from kerasseg_cli.options import COMMON, OutputOptions, output_options, using_options
from kerasseg_cli.suggest import either, suggest_commands, suggest_options
from kerasseg_tfrecords.errors import BadInputError, CheckpointError, DataError, KerassegError, UsageError, one_line
from kerasseg_tfrecords.text import without_credentials

FAILED, USAGE, INTERRUPTED = 1, 2, 130

_KINDS: tuple[tuple[type[KerassegError], str], ...] = (
    (UsageError, "usage"),
    (DataError, "data"),
    (CheckpointError, "checkpoint"),
    (KerassegError, "failed"),
)


class Interrupts:
    """A handler of Ctrl-C that raises `KeyboardInterrupt` until the command ends.

    A further press while the last message is printed, or while Python ends, would replace message and exit code.
    """

    def __init__(self) -> None:
        self.over = False

    def __call__(self, _number: int, _frame: Any) -> None:
        """Handle a signal."""
        if not self.over:
            raise KeyboardInterrupt


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command, and turn its errors into messages and exit codes.

    A common option is passed to the command's function only if that has a parameter of the same name.
    """
    # Annotations are resolved in the command's own module.
    signature = inspect.signature(command, eval_str=True)
    own = signature.parameters
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in COMMON.items()
    ]
    rest = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=with_metavar(parameter.annotation))
        for parameter in own.values()
        if parameter.name not in COMMON and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    if any(is_advanced(parameter.annotation) for parameter in rest):
        help_all = Annotated[bool, HELP_ALL]
        common.append(inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=help_all))
    takes = {name for name in COMMON if name in own}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        values.pop("help_all", None)
        asked = {name: bool(values[name] if name in takes else values.pop(name)) for name in COMMON}
        with using_options(OutputOptions(**asked, silent=asked["quiet"] and "quiet" not in takes)):
            _guard(command, values)

    run.__signature__ = inspect.Signature([*rest, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*rest, *common)}
    return run


def _guard(command: Callable[..., None], values: dict[str, Any]) -> None:
    try:
        if isinstance(out := values.get("out"), Path):
            from kerasseg_tfrecords.storage import refuse_url

            refuse_url(out)
        command(**values)
    except (typer.Exit, typer.Abort):
        raise
    except KerassegError as error:
        _show_traceback()
        _show(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        if isinstance(handler := signal.getsignal(signal.SIGINT), Interrupts):
            handler.over = True
        complain("Interrupted. Run the same command again to continue.", kind="interrupted", exit_code=INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        _show_traceback()
        if isinstance(error, OSError) and output_lost(error):
            raise typer.Exit(FAILED) from None
        if (explained := _of_the_machine(error)) is not None:
            _show(explained)
            raise typer.Exit(explained.exit_code) from None
        text = f"{without_credentials(one_line(error)) or type(error).__name__} ({type(error).__name__})."
        fault = "This is a bug in kerasseg: please report it with the output of the same command with --debug."
        complain(f"Error: {text}", fault, kind="fault", exit_code=FAILED)
        raise typer.Exit(FAILED) from None


def _of_the_machine(error: Exception) -> KerassegError | None:
    """Return an error of a full or read-only disk, or of the memory, in words, wherever it was raised; None for others."""
    if isinstance(error, MemoryError) or "OOM when allocating" in str(error):
        return KerassegError("out of memory", remedy="Use a machine with more memory, or a smaller network or batch.")
    from kerasseg_tfrecords.files import FULL, explain_os_error, system_error

    known = system_error(error)
    if known is None or known.errno not in (*FULL, errno.EROFS, errno.ELOOP):
        return None
    path = None if known.filename is None else Path(str(known.filename))
    found = explain_os_error(known, path or Path())
    return KerassegError(found.what, path=path, remedy=found.remedy)


def complain(*lines: str, kind: str, exit_code: int, as_json: bool | None = None, **more: Any) -> None:
    """Print an error: lines on standard error, or one document on standard output with `--json`."""
    if output_options().as_json if as_json is None else as_json:
        text = lines[0].removeprefix("Error: ")
        print_json({"error": text, "kind": kind, "exit_code": exit_code, "problems": [], **more})
        return
    for line in lines:
        errors().print(line)


def output_lost(cause: OSError | None = None) -> bool:
    """Return whether standard output cannot be written: its disk is full, or its reader has exited (`| head`).

    Only a full disk is reported, on standard error. Standard output is then redirected to nowhere, because the interpreter
    would try to write the rest on exit and print a traceback.
    """
    if sys.stdout is None or (cause is not None and cause.filename is not None):
        return False
    try:
        if cause is not None and not sys.stdout.isatty():
            # Without a buffer there is nothing to flush; an empty line fails in the same way.
            sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError):  # standard error may be on the same disk
                errors().print(f"Error: write error on standard output: {error.strerror}.")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def _show(error: KerassegError) -> None:
    problems = error.problems if isinstance(error, BadInputError) else ()
    if not output_options().as_json:
        for problem in problems:
            errors().print(f"  {problem}")
    complain(
        f"Error: {error}",
        kind=next(word for kind, word in _KINDS if isinstance(error, kind)),
        exit_code=error.exit_code,
        path=error.path,
        found=error.found,
        expected=error.expected,
        remedy=error.remedy,
        problems=[{"name": p.name, "kind": p.kind, "message": p.message} for p in problems],
    )


def _show_traceback() -> None:
    if output_options().debug:
        sys.stderr.write(without_credentials(traceback.format_exc()))


_USAGE: Any = typer.BadParameter.__mro__[2]
"""Base class of click's usage errors. Some versions of typer bundle their own click, so it is found this way."""


class Commands(TyperGroup):
    """The group of all commands, which sets the exit codes of `docs/command-line.md`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the group; see click."""
        formatter.write(help_text(self, ctx, advanced=False))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was typed; see click."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            found = suggest_commands(name, self.list_commands(ctx))
            # Options that are suggested for a command (`kerasseg version`) are shown in full.
            words = [f"kerasseg {one}" if one.startswith("-") else repr(one) for one in found]
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {either(words)}?" if words else ""))
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; see click."""

        def run() -> Any:
            return super(Commands, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        typed = list(sys.argv[1:] if args is None else args)
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character of a name
        try:
            code = run()
        except _USAGE as error:
            _tell(error, typed, as_json="--json" in typed)
            code = error.exit_code
        except typer.Abort:
            complain("Aborted.", kind="interrupted", exit_code=INTERRUPTED, as_json="--json" in typed)
            code = INTERRUPTED
        except OSError as error:
            if not output_lost(error):
                raise
            code = FAILED
        # The last output may still be in a buffer.
        sys.exit(FAILED if output_lost() else code if isinstance(code, int) else 0)


def _tell(error: Any, typed: Sequence[str], *, as_json: bool) -> None:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "kerasseg"
    # Older versions of click list options that are spelt alike in the message itself.
    option = getattr(error, "option_name", None) if hasattr(error, "possibilities") else None
    text = one_line(error.message if option else error.format_message()).rstrip(".")
    # Pydantic's words for a value of the wrong type or range.
    text = re.sub(r"Input should be (?=less|greater)", "expected a number ", text)
    text = re.sub(r"Input should be (.+?)(?:, unable to parse .*)?$", r"expected \1", text)
    if option and context is not None:
        text = _unknown_option(option, typed, context)
    lines = [f"Error: {text}" + ("" if text.endswith("?") else "."), f"See: {path} --help"]
    complain(*lines, kind="usage", exit_code=error.exit_code, as_json=as_json, remedy=f"See: {path} --help")


def _unknown_option(option: str, typed: Sequence[str], context: Any) -> str:
    if not option.startswith("--"):
        # click reads `-lr` as `-l -r`; show the whole word instead.
        option = next((word for word in typed if word.startswith(option) and not word.startswith("--")), option)
    text = f"No such option: {one_line(option.partition('=')[0])}"
    if found := suggest_options(option, _long_options(context.command, context)):
        return f"{text}. Did you mean {either(found)}?"
    group = context.find_root().command
    owners = [
        name
        for name, command in getattr(group, "commands", {}).items()
        if option in _long_options(command, context) and command is not context.command
    ]
    return f"{text}. {either([f'kerasseg {name}' for name in owners[:3]])} has this option" if owners else text


def _long_options(command: Any, context: Any) -> list[str]:
    parameters = (p for p in command.get_params(context) if p.param_type_name == "option" and not p.hidden)
    return [name for p in parameters for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]
