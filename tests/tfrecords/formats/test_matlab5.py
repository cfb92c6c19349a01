"""MATLAB 5 files: elements that SciPy takes for something else are refused before SciPy reads them."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.matlab5 import read_variables
from kerasseg_tfrecords.isolation import call

_read = functools.partial(read_variables, limit=1 << 20)


def _saved(value: object, *, compress: bool = False) -> bytes:
    stream = io.BytesIO()
    savemat(stream, {"value": value}, do_compression=compress)
    return stream.getvalue()


def _replaced(data: bytes, before: bytes, after: bytes) -> bytes:
    assert data.count(before) == 1
    data = data.replace(before, after)
    return data[:132] + struct.pack("<I", len(data) - 136) + data[136:]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["unknown type", "huge type", "small element", "no name", "no flags", "no shape"])
def test_elements_of_another_type_are_refused(name: str, compress: bool) -> None:
    numbers, texts = _saved(np.arange(20.0)), _saved({"a": "a glioma", "b": 1.0})
    values, text = struct.pack("<II", 9, 160), struct.pack("<II", 16, 8)
    data = {
        "unknown type": _replaced(numbers, values, struct.pack("<II", 8, 160)),
        "huge type": _replaced(numbers, values, struct.pack("<II", 0xFFFF, 160)),
        "small element": _replaced(numbers, values, struct.pack("<HHI", 11, 4, 160)),
        "no name": _replaced(texts, struct.pack("<II", 1, 0) + text, text),
        "no flags": _replaced(_saved("glioma"), struct.pack("<II", 6, 8), struct.pack("<II", 6, 0)),
        "no shape": _replaced(_saved("glioma"), struct.pack("<4I", 5, 8, 1, 6), struct.pack("<2I", 5, 0)),
    }[name]
    if compress:
        packed = zlib.compress(data[128:])
        data = data[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(DataError, match="damaged") as refused:
        call(_read, data, "1.mat")
    assert refused.value.kind != "crashed"


@pytest.mark.parametrize("compress", [False, True])
def test_all_kinds_of_variables_are_read(compress: bool) -> None:
    cells = np.empty(2, object)
    cells[:] = ["long text " * 5, np.arange(3)]
    value = {"cells": cells, "complex": np.array([1 + 2j]), "logical": np.array([True]), "empty": [], "inner": {"a": 1}}
    assert set(_read(_saved(value, compress=compress), "1.mat")["value"].dtype.names) == set(value)
    sparse = _read(_saved(csc_matrix(np.eye(3)), compress=compress), "1.mat")["value"]
    assert np.array_equal(sparse.toarray(), np.eye(3))
