"""Raw MRI slices -> leak-free split -> TFRecord shards -> records. Knows nothing of Keras.

The names below are the public surface; each is imported when first used, so that TensorFlow is loaded only by who reads or
writes records.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kerasseg_tfrecords._version import __version__

if TYPE_CHECKING:
    from kerasseg_tfrecords.errors import BadInputError, DataError, KerassegError, Problem, UsageError
    from kerasseg_tfrecords.integrity import IntegrityReport, check_data
    from kerasseg_tfrecords.intensity import restore
    from kerasseg_tfrecords.manifest import Manifest, PrepareOptions, load_manifest
    from kerasseg_tfrecords.preparation import prepare
    from kerasseg_tfrecords.records import Record
    from kerasseg_tfrecords.schema import parse_batch
    from kerasseg_tfrecords.shards import read_records, shard_paths
    from kerasseg_tfrecords.slices import Reading, Slice
    from kerasseg_tfrecords.sources import detect, read_item, source_for
    from kerasseg_tfrecords.sources.base import SourceOptions
    from kerasseg_tfrecords.sources.tree import open_tree
    from kerasseg_tfrecords.split import Shares, split_by_group, split_by_slice
    from kerasseg_tfrecords.verification import Verification, verify

_HOMES = {
    "BadInputError": "errors",
    "DataError": "errors",
    "IntegrityReport": "integrity",
    "KerassegError": "errors",
    "Manifest": "manifest",
    "PrepareOptions": "manifest",
    "Problem": "errors",
    "Reading": "slices",
    "Record": "records",
    "Shares": "split",
    "Slice": "slices",
    "SourceOptions": "sources.base",
    "UsageError": "errors",
    "Verification": "verification",
    "check_data": "integrity",
    "detect": "sources",
    "load_manifest": "manifest",
    "open_tree": "sources.tree",
    "parse_batch": "schema",
    "prepare": "preparation",
    "read_item": "sources",
    "read_records": "shards",
    "restore": "intensity",
    "shard_paths": "shards",
    "source_for": "sources",
    "split_by_group": "split",
    "split_by_slice": "split",
    "verify": "verification",
}

__all__ = [
    "BadInputError",
    "DataError",
    "IntegrityReport",
    "KerassegError",
    "Manifest",
    "PrepareOptions",
    "Problem",
    "Reading",
    "Record",
    "Shares",
    "Slice",
    "SourceOptions",
    "UsageError",
    "Verification",
    "__version__",
    "check_data",
    "detect",
    "load_manifest",
    "open_tree",
    "parse_batch",
    "prepare",
    "read_item",
    "read_records",
    "restore",
    "shard_paths",
    "source_for",
    "split_by_group",
    "split_by_slice",
    "verify",
]

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one that this gives

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            msg = f"module 'kerasseg_tfrecords' has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(import_module(f"kerasseg_tfrecords.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
