"""One file from the web, whatever the connection does: resumed where it broke, checked as it comes, never half there.

What has come lies in `FILE.part`, beside it in `FILE.part.json` how the server names this version of the file. A later
call, of another process too, asks for the rest (HTTP `Range`), and begins anew where the server has another version or
knows no ranges.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error

__all__ = [
    "Answer",
    "BrokenDownloadError",
    "answer_of",
    "check_url",
    "download",
    "first_line",
    "forget",
    "part_of",
    "retrieve",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status that is an error.

    Attributes:
        status: 400 to 599.

    Example:
        >>> print(Answer(503), "-", Answer(503).remedy)
        503 Service Unavailable - The fault is the server's: try again later.
    """

    status: int

    def __str__(self) -> str:
        """Number and words."""
        with contextlib.suppress(ValueError):  # servers make up numbers of their own
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        return str(self.status)

    @property
    def remedy(self) -> str:
        """What to do about it, for addresses that anybody may ask."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "It was asked too often: try again in some minutes."
        if self.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return "It wants a login or another right: fetch the file in a browser, and give its path."
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "The fault is the server's: try again later."
        return "Check the address."


def answer_of(error: BaseException | None) -> Answer | None:
    """The answer that an error of requests, httpx or the Hub's library came of; None where there was none.

    Args:
        error: It, or what was raised from it.

    Example:
        >>> answer_of(TimeoutError()) is None
        True
    """
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int) and status >= HTTPStatus.BAD_REQUEST:
            return Answer(status)
        error = error.__cause__
    return None


TIMEOUT = 30.0
"""Seconds without an answer, or without a byte."""
ATTEMPTS = 5
"""In a row that may bring nothing."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""
_PIECE = 1 << 14
"""Bytes; of the piece under way nothing is kept where the connection breaks."""
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others a little later."""
_LOG = logging.getLogger("kerasseg")


class BrokenDownloadError(KerassegError):
    """The server cannot be reached, or does not give the file."""


@dataclass(frozen=True, slots=True)
class _Version:
    """How a server names what it sends; empty where it does not."""

    etag: str = ""
    modified: str = ""

    @property
    def condition(self) -> str:
        """For `If-Range`; weak tags are not allowed there."""
        return self.modified if self.etag.startswith("W/") else self.etag or self.modified


def download(
    url: str,
    target: Path,
    *,
    most_bytes: int,
    hash_known: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fetches a file; goes on where an earlier call broke off.

    Args:
        url: `https://`, or `http://` on this machine.
        target: The file; it is there only once all of it has come.
        most_bytes: Nothing larger is fetched.
        hash_known: Whether the caller will compare a hash. Then a part is gone on with even where the server cannot say
            that it still has the same version.
        progress: Told the bytes that are here, and how many there are (0 where the server does not say).

    Raises:
        BrokenDownloadError: It cannot be fetched; what has come is kept.
        KerassegError: It is too large; or it cannot be written.
        UsageError: Another kind of address.
    """
    import requests  # heavy, and only wanted here

    check_url(url, url)
    idle, pause, started = 0, PAUSE, False
    while True:
        part = part_of(target)
        before = _size(part)
        try:
            if _one_attempt(url, part, most_bytes, hash_known, progress):
                break
            error: Exception | None = None
        except requests.HTTPError as refused:
            answer = answer_of(refused)
            if answer is not None and answer.status not in _AGAIN:
                raise _broken(url, part, refused) from refused
            error = refused
        except requests.RequestException as broken:
            error = broken
        except KerassegError:
            forget(target)
            raise
        moved = _size(part) > before
        idle, pause, started = (0, PAUSE, True) if moved else (idle + 1, pause, started)
        # Without a network there is nothing to wait for.
        if idle >= ATTEMPTS or (not started and isinstance(error, requests.ConnectionError)):
            raise _broken(url, part, error) from error
        _LOG.info("%s: %s; trying again in %g s", url, first_line(error) if error else "begun anew", pause)
        time.sleep(pause)
        pause *= 2
    part.replace(target)
    forget(target)


def retrieve(
    url: str,
    target: Path,
    *,
    most_bytes: int,
    md5: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Fetches a file unless it is there already, and checks its hash.

    Args:
        url: As in `download`.
        target: As in `download`.
        most_bytes: As in `download`.
        md5: Hex digest that it must have; None takes what is there or what comes.
        progress: As in `download`.

    Returns:
        Whether it was fetched; False where it was there.

    Raises:
        KerassegError: What came is not what was published; or as `download`.
    """
    import pooch  # heavy, and only wanted here

    fetched = False

    def downloader(address: str, output: Any, _: Any) -> None:
        nonlocal fetched
        download(address, target, most_bytes=most_bytes, hash_known=md5 is not None, progress=progress)
        fetched = True
        target.replace(output)

    pooch.get_logger().setLevel("WARNING")
    known = None if md5 is None else f"md5:{md5}"
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part_of(target).exists()
    try:
        pooch.retrieve(url, known_hash=known, fname=target.name, path=target.parent, downloader=downloader)
    except ValueError as error:
        if resumed:
            # What was there from before may have been damaged; from the beginning, once.
            return retrieve(url, target, most_bytes=most_bytes, md5=md5, progress=progress)
        raise KerassegError(
            "what the server sent is not what was published",
            path=url,
            expected=f"MD5 {md5}",
            remedy="Nothing was kept. Try again; if it stays so, fetch the file by hand and compare.",
        ) from error
    except OSError as error:
        raise explain_os_error(error, target) from error
    return fetched


def part_of(target: Path) -> Path:
    """Where what has come of a file lies."""
    return target.with_name(target.name + ".part")


def forget(target: Path) -> None:
    """Deletes what has come of a file, so that it is begun anew."""
    part = part_of(target)
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def check_url(url: str, original: str) -> None:
    """Refuses addresses that are not encrypted, but for servers on this machine; also where a server sends on to.

    Raises:
        UsageError: The address itself is refused.
        KerassegError: The server sends there.
    """
    parts = urlsplit(url)
    local = parts.hostname in _LOCAL and urlsplit(original).hostname in _LOCAL
    if parts.scheme == "https" or (parts.scheme == "http" and local):
        return
    if url == original:
        raise UsageError(f"kerasseg does not fetch from `{parts.scheme}://`", expected="hf://owner/name or https://...")
    raise KerassegError(
        "refused: the server sends elsewhere",
        path=original,
        found=f"{parts.scheme}://{parts.netloc}",
        expected="https://",
    )


def first_line(error: BaseException) -> str:
    """An error in one line, with the kind of it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


def _one_attempt(
    url: str, part: Path, most_bytes: int, hash_known: bool, progress: Callable[[int, int], None] | None
) -> bool:
    """Asks once; True where all has come, False where it has to be begun anew."""
    import requests

    here, version = _size(part), _read_note(part)
    if here and not (version.condition or hash_known):
        part.unlink()
        here = 0
    headers = {"Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
        if version.condition:
            headers["If-Range"] = version.condition
        _LOG.info("%s: going on after %d bytes", url, here)

    def check(response: Any, *_args: Any, **_kwargs: Any) -> None:
        if response.is_redirect:
            check_url(urljoin(response.url, response.headers["location"]), url)

    with requests.get(url, stream=True, timeout=TIMEOUT, hooks={"response": check}, headers=headers) as response:
        if response.status_code == 416:
            # Either all is here already, or what is here is longer than the file: the hash, or a new attempt, tells.
            complete = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", ""))
            if complete and int(complete[1]) == here:
                return True
            part.unlink(missing_ok=True)
            return False
        response.raise_for_status()
        start = _start(response) if response.status_code == 206 else 0
        if start != (here if response.status_code == 206 else 0):
            part.unlink(missing_ok=True)
            return False
        total = start + int(response.headers.get("content-length") or 0)
        _check_size(total, most_bytes, url)
        if start == 0:
            _write_note(part, _Version(response.headers.get("etag", ""), response.headers.get("last-modified", "")))
        done = start
        with part.open("ab" if start else "wb") as file:
            for piece in response.iter_content(_PIECE):
                done += len(piece)
                _check_size(done, most_bytes, url)  # a server need not say how long its answer is
                file.write(piece)
                if progress:
                    progress(done, max(total, done) if total > start else 0)
    return True


def _broken(url: str, part: Path, error: Exception | None) -> BrokenDownloadError:
    found = first_line(error) if error else "the server does not send what was asked for"
    answer = answer_of(error)
    if answer is not None:
        kept = " The same command goes on where it broke off." if _size(part) else ""
        remedy = f"{answer.remedy}{kept}"
        return BrokenDownloadError("the server does not give the file", path=url, found=answer, remedy=remedy)
    if _size(part):
        remedy = "Run the same command again: it goes on where it broke off."
        return BrokenDownloadError("the download broke off", path=url, found=found, remedy=remedy)
    return BrokenDownloadError(
        "the server cannot be reached", path=url, found=found, remedy="Look at the network, or try later."
    )


def _start(response: Any) -> int:
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else -1


def _check_size(size: int, most_bytes: int, address: str) -> None:
    if size > most_bytes:
        raise KerassegError(
            "refused: it is too large", path=address, found=f"{size} bytes", expected=f"{most_bytes} at most"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> _Version:
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        return _Version(str(note["etag"]), str(note["modified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Version()


def _write_note(part: Path, version: _Version) -> None:
    with contextlib.suppress(OSError):
        _note(part).write_text(json.dumps({"etag": version.etag, "modified": version.modified}), encoding="utf-8")
