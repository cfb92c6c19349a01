"""Download public data sets by name.

The files of one published version are pinned here by their number in the archive, size and MD5 sum. No other service is
needed to find them, and any other content is refused.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kerasseg_tfrecords.download import forget, part_of, retrieve
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import lock, make_folder
from kerasseg_tfrecords.validation import did_you_mean

_SPARE = 64 << 20
"""Bytes to leave free on the disk."""
_LOG = logging.getLogger("kerasseg")
_FIGSHARE = "https://ndownloader.figshare.com/files/"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a published data set."""

    name: str
    url: str
    bytes: int
    md5: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A published data set."""

    name: str
    title: str
    doi: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class FetchedDataset:
    """A downloaded data set.

    Attributes:
        dataset: The data set.
        folder: Its folder, which `kerasseg prepare` reads as it is.
        fetched: Names of the files that were downloaded now.
        present: Names of the files that already existed with the published content.

    Example:
        >>> there = FetchedDataset(DATASETS["figshare"], Path("data"), ("cvind.mat",), ())
        >>> there.fetched, there.dataset.licence
        (('cvind.mat',), 'CC BY 4.0')
    """

    dataset: Dataset
    folder: Path
    fetched: tuple[str, ...]
    present: tuple[str, ...]


def _figshare(name: str, number: int, size: int, md5: str) -> RemoteFile:
    return RemoteFile(name, f"{_FIGSHARE}{number}", size, md5)


DATASETS: dict[str, Dataset] = {
    "figshare": Dataset(
        name="figshare",
        title="brain tumor dataset of Jun Cheng: 3,064 T1-weighted contrast-enhanced slices of 233 patients",
        doi="10.6084/m9.figshare.1512427.v8",
        licence="CC BY 4.0",
        citation=(
            "Jun Cheng: brain tumor dataset. figshare, doi:10.6084/m9.figshare.1512427; "
            "Cheng et al.: Enhanced performance of brain tumor classification via tumor region augmentation and partition. "
            "PLoS ONE 10(10), 2015, doi:10.1371/journal.pone.0140381"
        ),
        files=(
            _figshare("brainTumorDataPublic_1-766.zip", 3381290, 214_401_279, "74b949ad33f042e6e103523091cd1428"),
            _figshare("brainTumorDataPublic_767-1532.zip", 3381296, 217_848_429, "7e8a875500d2c8a346f270538e29890e"),
            _figshare("brainTumorDataPublic_1533-2298.zip", 3381293, 215_563_856, "8227bf6080cb71f15a88be8d25c79ae7"),
            _figshare("brainTumorDataPublic_2299-3064.zip", 3381302, 231_679_762, "b378a80d6174e5317d59eb28430c6652"),
            _figshare("cvind.mat", 7005344, 5_736, "5ea82eb3212c9fcb84290ccf0beb486d"),
            _figshare("README 2024.txt", 51340418, 3_303, "4188f7c30957e9673c3611613071bd6e"),
        ),
    )
}


def fetch_dataset(
    name: str = "figshare", out: Path | str = "data", *, progress: Callable[[str, int, int], None] | None = None
) -> FetchedDataset:
    """Download a public data set and verify every file against its published MD5 sum.

    Valid files that exist already are not downloaded again, and interrupted downloads are resumed. Archives are not
    unpacked: `kerasseg_tfrecords.prepare` reads them in place.

    Args:
        name: "figshare", the data set of Jun Cheng (0.88 GB).
        out: The folder; created if missing.
        progress: Called with the name of a file, the bytes received, and its size.

    Returns:
        The data set, its folder, and which files were downloaded.

    Raises:
        UsageError: There is no such data set, or `out` is a file.
        KerassegError: The server cannot be reached or sends other content, or the disk is full; partial downloads are kept.

    Example:
        After `fetch_dataset("figshare", "data")`, `prepare("data")` converts it.

        >>> DATASETS["figshare"].licence, round(DATASETS["figshare"].bytes / 1e9, 2)
        ('CC BY 4.0', 0.88)
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise UsageError(
            "no such data set", found=name, expected=", ".join(DATASETS), remedy=did_you_mean(name, list(DATASETS))
        )
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file", path=folder, expected="a folder", remedy="Choose another --out.")
    make_folder(folder)
    fetched: list[str] = []
    present: list[str] = []
    busy = "another process is downloading to this folder"
    held = folder / ".fetch.lock"
    with lock(held, "data", busy=busy):
        try:
            _check_room(dataset, folder)
            for file in dataset.files:
                came = _fetch(file, folder, progress)
                (fetched if came else present).append(file.name)
                _LOG.info("%s: %s", file.name, "downloaded and verified" if came else "present and verified")
        finally:
            held.unlink(missing_ok=True)
    return FetchedDataset(dataset, folder, tuple(fetched), tuple(present))


def _fetch(file: RemoteFile, folder: Path, progress: Callable[[str, int, int], None] | None) -> bool:
    target = folder / file.name
    if part_of(target).exists() and part_of(target).stat().st_size > file.bytes:
        forget(target)

    def told(done: int, _: int) -> None:
        if progress:
            progress(file.name, done, file.bytes)

    came = retrieve(file.url, target, most_bytes=file.bytes, md5=file.md5, progress=told)
    told(file.bytes, file.bytes)
    return came


def _check_room(dataset: Dataset, folder: Path) -> None:
    """Check before any download that all files fit on the disk."""
    missing = 0
    for file in dataset.files:
        for path in (folder / file.name, part_of(folder / file.name)):
            if path.is_file():
                missing -= min(path.stat().st_size, file.bytes)
                break
        missing += file.bytes
    free = shutil.disk_usage(folder).free
    if missing and free < missing + _SPARE:
        raise KerassegError(
            "the disk is too small for this data set",
            path=folder,
            found=f"{free / 1e9:.2f} GB free",
            expected=f"{(missing + _SPARE) / 1e9:.2f} GB",
            remedy="Free some space, or choose another --out.",
        )
