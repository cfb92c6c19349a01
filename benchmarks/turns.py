"""Contenders in processes of their own that take turns: libraries that want all threads do not meet in one process.

A contender names a function that makes an action (`"benchmarks.training:our_step"`) and its arguments. The action is done
once each time it is asked for; the other processes sleep meanwhile. What they need is not given back while they sleep
(TensorFlow keeps what a step needed), so that memory has to hold all that are in one `contenders` at once.
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
    """A process that does an action each time it is called, and says what it cost.

    Attributes:
        base: Peak resident memory of the process in MB when the action was made, and not done yet: libraries, weights.
        peak: The same, once it has ended.
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
        """Waits until the action has been made.

        Raises:
            RuntimeError: It could not be made; its reason stands on standard error.
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
    """Contenders by name, made one after another; one that cannot be made is left out, and said so.

    Args:
        makers: The function, and its arguments, by name.
        warm: Whether each does its action once before anything is measured: graphs are traced, buffers there.
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
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, function = maker.partition(":")
    action = getattr(importlib.import_module(module), function)(*arguments)
    print("ready", own_peak_memory(), file=answers, flush=True)
    for _ in sys.stdin:
        print(*costs(action), file=answers, flush=True)
    print(own_peak_memory(), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
