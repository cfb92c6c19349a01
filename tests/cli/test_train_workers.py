"""`kerasseg train` on two machines: two processes on loopback, killed, gone on with, and held against one process."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from factories import write_figshare
from kerasseg.runs import StateStore
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.manifest import PrepareOptions

EPOCHS = 7
OPTIONS = ("--strategy", "scratch", "--filters", 2, "--depth", 1, "--precision", "float32", "--batch-size", 4)
OPTIONS = (*OPTIONS, "--epochs", EPOCHS, "--stop-after", 0)
COMPARED = ("loss", "val_loss", "val_soft_dice", "learning_rate")
PATIENCE = 240
"""Seconds until a process that should have ended counts as hanging, on a machine however busy."""

Machines = Callable[..., contextlib.AbstractContextManager[list["subprocess.Popen[bytes]"]]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation slices, 32 x 32."""
    folder = tmp_path_factory.mktemp("tiny")
    raw = write_figshare(folder / "raw", patients=21, slices_each=2, size=48)
    prepare(raw, folder / "shards", PrepareOptions(size=32, split="60/20/20"), jobs=1)
    return folder / "shards"


@pytest.fixture
def machines(tmp_path: Path, python: str, child_environment: dict[str, str]) -> Machines:
    """Types `kerasseg train ...` on two machines, each in a folder of its own, `tmp_path / "0"` and `"1"`."""

    @contextlib.contextmanager
    def typed(*arguments: tuple[object, ...]) -> Iterator[list[subprocess.Popen[bytes]]]:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(len(arguments))]
        children = []
        try:
            for index, own in enumerate(arguments):
                (tmp_path / str(index)).mkdir(exist_ok=True)
                told = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                with (tmp_path / f"{index}.txt").open("wb") as said:
                    children.append(
                        subprocess.Popen(
                            [python, "-m", "kerasseg_cli", "train", *map(str, own)],
                            env={**child_environment, "TF_CONFIG": json.dumps(told)},
                            cwd=tmp_path / str(index),
                            stdout=said,
                            stderr=said,
                            start_new_session=True,
                        )
                    )
            yield children
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()

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


def kill_after_epoch(epoch: int, run: Path, children: list[subprocess.Popen[bytes]], victim: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(history(run)) <= epoch:
        assert all(child.poll() is None for child in children), "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(children[victim].pid, signal.SIGKILL)


def assert_ends_with_a_word(child: subprocess.Popen[bytes], said: Path) -> None:
    code = child.wait(timeout=PATIENCE)
    text = said.read_text()
    assert code == 1, text
    assert "Error: another machine of this run does not answer any more" in text
    assert "kerasseg train --resume" in text
    assert "Traceback" not in text


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_killed_machines_end_the_run_cleanly_and_it_goes_on_to_the_end_of_one_process(
    machines: Machines, shards: Path, python: str, child_environment: dict[str, str], tmp_path: Path
) -> None:
    run, copy, said = tmp_path / "run", tmp_path / "copy", [tmp_path / "0.txt", tmp_path / "1.txt"]
    begin = ("--shards", shards, *OPTIONS)

    # Worker 1 dies.
    with machines((*begin, "--out", run), (*begin, "--out", "elsewhere")) as children:
        kill_after_epoch(1, run, children, victim=1)
        assert_ends_with_a_word(children[0], said[0])
    assert not list((tmp_path / "1").iterdir())  # it has written nothing

    # The chief dies. Worker 1 has read a copy of the run, and has left it as it was.
    shutil.copytree(run, copy)
    before = content(copy)
    with machines(("--resume", "--out", run), ("--resume", "--out", copy)) as children:
        kill_after_epoch(len(history(run)), run, children, victim=0)
        assert_ends_with_a_word(children[1], said[1])
    assert content(copy) == before
    assert 2 < len(history(run)) <= EPOCHS

    # Worker 1 reads the copy, which is old by now: none of them begins.
    with machines(("--resume", "--out", run), ("--resume", "--out", copy)) as children:
        for child, text in zip(children, said, strict=True):
            assert child.wait(timeout=PATIENCE) == 2
            assert "were not told the same (found not everywhere the same: the saved state)" in text.read_text()

    with machines(("--resume", "--out", run), ("--resume", "--out", run)) as children:
        assert [child.wait(timeout=PATIENCE) for child in children] == [0, 0], said[0].read_text()
    assert "2 machines, 2 devices; this one is worker 0" in said[0].read_text()
    assert said[1].read_text().splitlines()[-1].endswith("The chief has written the run.")
    assert not list((tmp_path / "1").iterdir())
    assert not list(run.rglob(".tmp-*"))

    single = tmp_path / "single"
    command = [python, "-m", "kerasseg_cli", "train", *map(str, (*begin, "--out", single))]
    subprocess.run(command, env=child_environment, cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE)
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
    for name in trained:
        np.testing.assert_allclose(states[0].arrays[name], states[1].arrays[name], atol=1e-5, rtol=0, err_msg=name)
