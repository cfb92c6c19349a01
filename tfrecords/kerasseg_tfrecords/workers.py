"""Map a function over items in several processes: in order, in bounded memory, and surviving crashes of workers."""

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
    """Return the number of processors that this process may use."""
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
    """Yield `function(item)` for each item, in the order of the items.

    Args:
        function: A function that can be pickled (module-level, or a `functools.partial` of one), as must its results.
        items: The arguments.
        jobs: Number of worker processes. 1 works lazily in this process.
        batch: Items sent to a process together.
        ahead: Batches queued for each process. At most `batch * ahead * jobs` results are held.
        crashed: Returns the result for an item that ended its process (a crash in a C library, out of memory).

    Raises:
        DataError: An item ended its process, and `crashed` is None.

    Example:
        >>> list(ordered_map(abs, [-2, 1]))
        [2, 1]
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    rest = iter(items)
    # Batches in progress with their futures; None where a crash lost the future.
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
                # The pool lost all its work. Run the items of the failed batch one by one to find the cause.
                _end(pool)
                waiting = deque((other, None) for other, _ in waiting)
                results = [_alone(function, item, crashed) for item in group]
                pool = _pool(jobs)
            yield from results
    finally:
        _end(pool)


def _end(pool: Executor) -> None:
    # Not ended by loky: without psutil it calls `pgrep`, which slim containers lack and which Ctrl-C kills as well. It then
    # leaves the workers alive, and Python waits for them forever.
    with _postponed():
        workers: dict[int, BaseProcess] = pool._processes or {}  # type: ignore[attr-defined]
        while workers:
            _, worker = workers.popitem()
            if worker.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        manager, results = pool._executor_manager_thread, pool._result_queue  # type: ignore[attr-defined]
        pool.shutdown(wait=False, kill_workers=True)  # type: ignore[call-arg]  # an argument of loky
        if manager is None:
            return
        manager.join(1)
        if manager.is_alive():
            # It is reading a result that its worker did not finish. Closing the last writing end ends the pipe. The handle
            # is removed first, since the manager then closes whatever is still open.
            writer = results._writer
            handle, writer._handle = writer.fileno(), None
            os.close(handle)
            manager.join()


def _pool(jobs: int) -> Executor:
    # Not fork: the parent may have threads (TensorFlow, OpenCV) whose locks a forked child would wait for forever. Not
    # spawn: it runs the caller's script again, so that one without `if __name__ == "__main__"` would fail.
    from joblib.externals.loky import ProcessPoolExecutor

    pool: Executor = ProcessPoolExecutor(jobs, initializer=_start_worker)
    return pool


def _submit(pool: Executor, function: Callable[[T], R], group: list[T]) -> Future[list[R]]:
    with _postponed(), _deaf_children():
        return pool.submit(_work, function, group)


@contextmanager
def _postponed() -> Iterator[None]:
    """Postpone Ctrl-C until the block ends.

    Otherwise a worker that is starting would print a traceback, and some workers that are being ended would stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted and may set handlers
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
    """Block Ctrl-C in processes started in the block until `_start_worker` decides how to handle it.

    Ctrl-C reaches the whole process group, and a worker that is still importing would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Started first, because Python before 3.12 unblocks SIGINT when it starts this process for loky.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    """End this process when its parent has died; otherwise workers of a killed parent would wait forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import cv2

    cv2.setNumThreads(1)  # one process per processor is enough


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
            raise DataError("reading it ended the process", path=name, remedy=remedy, kind="crashed") from error
