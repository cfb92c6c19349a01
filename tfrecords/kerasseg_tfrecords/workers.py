"""A function over many items in several processes: in order, in bounded memory, and not stopped by one that crashes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TypeVar

from kerasseg_tfrecords.errors import DataError

__all__ = ["available_cpus", "ordered_map"]

T = TypeVar("T")
R = TypeVar("R")


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    jobs: int = 1,
    batch: int = 8,
    ahead: int = 4,
    crashed: Callable[[T], R] | None = None,
) -> Iterator[R]:
    """Yields `function(item)` for each item, in the order of the items whatever `jobs` is.

    Args:
        function: Can be pickled (module-level, or a `functools.partial` of such); its results too.
        items: What to work on.
        jobs: Processes. 1 works in this process, lazily, one item when it is asked for.
        batch: Items that travel to a process together.
        ahead: Batches that wait for each process. Not more than `batch * ahead * jobs` results are ever held.
        crashed: What to yield for an item that ends its process (a fault in a C library, no memory left).

    Raises:
        DataError: An item ended its process, and there is no `crashed`.

    Example:
        >>> list(ordered_map(abs, [-2, 1]))
        [2, 1]
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    rest = iter(items)
    # Batches in flight with the future of each; None where a crash took the future away.
    waiting: deque[tuple[list[T], Future[list[R]] | None]] = deque()
    pool = _pool(jobs)
    try:
        while True:
            while len(waiting) < jobs * ahead and (group := list(islice(rest, batch))):
                waiting.append((group, _submit(pool, function, group)))
            if not waiting:
                return
            group, future = waiting.popleft()
            try:
                results = (future or _submit(pool, function, group)).result()
            except BrokenProcessPool:
                # Everything in flight is lost with the pool. The culprit is found by working alone.
                _end(pool)
                waiting = deque((other, None) for other, _ in waiting)
                results = [_alone(function, item, crashed) for item in group]
                pool = _pool(jobs)
            yield from results
    finally:
        _end(pool)


def _end(pool: Executor) -> None:
    # Ended here, not by loky: without psutil it asks `pgrep`, which slim containers lack and which Ctrl-C kills as well;
    # it then gives up with the workers alive, and Python waits for them for ever.
    with _postponed():
        workers: dict[int, BaseProcess] = pool._processes or {}  # type: ignore[attr-defined]
        while workers:
            _, worker = workers.popitem()
            if worker.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        manager, results = pool._executor_manager_thread, pool._result_queue  # type: ignore[attr-defined]
        pool.shutdown(wait=False, kill_workers=True)  # type: ignore[call-arg]  # loky's own word
        if manager is None:
            return
        manager.join(1)
        if manager.is_alive():
            # It reads a result that died half-way with its worker. With the last writing end closed, the pipe ends there.
            # The handle is taken away first: as soon as the pipe ends, the manager closes what it still finds open.
            writer = results._writer
            handle, writer._handle = writer.fileno(), None
            os.close(handle)
            manager.join()


def _pool(jobs: int) -> Executor:
    # Not fork: the parent may hold threads (TensorFlow, OpenCV) whose locks a forked child would wait for for ever. Not
    # spawn either: it runs the caller's script again, so that one without `if __name__ == "__main__"` would fail.
    from joblib.externals.loky import ProcessPoolExecutor

    pool: Executor = ProcessPoolExecutor(jobs, initializer=_start_worker)
    return pool


def _submit(pool: Executor, function: Callable[[T], R], group: list[T]) -> Future[list[R]]:
    with _postponed(), _deaf_children():
        return pool.submit(_work, function, group)


@contextmanager
def _postponed() -> Iterator[None]:
    """Ctrl-C in the block takes effect after it.

    A worker that is half started would print what it misses, and of workers that are being ended some would stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted, and only it may set handlers
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started in the block, or by threads that are, get Ctrl-C only after they have chosen what it means.

    Until `_start_worker` runs, a worker imports: Ctrl-C, which reaches the whole group, would print its traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # First, because Python before 3.12 lets SIGINT through again when it starts this process, which loky would ask it for.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed parent tells its workers nothing, and they would wait on."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import cv2

    cv2.setNumThreads(1)  # one process a processor is parallel enough


def _work(function: Callable[[T], R], group: list[T]) -> list[R]:
    return [function(item) for item in group]


def _alone(function: Callable[[T], R], item: T, crashed: Callable[[T], R] | None) -> R:
    with _pool(1) as pool:
        try:
            return _submit(pool, function, [item]).result()[0]
        except BrokenProcessPool as error:
            if crashed is not None:
                return crashed(item)
            name = str(getattr(item, "name", item))
            remedy = "Check the file, the free memory, or use fewer --jobs."
            raise DataError("the process that worked on it ended", path=name, remedy=remedy, kind="crashed") from error
