"""An S3 server in this process (moto), which counts requests."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "AKIATESTKERASSEG", "not-a-real-secret"


class Store:
    """The server, which runs in a `with` block, with one bucket.

    Attributes:
        requests: Method and path of each request.
        refused: Paths to which access is denied.
        environment: Variables with which a process reads from the server.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        pytest.importorskip("s3fs")
        pytest.importorskip("flask")
        moto = pytest.importorskip("moto.server")
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[str] = []
        self.refused: set[str] = set()
        self.backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self.server = make_server(host, 0, self, threaded=True, request_handler=moto.MotoRequestHandler)
        self.address = f"http://{host}:{self.server.server_port}"
        values = {"ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "ENDPOINT_URL": self.address}
        nowhere = {"CONFIG_FILE": os.devnull, "SHARED_CREDENTIALS_FILE": os.devnull, "EC2_METADATA_DISABLED": "true"}
        both = values | nowhere | {"DEFAULT_REGION": "us-east-1"}
        self.environment = {f"AWS_{name}": value for name, value in both.items()}
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Store:
        self._thread.start()
        self.reset()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def reset(self) -> None:
        self.backend.reset()
        self.backend.create_bucket("bucket", "us-east-1")
        self.requests.clear()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        if environ["PATH_INFO"] in self.refused:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        return self._app(environ, start_response)

    def put(self, key: str, data: bytes = b"x") -> None:
        self.backend.put_object("bucket", key, data)

    def put_folder(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def fetched(self) -> int:
        """Objects requested since the last call."""
        found = sum(text.startswith("GET /bucket/") for text in self.requests)
        self.requests.clear()
        return found
