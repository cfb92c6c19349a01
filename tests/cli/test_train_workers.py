"""`kerasseg train` on two machines: two processes on loopback, killed, resumed, and compared with one process."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from children import PATIENCE, Child, Children
from factories import write_figshare
from kerasseg.runs.state import StateStore
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions

EPOCHS = 7
OPTIONS = ("--strategy", "scratch", "--filters", 2, "--depth", 1, "--precision", "float32", "--batch-size", 4)
OPTIONS = (*OPTIONS, "--epochs", EPOCHS, "--stop-after", 0)
COMPARED = ("loss", "val_loss", "val_soft_dice", "learning_rate")
"""Seconds until a process that should have ended counts as hanging, on a machine however busy."""

Machines = Callable[..., contextlib.AbstractContextManager[list[Child]]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation slices, 32 x 32."""
    folder = tmp_path_factory.mktemp("tiny")
    raw = write_figshare(folder / "raw", patients=21, slices_each=2, size=48)
    prepare(raw, folder / "shards", PrepareOptions(size=32, split="60/20/20"), jobs=1)
    return folder / "shards"


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    """Types `kerasseg train ...` on two machines, each in a folder of its own, `tmp_path / "0"` and `"1"`."""

    @contextlib.contextmanager
    def typed(*arguments: tuple[object, ...]) -> Iterator[list[Child]]:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(len(arguments))]
        children = []
        try:
            for index, own in enumerate(arguments):
                said = tmp_path / f"said by {index}"
                for folder in (tmp_path / str(index), said):
                    folder.mkdir(exist_ok=True)
                for left in said.iterdir():
                    left.unlink()
                told = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                desk = Children(tmp_path / str(index), said)
                children.append(desk.start("train", *own, TF_CONFIG=json.dumps(told)))
            yield children
        finally:
            for child in children:
                child.send(signal.SIGKILL)
                child.process.join()

    return typed


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


def history(run: Path) -> list[dict[str, str]]:
    file = run / "history.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


def kill_after_epoch(epoch: int, run: Path, children: list[Child], victim: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(history(run)) <= epoch:
        assert all(child.running for child in children), "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children[victim].send(signal.SIGKILL)


def assert_ends_with_a_word(child: Child) -> None:
    code = child.wait(PATIENCE).returncode
    assert code == 1, child.stderr
    assert "Error: another machine of this run stopped answering" in child.stderr
    assert "kerasseg train --resume" in child.stderr
    assert "Traceback" not in child.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.rest
def test_killed_machines_end_the_run_cleanly_and_it_goes_on_to_the_end_of_one_process(
    machines: Machines, shards: Path, tmp_path: Path
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    begin = ("--shards", shards, *OPTIONS)

    # Worker 1 dies.
    with machines((*begin, "--out", run), (*begin, "--out", "elsewhere")) as children:
        kill_after_epoch(1, run, children, victim=1)
        assert_ends_with_a_word(children[0])
    assert not list((tmp_path / "1").iterdir())  # it has written nothing

    # The chief dies. Worker 1 has read a copy of the run, and has left it as it was.
    shutil.copytree(run, copy)
    before = content(copy)
    with machines(("--resume", "--out", run), ("--resume", "--out", copy)) as children:
        kill_after_epoch(len(history(run)), run, children, victim=0)
        assert_ends_with_a_word(children[1])
    assert content(copy) == before
    assert 2 < len(history(run)) <= EPOCHS

    # Worker 1 reads the copy, which is old by now: none of them begins.
    with machines(("--resume", "--out", run), ("--resume", "--out", copy)) as children:
        for child in children:
            assert child.wait(PATIENCE).returncode == 2
            assert "have different options or data (found different: the saved state)" in child.stderr

    with machines(("--resume", "--out", run), ("--resume", "--out", run)) as children:
        assert [child.wait(PATIENCE).returncode for child in children] == [0, 0], children[0].stderr
    assert "2 machines, 2 devices; this one is worker 0" in children[0].stdout + children[0].stderr
    assert children[1].stderr.splitlines()[-1].endswith("Worker 0 wrote the run.")
    assert not list((tmp_path / "1").iterdir())
    assert not list(run.rglob(".tmp-*"))

    single = tmp_path / "single"
    alone = Children(tmp_path).start("train", *begin, "--out", single).wait(PATIENCE)
    assert alone.returncode == 0, alone.stderr
    assert {p.name for p in run.iterdir()} == {p.name for p in single.iterdir()}
    ours, expected = history(run), history(single)
    assert [row["epoch"] for row in ours] == [row["epoch"] for row in expected] == [str(n) for n in range(EPOCHS + 1)]
    for name in COMPARED:
        found, wanted = ([float(row[name] or "nan") for row in rows] for rows in (ours, expected))
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0, err_msg=name)
    states = [StateStore(folder / "state").newest() for folder in (run, single)]
    assert states[0] is not None
    assert states[1] is not None
    trained = [name for name in states[1].arrays if name.startswith("variables/model/")]
    assert trained
    pairs = [(states[0].arrays[name], states[1].arrays[name]) for name in trained]
    apart = np.concatenate([np.abs(one - other).ravel() for one, other in pairs])
    # Sums over two machines are rounded in another order, and Adam divides by how small a gradient is: where it is next to
    # nothing, a single weight feels it. One step too many or too few would move each by up to 1e-3.
    assert apart.mean() < 1e-5
    assert apart.max() < 5e-4
