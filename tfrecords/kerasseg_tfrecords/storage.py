"""Read inputs and shards at URLs: `s3://` and `gs://` by fsspec, files at `https://`.

Files are copied into the cache first, since all readers work on local files; unchanged ones are not copied again. The copy
of an object has its size, and a modification time that also encodes its ETag, so that no list of them is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import time
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse, urlsplit, urlunsplit

from kerasseg_tfrecords.download import download, first_line, split_url, version_of
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import FULL, explain_os_error, file_sha256, locked, scratch_folder
from kerasseg_tfrecords.text import Progress, without_credentials

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
_WEB = frozenset({"http", "https"})
_AWS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true"
_STORES = {
    "s3": ("kerasseg[remote]", _AWS),
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon"),
}
"""Scheme -> package that reads it, and environment variables with its credentials."""
_REMEDY = "Free some space, or choose another folder with the variable KERASSEG_CACHE, and run the same command again."
_PAGE, _BATCH, _BATCH_BYTES = 1000, 64, 1 << 28
_MOST = 1 << 40
"""Largest file on the web in bytes, where the server does not tell its size."""
_KEPT = 30 * 24 * 3600
"""Seconds after its last use until a copy is deleted."""
_OTHER_CACHE: ContextVar[Path | None] = ContextVar("_OTHER_CACHE", default=None)


def default_cache_folder() -> Path:
    """Return `$KERASSEG_CACHE`, else `kerasseg` under `$XDG_CACHE_HOME` or `~/.cache`."""
    asked = _OTHER_CACHE.get() or os.environ.get("KERASSEG_CACHE")
    if asked:
        return Path(asked)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kerasseg"


@contextlib.contextmanager
def caching_in(folder: Path) -> Iterator[None]:
    """Use another cache folder while the block runs: that of the caller, in a worker of a cluster."""
    token = _OTHER_CACHE.set(folder)
    try:
        yield
    finally:
        _OTHER_CACHE.reset(token)


# --- URLs -------------------------------------------------------------------------------------------------------------


def url_of(path: Path | str) -> str | None:
    """Return the URL that a path stands for, or None for a local path.

    `Path` removes a slash from URLs, which is put back.

    Raises:
        UsageError: kerasseg does not read from such URLs.

    Example:
        >>> url_of(Path("s3://bucket/scans")), url_of("scans")
        ('s3://bucket/scans', None)
    """
    text = os.fspath(path)
    found = _URL.match(text)
    if found is None or os.path.lexists(text):
        return None
    scheme, rest = found[1].lower(), text[found.end() :]
    url = f"{scheme}://{rest}"
    if scheme not in _STORES and scheme not in _WEB:
        expected = f"a path, {', '.join(f'{name}://' for name in _STORES)} or https://"
        raise UsageError(f"kerasseg does not read from {scheme}://", path=url, expected=expected)
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if not host or (scheme in _STORES and "@" in (rest if ":" in host else host)):
        what = "the URL names no bucket or host" if not host else "the URL of a bucket cannot hold credentials"
        raise UsageError(what, path=url, expected=f"{scheme}://NAME/FOLDER", remedy=_login(scheme))
    if scheme in _WEB:
        split_url(url)
    return url


def absolute(path: Path | str) -> str:
    """Return a URL unchanged, and the absolute form of a local path."""
    return url_of(path) or str(Path(path).absolute())


def refuse_url(out: Path | str) -> None:
    """Refuse a URL as the place for output."""
    found = _URL.match(os.fspath(out))
    if found is not None and not os.path.lexists(out):
        url = f"{found[1]}://{os.fspath(out)[found.end() :]}"
        remedy = "Choose a folder with --out, and upload it afterwards."
        raise UsageError("kerasseg writes to local folders only", path=url, remedy=remedy)


def _login(scheme: str) -> str | None:
    return f"Set the environment variables {_STORES[scheme][1]}." if scheme in _STORES else None


def _is_web(url: str) -> bool:
    return url.partition(":")[0] in _WEB


def _below(url: str, name: str) -> str:
    """Return the URL of a file in a folder on the web; a query (a token, say) stays."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _check_name(name: str, url: str) -> None:
    """Refuse the name of an object that cannot be the name of a file below the folder of its copy."""
    strange = "\\" in name or any(unicodedata.category(c) in {"Cc", "Cs"} for c in name)
    if strange or any(part in {"", ".", ".."} or len(part.encode()) > 255 for part in name.split("/")):
        remedy = "Rename the object, or copy the others to another folder."
        raise DataError("the name of an object cannot be that of a file", path=url, found=repr(name), remedy=remedy)


# --- copies -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to copy.

    Attributes:
        name: Its name below the URL, with slashes.
        size: Its size in bytes; -1 if unknown.
        sha256: Its hash; "" if unknown.
        stamp: Modification time of the copy in nanoseconds; 0 if it does not matter.
    """

    name: str
    size: int = -1
    sha256: str = ""
    stamp: int = 0

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has a copy with this size and time."""
        try:
            facts = (folder / self.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        # Not every file system keeps nanoseconds.
        same_time = self.stamp == 0 or facts.st_mtime_ns // 1000 == self.stamp // 1000
        return same_time and self.size in {-1, facts.st_size}


def remote_cache() -> Path:
    """Return the folder of all copies."""
    return default_cache_folder() / "remote"


def check_access(url: str) -> None:
    """Request the facts of what a URL names, or raise as `local_copy` does."""
    if _is_web(url):
        version_of(url)
        return
    with _explained(url):
        _store(url).info(_store(url)._strip_protocol(url).rstrip("/"))


def local_copy(path: Path | str, progress: Progress | None = None) -> Path:
    """Return a local path unchanged. Copy the folder, archive or file at a URL into the cache, and return the copy.

    A later call copies what has changed, and deletes what is gone.

    Args:
        path: A path or URL; on the web the URL of one file, because web servers do not list folders.
        progress: Called with "fetch", the files copied, and 0 (their number is not known beforehand).

    Raises:
        DataError: There is no such object, or its name cannot be that of a file.
        UsageError: kerasseg does not read from such URLs.
        KerassegError: A package or the credentials are missing, access is denied, the server does not answer, or the disk
            is full. What was copied is kept.
    """
    url = url_of(path)
    if url is None:
        return Path(path)
    # Without `;key=...`, which would hide the suffix and be stored as part of the name.
    name = unquote(urlparse(url).path) if _is_web(url) else url.partition("://")[2]
    name = name.rstrip("/").rpartition("/")[2]
    if _is_web(url) and ("." not in name or urlsplit(url).path.endswith("/")):
        expected = "the URL of one file, such as a zip archive"
        raise UsageError("a folder on a web server cannot be listed", path=url, expected=expected)
    _check_name(name, url)
    place = remote_cache() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]
    if _is_web(url):
        version = version_of(url)
        entry = Wanted(name, version.size, stamp=_stamp({"ETag": version.etag, "updated": version.modified}))
        with copying(place):
            if not entry.is_in(place):
                _fetch_web_file(url, entry, place / name)
        return place / name
    with _explained(url):
        root = _store(url)._strip_protocol(url).rstrip("/")
        info: Mapping[str, Any] = {"type": "directory"} if url.endswith("/") else _store(url).info(root)
    with copying(place):
        if info["type"] == "directory":
            _mirror(url, root, place / name, progress)
        elif not (entry := Wanted(name, info["size"], stamp=_stamp(info))).is_in(place):
            with scratch_folder(place) as scratch:
                _fetch(url, [(root, entry)], place, scratch)
    return place / name


@contextlib.contextmanager
def copying(folder: Path) -> Iterator[None]:
    """Create a folder in the cache, and wait while another process copies into it; explain errors of the disk."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock_of(folder)):
            folder.mkdir(exist_ok=True)
            _hold(folder)
            _remove_unused(folder.parent)
            yield
    except OSError as error:
        raise KerassegError(explain_os_error(error, folder).what, path=folder, remedy=_REMEDY) from error


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


_HELD: dict[Path, int] = {}
"""Folders that this process has used last, with their descriptors; at most 64, since descriptors are scarce."""


def _hold(folder: Path) -> None:
    """Mark a copy as used: now, by its date, and as long as this process runs, by a lock."""
    os.utime(folder)
    for other in [folder, *list(_HELD)[:-63]]:
        if other in _HELD:
            os.close(_HELD.pop(other))
    _HELD[folder] = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # not every network file system has locks
        fcntl.flock(_HELD[folder], fcntl.LOCK_SH)


def _remove_unused(cache: Path) -> None:
    """Delete the copies that no process is using and none has used for a month."""
    if cache != remote_cache():
        return
    oldest = time.time() - _KEPT
    for folder in cache.iterdir():
        with contextlib.suppress(OSError):  # another process uses it, or is deleting it
            if not folder.is_dir() or folder.stat().st_mtime > oldest:
                continue
            with locked(_lock_of(folder), wait=False):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if folder.stat().st_mtime <= oldest:
                        shutil.rmtree(folder)
                        _lock_of(folder).unlink()
                finally:
                    os.close(descriptor)


def read_small(url: str, name: str, *, limit: int) -> bytes | None:
    """Return the content of a file in the folder at a URL; None if there is none."""
    try:
        if _is_web(url):
            with copying(remote_cache()), scratch_folder(remote_cache()) as scratch:
                download(_below(url, name), scratch / "file", most_bytes=limit)
                return (scratch / "file").read_bytes()
        with _explained(url):
            store = _store(url)
            path = f"{store._strip_protocol(url).rstrip('/')}/{name}"
            size = store.info(path)["size"]
            data: bytes = store.cat_file(path) if size <= limit else b""
    except KerassegError as error:
        if error.found == "404 Not Found" or isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    if size > limit:
        raise DataError(
            "the file is too large", path=f"{url}/{name}", found=f"{size} bytes", expected=f"at most {limit}"
        )
    return data


def fetch(url: str, folder: Path, wanted: Sequence[Wanted], progress: Progress | None = None) -> None:
    """Copy files below a URL, each under its name as soon as it is complete and verified.

    Args:
        url: A folder, also on the web.
        folder: Where to copy them.
        wanted: The files.
        progress: Called with "fetch", the files copied, and their number.
    """
    for entry in wanted:
        _check_name(entry.name, url)
    done = 0
    with scratch_folder(folder) as scratch:
        root = "" if _is_web(url) or not wanted else _store(url)._strip_protocol(url).rstrip("/")
        for batch in _batches((f"{root}/{entry.name}", entry) for entry in wanted):
            if progress:
                progress("fetch", done, len(wanted))
            if _is_web(url):
                for _, entry in batch:
                    _fetch_web_file(_below(url, entry.name), entry, folder / entry.name)
            else:
                _fetch(url, batch, folder, scratch)
            done += len(batch)
    if progress and wanted:
        progress("fetch", done, len(wanted))


def _mirror(url: str, root: str, target: Path, progress: Progress | None) -> None:
    """Make a folder equal to that at a URL. Only 8 bytes of each object's name stay in memory."""
    seen = array("Q")

    def changed() -> Iterator[tuple[str, Wanted]]:
        for path, name, info in _listed(url, root):
            if name == "" or (name.endswith("/") and not info["size"]):  # a console's sign for an empty folder
                continue
            _check_name(name, url)
            if name.startswith(".") or "/." in name:  # no reader sees them
                continue
            seen.append(_short_hash(name))
            entry = Wanted(name, info["size"], stamp=_stamp(info))
            if not entry.is_in(target):
                yield path, entry

    target.mkdir(exist_ok=True)
    done = 0
    with scratch_folder(target.parent) as scratch:
        for batch in _batches(changed()):
            _fetch(url, batch, target, scratch)
            done += len(batch)
            if progress:
                progress("fetch", done, 0)
    _remove_others(target, seen, url)


def _listed(url: str, root: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (path, name below the root, facts) of all objects; S3 is listed in pages, of which one is in memory."""
    with _explained(url):
        store = _store(url)
        if not hasattr(store, "call_s3"):
            for _, _, files in store.walk(root, detail=True, on_error="raise"):
                for info in files.values():
                    yield info["name"], info["name"].removeprefix(f"{root}/"), info
            return
        bucket, key, _ = store.split_path(root)
        prefix = f"{key}/" if key else ""
        more: dict[str, str] | None = {}
        while more is not None:
            page = store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE, **more)
            for info in page.get("Contents", ()):
                yield f"{bucket}/{info['Key']}", info["Key"].removeprefix(prefix), {**info, "size": info["Size"]}
            more = {"ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else None


def _batches(entries: Iterable[tuple[str, Wanted]]) -> Iterator[list[tuple[str, Wanted]]]:
    batch: list[tuple[str, Wanted]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == _BATCH or sum(one.size for _, one in batch) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _fetch(url: str, batch: Sequence[tuple[str, Wanted]], folder: Path, scratch: Path) -> None:
    """Copy a batch of objects at once; if that fails, one after the other, to name the one that cannot be read."""
    parts = [scratch / str(number) for number in range(len(batch))]
    store, failed = _store(url), False
    try:
        store.get([path for path, _ in batch], [str(part) for part in parts])
    except Exception:  # the next attempt tells the reason
        failed = True
    for part, (path, entry) in zip(parts, batch, strict=True):
        if failed:
            with _explained(f"{url.partition(':')[0]}://{path.lstrip('/')}"):
                store.get_file(path, str(part))
        _put(part, entry, folder / entry.name, url)


def _put(part: Path, entry: Wanted, target: Path, url: str) -> None:
    """Move a complete file to its place."""
    size = part.stat().st_size
    found, expected = f"{size} bytes", f"{size if entry.size < 0 else entry.size} bytes"
    if found == expected and entry.sha256:
        found, expected = f"SHA-256 {file_sha256(part)[:12]}...", f"SHA-256 {entry.sha256[:12]}..."
    if found != expected:
        part.unlink()
        raise DataError(
            "not the expected file: it was changed, or not sent completely",
            path=f"{url.partition('?')[0].rstrip('/')}/{entry.name}",
            found=found,
            expected=expected,
            remedy="Run the same command again. If this happens again, upload the files again.",
        )
    if entry.stamp > 0:
        os.utime(part, ns=(entry.stamp, entry.stamp))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        remedy = f"Rename one of them. If they are not there together any more, delete {target}."
        raise DataError("a file and a folder have the same name", path=url, found=entry.name, remedy=remedy) from None


def _remove_others(target: Path, seen: array[int], url: str) -> None:
    """Delete copies of objects that are gone."""
    import numpy as np

    known = np.unique(np.frombuffer(seen, np.uint64)) if seen else np.zeros(0, np.uint64)
    kept = 0
    for folder, _, files in os.walk(target, topdown=False):
        for name in files:
            path = Path(folder, name)
            mark = np.uint64(_short_hash(path.relative_to(target).as_posix()))
            place = int(np.searchsorted(known, mark))
            if place < len(known) and known[place] == mark:
                kept += 1
            else:
                path.unlink()
        if folder != str(target):
            with contextlib.suppress(OSError):  # not empty
                Path(folder).rmdir()
    if kept < len(known):
        remedy = "Rename objects whose names differ only in capitals or accents."
        raise DataError("two objects have the same file name on this disk", path=url, remedy=remedy)


def _stamp(info: Mapping[str, Any]) -> int:
    """Return the time when an object was changed, with a hash of its ETag as microseconds; -1 if both are unknown."""
    when = next((info[key] for key in ("LastModified", "updated", "mtime", "created") if info.get(key)), None)
    tag = next((info[key] for key in ("ETag", "etag", "md5Hash", "generation") if info.get(key)), None)
    if when is None and tag is None:
        return -1
    seconds = int(when.timestamp()) if isinstance(when, datetime) else None
    mark = _short_hash(repr((str(tag), seconds or str(when))))
    return (mark % 10**9 if seconds is None else seconds) * 10**9 + mark % 10**6 * 1000


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])


# --- the web ----------------------------------------------------------------------------------------------------------


def _fetch_web_file(url: str, entry: Wanted, target: Path) -> None:
    new = target.with_name(f"{target.name}.new")  # not in a scratch folder, so that an interrupted download resumes
    new.parent.mkdir(parents=True, exist_ok=True)
    download(url, new, most_bytes=entry.size if entry.size >= 0 else _MOST, hash_known=bool(entry.sha256))
    _put(new, entry, target, url)


# --- object stores ----------------------------------------------------------------------------------------------------


def _store(url: str) -> Any:
    told = {
        name: value for name, value in os.environ.items() if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "STORAGE_"))
    }
    return _filesystem(url.partition(":")[0], frozenset(told.items()))


@functools.lru_cache(maxsize=2)
def _filesystem(scheme: str, _environment: frozenset[tuple[str, str]]) -> Any:
    """Return fsspec's reader of a scheme; a new one if the environment, from which it has credentials, has changed."""
    package = _STORES[scheme][0]
    try:
        import fsspec

        # Several files at once, but no file in several pieces of 50 MB, which would be in memory together.
        options = {"max_concurrency": 1} if scheme == "s3" else {}
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError:
        raise KerassegError(f"{scheme}:// needs a package", remedy=f"Install it: pip install '{package}'") from None


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except KerassegError:
        raise
    except Exception as error:
        _filesystem.cache_clear()  # it may have kept what was wrong
        raise _explanation(error, url) from error


_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
_NO_ANSWER = {"ConnectionError", "HTTPClientError", "TimeoutError", "ClientConnectionError"}


def _explanation(error: Exception, url: str) -> KerassegError:
    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    answers = [getattr(link, "response", None) for link in chain]
    codes = [answer["Error"].get("Code") for answer in answers if isinstance(answer, dict)]
    found = without_credentials(codes[0] if codes and codes[0] else first_line(error))
    scheme = url.partition(":")[0]
    if isinstance(error, OSError) and error.errno in FULL:
        return KerassegError(explain_os_error(error, remote_cache()).what, path=remote_cache(), remedy=_REMEDY)
    if isinstance(error, FileNotFoundError):
        endpoint = " For a server other than Amazon's, set AWS_ENDPOINT_URL." if scheme == "s3" else ""
        bucket = "NoSuchBucket" in codes or "/" not in url.partition("://")[2].rstrip("/")
        what = "no such bucket" if bucket else "no such object or folder"
        return DataError(what, path=url, remedy=f"Check the URL.{endpoint}", kind="missing-file")
    if kinds & _NO_CREDENTIALS:
        detail = None if "NoCredentialsError" in kinds else found
        return KerassegError("no credentials were found", path=url, found=detail, remedy=_login(scheme))
    if isinstance(error, PermissionError):
        remedy = f"Check that your credentials may list and read the bucket. {_login(scheme)}"
        return KerassegError("access was denied", path=url, found=found, remedy=remedy)
    if kinds & _NO_ANSWER:
        remedy = "Check the network, then run the same command again: it continues."
        return KerassegError("the server does not answer", path=url, found=found, remedy=remedy)
    remedy = "Check the URL and the environment variables, or try again later."
    return KerassegError("cannot be read", path=url, found=found, remedy=remedy)
