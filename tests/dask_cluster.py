"""A Dask scheduler and its workers, each a process, on hosts with their own addresses where the system allows them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Host:
    """Where a process runs: in a network namespace, or, without a name, on this machine's loopback."""

    address: str = "127.0.0.1"
    namespace: str = ""

    def command(self, *command: str, tmpfs: Path | None = None) -> list[str]:
        """A command on this host, for which `tmpfs` is a disk of its own."""
        own_disk = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        disk = [] if tmpfs is None else ["unshare", "--mount", "sh", "-c", own_disk, str(tmpfs)]
        return [*(["ip", "netns", "exec", self.namespace] if self.namespace else []), *disk, *command]


LOOPBACK = Host()
_MADE = re.compile(r"^(?:\d+: )?(kerasseg-(\d+)-\d+|ks(\d+))\b", re.MULTILINE)
"""Namespaces and bridges, with the process id of the test that made them."""
_PEERS = """
import socket, sys
address, count = (sys.argv[1], 4242), int(sys.argv[2])
if count:
    with socket.create_server(address) as server:
        server.settimeout(10)
        print(flush=True)
        for _ in range(count):
            server.accept()[0].close()
else:
    socket.create_connection(address, 5).close()
"""


def _ip(*arguments: object) -> str:
    command = ["ip", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


@contextlib.contextmanager
def hosts(count: int) -> Iterator[tuple[Host, list[Host]]]:
    """This machine and `count` others on one network: namespaces joined by a bridge, or, where they fail, loopback."""
    with contextlib.ExitStack() as stack:
        try:
            made = _network(count, stack)
        except (OSError, subprocess.SubprocessError):
            stack.close()
            made = LOOPBACK, [LOOPBACK] * count
        yield made


def _network(count: int, stack: contextlib.ExitStack) -> tuple[Host, list[Host]]:
    me = os.getpid()
    _remove(lambda owner: not Path("/proc", str(owner)).exists())  # of tests that were killed
    stack.callback(_remove, lambda owner: owner == me)
    # A range for measurements between networks (RFC 2544), in which no real host is.
    number = me % 8192
    first = (198 << 24) + (18 << 16) + number * 16
    address = [socket.inet_ntoa((first + k).to_bytes(4, "big")) for k in range(1, count + 2)]
    bridge = f"ks{me}"
    _ip("link", "add", bridge, "type", "bridge")
    _ip("addr", "add", f"{address[0]}/28", "dev", bridge)
    _ip("link", "set", bridge, "up")
    found = [Host(own, f"kerasseg-{me}-{k}") for k, own in enumerate(address[1:])]
    for k, host in enumerate(found):
        _ip("netns", "add", host.namespace)
        _ip("link", "add", f"{bridge}v{k}", "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("link", "set", f"{bridge}v{k}", "master", bridge, "up")
        inside = "-n", host.namespace
        for device in ("lo", "eth0"):
            _ip(*inside, "link", "set", device, "up")
        _ip(*inside, "addr", "add", f"{host.address}/28", "dev", "eth0")
        _ip(*inside, "route", "add", "default", "via", address[0])
    _try(found[0], found[-1])
    return Host(address[0]), found


def _try(server: Host, client: Host) -> None:
    """Connect to a host from another one and from this machine; a firewall may forbid it."""
    python = sys.executable, "-I", "-S", "-c", _PEERS, server.address
    with subprocess.Popen(server.command(*python, "2"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            subprocess.run(client.command(*python, "0"), check=True, capture_output=True, timeout=20)
            socket.create_connection((server.address, 4242), 5).close()
        finally:
            process.kill()


def _remove(meant: Callable[[int], bool]) -> None:
    """Delete the namespaces and bridges of test processes, and end what still runs in them."""
    for name, of_namespace, of_bridge in _MADE.findall(_ip("netns") + _ip("link")):
        if not meant(int(of_namespace or of_bridge)):
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            for pid in _ip("netns", "pids", name).split() if of_namespace else ():
                os.kill(int(pid), signal.SIGKILL)
            _ip("netns" if of_namespace else "link", "del", name)


def until(condition: Callable[[], object], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


@dataclass
class Cluster:
    """A scheduler and its workers, each a process; a worker is named "w1", "w2", ..."""

    folder: Path
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    def start(
        self, name: str, kind: str, *arguments: str, host: Host = LOOPBACK, tmpfs: Path | None = None, **settings: str
    ) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                host.command(*command, tmpfs=tmpfs),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self.environment | settings,
                cwd=self.folder,
            )

    def scheduler(self, name: str = "scheduler", *options: str, **settings: Any) -> None:
        self.file.unlink(missing_ok=True)
        self.start(name, "scheduler", "--port", "0", "--scheduler-file", str(self.file), *options, **settings)

    def worker(self, name: str, *options: str, **settings: Any) -> None:
        self.start(name, "worker", "--scheduler-file", str(self.file), "--nthreads", "1", *options, **settings)

    def kill(self, name: str) -> None:
        """Kill a scheduler, or a worker with its nanny."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def client(self, workers: int) -> Any:
        import distributed

        client = distributed.Client(scheduler_file=str(self.file), timeout=60, set_as_default=False)
        client.wait_for_workers(workers, timeout=60)
        return client
