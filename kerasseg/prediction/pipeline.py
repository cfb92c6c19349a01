"""Read, predict and write at the same time, in memory that does not grow with the number of files.

    readers --(bounded queue)--> network, in the calling thread --(bounded queue)--> writers

The queues hold slices, not files, so that a long volume is handled like many pictures. Threads wait for full queues, so at
most `Limits.alive` slices exist at once.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S")
_POLL = 0.1  # seconds between checks of `stop`


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the pipeline."""

    batch_size: int
    readers: int
    writers: int
    ahead: int

    @classmethod
    def usual(cls, batch_size: int) -> Limits:
        """Return limits for this machine."""
        threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        return cls(batch_size, readers=threads, writers=threads, ahead=max(4, 2 * batch_size))

    @property
    def alive(self) -> int:
        """Maximum number of slices in memory."""
        return 2 * self.ahead + self.batch_size + self.readers + self.writers


def run_flow(
    units: Iterable[Any],
    read: Callable[[Any], Iterator[S]],
    ask: Callable[[Sequence[S]], Sequence[Any]],
    write: Callable[[S, Any], None],
    limits: Limits,
    stop: Callable[[], bool],
) -> bool:
    """Read, predict and write, until everything is done or `stop` returns True.

    Args:
        units: Inputs, taken one by one by the next free reader.
        read: Yields the slices of a unit; runs in the readers. It handles units that cannot be read itself.
        ask: The network: returns one result per slice; runs in the calling thread.
        write: Writes a slice and its result; runs in the writers.
        limits: Numbers of threads and slices.
        stop: Returns whether to stop: predicted slices are still written, all others are dropped.

    Raises:
        Exception: The first exception of `ask`, `write` or `read`, which ends all threads.
    """
    return _Flow(iter(units), read, ask, write, limits, stop).run()


class _Halted(Exception):  # noqa: N818 - not an error: another thread failed, or the user stopped
    """Raised to end a thread that waits for a queue."""


@dataclass(frozen=True, slots=True)
class _End:
    """Marks the end of a thread's items in a queue."""


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
                del slice_  # free the memory while the next one is read
                if self.stop():
                    break
        self._put(self.read_queue, _End())

    def _answer(self) -> bool:
        """Run the network; return False if it was stopped."""
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
                # No thread takes slices after a stop.
                if where is self.read_queue and self.stop():
                    return
            else:
                return
        raise _Halted

    def _get(self, where: queue.Queue[Any]) -> Any:
        """Return the next item; None if there was none in time."""
        if self.halt.is_set():
            raise _Halted
        try:
            return where.get(timeout=_POLL)
        except queue.Empty:
            return None
