"""Inputs and shards at URLs: an S3 server (moto) and a web server on this machine, credentials from the environment."""

from __future__ import annotations

import errno
import fcntl
import functools
import http.server
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import pytest
from typer.testing import CliRunner

from factories import write_figshare
from kerasseg.runs.config import shards_of
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import TrainSettings
from kerasseg_cli.app import app
from kerasseg_tfrecords import load_manifest, prepare, read_records, storage
from kerasseg_tfrecords.checks.raw_data import check_data
from kerasseg_tfrecords.checks.shards import verify
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import MANIFEST, PrepareOptions, local_shards
from kerasseg_tfrecords.splitting.splits_file import load
from kerasseg_tfrecords.storage import local_copy, url_of
from s3_server import KEY, SECRET, Store

OPTIONS = PrepareOptions(size=32, split="60/20/20")


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with Store() as store:
        yield store


@pytest.fixture
def store(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path / "cache"))
    server.reset()
    return server


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_figshare(tmp_path_factory.mktemp("raw") / "figshare", patients=15, slices_each=1, size=40)


@pytest.fixture(scope="module")
def shards(raw: Path) -> Path:
    prepare(raw, raw.parent / "shards", OPTIONS, jobs=1)
    return raw.parent / "shards"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def type_command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- URLs -------------------------------------------------------------------------------------------------------------


def test_urls_are_recognised_also_where_path_has_removed_a_slash(tmp_path: Path) -> None:
    assert url_of("s3://b/a b/1.mat") == url_of(Path("S3://b/a b/1.mat")) == "s3://b/a b/1.mat"
    assert url_of("https://h/a.zip?sig=1") == url_of(Path("https://h/a.zip?sig=1")) == "https://h/a.zip?sig=1"
    for local in ("data", "/data/s3", "a:b/c", str(tmp_path), "s3", "s3:"):
        assert url_of(local) is None
        assert local_copy(local) == Path(local)


def test_a_folder_whose_name_looks_like_a_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/bucket").mkdir(parents=True)
    assert url_of("s3://bucket") is None


@pytest.mark.parametrize("url", ["ftp://h/a.zip", "file:///data", "s3://", "s3://key:word@b/x", "gs:///?x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        url_of(url)
    assert "word" not in str(refused.value)
    assert url_of("simplecache::s3://b/x") is None, "readers of readers are not used"


def test_local_paths_load_no_reader_of_urls(python: str, child_environment: dict[str, str], shards: Path) -> None:
    import subprocess

    code = (
        "import sys; from kerasseg_tfrecords import load_manifest, read_records\n"
        f"load_manifest({str(shards)!r}); next(iter(read_records({str(shards)!r}, 'val')))\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'fsspec', 's3fs', 'requests', 'aiohttp'}))"
    )
    done = subprocess.run([python, "-c", code], env=child_environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", [("prepare", "raw"), ("predict", "raw"), ("train",), ("cross-validate",), ("export",)]
)
def test_output_to_a_url_is_refused(command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = type_command(*command, "--out", "s3://bucket/out")
    assert done.exit_code == 2
    assert "s3://bucket/out: kerasseg writes to local folders only. Choose a folder with --out" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_outputs_of_the_library_are_refused(raw: Path) -> None:
    with pytest.raises(UsageError, match="local folders only"):
        prepare(raw, "s3://bucket/shards")
    with pytest.raises(UsageError, match="local folders only"):
        RunDirectory.check_free(Path("gs://bucket/run"))


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_shards_from_s3_are_those_from_the_same_local_folder(
    store: Store, raw: Path, shards: Path, tmp_path: Path
) -> None:
    store.put_folder(raw, "scans/figshare")
    prepare("s3://bucket/scans/figshare", tmp_path / "shards", OPTIONS, jobs=1)
    assert contents(tmp_path / "shards") == contents(shards)
    assert store.fetched() == 15

    prepare(Path("s3://bucket/scans/figshare/"), tmp_path / "again", OPTIONS, jobs=1)
    assert contents(tmp_path / "again") == contents(shards)
    report = check_data(["s3://bucket/scans/figshare"])
    assert (report.ok, report.inputs, report.slices) == (True, (("s3://bucket/scans/figshare", "figshare"),), 15)
    assert store.fetched() == 0


def test_nothing_is_copied_for_a_command_that_cannot_work(store: Store, shards: Path) -> None:
    store.put("x/1.png")
    with pytest.raises(UsageError, match="shards already exist"):
        prepare("s3://bucket/x", shards)
    with pytest.raises(UsageError, match="invalid --classes"):
        prepare("s3://bucket/x", shards.parent / "none", PrepareOptions(classes=("a", "a")))
    assert store.fetched() == 0


def test_only_what_has_changed_is_copied_again_and_what_is_gone_is_deleted(store: Store) -> None:
    for name in ("1.png", "a/2.png", "a/3.png", ".hidden", "b/.DS_Store"):
        store.put(f"x/{name}", b"one")
    store.put("x/", b"")
    store.put("x/empty/", b"")
    store.put("xy/4.png", b"of another folder")
    copy = local_copy("s3://bucket/x")
    assert contents(copy) == {"1.png": b"one", "a/2.png": b"one", "a/3.png": b"one"}
    assert store.fetched() == 3

    before = (copy / "1.png").stat().st_mtime_ns
    store.put("x/a/2.png", b"two")  # of the same size, within the same second
    store.backend.delete_object("bucket", "x/a/3.png")
    assert local_copy("s3://bucket/x") == copy
    assert contents(copy) == {"1.png": b"one", "a/2.png": b"two"}
    assert (store.fetched(), (copy / "1.png").stat().st_mtime_ns) == (1, before)

    store.backend.delete_object("bucket", "x/a/2.png")
    local_copy("s3://bucket/x")
    assert [path.name for path in copy.iterdir()] == ["1.png"]


def test_single_objects_and_whole_buckets_are_inputs(store: Store) -> None:
    store.put("scans/a [1]?.png", b"one")
    copy = local_copy("s3://bucket/scans/a [1]?.png")
    assert (copy.name, copy.read_bytes()) == ("a [1]?.png", b"one")
    assert contents(local_copy("s3://bucket")) == {"scans/a [1]?.png": b"one"}
    store.fetched()
    local_copy("s3://bucket/scans/a [1]?.png")
    assert store.fetched() == 0


def test_a_listing_is_read_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PAGE", 20)
    for number in range(400):
        store.put(f"many/{number:04}.png")
    listing = storage._listed("s3://bucket/many", "bucket/many")
    assert [next(listing)[1] for _ in range(30)][-1] == "0029.png"
    assert len(store.requests) == 2, "pages are requested when they are needed"
    assert [name for _, name, _ in listing] == [f"{number:04}.png" for number in range(30, 400)]
    assert len(store.requests) == 20


class Listed(dict[str, Any]):
    """An object in a listing; counts how many exist at once."""

    alive = most = 0

    def __init__(self, *facts: Any) -> None:
        super().__init__(*facts)
        Listed.alive += 1
        Listed.most = max(Listed.alive, Listed.most)

    def __del__(self) -> None:
        Listed.alive -= 1


class ManyObjects:
    """A store that lists 10,000 objects, made page by page."""

    def split_path(self, path: str) -> list[str]:
        return ["bucket", path.partition("/")[2], ""]

    def call_s3(self, _: str, **asked: Any) -> dict[str, Any]:
        first = int(asked.get("ContinuationToken", 0))
        names = [f"many/{number:05}.png" for number in range(first, first + 100)]
        page = [Listed({"Key": name, "Size": 1, "ETag": f'"{name}"'}) for name in names]
        return {"Contents": page, "IsTruncated": first < 9_900, "NextContinuationToken": str(first + 100)}


def test_ten_thousand_objects_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_store", lambda _: ManyObjects())
    monkeypatch.setattr(storage.Wanted, "is_in", lambda *_: True)
    with pytest.raises(DataError, match="same file name"):  # none of the files is there
        storage._mirror("s3://bucket/many", "bucket/many", tmp_path / "many", None)
    assert 100 <= Listed.most <= 200, "at most a page and the next one"


def test_an_interrupted_copy_continues(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_BATCH", 4)
    for number in range(10):
        store.put(f"x/{number}.png", b"%d" % number)

    def stop(_stage: str, done: int, _total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_copy("s3://bucket/x", stop)
    assert store.fetched() == 8
    copy = local_copy("s3://bucket/x")
    assert store.fetched() == 2
    assert contents(copy) == {f"{number}.png": b"%d" % number for number in range(10)}
    assert {path.name for path in copy.parent.iterdir()} == {"x"}, "nothing else is left"


def test_an_object_that_arrives_incomplete_gets_no_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("x/1.png", b"whole")
    listed = storage._listed
    short = lambda *asked: ((path, name, {**info, "size": 9}) for path, name, info in listed(*asked))  # noqa: E731
    monkeypatch.setattr(storage, "_listed", short)
    with pytest.raises(DataError, match="not sent completely.*found 5 bytes, expected 9 bytes"):
        local_copy("s3://bucket/x")
    assert [path for path in storage.remote_cache().rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize("key", ["../out", "a/../../out", "a//b", "/etc", "a\\b", "a\nb", "./a", "a/..", "z" * 256])
def test_hostile_names_are_refused(store: Store, key: str) -> None:
    store.put(f"x/{key}")
    with pytest.raises(DataError, match="the name of an object cannot be that of a file"):
        local_copy("s3://bucket/x")
    assert [path.name for path in storage.remote_cache().rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_file_and_a_folder_of_one_name_are_refused(store: Store) -> None:
    store.put("x/a")
    store.put("x/a/b")
    with pytest.raises(DataError, match="a file and a folder have the same name"):
        local_copy("s3://bucket/x")


def test_two_processes_may_copy_at_once(store: Store) -> None:
    for number in range(20):
        store.put(f"x/{number}.png", b"%d" % number)
    threads = [threading.Thread(target=local_copy, args=["s3://bucket/x"]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.fetched() == 20
    assert len(contents(local_copy("s3://bucket/x"))) == 20


def test_copies_that_nobody_uses_are_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", "old", "held", "busy"):
        store.put(f"{name}/1.png")
    places = {name: local_copy(f"s3://bucket/{name}").parent for name in ("old", "held", "busy")}
    for name in ("old", "busy"):
        os.close(storage._HELD.pop(places[name]))  # as if their process had ended
    for place in places.values():
        os.utime(place, (0, time.time() - 31 * 24 * 3600))
    with storage._lock_of(places["busy"]).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process is copying
        copy = local_copy("s3://bucket/new")
    names = {
        path.name
        for place in (copy.parent, places["held"], places["busy"])
        for path in (place, storage._lock_of(place))
    }
    assert {path.name for path in storage.remote_cache().iterdir()} == names
    assert contents(local_copy("s3://bucket/old")) == {"1.png": b"x"}


@pytest.mark.rest
def test_masks_are_predicted_for_images_in_s3(store: Store, raw: Path, tmp_path: Path) -> None:
    import kerasseg
    from kerasseg.workflows.predict import predict_files

    shutil.copytree(
        raw, tmp_path / "few", ignore=lambda _, names: [name for name in names if name not in {"1.mat", "2.mat"}]
    )
    store.put_folder(tmp_path / "few", "few")
    network = kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0)
    for source, out in ((tmp_path / "few", "local"), ("s3://bucket/few", "remote")):
        predict_files(network, source, tmp_path / out, threshold=0.5)
    masks = [
        {name: data for name, data in contents(tmp_path / out).items() if name.endswith(".png")}
        for out in ("local", "remote")
    ]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 2


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards_in_s3_are_read_as_local_ones_and_only_the_split_that_is_needed(store: Store, shards: Path) -> None:
    store.put_folder(shards, "shards")
    url = "s3://bucket/shards/"
    assert load_manifest(url) == load_manifest(shards)
    assert store.fetched() == 1
    assert [r.slice_id for r in read_records(url, "test")] == [r.slice_id for r in read_records(shards, "test")]
    copy = local_shards(url)
    assert {path.name for path in copy.iterdir()} == {MANIFEST, "splits.csv", "test"}
    assert load(f"{url}splits.csv") == load(shards / "splits.csv")
    assert verify(url).sound
    assert contents(copy) == contents(shards)


def test_shards_that_were_prepared_again_get_another_folder(
    store: Store, raw: Path, shards: Path, tmp_path: Path
) -> None:
    store.put_folder(shards, "shards")
    before = local_shards("s3://bucket/shards", ["val"])
    prepare(raw, tmp_path / "other", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    store.put_folder(tmp_path / "other", "shards")
    assert load_manifest("s3://bucket/shards").size == 16
    assert load_manifest(before).size == 32


def test_a_shard_that_differs_from_its_hash_is_not_kept(store: Store, shards: Path) -> None:
    store.put_folder(shards, "shards")
    assert verify("s3://bucket/shards").sound
    name = load_manifest(shards).shards_of("val")[0].path
    store.put(f"shards/{name}", bytes(len((shards / name).read_bytes())))
    with pytest.raises(DataError, match=r"was changed.*found SHA-256 .*, expected SHA-256 .*upload the files again"):
        verify("s3://bucket/shards")
    shutil.rmtree(storage.remote_cache())
    with pytest.raises(DataError, match=f"bucket/shards/{name}"):
        list(read_records("s3://bucket/shards", "val"))
    assert not (local_shards("s3://bucket/shards") / name).exists()


def test_a_manifest_cannot_name_files_elsewhere(store: Store, shards: Path) -> None:
    document = json.loads((shards / MANIFEST).read_text())
    document["shards"][0]["path"] = "../../outside.tfrecord"
    store.put("evil/manifest.json", json.dumps(document).encode())
    store.put("outside.tfrecord", b"x")
    with pytest.raises(DataError, match="the name of an object cannot be that of a file"):
        local_shards("s3://bucket/evil", ["train", "val", "test"])
    assert list(storage.remote_cache().parent.rglob("outside*")) == []


@pytest.mark.rest
def test_a_run_on_shards_in_s3_is_that_on_local_ones(
    store: Store, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store.put_folder(shards, "data/shards")
    tiny = ("--strategy", "scratch", "--filters", 2, "--depth", 1, "--epochs", 1, "--precision", "float32")
    url = "s3://bucket/data/shards"
    for where, out in ((shards, "local"), (url, "remote")):
        done = type_command("train", "--shards", where, "--out", out, *tiny, "--batch-size", 4, "-q")
        assert done.exit_code == 0, done.output
        done = type_command("evaluate", out, "-q")
        assert done.exit_code == 0, done.output
    assert store.fetched() > 0
    histories = [
        [line.split(",")[:4] for line in Path(run, "history.csv").read_text().splitlines()]
        for run in ("local", "remote")
    ]
    assert histories[0] == histories[1]
    rows = [Path(run, "evaluation", "test", "per_slice.csv").read_bytes() for run in ("local", "remote")]
    assert rows[0] == rows[1]
    assert json.loads(Path("remote/config.json").read_text())["settings"]["shards"] == url
    metrics = json.loads(Path("remote/evaluation/test/metrics.json").read_text())
    assert (metrics["shards"], metrics["test_looks"]) == ("shards", 1)
    written = b"".join(data for name, data in contents(tmp_path).items() if not name.endswith((".keras", ".tfrecord")))
    assert KEY.encode() not in written
    assert SECRET.encode() not in written


# --- errors -----------------------------------------------------------------------------------------------------------


def test_missing_objects_and_buckets_are_named(store: Store) -> None:
    with pytest.raises(DataError, match="s3://bucket/none: no such object or folder. Check the URL"):
        local_copy("s3://bucket/none")
    with pytest.raises(DataError, match="s3://other/x: no such bucket.*AWS_ENDPOINT_URL"):
        local_copy("s3://other/x")
    with pytest.raises(DataError, match=r"s3://bucket/none: not a shard directory \(expected manifest.json\)"):
        load_manifest(Path("s3://bucket/none"))


def test_wrong_and_missing_credentials_are_told_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import settings

    store.put("x/1.png")
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(KerassegError, match="s3://bucket/x: access was denied.*Check that your credentials") as denied:
        local_copy("s3://bucket/x")
    assert KEY not in str(denied.value)
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(KerassegError, match="s3://bucket/x: no credentials were found.*AWS_ACCESS_KEY_ID"):
        local_copy("s3://bucket/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)  # in the same process, once they are set
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert len(contents(local_copy("s3://bucket/x"))) == 1


def test_the_object_that_cannot_be_read_is_named_and_the_others_are_kept(store: Store) -> None:
    for number in range(4):
        store.put(f"x/{number}.png", b"%d" % number)
    store.refused.add("/bucket/x/2.png")
    with pytest.raises(KerassegError, match=r"s3://bucket/x/2.png: access was denied \(found AccessDenied\)"):
        local_copy("s3://bucket/x")
    store.refused.clear()
    store.fetched()
    assert len(contents(local_copy("s3://bucket/x"))) == 4
    assert store.fetched() == 2


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path))
    storage._filesystem.cache_clear()
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(KerassegError, match=r"pip install 'kerasseg\[remote\]'"):
        local_copy("s3://bucket/x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(KerassegError, match="pip install 'gcsfs'"):
        local_copy("gs://bucket/x")


def test_a_full_disk_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("x/1.png", b"some bytes")
    reader = storage._store("s3://bucket")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reader, "get", full)
    monkeypatch.setattr(reader, "get_file", full)
    with pytest.raises(KerassegError, match="remote: no space left on the disk.*KERASSEG_CACHE") as told:
        local_copy("s3://bucket/x")
    assert str(storage.remote_cache()) in str(told.value)


def test_other_object_stores_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gs://` and the like have no paged listing that fsspec offers; fsspec's store in memory stands for them."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path))
    monkeypatch.setitem(storage._STORES, "memory", ("fsspec", "NONE"))
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/x/1.png": b"one", "/bucket/x/a/2.png": b"two", "/bucket/xy/3.png": b"three"})
    copy = local_copy("memory://bucket/x")
    assert contents(copy) == {"1.png": b"one", "a/2.png": b"two"}
    memory.pipe("/bucket/x/1.png", b"new")
    memory.rm("/bucket/x/a", recursive=True)
    assert contents(local_copy("memory://bucket/x")) == {"1.png": b"new"}
    memory.rm("/bucket", recursive=True)


@pytest.mark.rest
def test_google_storage_is_read_as_s3(raw: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By default, gcsfs asks Google itself for the kind of each bucket.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    config = pytest.importorskip("fsspec.config")
    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(config.conf, "gs", {"token": "anon"})  # as FSSPEC_GS_TOKEN, which is read at import
    with emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket") as server:
        address = f"http://127.0.0.1:{server._api._httpd.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        uploads = gcsfs.GCSFileSystem(token="anon", endpoint_url=address, skip_instance_cache=True)  # noqa: S106
        for path in raw.iterdir():
            uploads.pipe(f"bucket/scans/figshare/{path.name}", path.read_bytes())
        prepare("gs://bucket/scans/figshare", tmp_path / "shards", OPTIONS, jobs=1)
        assert contents(tmp_path / "shards") == contents(shards)
        copy = local_copy("gs://bucket/scans")
        before = {path.name: path.stat().st_mtime_ns for path in copy.rglob("*.mat")}
        uploads.pipe("bucket/scans/figshare/1.mat", b"new")
        uploads.rm("bucket/scans/figshare/2.mat")
        assert local_copy("gs://bucket/scans") == copy
        after = {path.name: path.stat().st_mtime_ns for path in copy.rglob("*.mat")}
        assert {name for name in before if before[name] != after.get(name)} == {"1.mat", "2.mat"}
        with pytest.raises(DataError, match="gs://bucket/none: no such object or folder"):
            local_copy("gs://bucket/none")


# --- the web ----------------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends files, those below "locked" only with a token, and remembers what was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/locked/") and f"token={SECRET}" not in self.path:
            self.send_error(403)
        else:
            self.path = urlparse(self.path).path
            super().do_GET()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """Address and folder of a web server, and the paths that were requested."""
    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "www"
    folder.mkdir()
    handler = type("Asked", (Handler,), {"asked": []})
    make: Callable[..., Any] = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder, handler.asked
        server.shutdown()
        thread.join()


def test_a_file_on_the_web_is_an_input(
    web: tuple[str, Path, list[str]], raw: Path, shards: Path, tmp_path: Path
) -> None:
    address, folder, _ = web
    shutil.make_archive(str(folder / "figshare"), "zip", raw)
    url = f"{address}/figshare.zip;key={SECRET}?token={SECRET}"
    manifest = prepare(url, tmp_path / "shards", OPTIONS, jobs=1)
    assert manifest.slices_in("train") == load_manifest(shards).slices_in("train")
    assert SECRET.encode() not in b"".join(contents(tmp_path / "shards").values())
    copy = local_copy(url)
    before = copy.stat().st_ino
    assert local_copy(url).stat().st_ino == before, "not downloaded again"
    (folder / "figshare.zip").write_bytes(b"other")
    assert local_copy(url).read_bytes() == b"other"
    assert [path.name for path in copy.parent.iterdir()] == ["figshare.zip"]


def test_shards_on_the_web_are_read_by_name(web: tuple[str, Path, list[str]], shards: Path) -> None:
    address, folder, asked = web
    shutil.copytree(shards, folder / "my shards")
    for url in (f"{address}/my shards", f"{address}/my shards/", f"{address}/my shards/manifest.json"):
        assert [r.slice_id for r in read_records(url, "val")] == [r.slice_id for r in read_records(shards, "val")]
    assert sum(path.endswith(".tfrecord") for path in asked) == len(load_manifest(shards).shards_of("val"))


def test_a_run_on_shards_with_a_token_asks_for_the_whole_url(web: tuple[str, Path, list[str]], shards: Path) -> None:
    address, folder, _ = web
    shutil.copytree(shards, folder / "locked")
    url = f"{address}/locked?token={SECRET}"
    stored = TrainSettings.model_validate_json(TrainSettings(shards=url).model_dump_json())
    config: Any = SimpleNamespace(settings=stored)
    with pytest.raises(KerassegError, match="403 Forbidden.*give the whole URL with --shards") as refused:
        shards_of(config)
    assert SECRET not in str(refused.value)
    assert shards_of(config, url)[1] == load_manifest(shards)


def test_folders_and_missing_files_on_the_web_are_refused(web: tuple[str, Path, list[str]]) -> None:
    address = web[0]
    with pytest.raises(UsageError, match="a folder on a web server cannot be listed.*the URL of one file"):
        local_copy(f"{address}/scans/")
    with pytest.raises(KerassegError, match="404 Not Found") as missing:
        local_copy(f"{address}/none.zip?token={SECRET}")
    assert SECRET not in str(missing.value)
    with pytest.raises(DataError, match="not a shard directory"):
        load_manifest(f"{address}/none")
    with pytest.raises(UsageError, match="does not download from `http://`"):
        local_copy("http://example.org/a.zip")
    with pytest.raises(UsageError, match="the URL contains white space") as refused:
        local_copy("https://example.org/a b.zip;sig=S3CRET")
    assert "S3CRET" not in str(refused.value)
