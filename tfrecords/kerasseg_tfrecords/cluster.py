"""Worker processes on several machines, by Dask `distributed` (`pip install 'kerasseg[cluster]'`).

The caller lists, decides and collects; workers read inputs and write outputs on a file system that all of them see. Inputs
at URLs are read from the caller's cache; workers that do not see it copy them to their own disk, with the credentials in
their own environment. A worker with several threads still runs one task of kerasseg at a time, since readers and networks
expect their own process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import read_json
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError, one_line
from kerasseg_tfrecords.files import explain_os_error
from kerasseg_tfrecords.isolation import call, limit_memory, memory_limit
from kerasseg_tfrecords.storage import caching_in, check_access, default_cache_folder, local_copy, remote_cache, url_of
from kerasseg_tfrecords.text import count, without_credentials
from kerasseg_tfrecords.workers import LocalPool, Pool, available_cpus

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger("kerasseg")
_AHEAD = 4
"""Batches queued for each worker."""
_PATIENCE = 10.0
"""Seconds without progress until the reason is looked for."""
_FORMS = "tcp://HOST:PORT, a scheduler file, or local:N for N processes of this machine"


# ---- connecting


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Client | None]:
    """Connect to a Dask scheduler while the block runs.

    Args:
        address: "tcp://HOST:PORT", a scheduler file, or "local:N", which starts N worker processes for the block; None
            yields None.

    Raises:
        UsageError: The address has another form, or Dask is not installed.
        KerassegError: No scheduler answers.
    """
    if address is None:
        yield None
        return
    dask = _dask()
    # They print tracebacks when a scheduler or worker ends.
    for name in ("distributed", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_local(address)) if address.startswith("local:") else _scheduler(address)
        _knock(url)
        try:
            client = dask.Client(url, timeout=30, set_as_default=False)
        except (OSError, TypeError, ValueError, AttributeError, ImportError) as error:
            raise _no_scheduler(address, one_line(error).partition("\n")[0]) from error
        try:
            yield client
        finally:
            with contextlib.suppress(TimeoutError):  # Dask waits a minute for a scheduler that has ended
                client.close(timeout=10 if client.status == "running" else 0.1)


def _dask() -> Any:
    try:
        import distributed
    except ImportError:
        raise UsageError("a cluster needs Dask", remedy="Install it: pip install 'kerasseg[cluster]'") from None
    return distributed


@contextlib.contextmanager
def _local(address: str) -> Iterator[str]:
    """Start worker processes and yield the URL of their scheduler."""
    text = address.removeprefix("local:")
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise UsageError("invalid number of workers", found=address, expected="local:N, such as local:4")
    command = [sys.executable, "-c", f"from kerasseg_tfrecords.cluster import _serve; _serve({int(text)})"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,  # Ctrl-C reaches this process only
    )
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    try:
        url = process.stdout.readline().decode().strip()
        if not url:
            raise KerassegError("the local workers could not be started", path=address, remedy="Use fewer of them.")
        yield url
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _serve(workers: int) -> None:
    """Run a scheduler and workers until standard input is closed, as it is when the caller ends."""
    import dask
    from distributed import LocalCluster

    # Dask's own setting also has MALLOC_TRIM_THRESHOLD_, with which each large array costs page faults.
    one_thread = {f"{name}_NUM_THREADS": 1 for name in ("OMP", "MKL", "OPENBLAS")}
    names = {"scheduler.allowed-failures": 2, "nanny.pre-spawn-environ": one_thread}
    dask.config.set({f"distributed.{name}": value for name, value in names.items()})
    options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=workers, **options) as cluster:
        print(cluster.scheduler_address, flush=True)  # noqa: T201 - the caller reads it
        sys.stdin.read()


def _environment() -> dict[str, str]:
    """Return the environment of a process that can import what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _scheduler(address: str) -> str:
    if "://" in address:
        return address
    path = Path(address)
    if not path.is_file():
        raise UsageError("not the address of a cluster", found=address, expected=_FORMS)
    found = read_json(path, "the scheduler file")
    url = found.get("address") if isinstance(found, dict) else None
    if not isinstance(url, str):
        raise UsageError("not a scheduler file of Dask", path=path, expected='JSON with "address"')
    return url


def _knock(url: str) -> None:
    """Find at once whether anything listens; Dask itself would retry for its whole time limit."""
    host, _, port = url.partition("://")[2].rstrip("/").rpartition(":")
    if not url.startswith(("tcp://", "tls://")):
        return
    if not host or not port.isdecimal():
        raise UsageError("not the address of a cluster", found=url, expected=_FORMS)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_scheduler(url, str(getattr(error, "strerror", None) or error)) from error


def _no_scheduler(address: str, reason: str) -> KerassegError:
    remedy = "Check the address, and that the scheduler is running: dask scheduler"
    if "//127." in address or "//localhost" in address:
        remedy += (
            ". On another machine, start it with --host ADDRESS: 127.0.0.1 is reachable from its own machine only."
        )
    return KerassegError("no Dask scheduler answers", path=address, found=reason, remedy=remedy)


# ---- the pool


@contextlib.contextmanager
def choose_pool(jobs: int | None, cluster: Client | None, **needs: Any) -> Iterator[Pool]:
    """Yield the pool of a command."""
    if cluster is None:
        yield LocalPool(jobs or available_cpus())
        return
    with cluster_pool(cluster, **needs) as pool:
        yield pool


@contextlib.contextmanager
def cluster_pool(
    client: Client,
    *,
    reads: Sequence[Path] = (),
    inputs: Sequence[Path | str] = (),
    fetch: Callable[[str], Path] = local_copy,
    writes: Path | None = None,
    tensorflow: bool = False,
    gpu: bool = False,
) -> Iterator[ClusterPool]:
    """Check the workers of a cluster and yield their pool.

    Args:
        client: Client of the cluster.
        reads: Absolute paths that workers must see; copies of `inputs` only if they cannot copy these themselves.
        inputs: What the caller was given to read; URLs among them have been copied.
        fetch: How to copy such a URL.
        writes: Absolute path of a folder that workers must see and write.
        tensorflow: Whether workers need TensorFlow.
        gpu: Whether to use only the workers with a resource "GPU", if there are any; each runs one task per GPU.

    Raises:
        KerassegError: Workers cannot do the work; they are named with the reason.
    """
    with contextlib.ExitStack() as stack:
        probe = None if writes is None else stack.enter_context(_probe(writes))
        remote = None
        if urls := [url for url in map(url_of, inputs) if url is not None]:
            copies = remote_cache().absolute()
            reads = [path for path in reads if not path.is_relative_to(copies)]
            # Passwords and tokens in URLs must not travel.
            shown = tuple((without_credentials(url), without_credentials(url) == url) for url in urls)
            remote = _Remote(shown, fetch, str(default_cache_folder().absolute()), stack.enter_context(_probe(copies)))
        seen = tuple(_seen(path) for path in reads)
        needs = _Needs(uuid.uuid4().hex, _versions(tensorflow), seen, remote, probe, memory_limit())
        yield ClusterPool(client, needs, gpu=gpu)


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[tuple[str, str]]:
    """Write a file that each worker must find."""
    path, content = folder / f".tmp-probe-{uuid.uuid4().hex}", uuid.uuid4().hex
    try:
        path.write_text(content)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    try:
        yield str(path), content
    finally:
        path.unlink(missing_ok=True)


def _seen(path: Path) -> tuple[str, int]:
    """Return what workers must see too: an entry of a folder (an unmounted one is empty), or a file, with its size."""
    if path.is_dir():
        with os.scandir(path) as entries:
            path = next((Path(entry.path) for entry in entries), path)
    return str(path), -1 if path.is_dir() else path.stat().st_size


_NONE = "missing"


def _versions(tensorflow: bool) -> dict[str, str]:
    """Return the versions that must be the same everywhere for the same result."""
    import cv2
    import numpy as np

    found = {
        "kerasseg": __version__,
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "NumPy": np.__version__,
        "OpenCV": cv2.__version__,
    }
    if tensorflow:
        found["TensorFlow"] = _NONE
        for name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
            with contextlib.suppress(PackageNotFoundError):
                found["TensorFlow"] = version(name)
                break
    return found


@dataclass(frozen=True, slots=True)
class _Remote:
    """Inputs that the caller has copied into its cache.

    Attributes:
        urls: (URL without password and token, whether it has none).
        fetch: Copies one into the cache.
        cache: The cache folder of the caller.
        probe: Path and content of a file in it.
    """

    urls: tuple[tuple[str, bool], ...]
    fetch: Callable[[str], Path]
    cache: str
    probe: tuple[str, str]

    def missing(self) -> tuple[tuple[str, bool], ...]:
        """Return the entries of `urls` of which this machine does not see the copy."""
        return () if _has(self.probe) else self.urls

    def obstacle(self) -> str | None:
        """Return why this machine cannot copy what is missing; None if it can."""
        for url, complete in self.missing():
            if not complete:
                return f"does not see the copy of {url}"
            try:
                check_access(url)
            except KerassegError as error:
                return f"cannot read {error.path or url}: {error.sentence(with_path=False).rstrip('.')}"
        return _unwritable(Path(self.cache)) if self.missing() else None

    def copy(self) -> None:
        """Copy what is missing, to the paths that it has on the caller's machine."""
        with caching_in(Path(self.cache)):
            for url, _ in self.missing():
                self.fetch(url)


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a worker is checked for.

    Attributes:
        name: Unique name of the command.
        versions: Package -> version.
        reads: (path, size in bytes, or -1 for a folder).
        remote: Inputs at URLs.
        probe: Path and content of a file in a folder that the worker must be able to write.
        memory: Memory that reading one file may take, in bytes.
    """

    name: str
    versions: dict[str, str]
    reads: tuple[tuple[str, int], ...]
    remote: _Remote | None
    probe: tuple[str, str] | None
    memory: int


class ClusterPool:
    """Workers of a cluster; see `kerasseg_tfrecords.workers.Pool`. Created by `cluster_pool`."""

    def __init__(self, client: Client, needs: _Needs, *, gpu: bool = False) -> None:
        self._client, self._needs = client, needs
        self._told, self._ask_again, self._known_workers = 0.0, 0.0, 1
        with self._connected():
            self._check_scheduler()
            found: dict[str, Any] = client.run(_unfit, needs, on_error="return")
            info = client.scheduler_info(n_workers=-1)["workers"]
        bad = {worker: _reason(answer) for worker, answer in found.items() if answer is not None}
        if bad:
            first = "; ".join(f"{worker} {reason}" for worker, reason in sorted(bad.items())[:5])
            raise KerassegError(
                f"{len(bad)} of {count(len(found), 'worker')} cannot do this work",
                path=self._address,
                found=first,
                remedy="Start these workers in the same environment as this command, with the same file system mounted."
                + (
                    " Without access of their own, workers read from a KERASSEG_CACHE that all see."
                    * bool(needs.remote)
                ),
            )
        threads = max((facts["nthreads"] for facts in info.values()), default=1)
        if threads > 1:
            _LOG.warning(
                "Workers with %d threads run one task of kerasseg at a time: start more workers with --nthreads 1.",
                threads,
            )
        self._resources = {"GPU": 1} if gpu and any(w["resources"].get("GPU") for w in info.values()) else None

    @property
    def _address(self) -> str:
        return str(self._client.scheduler.address if self._client.scheduler else "the cluster")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn the errors of a lost connection into one message."""
        from distributed import CancelledError
        from distributed.comm import CommClosedError

        try:
            yield
        except (CancelledError, CommClosedError, TimeoutError) as error:
            raise self._lost() from error
        except (OSError, RuntimeError, AttributeError) as error:
            if self._client.status == "running":
                raise
            raise self._lost() from error

    def _lost(self) -> KerassegError:
        return KerassegError(
            "the connection to the Dask scheduler was lost",
            path=self._address,
            remedy="Start the scheduler and its workers again, then run the same command again: finished work is kept "
            "(predict: with --continue; cross-validate: with --resume).",
        )

    def _check_scheduler(self) -> None:
        here = version("distributed")
        there = self._client.get_versions(check=False)["scheduler"]["packages"].get("distributed") or "unknown"
        if there.partition(".")[0] != here.partition(".")[0]:
            raise KerassegError(
                "the scheduler has another major version of Dask",
                path=self._address,
                found=f"distributed {there}",
                expected=here,
                remedy="Install the same version here and there.",
            )

    def workers(self) -> int:
        """Return the number of workers, of which the scheduler is asked once a second: results can be much quicker."""
        if time.monotonic() >= self._ask_again:
            with self._connected():
                self._known_workers = max(1, len(self._client.nthreads()))
            self._ask_again = time.monotonic() + 1
        return self._known_workers

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        batch: int = 1,
        crashed: Callable[[T, DataError], R] | None = None,
        trusted: bool = False,
        isolated: bool = False,
        heard: Callable[[Any], None] | None = None,
    ) -> Iterator[R]:
        """Yield the results in order; see `Pool`.

        With `isolated`, each item has a process of its own, and `heard` receives, in another thread, what the function
        passes to `tell`. An early end of the iteration cancels the rest: waiting items never run, `isolated` ones get
        SIGTERM.
        """
        rest = iter(items)
        if heard is not None:
            self._client.subscribe_topic(self._needs.name, lambda event: heard(event[1]))
        waiting: deque[tuple[list[T], Future]] = deque()
        run = _work_isolated if isolated else _work if trusted else _work_in_children
        try:
            while True:
                room = self.workers() * _AHEAD - len(waiting)
                while room > 0 and (group := list(islice(rest, batch))):
                    waiting.append((group, self._start(run, function, group)))
                    room -= 1
                if not waiting:
                    return
                yield from self._results(function, *waiting[0], crashed, isolated)
                waiting.popleft()
        finally:
            if waiting and self._client.status == "running":
                self._client.cancel([future for _, future in waiting], force=True)

    def _start(self, run: Callable[..., Any], *arguments: Any) -> Future:
        import cloudpickle

        # As bytes that call `run` when they are loaded: the scheduler, which unpickles tasks, then needs no kerasseg.
        call = cloudpickle.dumps(_Call(run, (self._needs, *arguments)))
        key = f"kerasseg-{self._needs.name}-{uuid.uuid4().hex}"
        with self._connected():
            return self._client.submit(pickle.loads, call, key=key, pure=False, resources=self._resources)

    def _results(
        self,
        function: Callable[[T], R],
        group: list[T],
        future: Future,
        crashed: Callable[[T, DataError], R] | None,
        isolated: bool,
    ) -> list[R]:
        from distributed import KilledWorker

        try:
            results = self._wait(future)
        except KilledWorker:
            if not isolated:
                futures = [self._start(_work_isolated, function, [item]) for item in group]
                pairs = zip(group, futures, strict=True)
                return [self._results(function, [item], one, crashed, True)[0] for item, one in pairs]
            results = [_Crash(_crash())] * len(group)  # not the item alone, but its whole machine
        found: list[R] = []
        for item, result in zip(group, results, strict=True):
            if not isinstance(result, _Crash):
                found.append(result)
            elif crashed is None:
                raise result.error
            else:
                found.append(crashed(item, result.error))
        return found

    def _wait(self, future: Future) -> Any:
        start, done = time.monotonic(), threading.Event()
        future.add_done_callback(lambda _: done.set())
        while True:
            done.wait(1)
            if future.done():
                with self._connected():
                    return future.result()
            if self._client.status != "running":
                raise self._lost()
            if time.monotonic() - max(start, self._told) > _PATIENCE:
                self._told = time.monotonic() + 5 * _PATIENCE  # then once a minute
                self._say_why()

    def _say_why(self) -> None:
        """Say why nothing happens, unless one of our tasks is running."""
        with self._connected():
            running = self._client.processing()  # also tasks that wait for their worker
            keys = [str(key) for worker in running.values() for key in worker]
            ours = [key for key in keys if self._needs.name in key]
            if ours and any((self._client.call_stack(keys=ours) or {}).values()):
                return
        if not running:
            _LOG.warning("Waiting: no worker is connected to %s.", self._address)
        else:
            busy = count(len(running), "worker")
            _LOG.warning(
                "Waiting for a free worker: %s of %s, %d tasks of others.", busy, self._address, len(keys) - len(ours)
            )


def _reason(answer: Any) -> str:
    if isinstance(answer, OSError):
        return f"cannot be reached by the scheduler ({one_line(answer)}): check its --host and the firewall"
    # Dask cannot always rebuild an exception, and then sends its text.
    missing = isinstance(answer, BaseException) and "ModuleNotFoundError" in repr(answer)
    return f"cannot import kerasseg ({one_line(answer)})" if missing else one_line(answer)


# ---- in workers


@dataclass(frozen=True)
class _Call:
    """A call that happens when its pickle is loaded."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


_LOCK = threading.Lock()
_FIT: set[str] = set()
"""Names of the commands for which this worker process has been checked."""


@dataclass(frozen=True, slots=True)
class _Crash:
    """Result for an item that ended its process."""

    error: DataError


def _crash() -> DataError:
    remedy = "Check the file, and the free memory of the workers."
    return DataError("it ended several processes that worked on it", remedy=remedy, kind="crashed")


def _unfit(needs: _Needs) -> str | None:
    """Return why this worker cannot do the work; None if it can."""
    here = _versions("TensorFlow" in needs.versions)
    wrong = {name: wanted for name, wanted in needs.versions.items() if here[name] != wanted}
    if wrong:
        found = [f"{name} {here[name]}, not {wanted}" for name, wanted in wrong.items() if here[name] != _NONE]
        return f"has {', '.join([f'no {name}' for name in wrong if here[name] == _NONE] + found)}"
    for name, size in needs.reads:
        path = Path(name)
        if not path.exists():
            return f"does not see {name}"
        if size >= 0 and path.stat().st_size != size:
            return f"sees another file as {name}"
    if needs.remote is not None and (reason := needs.remote.obstacle()) is not None:
        return reason
    if needs.probe is None:
        return None
    folder = Path(needs.probe[0]).parent
    return _unwritable(folder) if _has(needs.probe) else f"does not see {folder}"


def _has(probe: tuple[str, str]) -> bool:
    path = Path(probe[0])
    return path.is_file() and path.read_text() == probe[1]


def _unwritable(folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-probe-"):
            return None
    except OSError as error:
        return f"cannot write {folder}: {error.strerror}"


@contextlib.contextmanager
def _ready(needs: _Needs) -> Iterator[None]:
    """Prepare a worker, run one task at a time, and name the worker in errors of its machine."""
    from distributed import get_worker

    with _LOCK:
        if needs.name not in _FIT:
            reason = _unfit(needs)
            if reason is not None:
                remedy = "Remove this worker, or start it in the same environment as this command."
                raise KerassegError(f"worker {get_worker().address} {reason}", remedy=remedy)
        try:
            if needs.name not in _FIT:
                if needs.remote is not None:
                    needs.remote.copy()
                _FIT.add(needs.name)
            limit_memory(needs.memory)
            yield
        except KerassegError as error:
            error.__context__ = None  # cannot always be pickled
            if type(error) is KerassegError:  # of the machine (a full disk), not of a file that all machines see
                what = f"{error.what} (worker {get_worker().address})"
                raise type(error)(what, path=error.path, found=error.found, remedy=error.remedy) from error.__cause__
            raise


def _work(needs: _Needs, function: Callable[[T], R], group: list[T]) -> list[R]:
    with _ready(needs):
        return [function(item) for item in group]


def _work_in_children(needs: _Needs, function: Callable[[T], R], group: list[T]) -> list[R | _Crash]:
    """Read files of users: in child processes of the worker, which survives what a file does to them."""
    results: list[R | _Crash] = []
    with _ready(needs):
        for item in group:
            try:
                results.append(call(function, item))
            except DataError as error:
                if error.kind != "crashed":
                    raise
                error.__context__ = None  # cannot always be pickled
                results.append(_Crash(error))
    return results


def _work_isolated(needs: _Needs, function: Callable[[T], R], group: list[T]) -> list[R | _Crash]:
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def heard(value: Any) -> None:
        worker.log_event(needs.name, value)

    def cancelled() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state not in ("executing", "long-running")

    with _ready(needs):
        return [run_apart(function, item, heard=heard, stop=cancelled) for item in group]


# ---- a process for one task


def run_apart(
    function: Callable[[T], R],
    item: T,
    *,
    heard: Callable[[Any], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> R | Any:
    """Return `function(item)`, run in a new process, which ends with this one.

    Args:
        function: A function that can be pickled. It may call `tell`.
        item: Its argument.
        heard: Receives what `tell` is called with.
        stop: Called every second; True sends SIGTERM to the process.

    Returns:
        The result; an internal marker if the process crashed.
    """
    import cloudpickle

    command = [sys.executable, "-c", "from kerasseg_tfrecords.cluster import _child; _child()"]
    pipe = subprocess.PIPE
    # In a session of its own, so that only `stop` sends it a signal.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=_environment(), start_new_session=True) as process:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        ended = threading.Event()

        def watch() -> None:
            while stop is not None and not ended.wait(1):
                if stop():
                    process.terminate()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            process.stdin.write(cloudpickle.dumps((function, item)))
            process.stdin.flush()  # and left open: the child ends when it is closed
            while True:
                kind, value = pickle.load(process.stdout)  # noqa: S301 - from our own child
                if kind == "result":
                    return value
                if kind == "error":
                    raise value
                if heard is not None:
                    heard(value)
        except (EOFError, pickle.UnpicklingError, BrokenPipeError):
            return _Crash(_crash())
        finally:
            ended.set()
            watcher.join()
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


_OUT: IO[bytes] | None = None


def tell(value: Any) -> None:
    """Send a value from a function in `run_apart` to its `heard`; elsewhere, do nothing."""
    if _OUT is not None:
        pickle.dump(("told", value), _OUT)
        _OUT.flush()


def _child() -> None:
    global _OUT
    import cloudpickle

    _OUT = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with results
    source = os.fdopen(0, "rb", closefd=False)
    function, item = pickle.load(source)  # noqa: S301 - from our own parent
    threading.Thread(target=lambda: (source.read(1), os._exit(1)), daemon=True).start()
    try:
        answer = ("result", function(item))
    except Exception as error:
        answer = ("error", error)
    _OUT.write(cloudpickle.dumps(answer))
    _OUT.flush()
    os._exit(0)
