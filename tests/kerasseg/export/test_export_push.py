"""Uploading an export, against a server on this machine that speaks as much of the Hub's tongue as is needed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kerasseg.checkpoints.hub import HubAddress
from kerasseg.export.push import parse_address, push
from kerasseg_tfrecords.errors import KerassegError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Takes repositories and commits; keeps the files that were committed, and what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.refuse: int | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((path, self.headers.get("Authorization")))
        if self.server.refuse is not None:
            self.send({"error": "no"}, self.server.refuse)
        elif path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.send(
                {"url": f"http://127.0.0.1:{self.server.server_port}/me/unet", "name": "me/unet", "id": "me/unet"}
            )
        elif path == "/api/validate-yaml":
            self.send({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.send({"files": files})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.send({"success": True, "commitUrl": f"http://127.0.0.1/me/unet/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.send({"error": "unknown"}, 404)

    def send(self, document: Any, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Server() as running:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "export" / "variables").mkdir(parents=True)
    (tmp_path / "export" / "README.md").write_text("---\nlicense: other\n---\n# x\n")
    (tmp_path / "export" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "export" / "variables" / "variables.index").write_bytes(b"index")
    return tmp_path / "export"


@pytest.mark.parametrize(
    ("address", "branch", "inside"),
    [("hf://me/unet", "main", ""), ("hf://me/unet@tried", "tried", ""), ("hf://me/unet/models/a", "main", "models/a/")],
)
def test_every_file_arrives_in_one_commit(address: str, branch: str, inside: str, server: Server, folder: Path) -> None:
    assert push(folder, parse_address(address), private=True) == f"hf://me/unet@{COMMIT}"
    expected = {inside + p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert server.files == expected
    assert server.made[0]["name"] == "unet"
    assert server.made[0]["organization"] == "me"
    commits = [path for path, _ in server.asked if "/commit/" in path]
    assert commits == [f"/api/models/me/unet/commit/{branch}"]
    assert {token for path, token in server.asked if "/commit/" in path} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"not uploaded: the Hub rejects the token.*hf auth login"),
        (403, r"not uploaded: the token has no permission.*write permission"),
        (422, r"not uploaded: the Hub refused the upload"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(status: int, message: str, server: Server, folder: Path) -> None:
    server.refuse = status
    with pytest.raises(KerassegError, match=message) as caught:
        push(folder, HubAddress("me/unet"))
    assert str(caught.value).startswith("hf://me/unet: ")
    assert str(folder) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_a_network_it_says_so(server: Server, folder: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(KerassegError, match="not uploaded: the Hub cannot be reached"):
        push(folder, HubAddress("me/unet"))


def test_offline_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="not possible offline"):
        parse_address("hf://me/unet")
