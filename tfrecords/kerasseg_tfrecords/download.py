"""Resumable, verified, atomic download of a file.

`FILE.part` holds what has been received, `FILE.part.json` the server's identifier of this version of the file. A later
call, also from another process, requests the rest (HTTP `Range`). It starts again if the server has another version or
does not support ranges.
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
from urllib.parse import SplitResult, urljoin, urlsplit

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error, scratch_folder
from kerasseg_tfrecords.text import without_credentials


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP error status.

    Example:
        >>> print(Answer(503), "-", Answer(503).remedy)
        503 Service Unavailable - The server has a problem: try again later.
    """

    status: int

    def __str__(self) -> str:
        """Return number and phrase."""
        with contextlib.suppress(ValueError):  # not every number has a standard phrase
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        return str(self.status)

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "There were too many requests: try again in a few minutes."
        if self.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return "The file needs a login: download it in a browser and use its path."
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "The server has a problem: try again later."
        return "Check the address."


def answer_of(error: BaseException | None) -> Answer | None:
    """Return the HTTP status behind an error of requests, httpx or huggingface_hub; None if there was no answer.

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
"""Seconds to wait for an answer, or for the next byte."""
ATTEMPTS = 5
"""Consecutive attempts that may fail to receive anything."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""
_PIECE = 1 << 14
"""Bytes read at a time; a partial piece is lost when the connection breaks."""
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that are worth another attempt."""
_LOG = logging.getLogger("kerasseg")


class BrokenDownloadError(KerassegError):
    """The server cannot be reached, or does not send the file."""


@dataclass(frozen=True, slots=True)
class Version:
    """The server's identification of a version of a file ("" if unknown), and its size in bytes (-1 if unknown)."""

    etag: str = ""
    modified: str = ""
    size: int = -1

    @property
    def condition(self) -> str:
        """The value for `If-Range`, which does not allow weak tags."""
        return self.modified if self.etag.startswith("W/") else self.etag or self.modified


def download(
    url: str,
    target: Path,
    *,
    most_bytes: int,
    hash_known: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Download a file, or the rest of it after an interruption.

    Args:
        url: `https://`, or `http://` on this machine.
        target: The file; it appears when it is complete.
        most_bytes: Largest size that is accepted.
        hash_known: Whether the caller will compare a hash. A partial download is then continued even if the server cannot
            confirm that it still has the same version.
        progress: Called with the bytes received and the total (0 if unknown).
    """
    import requests  # slow to import

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
        # Without a network, waiting does not help.
        if idle >= ATTEMPTS or (not started and isinstance(error, requests.ConnectionError)):
            raise _broken(url, part, error) from error
        why = first_line(error) if error else "starting again"
        _LOG.info("%s: %s; trying again in %g s", without_credentials(url), why, pause)
        time.sleep(pause)
        pause *= 2
    part.replace(target)
    forget(target)


def version_of(url: str) -> Version:
    """Request the version of a file without its content.

    Raises:
        KerassegError: The server cannot be reached or does not send the file.
    """
    import requests  # slow to import

    check_url(url, url)
    try:
        # Not HEAD, which signed URLs do not allow.
        with _get(url, {"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            return _version_in(response, url)
    except requests.RequestException as error:
        raise _broken(url, None, error) from error


def retrieve(
    url: str,
    target: Path,
    *,
    most_bytes: int,
    md5: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Download a file unless it exists already, check its hash, and return whether it was downloaded."""
    import pooch  # slow to import

    def downloader(address: str, output: Any, _: Any) -> None:
        download(address, target, most_bytes=most_bytes, hash_known=md5 is not None, progress=progress)
        target.replace(output)

    pooch.get_logger().setLevel("WARNING")
    resumed = part_of(target).exists()
    try:
        if target.is_file() and (md5 is None or pooch.file_hash(target, "md5") == md5):
            return False
        # In a folder of its own, because pooch's temporary files would stay if the process is killed.
        with scratch_folder(target.parent) as scratch:
            known = None if md5 is None else f"md5:{md5}"
            pooch.retrieve(url, known_hash=known, fname=target.name, path=scratch, downloader=downloader)
            (scratch / target.name).replace(target)
    except ValueError as error:
        if resumed:
            # The part from an earlier call may have been damaged: start again, once.
            return retrieve(url, target, most_bytes=most_bytes, md5=md5, progress=progress)
        raise KerassegError(
            "the server sent another file than the published one",
            path=url,
            expected=f"MD5 {md5}",
            remedy="Nothing was kept. Try again; if it happens again, download the file by hand and compare.",
        ) from error
    except OSError as error:
        raise explain_os_error(error, target) from error
    return True


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def forget(target: Path) -> None:
    """Delete a partial download."""
    part = part_of(target)
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL, whose login and query an error of `urlsplit` may quote.

    Raises:
        UsageError: It is not a valid URL.
    """
    try:
        return urlsplit(url)
    except ValueError:
        raise UsageError("the URL is invalid", path=url) from None


def check_url(url: str, original: str) -> None:
    """Refuse addresses that are not encrypted, except on this machine; also those that a server redirects to."""
    # Where it ends in a message, and with it what must not be shown, would be unclear.
    if re.search(r"\s", original) and re.search("[@?#;]", original):
        raise UsageError("the URL contains white space", expected="%20 instead of a space")
    parts = split_url(url)
    local = parts.hostname in _LOCAL and urlsplit(original).hostname in _LOCAL
    if parts.scheme == "https" or (parts.scheme == "http" and local):
        return
    if url == original:
        raise UsageError(
            f"kerasseg does not download from `{parts.scheme}://`", expected="hf://owner/name or https://..."
        )
    raise KerassegError(
        "refused: the server redirects to an address without encryption",
        path=original,
        found=f"{parts.scheme}://{parts.netloc}",
        expected="https://",
    )


def first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return without_credentials(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))[:240]


def _one_attempt(
    url: str, part: Path, most_bytes: int, hash_known: bool, progress: Callable[[int, int], None] | None
) -> bool:
    """Send one request; return True if the file is complete, False if the download must start again."""
    here, version = _size(part), _read_note(part)
    if here and not (version.condition or hash_known):
        part.unlink()
        here = 0
    headers = {"Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
        if version.condition:
            headers["If-Range"] = version.condition
        _LOG.info("%s: resuming after %d bytes", without_credentials(url), here)

    with _get(url, headers) as response:
        if response.status_code == 416:
            # The part is either complete or longer than the file; the hash, or a new attempt, shows which.
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
        total = start + _content_length(response, url)
        _check_size(total, most_bytes, url)
        if start == 0:
            _write_note(part, _version_in(response, url))
        done = start
        with part.open("ab" if start else "wb") as file:
            for piece in response.iter_content(_PIECE):
                done += len(piece)
                _check_size(done, most_bytes, url)  # not every server sends the length first
                file.write(piece)
                if progress:
                    progress(done, max(total, done) if total > start else 0)
    return True


def _get(url: str, headers: dict[str, str]) -> Any:
    """Send a request, following redirects to allowed addresses only; the response is a stream."""
    import requests

    def check(response: Any, *_args: Any, **_kwargs: Any) -> None:
        if response.is_redirect:
            check_url(urljoin(response.url, response.headers["location"]), url)

    return requests.get(url, stream=True, timeout=TIMEOUT, hooks={"response": check}, headers=headers)


def _version_in(response: Any, url: str) -> Version:
    headers = response.headers
    size = _content_length(response, url) if "content-length" in headers else -1
    return Version(headers.get("etag", ""), headers.get("last-modified", ""), size)


def _broken(url: str, part: Path | None, error: Exception | None) -> BrokenDownloadError:
    found = first_line(error) if error else "the server does not send the requested part"
    answer = answer_of(error)
    partial = part is not None and _size(part) > 0
    if answer is not None:
        kept = " The same command then resumes the download." if partial else ""
        remedy = f"{answer.remedy}{kept}"
        return BrokenDownloadError("the server does not send the file", path=url, found=answer, remedy=remedy)
    if partial:
        remedy = "Run the same command again: it resumes the download."
        return BrokenDownloadError("the download was interrupted", path=url, found=found, remedy=remedy)
    return BrokenDownloadError(
        "the server cannot be reached", path=url, found=found, remedy="Check the network, or try again later."
    )


def _start(response: Any) -> int:
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else -1


def _content_length(response: Any, url: str) -> int:
    text = response.headers.get("content-length") or "0"
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*", text):
        raise BrokenDownloadError(
            "the server sent an invalid Content-Length header",
            path=url,
            found=repr(text[:40]),
            expected="a number of bytes",
            remedy="Try again later, or download the file by hand.",
        )
    return int(text)


def _check_size(size: int, most_bytes: int, address: str) -> None:
    if size > most_bytes:
        raise KerassegError(
            "refused: the file is too large", path=address, found=f"{size} bytes", expected=f"{most_bytes} at most"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> Version:
    try:
        note = parse_json(_note(part).read_bytes(), max_bytes=1 << 16)
        return Version(str(note["etag"]), str(note["modified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Version()


def _write_note(part: Path, version: Version) -> None:
    with contextlib.suppress(OSError):
        _note(part).write_text(json.dumps({"etag": version.etag, "modified": version.modified}), encoding="utf-8")
