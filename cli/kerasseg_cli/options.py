"""Options that several commands share; `kerasseg_cli.errors.guarded` adds those in `COMMON` to every command.

The functions of commands are long because typer reads their options from the signature.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kerasseg_cli.completion import proposing, runs
from kerasseg_tfrecords.errors import UsageError

ADVANCED = "Advanced"
"""Prefix of the panels (`rich_help_panel`) whose options only `--help-all` shows."""

COMMON_PANEL = "Common options"


def option(
    help: str,  # noqa: A002 - as in typer
    *names: str,
    panel: str | None = None,
    values: Iterable[str] | dict[str, str] | None = None,
    **settings: Any,
) -> Any:
    """Declare an option."""
    if values is not None:
        settings |= {"metavar": choices(values), "autocompletion": proposing(values)}
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def panel(title: str) -> Callable[..., Any]:
    return functools.partial(option, panel=title)


def choices(values: Iterable[str]) -> str:
    """Return the metavar of an option that takes one of these values.

    Example:
        >>> choices(["savedmodel", "onnx"])
        '[savedmodel|onnx]'
    """
    return f"[{'|'.join(values)}]"


_common = panel(COMMON_PANEL)

Json = Annotated[bool, _common("Print one JSON document and nothing else.", "--json")]
Quiet = Annotated[bool, _common("Print errors only.", "--quiet", "-q")]
Verbose = Annotated[bool, _common("Also print log messages.", "--verbose", "-v")]
Debug = Annotated[bool, _common("Show tracebacks and TensorFlow's own messages.", "--debug")]

COMMON: dict[str, Any] = {"as_json": Json, "quiet": Quiet, "verbose": Verbose, "debug": Debug}
"""Parameter name -> declaration, in the order of the help."""

Cluster = Annotated[
    str | None,
    option(
        "Work on a Dask cluster: tcp://HOST:PORT, a scheduler file, or local:N for N processes of this machine.",
        "--cluster",
        metavar="ADDRESS",
        panel="Several machines",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .keras or .h5 file, a SavedModel folder, hf://owner/name[@revision] or https://...",
    ),
]
Architecture = Annotated[
    str | None,
    option(
        "Network for a .keras or .h5 file that contains only weights: 'unet(depth=4)', a .json configuration or a "
        "checkpoint. [default: the file's own, or a kerasseg U-Net that fits the weights]",
        "--architecture",
        metavar="NETWORK",
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder, its name in runs/, or latest.", autocompletion=runs)
]
FLIP_AVERAGE = "Average the predictions of the image and its mirror image (doubles the time)."
FlipAverage = Annotated[bool, option(FLIP_AVERAGE, "--flip-average")]
MovedShards = Annotated[Path | None, option("Shard directory of the run, if it was moved.")]
AllowPartial = Annotated[
    bool,
    option(
        "Load the weights that fit the network and ignore the rest (weights-only files and --architecture).",
        "--allow-partial",
    ),
]


def _limit_memory(gigabytes: float | None) -> float | None:
    if gigabytes is not None:
        from kerasseg_tfrecords.isolation import limit_memory

        limit_memory(int(gigabytes * 2**30))
    return gigabytes


MaxMemory = Annotated[
    float | None,
    option(
        "Memory for reading one file; a file that needs more is refused. [default: 2]",
        "--max-memory",
        metavar="GB",
        min=0.5,
        callback=_limit_memory,
        panel=f"{ADVANCED}: files",
    ),
]
"""Its callback sets the limit, so commands do not use the value."""


def one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Check that an option has one of its values.

    Raises:
        UsageError: The value is not allowed; the message suggests the nearest one.

    Example:
        >>> one_of("--split", "test", ("test", "train"))
    """
    if value not in known:
        from kerasseg_tfrecords.validation import did_you_mean

        expected = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"{option} cannot be {value!r}", expected=expected, remedy=did_you_mean(value, known))


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How the running command prints.

    Attributes:
        as_json: Print one JSON document on standard output, and nothing else.
        quiet: Print errors only; what that means is up to the command.
        silent: Print nothing on standard output, for commands without a parameter `quiet`.
        verbose: Print the library's log on standard error.
        debug: Print tracebacks and TensorFlow's messages.
    """

    as_json: bool = False
    quiet: bool = False
    silent: bool = False
    verbose: bool = False
    debug: bool = False


_ASKED: ContextVar[OutputOptions] = ContextVar("output_options", default=OutputOptions())  # noqa: B039 - it is frozen


def output_options() -> OutputOptions:
    return _ASKED.get()


@contextlib.contextmanager
def using_options(asked: OutputOptions) -> Iterator[None]:
    """Set the output options, and logging accordingly, while the block runs."""
    if "KERASSEG_DEBUG" in os.environ:
        asked = replace(asked, debug=True)
    token = _ASKED.set(asked)
    # TensorFlow warns about its internals, and matplotlib about a home folder where it cannot keep a cache.
    others = {logger: logger.level for logger in map(logging.getLogger, ("tensorflow", "matplotlib"))}
    if not asked.debug:
        for logger in others:
            logger.setLevel(logging.ERROR)
    with _log_shown() if asked.verbose else contextlib.nullcontext():
        try:
            yield
        finally:
            _ASKED.reset(token)
            for logger, level in others.items():
                logger.setLevel(level)


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    logger = logging.getLogger("kerasseg")
    before = logger.level, logger.propagate
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    # A program that runs commands may have a handler at the root logger; without this, messages would appear twice.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
