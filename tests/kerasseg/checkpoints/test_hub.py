"""Fetching from the Hub and the web, against a server on this machine that speaks as much of both as is needed."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import h5py
import keras
import numpy as np
import pytest

import kerasseg
from kerasseg.checkpoints import hub
from kerasseg.checkpoints.conversion import convert_checkpoint
from kerasseg.checkpoints.hub import choose
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance
from kerasseg.models.inspection import inspect_model
from kerasseg.runs.settings import TrainSettings
from kerasseg_tfrecords import download as downloads
from kerasseg_tfrecords.errors import CheckpointError, UsageError
from kerasseg_tfrecords.storage import url_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves `files` as the repository `me/unet` of a Hub and as plain files, and writes down what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.redirects: dict[str, str] = {}
        self.endless = False
        self.status: int | None = None
        """What is answered to everything, instead of what was asked for."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """The files that were sent, in order."""
        return [path for verb, path in self.asked if verb == "GET" and not path.startswith("/api/")]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.asked.append((self.command, path))
        if self.server.status is not None:
            self.send(b"", body, self.server.status)
            return
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.end_headers()
            return
        if path in {
            "/api/models/me/unet",
            "/api/models/me/unet/revision/main",
            f"/api/models/me/unet/revision/{COMMIT}",
        }:
            siblings = [{"rfilename": n, "size": len(d)} for n, d in self.server.files.items()]
            self.send(json.dumps({"id": "me/unet", "sha": COMMIT, "siblings": siblings}).encode(), body)
            return
        if path.startswith("/api/"):
            self.send(b'{"error": "Repository not found"}', body, 404, {"X-Error-Code": "RepoNotFound"})
            return
        name = path.removeprefix(f"/me/unet/resolve/{COMMIT}/").removeprefix("/files/")
        data = self.server.files.get(name)
        if data is None:
            self.send(b"not found", body, 404)
            return
        etag = hashlib.sha256(data).hexdigest()
        self.send(data, body, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def send(self, data: bytes, body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if not self.server.endless:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import huggingface_hub.constants as constants

    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with Server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def network() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, keras.layers.Conv2D(1, 3, activation="sigmoid")(inputs))


@pytest.fixture(scope="module")
def file(network: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("network") / "unet.keras"
    network.save(path)
    return path.read_bytes()


def same(a: keras.Model, b: keras.Model) -> bool:
    x = np.ones((1, 8, 8, 1), "float32")
    return bool((np.asarray(a(x)) == np.asarray(b(x))).all())


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["hf://me/unet", "hf://me/unet@main", f"hf://me/unet@{COMMIT}", "hf://me/unet/unet.keras"]
)
def test_a_repository_opens_by_name(address: str, server: Server, network: keras.Model, file: bytes) -> None:
    server.files = {"README.md": b"hello", "unet.keras": file, "training.log": b"x" * 1000}
    model = open_checkpoint(address)
    assert same(model, network)
    record = provenance(model)
    assert record is not None
    assert record.path == f"hf://me/unet@{COMMIT}/unet.keras"
    assert record.sha256 == hashlib.sha256(file).hexdigest()
    assert server.fetched() == [f"/me/unet/resolve/{COMMIT}/unet.keras"]  # only the files needed


def test_it_is_fetched_once(server: Server, file: bytes) -> None:
    server.files = {"unet.keras": file}
    open_checkpoint("hf://me/unet")
    open_checkpoint("hf://me/unet")
    assert len(server.fetched()) == 1


def test_offline_the_copy_will_do(server: Server, network: keras.Model, file: bytes) -> None:
    server.files = {"unet.keras": file}
    open_checkpoint("hf://me/unet")
    server.shutdown()
    server.server_close()
    assert same(open_checkpoint("hf://me/unet"), network)


def test_offline_without_a_copy_it_says_where_it_looked(server: Server, tmp_path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("hf://me/unet")
    text = str(caught.value)
    assert text.startswith("hf://me/unet: the file cannot be fetched, and no earlier copy exists")
    assert str(tmp_path / "hf") in text
    assert "its path" in text


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_the_weights_of_an_encoder_are_fetched_too(kind: str, server: Server, tmp_path: Path) -> None:
    options = {"input_shape": (32, 32, 1), "encoder": "mobilenetv3small", "decoder_filters": 2}
    kerasseg.unet(**options, encoder_weights=None, seed=1).save(tmp_path / "donor.keras")
    server.files = {"donor.keras": (tmp_path / "donor.keras").read_bytes()}
    base = "hf://me/unet" if kind == "hub" else f"{server.address}/files"
    secret = "" if kind == "hub" else "?X-Amz-Signature=SECRET"
    sources = tmp_path / "donor.keras", f"{base}/donor.keras{secret}", None
    local, far, none = (kerasseg.unet(**options, encoder_weights=source, seed=2).get_weights() for source in sources)
    assert all(np.array_equal(one, other) for one, other in zip(local, far, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(local, none, strict=True))
    with pytest.raises(CheckpointError) as caught:
        kerasseg.unet(**options, encoder_weights=f"{base}/no-such.keras{secret}")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "opened",
    [open_checkpoint, lambda source: kerasseg.unet((32, 32, 1), encoder="vgg16", encoder_weights=source)],
    ids=["network", "encoder"],
)
def test_a_damaged_file_is_named_by_its_address_and_can_be_fetched_again(
    opened: Callable[[str], Any], server: Server
) -> None:
    """The copy would otherwise be read again and again, whatever the server has by then."""
    server.files = {"w.h5": h5py_bytes()[:1000]}
    address = f"{server.address}/files/w.h5"
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            opened(f"{address}?X-Amz-Signature=SECRET")
        assert caught.value.path == address
        assert "SECRET" not in str(caught.value)
    copy = re.search(r"copy is (\S+): delete it", str(caught.value))
    assert copy is not None
    Path(copy[1]).unlink()
    server.files = {}
    with pytest.raises(CheckpointError, match="404"):
        opened(f"{address}?X-Amz-Signature=SECRET")


def h5py_bytes() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["x"] = np.zeros(1000)
    return stream.getvalue()


@pytest.mark.parametrize("address", ["https://me:SECRET@[::1/a.h5", "https://me:SECRET@\u2100.org/a.h5?SECRET"])
def test_an_invalid_address_is_explained(address: str) -> None:
    with pytest.raises(UsageError, match="the URL is invalid") as caught:
        hub.fetch(address)
    assert "SECRET" not in str(caught.value)
    with pytest.raises(UsageError, match="the URL is invalid") as caught:
        url_of(address)
    assert "SECRET" not in str(caught.value)


ANSWERS = [
    (500, "500 Internal Server Error", "The server has a problem"),
    (403, "403 Forbidden", "its path"),
    (429, "429 Too Many Requests", "too many requests"),
]


@pytest.mark.parametrize(("status", "words", "remedy"), ANSWERS)
@pytest.mark.parametrize("kind", ["hub", "web"])
def test_what_a_server_answers_is_said(
    kind: str, status: int, words: str, remedy: str, server: Server, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    server.files, server.status = {"unet.keras": file}, status
    address = "hf://me/unet" if kind == "hub" else f"{server.address}/files/unet.keras"
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(address)
    assert caught.value.what == "the server refuses the file, and no earlier copy exists"
    assert caught.value.found == words
    assert remedy in str(caught.value.remedy)
    server.status = None
    hub.fetch(address)
    server.status = status
    hub.fetch(address)  # the copy will do


def test_a_server_that_fails_between_list_and_file_is_quoted(
    server: Server, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's library then speaks of its cache, and has the answer behind that."""
    server.files = {"unet.keras": file}
    choose = hub.choose

    def choose_then_fail(*arguments: Any) -> hub.RepositoryCheckpoint:
        chosen = choose(*arguments)
        server.status = 403
        return chosen

    monkeypatch.setattr(hub, "choose", choose_then_fail)
    with pytest.raises(CheckpointError, match=r"refuses the file.*found 403 Forbidden.*hf auth login"):
        open_checkpoint("hf://me/unet")


def test_a_copy_that_changed_is_not_opened(server: Server, file: bytes) -> None:
    server.files = {"unet.keras": file}
    path = hub.fetch("hf://me/unet").path
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(file[:-1] + b"!")
    with pytest.raises(CheckpointError, match="has changed since it was fetched"):
        hub.fetch("hf://me/unet")


def test_unknown_repositories_are_named(server: Server) -> None:
    with pytest.raises(CheckpointError, match="hf://me/other: the Hub has no such repository"):
        open_checkpoint("hf://me/other")


def test_what_is_too_large_is_not_fetched(server: Server, file: bytes) -> None:
    server.files = {"unet.keras": file}
    with pytest.raises(CheckpointError, match="too large"):
        hub.fetch("hf://me/unet", most_bytes=len(file) - 1)
    assert server.fetched() == []


def test_a_saved_model_is_fetched_as_a_folder(server: Server) -> None:
    server.files = {
        "README.md": b"",
        "export/saved_model.pb": b"graph",
        "export/variables/variables.index": b"i",
        "export/variables/variables.data-00000-of-00001": b"d",
        "export/assets/big.bin": b"x",
    }
    fetched = hub.fetch("hf://me/unet")
    assert fetched.path.name == "export"
    assert fetched.source == f"hf://me/unet@{COMMIT}/export"
    assert sorted(p.name for p in fetched.path.rglob("*") if p.is_file()) == [
        "saved_model.pb",
        "variables.data-00000-of-00001",
        "variables.index",
    ]


@pytest.mark.parametrize("text", ["hf://unet", "hf://me/unet@", "hf://me/unet/../x", "hf://../unet/x", "hf://me/u net"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not an address on the Hugging Face Hub"):
        hub.HubAddress.parse(text)


# --- which files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "inside", "entry"),
    [
        (["a.h5", "saved_model.pb", "variables/x", "a.keras"], None, "a.keras"),
        (["a.h5", "saved_model.pb", "variables/x"], None, "."),
        (["config.json", "metadata.json", "model.weights.h5", "a.h5"], None, "."),
        (["a.weights.h5", "a.h5"], None, "a.h5"),
        (["a.weights.h5"], None, "a.weights.h5"),
        (["other.keras", "model.keras"], None, "model.keras"),
        (["other.keras", "best.keras"], "best.keras", "best.keras"),
        (["x/a.keras", "y/a.keras"], "y", "y/a.keras"),
    ],
)
def test_the_best_checkpoint_is_chosen(files: list[str], inside: str | None, entry: str) -> None:
    assert choose(files, inside, "hf://me/unet").entry == entry


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.keras", "b.keras"], r"several checkpoints \(found a\.keras, b\.keras\)\. Name one: hf://me/unet/a\.keras"),
        (["pytorch_model.bin", "README.md"], "no Keras checkpoint.*PyTorch"),
        (["model.onnx"], "export for inference"),
        ([], "found nothing"),
        (["../evil.keras"], "no Keras checkpoint"),
    ],
)
def test_what_cannot_be_chosen_is_explained(files: list[str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        choose(files, None, "hf://me/unet")


# --- the web ---------------------------------------------------------------------------------------------------------


def test_a_url_is_fetched_once_and_its_hash_kept(server: Server, network: keras.Model, file: bytes) -> None:
    server.files = {"unet.keras": file}
    url = f"{server.address}/files/unet.keras"
    model = open_checkpoint(url)
    assert same(model, network)
    record = provenance(model)
    assert record is not None
    assert (record.path, record.sha256) == (url, hashlib.sha256(file).hexdigest())
    server.shutdown()
    server.server_close()
    assert same(open_checkpoint(url), network)
    assert len(server.fetched()) == 1
    path = hub.fetch(url).path
    path.write_bytes(b"tampered")
    with pytest.raises(CheckpointError, match=r"has changed since it was fetched .*Delete it"):
        open_checkpoint(url)


def test_offline_a_url_says_where_it_looked(server: Server) -> None:
    url = f"{server.address}/files/unet.keras"
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match=r"an earlier copy in .*unet\.keras"):
        open_checkpoint(url)


def test_what_is_not_there_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="404"):
        open_checkpoint(f"{server.address}/files/nothing.keras")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize("endless", [False, True])
def test_urls_too_large_are_broken_off(endless: bool, server: Server, tmp_path: Path) -> None:
    server.files = {"x.keras": b"x" * 100_000}
    server.endless = endless  # with and without saying its length
    with pytest.raises(CheckpointError, match="too large"):
        hub.fetch(f"{server.address}/files/x.keras", most_bytes=50_000)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_redirects_are_followed_only_to_where_they_may_lead(server: Server, file: bytes) -> None:
    server.files = {"unet.keras": file}
    server.redirects = {
        "/ok": f"{server.address}/files/unet.keras",
        "/file": "file:///etc/passwd",
        "/plain": "http://example.org/unet.keras",
    }
    assert hub.fetch(f"{server.address}/ok").path.read_bytes() == file
    for name in ("file", "plain"):
        with pytest.raises(CheckpointError, match="redirects to an address without encryption"):
            hub.fetch(f"{server.address}/{name}")


@pytest.mark.parametrize(
    "url", ["http://example.org/a.h5", "ftp://example.org/a.h5", "file:///etc/passwd", "s3://b/a.h5"]
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="does not download from"):
        open_checkpoint(url)


LAZY = """
import os
os.environ.pop("HF_ENDPOINT", None)
import huggingface_hub
from kerasseg.checkpoints.hub import fetch
from kerasseg_tfrecords.errors import CheckpointError

def unreachable(*_, **__):
    raise OSError("no network")

huggingface_hub.HfApi.model_info = unreachable
try:
    fetch("hf://nobody/nothing")
except CheckpointError as error:
    print(error)
"""


def test_the_default_address_of_the_hub_needs_nothing_imported_before(
    python: str, child_environment: dict[str, str], tmp_path: Path
) -> None:
    """The package loads `constants` by itself only where something else has; a first command has not."""
    environment = {**child_environment, "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([python, "-c", LAZY], env=environment, capture_output=True, text=True, check=False)
    assert "hf://nobody/nothing" in done.stdout, done.stderr


def secret(server: Server, name: str = "unet.keras") -> str:
    return f"http://me:PASSW@127.0.0.1:{server.server_port}/files/{name};key=SIGNED?X-Amz-Signature=SIGNED#k=SIGNED"


def test_no_credentials_are_recorded(
    server: Server, file: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    server.files = {"unet.keras": file}
    model = open_checkpoint(secret(server))
    made = convert_checkpoint(secret(server), tmp_path / "out.keras")
    record = provenance(model)
    assert record is not None
    assert record.path == f"{server.address}/files/unet.keras"
    settings = TrainSettings(checkpoint=secret(server))
    assert settings.checkpoint == secret(server)  # what is opened
    with zipfile.ZipFile(tmp_path / "out.keras") as archive:
        config = archive.read("config.json").decode()
    cached = list((tmp_path / "cache").rglob("*"))
    kept = [*map(str, cached), *(p.read_text() for p in cached if p.suffix == ".json")]
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("urllib3", "requests"))]
    texts = [
        config,
        json.dumps(made.to_json()),
        settings.model_dump_json(),
        inspect_model(model, path=secret(server)).path,
    ]
    for text in (*texts, *kept, *ours, *capfd.readouterr()):
        assert "PASSW" not in text
        assert "SIGNED" not in text


@pytest.mark.rest
@pytest.mark.parametrize("status", [None, 403, 500])
def test_no_credentials_in_errors(status: int | None, server: Server) -> None:
    server.status = status
    if status is None:
        server.shutdown()
        server.server_close()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(secret(server, "none.keras"))
    for text in (str(caught.value), caught.value.path, caught.value.found, caught.value.remedy):
        assert "PASSW" not in (text or "")
        assert "SIGNED" not in (text or "")
