"""Wait for the other machines of a run, with a time limit: TensorFlow's own wait has none and ignores Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from kerasseg_tfrecords.errors import KerassegError, UsageError

VARIABLE = "KERASSEG_MACHINES_TIMEOUT"
_USUAL = 600.0
_PAUSE = 0.2
_ANSWER = 5.0
"""Seconds until a machine that does not respond is tried again."""


def patience() -> float:
    """Return the seconds to wait for other machines: `KERASSEG_MACHINES_TIMEOUT`, or 600.

    Example:
        >>> patience()
        600.0
    """
    told = os.environ.get(VARIABLE, "")
    try:
        seconds = float(told) if told else _USUAL
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{VARIABLE} cannot be used", found=told, expected="seconds, such as 600")
    return seconds


def meet(addresses: Sequence[str], number: int, seconds: float) -> None:
    """Wait until every machine answers at its address.

    Meanwhile this machine listens at its own address. It frees the address for TensorFlow once all others have answered.
    """
    places = [_parsed(address) for address in addresses]
    missing = {index: "" for index in range(len(addresses)) if index != number}
    deadline = time.monotonic() + seconds
    with _listening(places[number][1], addresses[number]):
        while True:
            for index in list(missing):
                reason = _reason(*places[index], max(deadline - time.monotonic(), _PAUSE))
                if reason is None:
                    del missing[index]
                else:
                    missing[index] = reason
            if not missing:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(_PAUSE)
    raise KerassegError(
        "some machines of this run did not answer",
        found=", ".join(f"worker {index} at {addresses[index]}: {reason}" for index, reason in missing.items()),
        expected=f"an answer within {seconds:g} s",
        remedy="Run the same command there. If it runs, check the addresses in TF_CONFIG and firewalls. To wait "
        f"longer: {VARIABLE}=SECONDS.",
    )


@contextlib.contextmanager
def breakable() -> Iterator[None]:
    """Let Ctrl-C end the process at once while the block runs: Python handlers do not run during TensorFlow's wait."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError("TF_CONFIG contains an invalid address", found=address, expected="host:port")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _listening(port: int, address: str) -> Iterator[None]:
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise KerassegError(
            "this machine cannot listen at its address in TF_CONFIG",
            found=f"{address}: {error.strerror or error}",
            remedy="Stop the process that listens there (an earlier run?), or use another port on all machines.",
        ) from error
    with listener:
        yield


def _reason(host: str, port: int, seconds: float) -> str | None:
    """Return why a machine does not answer; None if it does."""
    try:
        with socket.create_connection((host, port), timeout=min(seconds, _ANSWER)) as connection:
            # On one machine a connection to a free port can happen to start from that port and answer itself.
            return "no answer" if connection.getsockname() == connection.getpeername() else None
    except OSError as error:  # includes unknown host names
        return str(error.strerror or error).lower()
