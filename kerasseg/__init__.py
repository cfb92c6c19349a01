"""Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices.

`__init__.pyi` lists the public names, those of `kerasseg_tfrecords` among them. Each is imported when it is first used, so
that `import kerasseg` costs next to nothing and touches no device.
"""

from __future__ import annotations

from kerasseg_tfrecords._lazy import Names
from kerasseg_tfrecords._version import __version__  # noqa: F401 - public

_NAMES = Names(globals())
globals()["__all__"] = _NAMES.all  # not an assignment: tools that read the source want the names themselves
__getattr__ = _NAMES.get


def __dir__() -> list[str]:
    return list(_NAMES.all)
