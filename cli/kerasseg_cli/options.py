"""Options that several commands have, declared once, so that they read and behave alike.

`COMMON` are the options of every command: `kerasseg_cli.errors.guarded` gives them to each one that is registered, whether
its function names them or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from kerasseg_tfrecords.errors import UsageError

__all__ = [
    "ADVANCED",
    "COMMON",
    "COMMON_PANEL",
    "AllowPartial",
    "Architecture",
    "Checkpoint",
    "Debug",
    "Json",
    "OutputOptions",
    "Quiet",
    "Verbose",
    "choices",
    "one_of",
    "output_options",
    "using_options",
]

ADVANCED = "Advanced"
"""Start of the names of the panels (`rich_help_panel`) whose options only `--help-all` shows."""

COMMON_PANEL = "Common options"

Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document for machines, and nothing else.", rich_help_panel=COMMON_PANEL
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no table; errors still show.", rich_help_panel=COMMON_PANEL)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also say what is being done and with what.", rich_help_panel=COMMON_PANEL),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the traceback of an error, and what TensorFlow says.", rich_help_panel=COMMON_PANEL
    ),
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


def choices(values: Iterable[str]) -> str:
    """The metavar of an option that takes one of these values.

    Example:
        >>> choices(["savedmodel", "onnx"])
        '[savedmodel|onnx]'
    """
    return f"[{'|'.join(values)}]"


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


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What was asked.

    Attributes:
        as_json: One JSON document on standard output, and nothing else there.
        quiet: No progress, no table; commands that know of it decide what is an error and still shows.
        silent: Nothing at all on standard output, for commands that know nothing of `quiet`.
        verbose: What the library logs goes to standard error.
        debug: Tracebacks, and what TensorFlow says of itself.
    """

    as_json: bool = False
    quiet: bool = False
    silent: bool = False
    verbose: bool = False
    debug: bool = False


_ASKED: ContextVar[OutputOptions] = ContextVar("output_options", default=OutputOptions())  # noqa: B039 - it is frozen


def output_options() -> OutputOptions:
    """Of the command that runs now."""
    return _ASKED.get()


@contextlib.contextmanager
def using_options(asked: OutputOptions) -> Iterator[None]:
    """While the block runs, `output_options` says this, and the library's log goes where it was asked to go."""
    if "KERASSEG_DEBUG" in os.environ:
        asked = replace(asked, debug=True)
    token = _ASKED.set(asked)
    # Beside what its C++ writes (see `chatter`) TensorFlow warns through Python, of its own inner workings.
    tensorflow = logging.getLogger("tensorflow")
    level = tensorflow.level
    if not asked.debug:
        tensorflow.setLevel(logging.ERROR)
    with _log_shown() if asked.verbose else contextlib.nullcontext():
        try:
            yield
        finally:
            _ASKED.reset(token)
            tensorflow.setLevel(level)


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    logger = logging.getLogger("kerasseg")
    before = logger.level, logger.propagate
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    # Whoever embeds the commands may have a handler of their own at the root: nothing is to be said twice.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
