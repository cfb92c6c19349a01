"""Parse untrusted files in child processes with limits on memory, time and output.

    @isolated                          a function that parses files; called anywhere, it runs in a child
    call(function, *args)              the same for one call
    working_on(name)                   in a child: names the file being read, and restarts its time limit

Children are started when needed, reused, and replaced when they die. Requests are pickled, since they come from this
process. Answers are not: they are JSON (plain values and dataclasses of kerasseg) followed by the numbers of arrays, and
their size is checked. A child that crashes, hangs or exceeds its memory is a `DataError` that names the file.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, KerassegError, one_line, restored
from kerasseg_tfrecords.files import temporary_space

P = ParamSpec("P")
R = TypeVar("R")

SECONDS = 20
"""Processor time for one picture, MATLAB file or DICOM file."""
_SILENT = 300  # seconds without a sign of life, for example on a network drive that does not answer
_FRAME = 9  # bytes: the kind of a message, and its length
_WORKING, _ANSWER, _REFUSAL, _FAULT = b"w", b"=", b"!", b"#"
_START = "import sys; sys.path[:] = {path!r}; from kerasseg_tfrecords.isolation import serve; serve({parent}, {memory})"


# ---- the calling process


class _Died(Exception):  # noqa: N818 - not an error for the user
    """The child ended, or was ended, while it worked on `name` (None: before); `reason` is a sentence."""

    def __init__(self, name: str | None, reason: str) -> None:
        super().__init__(reason)
        self.name, self.reason = name, reason


class Reader:
    """One child process. Its calls must not overlap."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        with temporary_space():
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error, closed by `end`
        start = _START.format(path=sys.path, parent=os.getpid(), memory=memory)
        # One thread: more would reserve address space for each processor. A process group of its own: Ctrl-C is for us.
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,
            env=os.environ | one,
            process_group=0,
        )
        self._answers: Any = self._process.stdout  # unbuffered

    def call(self, function: Callable[..., R], args: Sequence[Any], kwargs: dict[str, Any]) -> R:
        """Run a function in the child; its `KerassegError` is raised here.

        Raises:
            _Died: The child crashed or exceeded a limit.
        """
        name = None
        try:
            request = pickle.dumps((_folder(), function, tuple(args), kwargs))
            self._process.stdin.write(len(request).to_bytes(8, "little") + request)  # type: ignore[union-attr]
            while True:
                head = self._receive(_FRAME)
                kind, size = head[:1].tobytes(), int.from_bytes(head[1:], "little")
                content = json.loads(self._receive(size).tobytes())
                if kind == _WORKING:
                    name = str(content)
                    continue
                value, sizes = content
                found = _decoded(value, [self._receive(int(size)) for size in sizes])
                break
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            raise _Died(name, self._cause(silent=isinstance(error, TimeoutError))) from None
        except (ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
            raise _Died(name, f"the reader process gave an invalid answer: {one_line(error)[:200]}") from None
        if kind == _ANSWER:
            return found  # type: ignore[no-any-return]
        raise found if kind == _REFUSAL else RuntimeError(f"the reader process failed: {found}")

    @property
    def ready(self) -> bool:
        """Whether the child waits for a call: it has not ended, and has said nothing since its last answer."""
        return not select.select([self._answers], [], [], 0)[0]

    def _receive(self, size: int) -> memoryview:
        if not 0 <= size <= self.memory:
            raise ValueError(f"{size} bytes")
        found, at = memoryview(bytearray(size)), 0
        while at < size:
            if not select.select([self._answers], [], [], _SILENT)[0]:
                raise TimeoutError
            read = self._answers.readinto(found[at:])
            if not read:
                raise EOFError
            at += read
        return found

    def _cause(self, *, silent: bool) -> str:
        self._process.kill()
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        if silent:
            return f"reading it did not end within {_SILENT} s"
        if code in (-signal.SIGPROF, -signal.SIGXCPU):  # the latter for a limit of the user's
            return "reading it takes too long"
        if "bad_alloc" in "".join(last):
            return f"reading it takes more than {_gigabytes(self.memory)} of memory"
        number = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"reading it ended the reader process ({number}{''.join(f': {one_line(line)[:200]}' for line in last)})"

    def kill(self) -> None:
        """Kill the child; a call in another thread then fails."""
        self._process.kill()

    def end(self) -> None:
        """Kill the child, and close its pipes."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._answers, self._said):
            stream.close()  # type: ignore[union-attr]


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a text is all that is needed
    except FileNotFoundError:  # deleted
        return "/"


_lock = threading.Lock()
_idle: list[Reader] = []
_limit = 2 << 30
_inside = False


def limit_memory(size: int) -> None:
    """Set the memory that reading one file may take, in bytes of address space; 2 GiB by default."""
    global _limit
    _limit = size


def memory_limit() -> int:
    return _limit


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_idle)  # of the parent process; kept, because Popen complains about children that it loses
    _idle.clear()


_inherited: list[Reader] = []
os.register_at_fork(after_in_child=_forget)


def call(function: Callable[..., R], *args: Any, within: set[Reader] | None = None) -> R:
    """Run a function in a child process and return its result.

    Args:
        function: A function of a module, with arguments that can be pickled. Its result consists of plain values, arrays
            and dataclasses of kerasseg.
        *args: Its arguments.
        within: Set to which the child is added while it works.

    Raises:
        DataError: The child ended (kind "crashed") or exceeded its memory ("too-large"), or the function raised it.
    """
    return function(*args) if _inside else _call(function, args, {}, within)


def _call(function: Callable[..., R], args: Sequence[Any], kwargs: dict[str, Any], within: set[Reader] | None) -> R:
    while True:
        reader, used = _reader()
        if within is not None:
            within.add(reader)
        alive = False
        try:
            result = reader.call(function, args, kwargs)
        except (KerassegError, RuntimeError):
            alive = True
            raise
        except _Died as error:
            if error.name is None and used:  # it was killed while it was idle
                continue
            remedy = "Check the file, and the free memory of the machine."
            raise DataError(error.reason, path=error.name or None, remedy=remedy, kind="crashed") from None
        else:
            alive = True
            return result
        finally:
            if within is not None:
                within.discard(reader)
            if alive:
                with _lock:
                    _idle.append(reader)
            else:
                reader.end()


def _reader() -> tuple[Reader, bool]:
    """Return a child, and whether it has been used before."""
    while True:
        with _lock:
            reader = _idle.pop() if _idle else None
        if reader is None:
            return Reader(_limit), False
        if reader.memory == _limit and reader.ready:
            return reader, True
        reader.end()


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of a module so that it always runs in a child process; see `call`."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs) if _inside else _call(run, args, kwargs, None)

    return run


# ---- the child process


def working_on(name: str, seconds: int = SECONDS) -> None:
    """Tell the parent which file is read now, and allow `seconds` of processor time for it; no effect elsewhere."""
    if _out < 0:
        return
    # Not RLIMIT_CPU, which counts from the start by another clock than Python reads: the two drift apart.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    _send(_WORKING, name)


def serve(parent: int, memory: int) -> None:
    """Answer the requests of the parent process until it closes the pipe."""
    global _inside, _limit, _out
    _inside, _limit = True, memory
    _out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    requests = os.fdopen(0, "rb")
    while head := requests.read(8):
        os.ftruncate(2, 0)
        working_on("")
        request = requests.read(int.from_bytes(head, "little"))
        folder, function, args, kwargs = pickle.loads(request)  # noqa: S301 - our parent's
        try:
            os.chdir(folder)
            _send(_ANSWER, function(*args, **kwargs))
        except KerassegError as error:
            _send(_REFUSAL, error)
        except MemoryError:
            _send(_REFUSAL, out_of_memory())
        except Exception:
            _send(_FAULT, traceback.format_exc())
        del request, args, kwargs


_out = -1


def out_of_memory(path: str | None = None) -> DataError:
    """Return the error for a `MemoryError` while a file was read."""
    remedy = "If you trust the file, allow more with --max-memory."
    what = f"reading it takes more than {_gigabytes(_limit)} of memory"
    return DataError(what, path=path, remedy=remedy, kind="too-large")


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.3g} GB"


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _send(kind: bytes, value: object) -> None:
    buffers: list[NDArray[Any]] = []
    content: object = value
    if kind != _WORKING:
        encoded = _encoded(value, buffers)
        content = (encoded, [buffer.nbytes for buffer in buffers])
    text = json.dumps(content).encode()
    _write(kind + len(text).to_bytes(8, "little") + text)
    for buffer in buffers:
        _write(buffer.reshape(-1).view(np.uint8).data)


def _write(data: bytes | memoryview) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(_out, rest) :]
    except BrokenPipeError:  # the parent has ended; as an exception, it would be taken for a fault of the file
        os._exit(1)


# ---- messages without pickle


def _encoded(value: Any, buffers: list[NDArray[Any]]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return ["t" if isinstance(value, tuple) else "l", *(_encoded(one, buffers) for one in value)]
    if isinstance(value, dict):
        return ["d", *(_encoded(pair, buffers) for pair in value.items())]
    if isinstance(value, Path):
        return ["p", str(value)]
    if isinstance(value, bytes):
        buffers.append(np.frombuffer(value, np.uint8))
        return ["b", len(buffers) - 1]
    if isinstance(value, np.ndarray):
        # In the order in which the values are in memory: statistics of floats depend on it in the last digit.
        order = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        buffers.append(np.ascontiguousarray(value.transpose(order)))
        return ["a", len(buffers) - 1, value.dtype.str, list(value.shape), order]
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, KerassegError):
        return ["e", name, _encoded(value.__dict__, buffers)]
    if is_dataclass(value):
        return ["c", name, *(_encoded(getattr(value, field.name), buffers) for field in fields(value))]
    raise TypeError(f"{name} cannot be sent to another process")


def _decoded(value: Any, buffers: list[memoryview]) -> Any:
    if not isinstance(value, list):
        return value
    tag, *rest = value
    if tag in {"t", "l", "d"}:
        found = [_decoded(one, buffers) for one in rest]
        return tuple(found) if tag == "t" else found if tag == "l" else dict(found)
    if tag == "p":
        return Path(rest[0])
    if tag == "b":
        return bytes(buffers[rest[0]])
    if tag == "a":
        number, dtype, shape, order = rest
        stored = np.frombuffer(buffers[number], np.dtype(dtype)).reshape([shape[axis] for axis in order])
        return stored.transpose(np.argsort(order))
    module, _, name = rest[0].partition(":")
    if module.partition(".")[0] not in {"kerasseg_tfrecords", "kerasseg"}:
        raise ValueError(rest[0])
    kind: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    if tag == "e" and isinstance(kind, type) and issubclass(kind, KerassegError):
        return restored(kind, _decoded(rest[1], buffers))
    if tag == "c" and is_dataclass(kind):
        return kind(*(_decoded(one, buffers) for one in rest[1:]))  # type: ignore[operator]
    raise ValueError(f"{rest[0]} is not data")
