"""Checkpoints from the Hugging Face Hub (`hf://owner/name[@revision]`) and the web (`https://...`).

Downloads are cached, by the Hub's own cache or by pooch, with a record of their hashes; a cached file that no longer
matches its hash is refused. Only the files that make up the checkpoint are downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from kerasseg.catalogue import offline_choices
from kerasseg.checkpoints.provenance import sha256_of
from kerasseg_tfrecords.download import BrokenDownloadError, answer_of, check_url, first_line, retrieve
from kerasseg_tfrecords.errors import CheckpointError, KerassegError, UsageError
from kerasseg_tfrecords.files import write_atomically
from kerasseg_tfrecords.storage import default_cache_folder
from kerasseg_tfrecords.text import without_credentials

_MOST_BYTES = 8 << 30  # the 31-million-parameter U-Net with its optimizer takes 0.4 GB
_TIMEOUT = 30.0  # seconds
_UNPACKED = ("config.json", "metadata.json", "model.weights.h5")
_SAVED_MODEL = ("saved_model.pb", "keras_metadata.pb", "fingerprint.pb", "metadata.json", "variables/")


@dataclass(frozen=True)
class RepositoryCheckpoint:
    """A checkpoint inside a repository: the file or folder to open (`.` for the repository itself), and its files."""

    entry: str
    files: tuple[str, ...]


def choose(files: Sequence[str], inside: str | None, name: str) -> RepositoryCheckpoint:
    """Choose the checkpoint among the files of a repository, or of the file or folder `inside` it.

    It is a `.keras` file, else a SavedModel, else an HDF5 file. `name` is that of the repository, for messages.

    Raises:
        CheckpointError: There is no checkpoint, or the choice between several is ambiguous.

    Example:
        >>> choose(["README.md", "saved_model.pb", "variables/variables.index", "model.h5"], None, "me/unet")
        RepositoryCheckpoint(entry='.', files=('saved_model.pb', 'variables/variables.index'))
        >>> choose(["README.md", "unet.keras", "old/unet.keras"], None, "me/unet").entry
        'unet.keras'
    """
    files = [f for f in files if ".." not in PurePosixPath(f).parts and not f.startswith("/")]
    if inside is not None and inside in files:
        return RepositoryCheckpoint(inside, (inside,))
    candidates = files if inside is None else [f for f in files if f.startswith(f"{inside}/")]
    for found in _kinds(candidates):
        depth = min((len(PurePosixPath(c.entry).parts) for c in found), default=0)
        found = [c for c in found if len(PurePosixPath(c.entry).parts) == depth]
        if len(found) > 1:
            named = [c for c in found if PurePosixPath(c.entry).stem == "model"]
            if len(named) != 1:
                problem, seen = "the repository holds several checkpoints", ", ".join(c.entry for c in found[:8])
                raise CheckpointError(problem, path=name, found=seen, remedy=f"Name one: {name}/{found[0].entry}")
            found = named
        if found:
            return found[0]
    shown = ", ".join(files[:10]) + (f" and {len(files) - 10} more" if len(files) > 10 else "")
    what = "the repository holds no Keras checkpoint" + (f" under {inside}" if inside else "")
    expected = "a .keras or .h5 file or a SavedModel"
    raise CheckpointError(what, path=name, found=shown or "nothing", expected=expected, remedy=_advice(files))


def _kinds(files: Sequence[str]) -> Iterator[list[RepositoryCheckpoint]]:
    """Yield the checkpoints among files, kind by kind, the preferred kind first."""

    def ending(*ends: str) -> list[RepositoryCheckpoint]:
        return [RepositoryCheckpoint(f, (f,)) for f in files if f.endswith(ends)]

    yield ending(".keras")
    folders = [PurePosixPath(f).parent for f in files if PurePosixPath(f).name == _UNPACKED[-1]]
    parts = {str(folder): tuple(str(folder / part) for part in _UNPACKED) for folder in folders}
    yield [RepositoryCheckpoint(folder, own) for folder, own in parts.items() if set(own) <= set(files)]
    saved = []
    for folder in [PurePosixPath(f).parent for f in files if PurePosixPath(f).name == "saved_model.pb"]:
        prefix = "" if str(folder) == "." else f"{folder}/"
        own = tuple(g for g in files if g.startswith(tuple(prefix + part for part in _SAVED_MODEL)))
        saved.append(RepositoryCheckpoint(str(folder), own))
    yield saved
    weights = ending(".weights.h5")
    yield [c for c in ending(".h5", ".hdf5") if c not in weights]
    yield weights


def _advice(files: Sequence[str]) -> str | None:
    if any(f.endswith((".bin", ".pt", ".pth", ".ckpt", ".safetensors")) for f in files):
        return "Its weights are for another library (PyTorch); kerasseg opens files written by Keras."
    if any(f.endswith((".onnx", ".tflite")) for f in files):
        return "It holds an export for inference; use the Keras network that it was exported from."
    return None


@dataclass(frozen=True)
class Fetched:
    """A downloaded file or folder, and its exact origin: `hf://owner/name@<commit>[/file]`, or the URL."""

    path: Path
    source: str


@dataclass(frozen=True)
class HubAddress:
    """The parts of `hf://owner/name[@revision][/path/inside]`.

    Example:
        >>> HubAddress.parse("hf://me/unet@v1.0/models/best.keras")
        HubAddress(repository='me/unet', revision='v1.0', inside='models/best.keras')
    """

    repository: str
    revision: str | None = None
    inside: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", text, re.ASCII)
        inside = PurePosixPath(found[3] or "") if found else PurePosixPath()
        if found is None or ".." in inside.parts or ".." in found[1].split("/"):
            expected = "hf://owner/name[@revision][/file]"
            raise UsageError(f"`{text}` is not an address on the Hugging Face Hub", expected=expected)
        return cls(found[1], found[2], str(inside) if found[3] else None)


def is_remote(path: str | Path) -> bool:
    """Return whether `path` is a URL or Hub address.

    >>> is_remote("hf://me/unet"), is_remote("https://example.org/a.h5"), is_remote("C:/a.h5")
    (True, True, False)
    """
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+]+://", path, re.IGNORECASE) is not None


def fetch(address: str, *, most_bytes: int = _MOST_BYTES) -> Fetched:
    """Download a checkpoint from `hf://owner/name[@revision][/path/inside]` or `https://...`, or return the cached copy."""
    if address.startswith("hf://"):
        return _fetch_hub(HubAddress.parse(address), most_bytes)
    check_url(address, address)
    return _fetch_url(address, most_bytes)


def _fetch_url(url: str, most_bytes: int) -> Fetched:
    name = PurePosixPath(urlparse(url).path).name or "checkpoint"  # without `;key=...`
    folder = default_cache_folder() / "web"
    tidy = re.sub(r"[^\w.-]", "_", name)[-80:]
    file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{tidy}"
    record = file.with_name(file.name + ".json")
    if file.exists():
        known = _read_record(record).get("sha256", {}).get(file.name)
        _check_hash(file, known, url)
        return Fetched(file, without_credentials(url))
    try:
        retrieve(url, file, most_bytes=most_bytes)
    except BrokenDownloadError as error:
        raise _not_fetched(url, error, [str(file)], found=error.found) from error
    except KerassegError as error:
        raise CheckpointError(error.what, path=url, found=error.found, expected=error.expected) from error
    _write_record(record, {"address": without_credentials(url), "sha256": {file.name: sha256_of(file)}})
    return Fetched(file, without_credentials(url))


def _fetch_hub(address: HubAddress, most_bytes: int) -> Fetched:
    import huggingface_hub as hub  # slow to import, and needed only here
    from huggingface_hub import constants, errors  # not always imported by the package itself

    name = f"hf://{address.repository}" + (f"@{address.revision}" if address.revision else "")
    # Passed to every call, because the library fixes its own default at import.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    key = json.dumps([endpoint, address.repository, address.revision, address.inside])
    record = default_cache_folder() / "hub" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    known = _read_record(record)
    unreachable: Exception | None = None
    options: dict[str, Any] = {"endpoint": endpoint}
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(
            address.repository, revision=address.revision, files_metadata=True, timeout=_TIMEOUT
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        problem = "the Hub has no such repository or revision, or it is private"
        remedy = "Check the name; for a private or gated one log in with `hf auth login`."
        raise CheckpointError(problem, path=name, found=first_line(error), remedy=remedy) from error
    except Exception as error:  # any kind of network failure: try the cached copy
        unreachable, options = error, {"local_files_only": True}
        commit, entry, files = str(known.get("commit")), str(known.get("entry")), tuple(known.get("sha256", ()))
    else:
        sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or ()}
        chosen = choose(tuple(sizes), address.inside, name)
        commit, entry, files = str(info.sha), chosen.entry, chosen.files
        size = sum(sizes[file] for file in files)
        if size > most_bytes:
            what, most = "refused: it is too large for a checkpoint", f"{most_bytes} at most"
            raise CheckpointError(what, path=name, found=f"{size} bytes", expected=most)
    try:
        if not files:
            raise FileNotFoundError(record)
        paths = {f: Path(hub.hf_hub_download(address.repository, f, revision=commit, **options)) for f in files}
    except Exception as error:
        raise _not_fetched(name, unreachable or error, [str(record), constants.HF_HUB_CACHE]) from error
    hashes = known["sha256"] if known.get("commit") == commit else {}
    for file, path in paths.items():
        _check_hash(path, hashes.get(file), name)
    if unreachable is None:
        hashes = {file: hashes.get(file) or sha256_of(path) for file, path in paths.items()}
        _write_record(record, {"address": name, "commit": commit, "entry": entry, "sha256": hashes})
    file, path = next(iter(paths.items()))
    root = path.parents[len(PurePosixPath(file).parts) - 1]
    return Fetched(root / entry, f"hf://{address.repository}@{commit}{f'/{entry}' if entry != '.' else ''}")


def _read_record(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("sha256"), dict) else {}


def _write_record(record: Path, content: dict[str, Any]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(content, indent=1))


def _check_hash(file: Path, known: object, address: str) -> None:
    if known is not None and sha256_of(file) != known:
        what, expected = "the cached file has changed since it was fetched", f"SHA-256 {known}, from {address}"
        raise CheckpointError(what, path=str(file), expected=expected, remedy="Delete it to fetch it again.")


def _not_fetched(address: str, error: Exception, looked: list[str], *, found: str | None = None) -> CheckpointError:
    answer = answer_of(error)
    if answer is not None:
        login = "Log in with `hf auth login`, or fetch it in a browser and give its path."
        what = "the server refuses the file, and no earlier copy exists"
        remedy = login if address.startswith("hf:") and answer.status in {401, 403} else answer.remedy
        return CheckpointError(what, path=address, found=answer, remedy=remedy)
    problem = "the file cannot be fetched, and no earlier copy exists"
    expected = f"the network, or an earlier copy in {' or '.join(looked)}"
    how = "Download it on a machine with a network and give its path, or copy the cache. " + offline_choices()
    return CheckpointError(problem, path=address, found=found or first_line(error), expected=expected, remedy=how)
