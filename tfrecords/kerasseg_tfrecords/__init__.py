"""Convert raw MRI slices to TFRecord shards with a leak-free split, and read them; independent of Keras.

`__init__.pyi` lists the public names. Each is imported on first use; only `parse_batch` loads TensorFlow.
"""

from __future__ import annotations

from kerasseg_tfrecords._lazy import Names
from kerasseg_tfrecords._version import __version__  # noqa: F401 - public

_NAMES = Names(globals())
globals()["__all__"] = _NAMES.all  # not an assignment: tools that read the source want the names themselves
__getattr__ = _NAMES.get


def __dir__() -> list[str]:
    return list(_NAMES.all)
