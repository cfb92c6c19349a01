"""Open U-Net checkpoints from any source as native Keras 3 networks, without running anything in them."""

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import Provenance, provenance
from kerasseg.checkpoints.weights_only import PartialMatchError

__all__ = ["PartialMatchError", "Provenance", "open_checkpoint", "provenance"]
