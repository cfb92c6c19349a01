"""JSON from files that anybody may have written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kerasseg_tfrecords import load_manifest
from kerasseg_tfrecords.conversion.staging import load_chunk
from kerasseg_tfrecords.documents import parse_json, read_json
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.splitting.splits_file import load
from kerasseg_tfrecords.tables import read_csv

DEEP = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize("text", [DEEP, "[" * 100_000, DEEP.replace('"a"', '"format_version"', 1)])
def test_deep_nesting_is_a_damaged_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="the manifest is damaged"):
        load_manifest(tmp_path)


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="larger than 3 bytes"):
        parse_json("[1,2]", max_bytes=3)
    with pytest.raises(ValueError, match="8,000,002 values, more than 8,000,000"):
        parse_json(b"[" + b"{}," * 4_000_000 + b"[]]")  # a gigabyte of dictionaries in 12 megabytes
    with pytest.raises(DataError, match="a table is missing"):
        read_json(tmp_path / "none.json", "a table")


@pytest.mark.parametrize(
    "read", [lambda path: read_json(path, "a table"), lambda path: read_csv(path, "a table"), load]
)
def test_devices_and_endless_files_are_not_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to("/dev/null")
    with pytest.raises(DataError, match="a pipe or a device, not a file"):
        read(tmp_path / "device")
    (tmp_path / "endless").touch()
    os.truncate(tmp_path / "endless", 1 << 40)
    with pytest.raises(DataError, match="larger than 268,435,456 bytes"):
        read(tmp_path / "endless")


@pytest.mark.parametrize(
    "text", [DEEP, "[]", "1", '{"length": 0, "crc32": 0}', '{"length": 0, "crc32": 0, "slices": 5}']
)
def test_a_damaged_chunk_is_made_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(text)
    (tmp_path / "key.bin").write_bytes(b"")
    assert load_chunk(tmp_path, "key") is None
