"""The child process that parses files: its limits, its answers, and what remains when it dies."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from children import PATIENCE
from factories import write_figshare
from kerasseg_cli.options import MaxMemory
from kerasseg_tfrecords import isolation, sources
from kerasseg_tfrecords.checks.raw_data import check_data
from kerasseg_tfrecords.errors import BadInputError, DataError, Problem, UsageError
from kerasseg_tfrecords.isolation import call, isolated, limit_memory, working_on
from kerasseg_tfrecords.slices import Reading, Slice
from kerasseg_tfrecords.sources import find_items, read_item
from kerasseg_tfrecords.sources.base import Listing, SourceOptions
from kerasseg_tfrecords.sources.tree import Tree, open_tree


def echo(value: Any) -> Any:
    return value


@isolated
def where() -> int:
    return os.getpid()


def nested() -> tuple[int, int]:
    return os.getpid(), where()


def crash(name: str) -> None:
    working_on(name)
    ctypes.string_at(0)


def spin(name: str) -> None:
    working_on(name, 1)
    while True:
        pass


def allocate(count: int) -> int:
    return np.ones(count, np.uint8).nbytes


def shout() -> str:
    os.write(1, b"not an answer")
    os.write(2, b"nor this")
    return "an answer"


def refuse() -> None:
    raise BadInputError([Problem("1.mat", "odd", "is odd")])


def fail() -> None:
    raise ZeroDivisionError("never")


def forged() -> None:
    text = b'[["c", "subprocess:Popen", "id"], []]'
    isolation._write(b"=" + len(text).to_bytes(8, "little") + text)


def endless_answer() -> None:
    isolation._write(b"=" + (1 << 60).to_bytes(8, "little"))


def test_a_function_runs_in_one_other_process() -> None:
    first, second = where(), where()
    assert first == second != os.getpid()
    assert call(nested)[0] == call(nested)[1] != os.getpid(), "a child has no child"


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, float("inf"), "ä\udcff", b"\0\1", (1, (2,)), [1, "a"], {"a": (1,), 2: None}, Path("a/b"), ()],
)
def test_plain_values_come_back_as_they_are(value: object) -> None:
    found = call(echo, value)
    assert found == value
    assert type(found) is type(value)


def turned() -> np.ndarray[Any, Any]:
    return np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::-1].transpose(1, 2, 0)


def test_arrays_come_back_with_their_layout() -> None:
    """Statistics of floats depend on the order in memory."""
    cube = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for array in (cube, cube.T, np.zeros(3), cube > 5):
        found = call(echo, array)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        assert found.strides == np.asarray(array).strides
    found = call(turned)
    assert np.array_equal(found, turned())
    assert np.argsort(found.strides).tolist() == np.argsort(np.abs(turned().strides)).tolist()


def test_readings_come_back_whole() -> None:
    reading = Reading((Slice(np.eye(3), np.eye(3) > 0, "7", "7.mat", spacing=(0.5, 1), notes=("a",)),), sha256="00")
    found = call(echo, reading)
    assert (found.sha256, found.scope, found.slices[0].spacing) == ("00", None, (0.5, 1))
    assert np.array_equal(found.slices[0].mask, np.eye(3) > 0)


def test_errors_come_back_whole() -> None:
    with pytest.raises(BadInputError, match="1 bad input file") as caught:
        call(refuse)
    assert caught.value.problems == (Problem("1.mat", "odd", "is odd"),)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: never"):
        call(fail)


def test_a_crash_names_the_file_and_the_next_call_works() -> None:
    with pytest.raises(
        DataError, match=r"^a\.mat: reading it ended the reader process \(signal 11\)\. Check the file"
    ) as caught:
        call(crash, "a.mat")
    assert caught.value.kind == "crashed"
    assert call(echo, 1) == 1


def test_too_much_time() -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=r"^a\.mat: reading it takes too long"):
        call(spin, "a.mat")
    assert time.monotonic() - start < 30


def test_too_much_memory() -> None:
    with pytest.raises(DataError, match="takes more than 2 GB of memory.*--max-memory") as caught:
        call(allocate, 3 << 30)
    assert caught.value.kind == "too-large"
    assert call(allocate, 1 << 20) == 1 << 20


def test_the_limit_can_be_changed() -> None:
    try:
        limit_memory(1 << 29)
        with pytest.raises(DataError, match=r"more than 0\.5 GB"):
            call(allocate, 1 << 29)
    finally:
        limit_memory(2 << 30)


def test_the_command_line_changes_it() -> None:
    (option,) = MaxMemory.__metadata__
    try:
        option.callback(0.5)
        with pytest.raises(DataError, match=r"more than 0\.5 GB"):
            call(allocate, 1 << 29)
    finally:
        option.callback(2)


def test_a_file_that_needs_too_much_memory_is_one_bad_file(tmp_path: Path) -> None:
    for name, side in (("1", 8000), ("2", 16), ("3", 16)):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.lib.format.open_memmap(tmp_path / folder / f"{name}.npy", "w+", np.float32, (side, side))[0, 0] = 1
    try:
        limit_memory(600 << 20)
        report = check_data([tmp_path])
    finally:
        limit_memory(2 << 30)
    assert report.slices == 2
    (problem,) = report.problems
    assert (problem.name, problem.kind) == ("images/1.npy", "too-large")


def test_a_crash_while_listing_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_figshare(tmp_path, 1, 3)

    def find(tree: Tree, *_: object) -> Listing:
        if any(location.name == "2.mat" for location in tree.locations):
            raise DataError("crashed", path="2.mat", kind="crashed")
        return found(tree, SourceOptions(), None)

    found = sources._find_items
    monkeypatch.setattr(sources, "_find_items", find)
    monkeypatch.setattr(isolation, "_inside", True)
    listing = find_items(open_tree(tmp_path), SourceOptions())
    assert [item.name for item in listing.items] == ["1.mat", "3.mat"]
    assert [problem.name for problem in listing.problems] == ["2.mat"]


def test_what_libraries_print_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(shout) == "an answer"
    assert capfd.readouterr() == ("", "")


def test_an_answer_creates_nothing_but_data_of_ours() -> None:
    for function in (forged, endless_answer):
        with pytest.raises(DataError, match="invalid answer"):
            call(function)
    with pytest.raises(RuntimeError, match="cannot be sent"):
        call(echo, echo)


def test_a_child_whose_parent_has_ended_does_not_take_that_for_a_fault_of_the_file() -> None:
    """Otherwise `prepare` keeps good files as bad ones when it is interrupted."""
    script = (
        "import os; from kerasseg_tfrecords import isolation\n"
        "ours, isolation._out = os.pipe(); os.close(ours)\n"
        "try: isolation.working_on('1.mat')\n"
        "except Exception: print('goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr


def test_files_are_read_elsewhere(tmp_path: Path) -> None:
    """Neither listing nor reading loads a library that parses files into this process."""
    write_figshare(tmp_path, 1, 1)
    script = (
        "import sys; from kerasseg_tfrecords.sources import *; from kerasseg_tfrecords.sources.tree import open_tree\n"
        f"tree = open_tree({str(tmp_path)!r}); item = find_items(tree, SourceOptions()).items[0]\n"
        "print(read_item(item, SourceOptions()).slices[0].label, {'h5py', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "meningioma set()\n"


def test_usage_errors_come_through(tmp_path: Path) -> None:
    write_figshare(tmp_path, 1, 1)
    with pytest.raises(UsageError, match="unknown format"):
        find_items(open_tree(tmp_path), SourceOptions(), "bmp")


def test_a_child_ends_with_its_parent() -> None:
    script = f"import os; from {__name__} import where; print(where(), flush=True); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {script}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.stderr == ""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_a_child_that_ended_while_idle_is_replaced() -> None:
    os.kill(where(), signal.SIGKILL)
    assert call(echo, 1) == 1


def test_a_forked_process_starts_its_own() -> None:
    mine = where()
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, str(where()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 20)) != mine
    assert where() == mine
    os.close(read)
    os.close(write)


def test_reading_one_item_twice_gives_the_same(tmp_path: Path) -> None:
    write_figshare(tmp_path, 1, 1)
    (item,) = find_items(open_tree(tmp_path), SourceOptions()).items
    first, second = (read_item(item, SourceOptions()).slices[0] for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert first.image.flags.c_contiguous
