"""Work on a Dask cluster: a real scheduler and real worker processes, whose faults cost nothing but time."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from dask_cluster import Cluster, until
from kerasseg_tfrecords import prepare, verify
from kerasseg_tfrecords.checks.raw_data import check_data
from kerasseg_tfrecords.cluster import ClusterPool, choose_pool, connect
from kerasseg_tfrecords.errors import BadInputError, DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions

distributed = pytest.importorskip("distributed")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
SMALL = PrepareOptions(size=32, split="60/20/20", records_per_shard=4)


POISON = """
import os, signal
from kerasseg_tfrecords.conversion.staging import run_task
from kerasseg_tfrecords.isolation import working_on

def run(task):
    for item in task.items:
        working_on(item.files[0].name)
        if item.name == "17.mat":
            os.kill(os.getpid(), signal.SIGKILL)
    return run_task(task)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, child_environment: dict[str, str]) -> Iterator[Cluster]:
    settings = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "poison.py").write_text(POISON)
    tests = Path(__file__).parents[1]
    settings["PYTHONPATH"] = os.pathsep.join([str(folder), str(tests), child_environment["PYTHONPATH"]])
    made = Cluster(folder, child_environment | settings)
    made.scheduler()
    made.worker("w1")
    made.worker("w2")
    yield made
    made.end()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Any]:
    with cluster.client(2) as client:
        yield client


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from factories import write_figshare

    folder = tmp_path_factory.mktemp("raw") / "scans"
    write_figshare(folder, patients=30, slices_each=3, size=48)
    return folder


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def square(number: int) -> int:
    return number * number


def raise_on_3(number: int) -> int:
    if number == 3:
        raise DataError("three", path="3.mat", found=3, kind="odd")
    return number


def pool(client: Any, **options: Any) -> Any:
    return choose_pool(None, client, **options)


@pytest.mark.rest
def test_results_come_in_order_and_errors_whole(client: Any) -> None:
    with pool(client) as workers:
        assert isinstance(workers, ClusterPool)
        assert list(workers.map(abs, range(-20, 20), batch=3)) == [abs(n) for n in range(-20, 20)]
        assert list(workers.map(square, range(40), batch=3, trusted=True)) == [n * n for n in range(40)]
        assert list(workers.map(square, range(3), isolated=True)) == [0, 1, 4]
        with pytest.raises(DataError) as caught:
            list(workers.map(raise_on_3, range(8), trusted=True))
        with pytest.raises(DataError, match="3.mat: three"):
            list(workers.map(raise_on_3, [3], isolated=True))
    assert (caught.value.kind, caught.value.path) == ("odd", "3.mat")


def test_prepare_writes_the_same_bytes_as_on_one_machine(client: Any, raw: Path, tmp_path: Path) -> None:
    seen: set[str] = set()
    local = prepare(raw, tmp_path / "local", SMALL, jobs=1)
    assert prepare(raw, tmp_path / "far", SMALL, cluster=client, progress=lambda *step: seen.add(step[0])) == local
    assert tree(tmp_path / "far") == tree(tmp_path / "local")
    assert verify(tmp_path / "far", cluster=client) == verify(tmp_path / "local")
    shard = next((tmp_path / "far").rglob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-9])
    damaged = verify(tmp_path / "far", cluster=client)
    assert damaged == verify(tmp_path / "far")
    assert not damaged.sound
    assert seen == {"read", "compare", "write"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "local"], "no probe or staging is left"


def test_the_scheduler_is_asked_for_its_workers_once_a_second(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = list[float](), client.nthreads
    monkeypatch.setattr(client, "nthreads", lambda: asked.append(time.monotonic()) or real())
    with pool(client) as workers:
        assert list(workers.map(abs, range(100), trusted=True)) == list(range(100))
    assert 1 <= len(asked) <= 2 + asked[-1] - asked[0]


def test_relative_paths_are_those_of_the_caller(
    client: Any, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(raw.parent)
    out = os.path.relpath(tmp_path / "shards")
    prepare(raw.name, out, SMALL, cluster=client)
    assert tree(tmp_path / "shards") == tree(Path(out))
    assert check_data([raw.name], cluster=client).slices == 90


def test_raw_data_is_checked_alike(client: Any, raw: Path, tmp_path: Path) -> None:
    bad = tmp_path / "scans"
    bad.mkdir()
    for path in raw.glob("1*.mat"):
        (bad / path.name).hardlink_to(path)
    (bad / "1.mat").unlink()
    (bad / "1.mat").write_bytes(b"nothing")
    assert check_data([bad, tmp_path / "none"], cluster=client) == check_data([bad, tmp_path / "none"])


def test_workers_that_do_not_fit_are_named_before_any_work(
    client: Any, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(state: str) -> None:
        import kerasseg_tfrecords.cluster as module

        where = Path(state)
        real = vars(module).setdefault("_real_versions", module._versions)
        module._versions = lambda tensorflow: (
            real(tensorflow) | {"NumPy": "1.0"} if where.exists() else real(tensorflow)
        )

    one = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
    flag = tmp_path / "flag"
    client.run(pretend, str(flag), workers=[one])
    flag.touch()
    with pytest.raises(KerassegError, match="1 of 2 workers cannot do this work") as caught:
        prepare(raw, tmp_path / "out", SMALL, cluster=client)
    flag.unlink()
    assert f"{one} has NumPy 1.0, not " in str(caught.value)
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr("kerasseg_tfrecords.cluster._seen", lambda path: (f"{path}/not-there", -1))
    with pytest.raises(KerassegError, match=f"2 of 2 workers .*{one} does not see {raw}/not-there"):
        prepare(raw, tmp_path / "out", SMALL, cluster=client)
    assert list(tmp_path.iterdir()) == []


def test_addresses_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://127.0.0.1:1"}))
    for address in ("tcp://127.0.0.1:1", str(file)):
        start = time.monotonic()
        with pytest.raises(KerassegError, match="no Dask scheduler answers .*refused"), connect(address):
            pass
        assert time.monotonic() - start < 5
    for address in ("nowhere", "local:0", "local:many", "tcp://host", "tcp://:8786"):
        with pytest.raises(UsageError), connect(address):
            pass
    file.write_text("[]")
    with pytest.raises(KerassegError, match="not a scheduler file"), connect(str(file)):
        pass


def test_a_scheduler_of_another_major_version_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = client.get_versions(check=False)
    real["scheduler"]["packages"]["distributed"] = "1999.1.0"
    monkeypatch.setattr(client, "get_versions", lambda **_: real)
    match = r"another major version of Dask \(found distributed 1999.1.0"
    with pytest.raises(KerassegError, match=match), pool(client):
        pass


# ---- faults


def slow_square(number: int) -> int:
    time.sleep(0.05)
    return number * number


def square_or_die(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def sleep_and_write(path: Path) -> int:
    time.sleep(0.3)
    path.touch()
    return 0


def say_and_wait(path: Path) -> bool:
    """Runs until SIGTERM, of which it leaves a trace."""
    from kerasseg_tfrecords.cluster import tell

    def end(*_: object) -> None:
        path.touch()
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    tell(f"began {path.name}")
    time.sleep(60)
    return True


def wait_for_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.1)


@pytest.mark.rest
def test_tasks_of_a_killed_worker_run_elsewhere(cluster: Cluster, client: Any, raw: Path, tmp_path: Path) -> None:
    with pool(client) as workers:
        results = workers.map(slow_square, range(60), trusted=True)
        found = [next(results)]
        cluster.kill("w2")
        found += results
    assert found == [n * n for n in range(60)]

    cluster.worker("w3")
    client.wait_for_workers(2, timeout=60)
    prepare(raw, tmp_path / "local", SMALL, jobs=1)

    def kill_first(stage: str, done: int, total: int) -> None:
        if "w3" in cluster.processes and done:
            cluster.kill("w3")

    prepare(raw, tmp_path / "far", SMALL, cluster=client, progress=kill_first)
    assert tree(tmp_path / "far") == tree(tmp_path / "local")
    cluster.worker("w2")
    client.wait_for_workers(2, timeout=60)


@pytest.mark.rest
def test_an_item_that_kills_its_workers_is_reported(client: Any) -> None:
    with pool(client) as workers:
        crashed = workers.map(square_or_die, range(20), batch=4, crashed=lambda number, _: -number, trusted=True)
        assert list(crashed) == [-7 if n == 7 else n * n for n in range(20)]
        with pytest.raises(DataError, match="it ended several processes that worked on it"):
            list(workers.map(square_or_die, [7], isolated=True))


def test_a_file_that_crashes_its_reader_is_one_bad_file(
    cluster: Cluster, client: Any, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(cluster.folder)
    monkeypatch.setattr("kerasseg_tfrecords.conversion.prepare.run_task", importlib.import_module("poison").run)
    with pool(client) as workers, pytest.raises(DataError):  # from now on, workers send errors with their context
        list(workers.map(raise_on_3, [3, 3, 3, 3], trusted=True))
    pids = client.run(os.getpid)
    with pytest.raises(BadInputError) as caught:
        prepare(raw, tmp_path / "out", SMALL, cluster=client)
    assert [(bad.name, bad.kind) for bad in caught.value.problems] == [("scans/17.mat", "crashed")]
    assert client.run(os.getpid) == pids


@pytest.mark.rest
def test_ctrl_c_cancels_what_this_command_submitted_and_nothing_else(client: Any, tmp_path: Path) -> None:
    other = client.submit(sleep_and_write, tmp_path / "other", pure=False)
    paths = [tmp_path / str(number) for number in range(100)]
    with pool(client) as workers:
        results = workers.map(sleep_and_write, paths, trusted=True)
        next(results)
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            list(results)
    assert other.result(timeout=60) == 0
    until(lambda: not any(client.processing().values()))
    assert len(list(tmp_path.iterdir())) < 20


@pytest.mark.rest
def test_an_isolated_task_reports_and_is_ended_when_cancelled(client: Any, tmp_path: Path) -> None:
    said: list[str] = []
    with pool(client) as workers:
        results = workers.map(say_and_wait, [tmp_path / "a", tmp_path / "b"], isolated=True, heard=said.append)
        timer = threading.Timer(0, lambda: (until(lambda: len(said) == 2), signal.raise_signal(signal.SIGINT)))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(results)
        results.close()
    assert sorted(said) == ["began a", "began b"]
    until(lambda: len(list(tmp_path.iterdir())) == 2)


@pytest.mark.rest
def test_a_busy_cluster_is_waited_for_and_said_so(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The other tasks end when the message is there: however slow the machine, it comes while they run."""
    monkeypatch.setattr("kerasseg_tfrecords.cluster._PATIENCE", 0.5)
    others = client.map(wait_for_file, [tmp_path / "said"] * 4, pure=False)

    def release() -> None:
        try:
            until(lambda: "Waiting for a free worker: 2 workers of tcp://" in caplog.text)
        finally:
            (tmp_path / "said").touch()

    listener = threading.Thread(target=release)
    listener.start()
    with pool(client) as workers:
        assert list(workers.map(square, [3], trusted=True)) == [9]
    listener.join()
    assert "Waiting for a free worker: 2 workers of tcp://" in caplog.text
    client.gather(others)


@pytest.mark.rest
def test_a_worker_that_cannot_import_kerasseg_is_named(
    cluster: Cluster, client: Any, raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "block.py").write_text("import sys; sys.modules['kerasseg_tfrecords'] = None")
    cluster.worker("w4", "--no-nanny", "--preload", str(tmp_path / "block.py"))
    client.wait_for_workers(3, timeout=60)
    with pytest.raises(KerassegError, match="1 of 3 workers .* cannot import kerasseg"):
        prepare(raw, tmp_path / "out", SMALL, cluster=client)
    cluster.kill("w4")
    until(lambda: len(client.nthreads()) == 2)


WITHOUT_TENSORFLOW = """
import importlib.metadata, sys

sys.modules.update(tensorflow=None, keras=None)
real = importlib.metadata.version

def version(name):
    if name.startswith(("tensorflow", "tf-")):
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

importlib.metadata.version = version
"""


@pytest.mark.rest
def test_workers_without_tensorflow_prepare_but_neither_predict_nor_train(
    cluster: Cluster, client: Any, raw: Path, tmp_path: Path
) -> None:
    from kerasseg import unet
    from kerasseg.runs.settings import TrainSettings
    from kerasseg.workflows.cross_validate import cross_validate
    from kerasseg.workflows.predict import predict_files

    (tmp_path / "block.py").write_text(WITHOUT_TENSORFLOW)
    cluster.worker("w6", "--no-nanny", "--preload", str(tmp_path / "block.py"))
    client.wait_for_workers(3, timeout=60)
    try:
        prepare(raw, tmp_path / "shards", SMALL, cluster=client)
        network = tmp_path / "unet.keras"
        unet((32, 32, 1), filters=2, depth=1, seed=0).save(network)
        said = r"1 of 3 workers cannot do this work \(found tcp://[0-9.:]+ has no TensorFlow\)"
        with pytest.raises(KerassegError, match=said):
            predict_files(network, raw, tmp_path / "masks", threshold=0.5, cluster=client)
        assert not list((tmp_path / "masks").glob("*.png"))
        settings = TrainSettings(shards=str(tmp_path / "shards"), checkpoint=str(network), epochs=1)
        with pytest.raises(KerassegError, match=said):
            cross_validate(settings, 2, tmp_path / "folds", cluster=client)
        assert not list((tmp_path / "folds").rglob("history.csv"))
    finally:
        cluster.kill("w6")
        until(lambda: len(client.nthreads()) == 2)


@pytest.mark.rest
def test_a_worker_whose_own_disk_is_full_is_named(cluster: Cluster, client: Any, raw: Path, tmp_path: Path) -> None:
    """A zip inside a zip is unpacked to the worker's folder for temporary files."""
    disk, folder = tmp_path / "disk", tmp_path / "scans"
    disk.mkdir()
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
        for path in raw.glob("*.mat"):
            inner.write(path, path.name)
    with zipfile.ZipFile(folder / "outer.zip", "w", zipfile.ZIP_DEFLATED) as outer:
        outer.write(tmp_path / "inner.zip", "inner.zip")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    plain = set(client.nthreads())
    cluster.worker("w7", "--no-nanny", "--local-directory", str(tmp_path), TMPDIR=str(disk))
    client.wait_for_workers(3, timeout=60)
    (full,) = set(client.nthreads()) - plain
    try:
        with pytest.raises(KerassegError, match="no space left on the disk for temporary files") as caught:
            prepare(folder, tmp_path / "shards", SMALL, cluster=client)
        assert f"(worker {full})" in str(caught.value)
        assert str(caught.value).startswith(f"{disk}: ")
    finally:
        cluster.kill("w7")
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # readers of the killed worker end within a second
        until(lambda: len(client.nthreads()) == 2)


def address(_: int) -> str:
    return str(distributed.get_worker().address)


@pytest.mark.rest
def test_only_workers_with_a_gpu_get_tasks_for_one(cluster: Cluster, client: Any) -> None:
    plain = set(client.nthreads())
    with pool(client, gpu=True) as workers:
        assert set(workers.map(address, range(20), trusted=True)) <= plain, "no worker has one: all are used"
    cluster.worker("w5", "--no-nanny", "--resources", "GPU=1")
    client.wait_for_workers(3, timeout=60)
    with pool(client, gpu=True) as workers:
        assert set(workers.map(address, range(20), trusted=True)) == set(client.nthreads()) - plain
    cluster.kill("w5")
    until(lambda: len(client.nthreads()) == 2)


@pytest.mark.rest
def test_a_scheduler_that_dies_costs_only_time(tmp_path: Path, cluster: Cluster, raw: Path) -> None:
    own = Cluster(tmp_path, cluster.environment)
    own.scheduler()
    own.worker("w1")
    until(own.file.exists)
    try:
        with connect(str(own.file)) as client:
            assert client is not None
            client.wait_for_workers(1, timeout=60)

            def kill(stage: str, done: int, total: int) -> None:
                if done:
                    own.kill("scheduler")

            with pytest.raises(KerassegError, match="the connection to the Dask scheduler was lost"):
                prepare(raw, tmp_path / "out", SMALL, cluster=client, progress=kill)
        staged = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial" / "spool").glob("*.json")}
        assert staged
        own.kill("w1")
        own.scheduler("second")
        until(own.file.exists)
        own.worker("w2")
        with connect(str(own.file)) as client:
            kept: set[str] = set()

            def look(stage: str, done: int, total: int) -> None:
                if stage == "compare":
                    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out.partial" / "spool").glob("*.json")}
                    kept.update(name for name, made in staged.items() if now.get(name) == made)

            prepare(raw, tmp_path / "out", SMALL, cluster=client, progress=look)
        assert kept == set(staged)
    finally:
        own.end()
