"""Work in several processes: in order, bounded, interruptible, and one crash costs one item."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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
    assert list(ordered_map(slow_square, range(40), jobs=jobs, batch=3)) == [n * n for n in range(40)]
    assert list(ordered_map(slow_square, [], jobs=jobs)) == []


@pytest.mark.slow
def test_a_crash_costs_one_item() -> None:
    found = list(ordered_map(square_or_die, range(20), jobs=2, batch=4, crashed=lambda number: -number))
    assert found == [-n if n % 10 == 7 else n * n for n in range(20)]


@pytest.mark.slow
def test_a_crash_names_its_item() -> None:
    with pytest.raises(DataError, match="7: reading it ended the process"):
        list(ordered_map(square_or_die, range(20), jobs=2, batch=4))


def test_errors_come_through_whole() -> None:
    with pytest.raises(DataError) as caught:
        list(ordered_map(raise_on_3, range(8), jobs=2, batch=2))
    assert (caught.value.kind, caught.value.path, str(caught.value)) == ("odd", "3.mat", "3.mat: three (found 3)")


def test_little_is_done_ahead_and_nothing_after_closing(tmp_path: Path) -> None:
    results = ordered_map(touch, [tmp_path / str(n) for n in range(1000)], jobs=2, batch=2, ahead=2)
    assert isinstance(results, Iterator)
    workers = {next(results)}
    time.sleep(0.3)
    done = len(list(tmp_path.iterdir()))
    assert done <= 2 * 2 * 2, "the results that wait are bounded"
    results.close()
    assert len(list(tmp_path.iterdir())) <= done + 4
    for worker in workers - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_one_job_is_lazy_and_in_this_process(tmp_path: Path) -> None:
    results = ordered_map(touch, [tmp_path / str(n) for n in range(5)])
    assert list(tmp_path.iterdir()) == []
    assert next(results) == os.getpid()
    assert len(list(tmp_path.iterdir())) == 1


def test_ending_needs_no_program_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Slim containers have no `pgrep`, and Ctrl-C kills it: loky then leaves its workers, and Python waits for them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    results = ordered_map(touch, [tmp_path / str(n) for n in range(20)], jobs=2, batch=1)
    workers = {next(results), next(results)}
    results.close()
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def touch_nothing(_: int) -> int:
    time.sleep(0.01)
    return os.getpid()


def heavy(_: int) -> bytes:
    return bytes(50_000_000)


def test_closing_while_results_are_under_way_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker that is killed while it writes leaves half a result, whose other half loky would wait for."""
    for _ in range(3):
        results = ordered_map(heavy, range(20), jobs=2, batch=1)
        next(results)
        closing = threading.Thread(target=results.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
    assert capfd.readouterr().err == ""


def test_ctrl_c_while_workers_are_ended_takes_effect_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    results = ordered_map(touch_nothing, range(40), jobs=2, batch=1)
    workers = {next(results), next(results)}
    kill = os.kill

    def kill_and_press(process: int, number: int) -> None:
        kill(process, number)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", kill_and_press)
        with pytest.raises(KeyboardInterrupt):
            results.close()  # type: ignore[attr-defined]
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


# Works until it is interrupted; says then that it was.
ENDLESS = """
import time
from kerasseg_tfrecords.workers import ordered_map
try:
    list(ordered_map(time.sleep, [0.05] * 10_000, jobs=2, batch=1))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in Linux's /proc")
@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1])
def test_ctrl_c_while_workers_start_shows_no_traceback_of_theirs(delay: float) -> None:
    """A worker that is still importing has no handler yet: it must be born deaf to Ctrl-C."""
    command, pipe = [sys.executable, "-c", ENDLESS], subprocess.PIPE
    with subprocess.Popen(command, text=True, start_new_session=True, stdout=pipe, stderr=pipe) as child:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        deadline = time.monotonic() + PATIENCE
        while not any(map(_is_worker, children.read_text().split())) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        os.killpg(child.pid, signal.SIGINT)
        out, said = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out, said) == (0, "interrupted\n", "")


def _is_worker(process: str) -> bool:
    try:
        return b"popen_loky" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
