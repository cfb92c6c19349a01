"""Work in several processes: in order, bounded, interruptible, and one crash costs one item."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from children import PATIENCE
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.workers import ordered_map


def slow_square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def square_or_die(number: int) -> int:
    if number % 10 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def raise_on_3(number: int) -> int:
    if number == 3:
        raise DataError("three", path="3.mat", found=3, kind="odd")
    return number


def touch(path: Path) -> int:
    path.touch()
    time.sleep(0.01)
    return os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_order(jobs: int) -> None:
    assert list(ordered_map(slow_square, range(40), jobs=jobs)) == [n * n for n in range(40)]
    assert list(ordered_map(slow_square, [], jobs=jobs)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_crash_costs_one_item(jobs: int) -> None:
    found = list(ordered_map(square_or_die, range(20), jobs=jobs, crashed=lambda number, _: -number))
    assert found == [-n if n % 10 == 7 else n * n for n in range(20)]


def test_a_crash_without_a_handler_is_an_error() -> None:
    with pytest.raises(DataError, match="reading it ended the reader process \\(signal 9\\)") as caught:
        list(ordered_map(square_or_die, range(20), jobs=2))
    assert caught.value.kind == "crashed"


def test_errors_come_through_whole() -> None:
    with pytest.raises(DataError) as caught:
        list(ordered_map(raise_on_3, range(8), jobs=2))
    assert (caught.value.kind, caught.value.path, str(caught.value)) == ("odd", "3.mat", "3.mat: three (found 3)")


@pytest.mark.parametrize("jobs", [1, 2])
def test_little_is_done_ahead_and_nothing_after_closing(jobs: int, tmp_path: Path) -> None:
    results = ordered_map(touch, [tmp_path / str(n) for n in range(1000)], jobs=jobs, ahead=4)
    assert isinstance(results, Iterator)
    assert next(results) != os.getpid(), "always in another process"
    time.sleep(0.3)
    done = len(list(tmp_path.iterdir()))
    assert done <= jobs * 4, "the results that wait are bounded"
    results.close()
    ended = len(list(tmp_path.iterdir()))
    assert ended <= done + jobs
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == ended


def test_processes_are_used_again(tmp_path: Path) -> None:
    first = set(ordered_map(touch, [tmp_path / str(n) for n in range(20)], jobs=2))
    second = set(ordered_map(touch, [tmp_path / str(n) for n in range(20)], jobs=2))
    assert first & second


def heavy(_: int) -> bytes:
    return bytes(50_000_000)


def test_closing_while_results_are_under_way_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that is killed while it writes leaves half a result."""
    for _ in range(3):
        results = ordered_map(heavy, range(20), jobs=2)
        next(results)
        closing = threading.Thread(target=results.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
    assert capfd.readouterr().err == ""


# Works until it is interrupted; says then that it was.
ENDLESS = """
import time
from kerasseg_tfrecords.workers import ordered_map
try:
    list(ordered_map(time.sleep, [0.05] * 10_000, jobs=2))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in Linux's /proc")
@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1])
def test_ctrl_c_while_workers_start_shows_no_traceback_of_theirs(delay: float) -> None:
    """A worker that is still importing has no handler yet: Ctrl-C must not reach it."""
    command, pipe = [sys.executable, "-c", ENDLESS], subprocess.PIPE
    with subprocess.Popen(command, text=True, start_new_session=True, stdout=pipe, stderr=pipe) as child:
        deadline = time.monotonic() + PATIENCE
        while not any(map(_is_worker, _children(child.pid))) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        os.killpg(child.pid, signal.SIGINT)
        out, said = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out, said) == (0, "interrupted\n", "")


def _children(process: int) -> list[str]:
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # it has ended
            found += (thread / "children").read_text().split()
    return found


def _is_worker(process: str) -> bool:
    try:
        return b"kerasseg_tfrecords.isolation" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
