"""Handling of Ctrl-C and SIGTERM: the first signal stops at the end of the step, the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class StopFlag:
    """A flag that is set by a signal; call it to read it.

    >>> flag = StopFlag(); flag()
    False
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals(on_first: Callable[[str], None]) -> Iterator[StopFlag]:
    """Set a flag at the first SIGINT or SIGTERM while the block runs; a second one raises KeyboardInterrupt.

    Outside the main thread, where Python allows no signal handlers, the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag.signal is not None:
            raise KeyboardInterrupt
        flag.signal = number
        on_first(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
