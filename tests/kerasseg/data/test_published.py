"""`kerasseg fetch`: from a server on this machine that breaks off, lies, refuses, is slow, and finally gives."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import kerasseg
from factories import write_figshare
from kerasseg.data import published as datasets
from kerasseg_cli.app import app
from kerasseg_tfrecords import download as downloads
from kerasseg_tfrecords.errors import KerassegError, UsageError

SIZE = 300_000


@dataclass
class Behaviour:
    """How the server treats the next requests for a file."""

    break_after: list[int] = field(default_factory=list)
    """Bytes after which each request is broken off; those behind are answered whole."""
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    etag: str = '"one"'
    shift: int = 0
    """A server that begins its ranges elsewhere than asked."""
    length: str = ""
    """A `Content-Length` of its own."""
    silent: float = 0.0
    """Seconds without a byte, in the middle."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.behaviour = Behaviour()
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        behaviour, name = self.server.behaviour, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        self.server.asked.append((name, wanted))
        status = behaviour.statuses.pop(0) if behaviour.statuses else 200
        data = self.server.files.get(name)
        if status != 200 or data is None:
            self.send_response(404 if status == 200 else status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        same = self.headers.get("If-Range") in (None, behaviour.etag)
        if wanted and behaviour.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) + behaviour.shift
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if behaviour.etag:
            self.send_header("ETag", behaviour.etag)
        self.send_header("Content-Length", behaviour.length or str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        if behaviour.break_after:
            self.wfile.write(rest[: behaviour.break_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        if behaviour.silent:
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            time.sleep(behaviour.silent)
            behaviour.silent = 0
            rest = rest[len(rest) // 2 :]
        try:
            self.wfile.write(rest)
        except OSError:
            self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


CONTENT = {
    "1.zip": bytes(range(256)) * (SIZE // 256),
    "2.zip": b"other" * 2000,
}


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The data set `figshare` as two small files of this server."""
    server.files = dict(CONTENT)
    files = tuple(
        datasets.RemoteFile(name, f"{server.address}/{name}", len(data), hashlib.md5(data).hexdigest())  # noqa: S324
        for name, data in CONTENT.items()
    )
    monkeypatch.setitem(datasets.DATASETS, "figshare", replace(datasets.DATASETS["figshare"], files=files))
    return server


def fetch(folder: Path) -> datasets.FetchedDataset:
    return kerasseg.fetch_dataset("figshare", folder)


def complete(folder: Path) -> bool:
    return {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT


def test_what_is_pinned_is_a_whole_version() -> None:
    found = datasets.DATASETS["figshare"]
    names = [file.name for file in found.files]
    places = [tuple(map(int, re.findall(r"(\d+)-(\d+)", name)[0])) for name in names if name.endswith(".zip")]
    assert places == [(1, 766), (767, 1532), (1533, 2298), (2299, 3064)]
    assert all(re.fullmatch("[0-9a-f]{32}", file.md5) for file in found.files)
    assert all(re.fullmatch(r"https://ndownloader\.figshare\.com/files/\d+", file.url) for file in found.files)
    assert len({file.md5 for file in found.files}) == len({file.url for file in found.files}) == len(names) == 6
    assert sum(file.bytes for file in found.files) == 879_502_365


def test_it_is_fetched_once(published: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = kerasseg.fetch_dataset("figshare", tmp_path / "a" / "data", progress=lambda *one: told.append(one))
    assert (found.fetched, found.present) == (("1.zip", "2.zip"), ())
    assert complete(found.folder)
    assert told[-1] == ("2.zip", 10_000, 10_000)
    assert [done for name, done, _ in told if name == "1.zip"] == sorted(d for n, d, _ in told if n == "1.zip")
    again = kerasseg.fetch_dataset("figshare", tmp_path / "a" / "data")
    assert (again.fetched, again.present) == ((), ("1.zip", "2.zip"))
    assert len(published.asked) == 2


def test_a_broken_connection_is_gone_on_with(published: Server, tmp_path: Path) -> None:
    published.behaviour.break_after = [100_000, 50_000, 20_000]
    fetch(tmp_path)
    assert complete(tmp_path)
    ranges = [wanted for name, wanted in published.asked if name == "1.zip"]
    piece = downloads._PIECE
    starts = [100_000 // piece * piece, (100_000 // piece + 50_000 // piece) * piece]
    starts.append(starts[-1] + piece)
    assert ranges == [None, *(f"bytes={start}-" for start in starts)]


def test_a_later_process_goes_on(published: Server, tmp_path: Path) -> None:
    published.behaviour.break_after = [100_000] + [0] * downloads.ATTEMPTS
    with pytest.raises(KerassegError, match="interrupted.*Run the same command again") as caught:
        fetch(tmp_path)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "1.zip").exists()
    here = (tmp_path / "1.zip.part").stat().st_size
    assert 100_000 - downloads._PIECE < here <= 100_000
    published.asked.clear()
    fetch(tmp_path)
    assert published.asked[0] == ("1.zip", f"bytes={here}-")
    assert complete(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b, "ranges", False),
        lambda b: setattr(b, "etag", '"two"'),
        lambda b: setattr(b, "shift", 7),
    ],
    ids=["refuses ranges", "has another version", "begins elsewhere"],
)
def test_without_the_right_range_it_begins_anew(
    published: Server, tmp_path: Path, change: Callable[[Behaviour], None]
) -> None:
    published.behaviour.break_after = [100_000] + [0] * downloads.ATTEMPTS
    with pytest.raises(KerassegError):
        fetch(tmp_path)
    change(published.behaviour)
    fetch(tmp_path)
    assert complete(tmp_path)


def test_a_part_that_was_damaged_is_not_believed(published: Server, tmp_path: Path) -> None:
    (tmp_path / "1.zip.part").write_bytes(b"x" * 1000)
    (tmp_path / "2.zip.part").write_bytes(b"x" * 20_000)  # longer than the file
    fetch(tmp_path)
    assert complete(tmp_path)


def test_a_part_that_is_whole_already_is_taken(published: Server, tmp_path: Path) -> None:
    (tmp_path / "1.zip.part").write_bytes(CONTENT["1.zip"])
    fetch(tmp_path)
    assert complete(tmp_path)
    assert published.asked[0] == ("1.zip", f"bytes={len(CONTENT['1.zip'])}-")


def test_wrong_bytes_are_refused_and_not_kept(published: Server, tmp_path: Path) -> None:
    published.files["1.zip"] = CONTENT["1.zip"][:-1] + b"!"
    with pytest.raises(
        KerassegError, match=r"another file than the published one .expected MD5 [0-9a-f]{32}"
    ) as caught:
        fetch(tmp_path)
    assert "1.zip" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    published.files = dict(CONTENT)
    fetch(tmp_path)
    assert complete(tmp_path)


def test_longer_answers_are_broken_off(published: Server, tmp_path: Path) -> None:
    published.files["1.zip"] += b"more"
    with pytest.raises(KerassegError, match=rf"too large .found {len(CONTENT['1.zip']) + 4} bytes"):
        fetch(tmp_path)


def test_a_file_that_was_changed_is_fetched_again(published: Server, tmp_path: Path) -> None:
    fetch(tmp_path)
    (tmp_path / "2.zip").write_bytes(b"edited")
    found = fetch(tmp_path)
    assert (found.fetched, found.present) == (("2.zip",), ("1.zip",))
    assert complete(tmp_path)


def test_busy_servers_are_asked_again_and_others_are_not(published: Server, tmp_path: Path) -> None:
    published.behaviour.statuses = [503, 429, 500]
    fetch(tmp_path)
    assert complete(tmp_path)
    shutil.rmtree(tmp_path)
    published.asked.clear()
    del published.files["2.zip"]
    with pytest.raises(KerassegError, match=r"2\.zip: the server does not send the file .found 404 Not Found"):
        fetch(tmp_path)
    assert [name for name, _ in published.asked] == ["1.zip", "2.zip"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "500 Internal Server Error.*try again later"),
        (429, "429 Too Many Requests.*a few minutes"),
        (403, "403 Forbidden.*in a browser"),
        (599, "found 599.*try again later"),
    ],
)
def test_a_server_that_keeps_refusing_is_quoted(published: Server, tmp_path: Path, status: int, words: str) -> None:
    published.behaviour.statuses = [status] * downloads.ATTEMPTS
    with pytest.raises(KerassegError, match=rf"1\.zip: the server does not send the file .*{words}"):
        fetch(tmp_path)
    published.behaviour = Behaviour(break_after=[100_000])

    def break_down(_name: str, done: int, _total: int) -> None:
        if done:
            published.behaviour.statuses = [status] * downloads.ATTEMPTS

    with pytest.raises(KerassegError, match=rf"{words}.*The same command then resumes the download"):
        kerasseg.fetch_dataset("figshare", tmp_path, progress=break_down)


def test_a_server_that_falls_silent_is_left(published: Server, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    published.behaviour.silent = 0.7
    fetch(tmp_path)
    assert complete(tmp_path)
    assert len(published.asked) > 2


def test_offline_it_says_so_at_once(published: Server, tmp_path: Path, monkeypatch: Any) -> None:
    published.shutdown()
    published.server_close()
    monkeypatch.setattr(downloads, "PAUSE", 60.0)
    with pytest.raises(KerassegError, match="cannot be reached.*Check the network"):
        fetch(tmp_path)


def test_a_small_disk_is_noticed_before(published: Server, tmp_path: Path, monkeypatch: Any) -> None:
    usage = SimpleNamespace(free=len(CONTENT["1.zip"]) + 64 * 2**20)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KerassegError, match="disk is too small.*free.*expected"):
        fetch(tmp_path)
    assert not published.asked
    assert not list(tmp_path.iterdir())
    # What has come already needs no more room.
    (tmp_path / "1.zip").write_bytes(CONTENT["1.zip"])
    fetch(tmp_path)
    assert complete(tmp_path)


def test_names_and_places_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'figshare'"):
        kerasseg.fetch_dataset("fighsare", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="this is a file"):
        kerasseg.fetch_dataset("figshare", tmp_path / "file")


def test_without_a_hash_only_the_same_version_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.files, server.behaviour.etag = {"x": CONTENT["1.zip"]}, ""
    server.behaviour.break_after = [100_000]
    downloads.download(f"{server.address}/x", tmp_path / "x", most_bytes=SIZE)
    assert (tmp_path / "x").read_bytes() == CONTENT["1.zip"]
    assert [wanted for _, wanted in server.asked] == [None, None]


@pytest.mark.parametrize("length", ["many", "-5", "1e3", "9" * 30])
def test_an_invalid_length_is_named(server: Server, tmp_path: Path, length: str) -> None:
    server.files["file"] = b"content"
    server.behaviour.length = length
    with pytest.raises(KerassegError, match="invalid Content-Length|too large") as caught:
        downloads.retrieve(f"{server.address}/file", tmp_path / "file", most_bytes=100)
    assert "MD5" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_nothing_is_left_beside_a_download(server: Server, tmp_path: Path) -> None:
    """Not even what pooch had begun when an earlier process was killed."""
    server.files["file"] = b"content"
    left = tmp_path / ".tmp-kerasseg-dead"
    left.mkdir()
    (left / "tmpabc").write_bytes(b"half")
    assert downloads.retrieve(f"{server.address}/file", tmp_path / "file", most_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not downloads.retrieve(f"{server.address}/file", tmp_path / "file", most_bytes=100)


# --- the command ---------------------------------------------------------------------------------------------------------


def typed(*words: object, columns: int = 80) -> Any:
    return CliRunner().invoke(app, ["fetch", *map(str, words)], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def test_the_command_says_licence_citation_and_what_is_next(published: Server, tmp_path: Path) -> None:
    shown = typed("figshare", "--out", tmp_path)
    assert shown.exit_code == 0
    for words in ("CC BY 4.0", "10.1371/journal.pone.0140381", "10.6084/m9.figshare.1512427", "2 downloaded"):
        assert words in re.sub(r"\s+", " ", shown.stdout)
    assert f"Next: kerasseg prepare {tmp_path}" in shown.stdout
    assert "1.zip: 0.3 MB" in shown.stderr
    machine = json.loads(typed("figshare", "--out", tmp_path, "--json").stdout)
    assert machine["present"] == ["1.zip", "2.zip"]
    assert machine["licence"] == "CC BY 4.0"
    assert typed("--out", tmp_path, "--quiet").output == ""


def test_errors_of_the_command(published: Server, tmp_path: Path) -> None:
    published.files.clear()
    shown = typed("--out", tmp_path, "--json")
    assert shown.exit_code == 1
    assert "404" in json.loads(shown.stdout)["error"]


def test_prepare_reads_what_was_fetched(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """Zips of slices, the folds of the author and a readme, as the archive has them."""
    raw = write_figshare(tmp_path / "raw", patients=12, slices_each=1, size=32)
    with zipfile.ZipFile(tmp_path / "slices.zip", "w") as archive:
        for path in sorted(raw.rglob("*.mat")):
            archive.write(path, path.name)
    server.files = {"slices.zip": (tmp_path / "slices.zip").read_bytes(), "README%202024.txt": b"read me"}
    files = tuple(
        datasets.RemoteFile(name.replace("%20", " "), f"{server.address}/{name}", len(d), hashlib.md5(d).hexdigest())  # noqa: S324
        for name, d in server.files.items()
    )
    monkeypatch.setitem(datasets.DATASETS, "figshare", replace(datasets.DATASETS["figshare"], files=files))
    monkeypatch.chdir(tmp_path)
    assert typed().exit_code == 0
    shown = CliRunner().invoke(app, ["prepare", "data", "--size", "32", "--jobs", "1", "--split", "60/20/20", "--json"])
    assert shown.exit_code == 0, shown.output
    assert sum(count["slices"] for count in json.loads(shown.stdout)["counts"]) == 12
