"""`config.json`: the settings of a run and what they were resolved to."""

from __future__ import annotations

import contextlib
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kerasseg.runs.settings import TrainSettings, parse_settings
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import read_document, read_json, refuse_newer
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import MANIFEST, Manifest, load_manifest
from kerasseg_tfrecords.storage import url_of
from kerasseg_tfrecords.validation import did_you_mean

FORMAT_VERSION = 1

_PACKAGES = ("keras", "tensorflow", "numpy", "scipy", "opencv-python-headless", "h5py")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resolved(_Model):
    """Settings as resolved on this machine, with these shards and this checkpoint.

    Attributes:
        checkpoint: The checkpoint that was opened; None for a fresh network.
        provenance: Provenance of the checkpoint, see `kerasseg.Provenance`; None if there is none.
        changes: How the checkpoint was changed to fit the task.
        precision, precision_reason: Number format of the computation, and why it was chosen.
        devices: Description of the devices.
        phases: Strategies or stages, one after the other.
        rates: Initial learning rate of each phase.
        frozen: Names of the blocks that the first phase froze.
        parameters, trained: Number of parameters of the network, and of those trained in the first phase.
        steps: Steps per epoch.
        fingerprint: Fingerprint of the data set, see the manifest.
        intensity, size, channels, classes: Properties of the shards.
        input_channels: Input channels of the network.
        slices: Split -> class -> slices, for training and validation.
    """

    checkpoint: str | None
    provenance: dict[str, Any] | None
    changes: tuple[str, ...]
    precision: str
    precision_reason: str
    devices: str
    phases: tuple[str, ...]
    rates: tuple[float, ...]
    frozen: tuple[str, ...]
    parameters: int
    trained: int
    steps: int
    fingerprint: str
    intensity: str
    size: int
    channels: int
    classes: tuple[str, ...]
    input_channels: int
    slices: dict[str, dict[str, int]]


class RunConfig(_Model):
    """The whole file. `format_version` is raised when earlier versions could misread the run."""

    format_version: int
    kerasseg: str
    software: dict[str, str]
    created: str
    settings: TrainSettings
    resolved: Resolved

    @property
    def pretrained(self) -> bool:
        """Whether training started from a whole pretrained network, with which it can be compared."""
        return self.settings.strategy != "scratch" and self.settings.encoder is None


def software() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def new_config(settings: TrainSettings, resolved: Resolved) -> RunConfig:
    """Return the configuration of a run that starts now."""
    return RunConfig(
        format_version=FORMAT_VERSION,
        kerasseg=__version__,
        software=software(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        resolved=resolved,
    )


def read_config(path: Path) -> RunConfig:
    return read_document(path, RunConfig, FORMAT_VERSION, "the run configuration")


def shards_of(config: RunConfig, other: Path | str | None = None) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a run's shards, or of other ones."""
    root = Path(config.settings.shards if other is None else other)
    if other is None and url_of(root) is None and not (root / MANIFEST).is_file():
        raise DataError(
            "the shards of this run are missing",
            path=root,
            remedy="Give their folder with --shards, or run the command in the folder where the run was started.",
        )
    try:
        return root, load_manifest(root)
    except KerassegError as error:
        url = url_of(root)
        if other is not None or url is None or not url.startswith("http"):
            raise
        remedy = (
            "Runs do not store passwords and tokens of URLs: if this one needs some, give the whole URL with --shards."
        )
        raise type(error)(error.what, path=url, found=error.found, expected=error.expected, remedy=remedy) from error


def manifest_of(config: RunConfig, shards: Path | str | None = None) -> Manifest:
    """Read the manifest of a run's shards.

    Raises:
        DataError: They are missing, damaged or not those that the run was trained on.
    """
    folder, manifest = shards_of(config, shards)
    if manifest.fingerprint != config.resolved.fingerprint:
        raise DataError(
            "these are not the shards that the run was trained on",
            path=folder,
            found=f"fingerprint {manifest.fingerprint[:12]}",
            expected=config.resolved.fingerprint[:12],
            remedy="Give the run's own shards with --shards, or prepare them again with the same options.",
        )
    return manifest


def settings_from(path: Path) -> dict[str, Any]:
    """Read settings from a run's `config.json`, or from plain settings as JSON, to repeat a run."""
    file = path / "config.json" if path.is_dir() else path
    document = read_json(file, "the configuration")
    refuse_newer(document, FORMAT_VERSION, file, "this run")
    asked = document.get("settings", document) if isinstance(document, dict) else None
    if not isinstance(asked, dict):
        raise DataError("no settings in this file", path=file, expected="a run's config.json, or settings as JSON")
    for name in asked:
        if name not in TrainSettings.model_fields:
            remedy = did_you_mean(name, list(TrainSettings.model_fields))
            raise UsageError(f"unknown setting {name!r}", path=file, remedy=remedy)
    return parse_settings(file, **asked).model_dump(exclude_unset=True)
