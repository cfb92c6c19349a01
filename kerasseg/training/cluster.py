"""Wait for the other machines before TensorFlow does, whose wait has no limit and ignores Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from kerasseg_tfrecords.errors import KerassegError, UsageError

__all__ = ["breakable", "meet", "patience"]

VARIABLE = "KERASSEG_MACHINES_TIMEOUT"
_USUAL = 600.0
_PAUSE = 0.2
_ANSWER = 5.0
"""Seconds until a machine that does not respond is tried again."""


def patience() -> float:
    """Seconds to wait for other machines: `KERASSEG_MACHINES_TIMEOUT`, or 600.

    Raises:
        UsageError: It is no number above 0.

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

    Each listens at its own address meanwhile. When all have answered, this one's is free for TensorFlow; who comes a moment
    later meets TensorFlow there.

    Args:
        addresses: `host:port` of all machines.
        number: This machine's place among them.
        seconds: To wait at most.

    Raises:
        UsageError: What is no address.
        KerassegError: This machine's own address is taken; or machines did not come, which are named.
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
    """While the block runs, Ctrl-C ends the process at once; Python handlers do not run inside TensorFlow's wait."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
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
        raise UsageError("TF_CONFIG names no address", found=address, expected="host:port")
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
    """Why a machine does not answer; None if it does."""
    try:
        with socket.create_connection((host, port), timeout=min(seconds, _ANSWER)) as connection:
            # On one machine a connection to a free port can, by chance, begin at that port, and answers itself.
            return "no answer" if connection.getsockname() == connection.getpeername() else None
    except OSError as error:  # also an unknown name
        return str(error.strerror or error).lower()
