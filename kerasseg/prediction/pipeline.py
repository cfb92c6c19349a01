"""Reading, network and writing at the same time, in memory that does not grow with the number of files.

    readers --(bounded queue)--> network, in the calling thread --(bounded queue)--> writers

The queues hold slices, not files, so that a long volume flows through them like many pictures. Whoever finds a queue full
waits: the slowest of the three sets the pace, and at most `Limits.alive` slices exist at once.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Limits", "run_flow"]

S = TypeVar("S")
_POLL = 0.1  # seconds between looks at whether somebody asked to stop


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once.

    Attributes:
        batch_size: Slices that the network takes at once.
        readers, writers: Threads.
        ahead: Slices that each queue holds.
    """

    batch_size: int
    readers: int
    writers: int
    ahead: int

    @classmethod
    def usual(cls, batch_size: int) -> Limits:
        """For this machine: decoding and packing take a processor for a while, the network takes all of them."""
        threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        return cls(batch_size, readers=threads, writers=threads, ahead=max(4, 2 * batch_size))

    @property
    def alive(self) -> int:
        """Slices that exist at once, at most."""
        return 2 * self.ahead + self.batch_size + self.readers + self.writers


def run_flow(
    units: Iterable[Any],
    read: Callable[[Any], Iterator[S]],
    ask: Callable[[Sequence[S]], Sequence[Any]],
    write: Callable[[S, Any], None],
    limits: Limits,
    stop: Callable[[], bool],
) -> bool:
    """Reads, asks and writes, until all is done or somebody asks to stop.

    Args:
        units: What is read; taken one by one, by whichever reader is free.
        read: Gives the slices of a unit; runs in the readers. A unit that cannot be read is its own affair.
        ask: The network: one answer a slice; runs in the calling thread.
        write: Takes a slice and its answer; runs in the writers.
        limits: How much at once.
        stop: Whether to stop: what the network has answered is still written, all else is dropped.

    Returns:
        Whether it came to the end.

    Raises:
        Exception: What `ask`, `write` or `read` raised first; nothing goes on then.
    """
    return _Flow(iter(units), read, ask, write, limits, stop).run()


class _Halted(Exception):  # noqa: N818 - no fault: another thread failed, or the user stopped
    """Ends a thread that waits for a queue."""


@dataclass(frozen=True, slots=True)
class _End:
    """Stands in a queue where a thread has nothing more to give."""


class _Flow(Generic[S]):
    def __init__(
        self,
        units: Iterator[Any],
        read: Callable[[Any], Iterator[S]],
        ask: Callable[[Sequence[S]], Sequence[Any]],
        write: Callable[[S, Any], None],
        limits: Limits,
        stop: Callable[[], bool],
    ) -> None:
        self.units, self.read, self.ask, self.write = units, read, ask, write
        self.limits, self.stop = limits, stop
        self.lock = threading.Lock()
        self.halt = threading.Event()  # all threads end as soon as they can
        self.failure: BaseException | None = None
        self.read_queue: queue.Queue[Any] = queue.Queue(limits.ahead)
        self.write_queue: queue.Queue[Any] = queue.Queue(limits.ahead)

    def run(self) -> bool:
        readers = [self._start(self._read_all, "read") for _ in range(self.limits.readers)]
        writers = [self._start(self._write_all, "write") for _ in range(self.limits.writers)]
        whole = False
        try:
            whole = self._answer()
            for _ in writers:
                self._put(self.write_queue, _End())
            # Joined in turns, so that a second Ctrl-C gets through.
            for thread in writers:
                while thread.is_alive():
                    thread.join(_POLL)
        except _Halted:
            pass
        finally:
            self.halt.set()
            for thread in [*readers, *writers]:
                thread.join()
        if self.failure is not None:
            raise self.failure
        return whole

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except _Halted:
                pass
            except BaseException as error:
                with self.lock:
                    self.failure = self.failure or error
                self.halt.set()

        thread = threading.Thread(target=guarded, name=f"kerasseg-{name}", daemon=True)
        thread.start()
        return thread

    def _read_all(self) -> None:
        while not self.stop():
            with self.lock:
                unit = next(self.units, None)
            if unit is None:
                break
            for slice_ in self.read(unit):
                self._put(self.read_queue, slice_)
                del slice_  # it is the queue's now; the next one takes a while to read
                if self.stop():
                    break
        self._put(self.read_queue, _End())

    def _answer(self) -> bool:
        """The network's part; False where it was stopped."""
        batch: list[S] = []
        reading = self.limits.readers
        while reading or batch:
            if self.stop():
                return False
            if reading and len(batch) < self.limits.batch_size:
                given = self._get(self.read_queue)
                if isinstance(given, _End):
                    reading -= 1
                elif given is not None:
                    batch.append(given)
                continue
            answers = self.ask(batch)
            for slice_, answer in zip(batch, answers, strict=True):
                self._put(self.write_queue, (slice_, answer))
            batch = []
        return not self.stop()

    def _write_all(self) -> None:
        while True:
            given = self._get(self.write_queue)
            if isinstance(given, _End):
                return
            if given is not None:
                self.write(*given)
                del given

    def _put(self, where: queue.Queue[Any], what: Any) -> None:
        while not self.halt.is_set():
            try:
                where.put(what, timeout=_POLL)
            except queue.Full:
                # Nobody takes slices any more once it is to stop.
                if where is self.read_queue and self.stop():
                    return
            else:
                return
        raise _Halted

    def _get(self, where: queue.Queue[Any]) -> Any:
        """The next; None where there was none for a moment."""
        if self.halt.is_set():
            raise _Halted
        try:
            return where.get(timeout=_POLL)
        except queue.Empty:
            return None
