"""How the command that runs was asked to behave: `--json`, `--quiet`, `--verbose`, `--debug`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

__all__ = ["Manners", "behaving", "manners"]


@dataclass(frozen=True, slots=True)
class Manners:
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


_ASKED: ContextVar[Manners] = ContextVar("manners", default=Manners())  # noqa: B039 - it is frozen


def manners() -> Manners:
    """Of the command that runs now."""
    return _ASKED.get()


@contextlib.contextmanager
def behaving(asked: Manners) -> Iterator[None]:
    """While the block runs, `manners` says this, and the library's log goes where it was asked to go."""
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
