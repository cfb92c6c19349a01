"""Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices.

The names below are the public surface. Each is imported when first used, so that `import kerasseg` costs next to nothing
and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kerasseg_tfrecords._version import __version__

if TYPE_CHECKING:
    from kerasseg.blocks import Block, Blocks, find_blocks
    from kerasseg.checkpoints import Provenance, open_checkpoint, provenance
    from kerasseg.fitting import fit_to_task
    from kerasseg.freezing import FreezeReport, freeze
    from kerasseg.network import unet

_HOMES = {
    "Block": "kerasseg.blocks",
    "Blocks": "kerasseg.blocks",
    "FreezeReport": "kerasseg.freezing",
    "Provenance": "kerasseg.checkpoints",
    "find_blocks": "kerasseg.blocks",
    "fit_to_task": "kerasseg.fitting",
    "freeze": "kerasseg.freezing",
    "open_checkpoint": "kerasseg.checkpoints",
    "provenance": "kerasseg.checkpoints",
    "unet": "kerasseg.network",
}

__all__ = [
    "Block",
    "Blocks",
    "FreezeReport",
    "Provenance",
    "__version__",
    "find_blocks",
    "fit_to_task",
    "freeze",
    "open_checkpoint",
    "provenance",
    "unet",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'kerasseg' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
