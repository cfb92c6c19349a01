"""Work on a cluster of several hosts, with inputs on a file system that all see, or in a bucket."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from dask_cluster import LOOPBACK, Cluster, Host, hosts, until
from factories import write_figshare
from kerasseg_tfrecords import prepare, verify
from kerasseg_tfrecords.checks.raw_data import check_data
from kerasseg_tfrecords.cluster import cluster_pool, connect
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.records.manifest import PrepareOptions
from s3_server import KEY, SECRET, Store

pytest.importorskip("distributed")
pytestmark = pytest.mark.rest
SMALL = PrepareOptions(size=32, split="60/20/20", records_per_shard=4)


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Host, list[Host]]]:
    """This machine, and three hosts; all of them on loopback where hosts cannot be made."""
    with hosts(3) as found:
        yield found


@pytest.fixture(scope="module")
def server(network: tuple[Host, list[Host]]) -> Iterator[Store]:
    with Store(network[0].address) as store:
        yield store


@pytest.fixture(scope="module")
def own_disk(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder that is a disk of its own in each worker, where file systems can be mounted."""
    folder = tmp_path_factory.mktemp("own disk")
    try:
        subprocess.run(LOOPBACK.command("true", tmpfs=folder), capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return folder


@pytest.fixture(scope="module")
def cluster(
    network: tuple[Host, list[Host]],
    server: Store,
    own_disk: Path | None,
    tmp_path_factory: pytest.TempPathFactory,
    child_environment: dict[str, str],
) -> Iterator[Cluster]:
    environment = {name: value for name, value in child_environment.items() if not name.startswith("AWS_")}
    settings = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    made = Cluster(tmp_path_factory.mktemp("cluster"), environment | settings | server.environment)
    try:
        made.scheduler(host=network[1][0])
        made.worker("w1", host=network[1][1], tmpfs=own_disk)
        made.worker("w2", host=network[1][2], tmpfs=own_disk)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Any]:
    cluster.client(2).close()  # the file is complete
    with connect(str(cluster.file)) as client:
        yield client


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_figshare(tmp_path_factory.mktemp("raw") / "figshare", patients=30, slices_each=3, size=48)


@pytest.fixture(scope="module")
def shards(raw: Path) -> Path:
    prepare(raw, raw.parent / "shards", SMALL, jobs=1)
    return raw.parent / "shards"


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.reset()
    return server


def _recorded(found: list[bytes], real: Any, *arguments: Any, **options: Any) -> Any:
    found.append(b"".join(a if isinstance(a, bytes) else cloudpickle.dumps(a) for a in arguments))
    return real(*arguments, **options)


@pytest.fixture
def sent(client: Any, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that is sent to the workers."""
    found: list[bytes] = []
    for name in ("submit", "run"):
        monkeypatch.setattr(client, name, partial(_recorded, found, getattr(client, name)))
    return found


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_prepare_on_several_hosts_writes_the_same_bytes(
    network: tuple[Host, list[Host]], client: Any, raw: Path, shards: Path, tmp_path: Path
) -> None:
    at = [client.scheduler.address, *client.scheduler_info(n_workers=-1)["workers"]]
    found = sorted(address.split(":")[1].strip("/") for address in at)
    assert network[0] == LOOPBACK or found == [host.address for host in network[1]]
    prepare(raw, tmp_path / "far", SMALL, cluster=client)
    assert tree(tmp_path / "far") == tree(shards)
    assert verify(tmp_path / "far", cluster=client) == verify(shards)


def test_a_host_that_dies_costs_only_time(
    network: tuple[Host, list[Host]], cluster: Cluster, client: Any, raw: Path, shards: Path, tmp_path: Path
) -> None:
    cluster.worker("w3", "--no-nanny", host=network[1][1])
    client.wait_for_workers(3, timeout=60)

    def kill(stage: str, done: int, total: int) -> None:
        if "w3" in cluster.processes and done:
            cluster.kill("w3")

    prepare(raw, tmp_path / "far", SMALL, cluster=client, progress=kill)
    assert tree(tmp_path / "far") == tree(shards)
    until(lambda: len(client.nthreads()) == 2)


def test_schedulers_and_workers_that_only_their_own_machine_reaches(
    network: tuple[Host, list[Host]], cluster: Cluster, tmp_path: Path
) -> None:
    if network[0] == LOOPBACK:
        pytest.skip("there is only one machine")
    own = Cluster(tmp_path, cluster.environment)
    try:
        own.scheduler("first", "--host", "127.0.0.1", host=network[1][0])
        until(lambda: own.file.exists() and own.file.read_text().endswith("}"))
        refused = pytest.raises(KerassegError, match="no Dask scheduler answers .*start it with --host")
        with refused, connect(str(own.file)):
            pass
        own.kill("first")
        own.scheduler("second", host=network[1][0], DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s")
        own.worker("w1", "--no-nanny", "--host", "127.0.0.1", host=network[1][1])
        own.client(1).close()
        refused = pytest.raises(KerassegError, match="1 of 1 worker .*cannot be reached by the scheduler .*--host")
        with connect(str(own.file)) as client, refused, cluster_pool(client):
            pass
    finally:
        own.end()


@pytest.mark.parametrize("cache", ["shared", "own"])
def test_inputs_and_shards_in_a_bucket(
    cache: str,
    cluster: Cluster,
    client: Any,
    store: Store,
    own_disk: Path | None,
    raw: Path,
    shards: Path,
    sent: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cache == "own" and own_disk is None:
        pytest.skip("file systems cannot be mounted here")
    monkeypatch.setenv("KERASSEG_CACHE", str(own_disk if cache == "own" else tmp_path / "cache"))
    store.put_folder(raw, "scans/figshare")
    store.put_folder(shards, "shards")
    prepare("s3://bucket/scans/figshare", tmp_path / "far", SMALL, cluster=client)
    assert tree(tmp_path / "far") == tree(shards)
    copies = store.fetched() / len(list(raw.iterdir()))
    assert copies in ((2, 3) if cache == "own" else (1,)), (
        "one for the caller, and one for each worker with its own disk"
    )
    assert check_data(["s3://bucket/scans/figshare"], cluster=client).slices == 90
    assert verify("s3://bucket/shards", cluster=client) == verify(shards)

    logs = b"".join(path.read_bytes() for path in cluster.folder.glob("*.log"))
    assert any(b"s3://bucket/scans/figshare" in text for text in sent)
    for secret in (KEY.encode(), SECRET.encode()):
        assert secret not in b"".join(sent) + logs


def test_masks_for_images_in_a_bucket(
    client: Any, store: Store, own_disk: Path | None, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kerasseg
    from kerasseg.workflows.predict import predict_files

    monkeypatch.setenv("KERASSEG_CACHE", str(own_disk or tmp_path / "cache"))
    few = tmp_path / "few"
    few.mkdir()
    (few / "1.mat").hardlink_to(raw / "1.mat")  # one: each worker that predicts loads TensorFlow
    store.put_folder(few, "few")
    kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0).save(tmp_path / "unet.keras")
    for out, source, where in (("local", few, None), ("far", "s3://bucket/few", client)):
        predict_files(tmp_path / "unet.keras", source, tmp_path / out, threshold=0.5, cluster=where)
    masks, far = ({path.name: path.read_bytes() for path in (tmp_path / out).glob("*.png")} for out in ("local", "far"))
    assert list(masks) == ["1_mask.png"]
    assert far == masks


def test_workers_that_cannot_read_the_bucket_are_named(
    cluster: Cluster,
    client: Any,
    store: Store,
    own_disk: Path | None,
    raw: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if own_disk is None:
        pytest.skip("file systems cannot be mounted here")
    (tmp_path / "block.py").write_text("import sys; sys.modules['s3fs'] = None")
    store.put_folder(raw, "scans/figshare")
    bad = {
        "no credentials were found": ((), {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}),
        "needs a package": (("--preload", str(tmp_path / "block.py")), {}),
        "the server does not answer": ((), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}),
    }
    for name, (options, settings) in bad.items():
        cluster.worker(name.replace(" ", "-"), "--no-nanny", *options, tmpfs=own_disk, **settings)
    client.wait_for_workers(5, timeout=60)
    try:
        monkeypatch.setenv("KERASSEG_CACHE", str(own_disk))
        with pytest.raises(KerassegError, match="3 of 5 workers cannot do this work") as caught:
            prepare("s3://bucket/scans/figshare", tmp_path / "far", SMALL, cluster=client)
        for reason in bad:
            assert reason in str(caught.value)
        assert "s3://bucket/scans/figshare" in str(caught.value)
        assert not (tmp_path / "far").exists()

        monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path / "cache"))  # which they see
        prepare("s3://bucket/scans/figshare", tmp_path / "far", SMALL, cluster=client)
        assert tree(tmp_path / "far") == tree(shards)
    finally:
        for name in bad:
            cluster.kill(name.replace(" ", "-"))
        until(lambda: len(client.nthreads()) == 2)


def test_a_token_in_a_url_does_not_travel(
    client: Any, sent: list[bytes], own_disk: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_disk is None:
        pytest.skip("file systems cannot be mounted here")
    monkeypatch.setenv("KERASSEG_CACHE", str(own_disk))
    (own_disk / "remote").mkdir(exist_ok=True)
    url = f"https://example.org/scans.zip?token={SECRET}"
    refused = pytest.raises(KerassegError, match="does not see the copy of https://example.org/scans.zip")
    with refused as caught, cluster_pool(client, inputs=[url]):
        pass
    assert "KERASSEG_CACHE" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET.encode() not in b"".join(sent)
