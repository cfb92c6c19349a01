"""Open checkpoints of U-Nets, whoever wrote them, as native Keras 3 networks, and never run what is in them."""

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import Provenance, provenance
from kerasseg.checkpoints.weights_only import PartialMatchError

__all__ = ["PartialMatchError", "Provenance", "open_checkpoint", "provenance"]
