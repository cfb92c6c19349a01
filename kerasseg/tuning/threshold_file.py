"""`threshold.json`: the rule of a run's network and of its baseline, with the validation evidence for each.

The file contains the SHA-256 of the weights that the rule was tuned for; after more training the rule is refused.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.result import Tuned
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import read_document
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import write_atomically

FORMAT_VERSION = 1

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StaleRuleError(DataError):
    """The rule was tuned for other weights than those in the run."""


class NetworkRule(Tuned):
    """The rule of one network.

    Attributes:
        network: Name of the network's file in the run.
        sha256: SHA-256 of that file when the rule was tuned.
    """

    network: str
    sha256: _Digest


class ThresholdFile(BaseModel):
    """The whole file.

    Attributes:
        format_version: Raised when earlier versions could misread the file.
        kerasseg, created: Version that wrote it, and when (ISO 8601, UTC).
        split: Always validation.
        folds: Number of folds of a cross-validation, whose networks each predicted their held-out slices; 0 for a single
            network.
        shards: The shard directory, as given.
        fingerprint: Fingerprint of the data set.
        classes: Class names.
        model: The rule for `model.keras`.
        baseline: The rule for `baseline.keras`, tuned in the same way for a fair comparison.
        flip_average: Whether predictions of each image and its mirror image were averaged; None if not.
        digest: SHA-256 of the rest, which detects edits by hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    kerasseg: str = __version__
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    split: Literal["val"] = "val"
    folds: Annotated[int, Field(ge=0)] = 0
    shards: str
    fingerprint: str
    classes: tuple[str, ...]
    model: NetworkRule
    baseline: NetworkRule
    flip_average: bool | None = None
    digest: str = ""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # The digest in a file of an earlier version does not cover new fields.
        return {name: value for name, value in handler(self).items() if name != "flip_average" or value is not None}

    def own_digest(self) -> str:
        """Compute the digest of the file's content."""
        return hashlib.sha256(self.model_dump_json(exclude={"digest", "created"}).encode()).hexdigest()


def save_threshold(run: RunDirectory, file: ThresholdFile) -> ThresholdFile:
    """Write the file atomically, with its digest, and return what was written."""
    sealed = file.model_copy(update={"digest": file.own_digest()})
    write_atomically(run.threshold_file, sealed.model_dump_json(indent=1) + "\n")
    return sealed


def load_threshold(run: RunDirectory) -> ThresholdFile:
    """Load the rules of a run, and check that its networks are those that the rules were tuned for.

    Raises:
        DataError: The file is missing, damaged or edited by hand, or the run was trained further since.
        KerassegError: A newer version wrote it.
    """
    path, again = run.threshold_file, f"Tune again: kerasseg tune-threshold {run.root}"
    own = "To use another threshold: kerasseg evaluate --threshold 0.4"
    file = read_document(
        path,
        ThresholdFile,
        FORMAT_VERSION,
        "the tuned threshold",
        remedy=f"{again}. {own}",
        missing_remedy=f"Tune it: kerasseg tune-threshold {run.root}",
    )
    if file.digest != file.own_digest():
        raise DataError("the rule was edited by hand", path=path, found="a wrong digest", remedy=f"{again}. {own}")
    for rule in (file.model, file.baseline):
        network = run.root / rule.network
        if not network.is_file():
            continue  # opening the weights reports this
        found = network_sha256(network)
        if found != rule.sha256:
            raise StaleRuleError(
                "the rule was tuned for other weights: the network was trained further or replaced",
                path=path,
                found=f"{rule.network} {found[:12]}",
                expected=rule.sha256[:12],
                remedy=again,
            )
    return file


def network_sha256(path: Path) -> str:
    """Return the SHA-256 of a network's file as hex digits."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError("the network cannot be read", path=path, found=error.strerror or error) from None
