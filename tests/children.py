"""Child processes that train, as typed and yet cheap: forked off a server that has imported TensorFlow once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

_Places: TypeAlias = tuple[Path, Path, Path]
"""A child's folder, standard output and standard error."""

PATIENCE = 1800
"""Seconds after which a child counts as hanging, on any machine, however busy."""

_PRELOADED = ["kerasseg.workflows.train", "kerasseg_cli.app", "kerasseg_cli.train_display", "matplotlib.figure"]


@dataclass
class Child:
    """A `kerasseg` command that runs, or ran.

    Attributes:
        process: The process.
        folder: Where its output goes.
    """

    process: BaseProcess
    folder: Path
    number: int = field(default=0)

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self.folder.joinpath(f"{self.number}.out").read_text()

    @property
    def stderr(self) -> str:
        """What it has told so far."""
        path = self.folder / f"{self.number}.err"
        return path.read_text() if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    @property
    def returncode(self) -> int:
        """Of an ended one."""
        assert self.process.exitcode is not None
        return self.process.exitcode

    def wait(self, seconds: float = PATIENCE) -> Child:
        """Waits for its end; a child that hangs is killed, and fails the test."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s:\n{self.stderr}")
        return self

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to a child that may have ended already."""
        assert self.process.pid is not None
        if self.process.is_alive():
            os.kill(self.process.pid, number)


class Children:
    """Starts `kerasseg` commands in a folder.

    Args:
        folder: In which they run.
        output: Where what they print goes; None for the same folder.
    """

    def __init__(self, folder: Path, output: Path | None = None) -> None:
        self.folder, self.output, self._count = folder, output or folder, 0
        self._context = multiprocessing.get_context("forkserver")
        # TensorFlow can be forked as long as nothing has been computed; the server only imports. It must import what
        # the tests import, which it learns from the environment alone.
        self._context.set_forkserver_preload(_PRELOADED)
        with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)):
            forkserver.ensure_running()

    def start(self, *arguments: object, **environment: str) -> Child:
        """Types `kerasseg ARGUMENTS`."""
        self._count += 1
        options = [str(argument) for argument in arguments]
        process = self._context.Process(target=_type, args=(self._places(), options, environment))
        process.start()
        return Child(process, self.output, self._count)

    def python(self, code: str | Path, *arguments: object) -> Child:
        """What `python -c CODE ARGUMENTS` does, or `python FILE ARGUMENTS`, to its end."""
        self._count += 1
        told = [str(argument) for argument in arguments]
        process = self._context.Process(target=_execute, args=(self._places(), code, told))
        process.start()
        return Child(process, self.output, self._count).wait()

    def _places(self) -> _Places:
        return self.folder, self.output / f"{self._count}.out", self.output / f"{self._count}.err"

    def run(self, *arguments: object, **environment: str) -> Child:
        """Types `kerasseg ARGUMENTS` and waits for the end."""
        return self.start(*arguments, **environment).wait()


def _type(places: _Places, arguments: list[str], environment: Mapping[str, str]) -> None:
    """In the child: what the console script does."""
    _settle(*places)
    os.environ.update({"COLUMNS": "120", **environment})
    sys.argv = ["kerasseg", *arguments]
    try:
        from kerasseg_cli.app import main

        main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _execute(places: _Places, code: str | Path, arguments: list[str]) -> None:
    """In the child: what the interpreter does."""
    _settle(*places)
    sys.argv = ["-c" if isinstance(code, str) else str(code), *arguments]
    name, text = ("<page>", code) if isinstance(code, str) else (str(code), code.read_text())
    try:
        exec(compile(text, name, "exec"), {"__name__": "__main__"})  # noqa: S102 - code of our own
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _settle(folder: Path, *outputs: Path) -> None:
    """In the child: its folder, and files for what it prints."""
    os.chdir(folder)
    for descriptor, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
