"""Map a function over items in several processes: in order, in bounded memory, and surviving crashes.

`LocalPool` uses child processes of this one, `kerasseg_tfrecords.cluster.ClusterPool` the workers of a cluster.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.isolation import Reader, call

T = TypeVar("T")
R = TypeVar("R")


def available_cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(Protocol):
    """Worker processes, on this machine or a cluster."""

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        batch: int = 1,
        crashed: Callable[[T, DataError], R] | None = None,
        trusted: bool = False,
    ) -> Iterator[R]:
        """Yield `function(item)` for each item, in the order of the items.

        Args:
            function: A function as for `isolation.call`.
            items: The arguments.
            batch: Items that a worker of a cluster receives together.
            crashed: Returns the result for an item that ended its process; without it, such an item is a `DataError`.
            trusted: Whether the function reads only files that kerasseg has written. It then needs no child process, and
                runs in the calling process on this machine, which is quick enough.
        """


@dataclass(frozen=True, slots=True)
class LocalPool:
    """Child processes of this one; see `Pool`.

    Example:
        >>> list(LocalPool(1).map(abs, [-2, 1]))
        [2, 1]
    """

    jobs: int

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        batch: int = 1,  # noqa: ARG002 - pipes are quick
        crashed: Callable[[T, DataError], R] | None = None,
        trusted: bool = False,
    ) -> Iterator[R]:
        """Yield the results in order; see `Pool`."""
        if trusted:
            return map(function, items)
        jobs = min(self.jobs, len(items)) if isinstance(items, Sized) else self.jobs
        return ordered_map(function, items, jobs=jobs, ahead=4, crashed=crashed)


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    jobs: int = 1,
    ahead: int = 8,
    crashed: Callable[[T, DataError], R] | None = None,
) -> Iterator[R]:
    """Yield `function(item)` for each item, in the order of the items.

    Args:
        function: A function as for `isolation.call`.
        items: The arguments.
        jobs: Number of child processes.
        ahead: Items queued for each process. At most `ahead * jobs` results are held.
        crashed: Returns the result for an item that ended its process (a crash in a C library, a limit exceeded).

    Example:
        >>> list(ordered_map(abs, [-2, 1]))
        [2, 1]
    """
    rest = iter(items)
    waiting: deque[tuple[T, Future[R]]] = deque()
    readers: set[Reader] = set()
    threads = ThreadPoolExecutor(max(1, jobs))
    try:
        while True:
            for item in rest:
                waiting.append((item, threads.submit(call, function, item, within=readers)))
                if len(waiting) >= jobs * ahead:
                    break
            if not waiting:
                return
            item, future = waiting.popleft()
            try:
                result = future.result()
            except DataError as error:
                if crashed is None or error.kind != "crashed":
                    raise
                result = crashed(item, error)
            yield result
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for reader in tuple(readers):  # each thread then sees that its child has ended
            reader.kill()
        threads.shutdown()
