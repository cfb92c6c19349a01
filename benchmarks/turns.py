"""Contenders in separate processes that take turns, because libraries that use all threads disturb each other.

A contender is the name of a function that returns an action (`"benchmarks.training:our_step"`), with its arguments. The
action runs once per request; the other processes sleep meanwhile but keep their memory, so that all contenders of one
`contenders` have to fit in memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from benchmarks.measure import ROOT, Cost, child_environment, costs, own_peak_memory


class Contender:
    """A process that performs an action on request and reports the cost.

    Attributes:
        base: Peak resident memory of the process in MB before the first action: libraries, weights.
        peak: Peak resident memory in MB after it has ended.
    """

    def __init__(self, maker: str, *arguments: Any) -> None:
        self.base = self.peak = float("nan")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.turns", maker, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=child_environment(),
        )

    def ready(self) -> None:
        """Wait until the action is ready.

        Raises:
            RuntimeError: The action could not be created; the reason is on standard error.
        """
        word, _, base = self._line().partition(" ")
        if word != "ready":
            raise RuntimeError("a contender could not be started")
        self.base = float(base)

    def __call__(self) -> Cost:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            time, processor = self._line().split()
        except (ValueError, OSError) as error:
            raise RuntimeError("a contender ended before it was done") from error
        return Cost(float(time), float(processor))

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        out, _err = self._process.communicate()
        with contextlib.suppress(ValueError, IndexError):
            self.peak = float(out.split()[-1])


@contextlib.contextmanager
def contenders(makers: dict[str, Sequence[Any]], *, warm: bool = True) -> Iterator[dict[str, Contender]]:
    """Yield contenders by name; one that cannot be started is reported and left out.

    Args:
        makers: Name -> function and its arguments.
        warm: Whether each performs its action once before measuring, to trace graphs and allocate buffers.
    """
    with contextlib.ExitStack() as stack:
        found = {}
        for name, (maker, *arguments) in makers.items():
            one = stack.enter_context(Contender(maker, *arguments))
            try:
                one.ready()
                if warm:
                    one()
            except RuntimeError as error:
                print(f"  without {name}: {error}", flush=True)
                continue
            found[name] = one
        yield found


def _serve(maker: str, arguments: list[Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to standard error
    module, _, function = maker.partition(":")
    action = getattr(importlib.import_module(module), function)(*arguments)
    print("ready", own_peak_memory(), file=answers, flush=True)
    for _ in sys.stdin:
        print(*costs(action), file=answers, flush=True)
    print(own_peak_memory(), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
