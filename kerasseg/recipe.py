"""Figures of the fine-tuning recipe, without Keras, so that settings can be checked before it is imported."""

from __future__ import annotations

from kerasseg_tfrecords.errors import UsageError

RECIPE_STAGES: tuple[tuple[int, float], ...] = ((5, 1e-5), (3, 1e-6))
"""(epochs without a better score, rate that follows)."""

STRATEGIES = ("conservative", "moderate", "aggressive")
"""Ordered by how much is trained."""


def frozen_encoder_blocks(strategy: str, encoder_blocks: int) -> int:
    """Return how many of the first encoder blocks a strategy freezes.

    The first blocks respond to edges and texture, which differ least between kinds of images (Yosinski et al. 2014, arXiv
    1411.1792). The decoder must learn the task and is always trained.

    Example:
        >>> [frozen_encoder_blocks(strategy, 4) for strategy in STRATEGIES]
        [2, 1, 0]
    """
    if strategy == "conservative":
        return max(1, encoder_blocks // 2)
    if strategy == "moderate":
        return max(1, encoder_blocks // 4)
    if strategy == "aggressive":
        return 0
    raise UsageError(f"unknown strategy {strategy!r}", expected=" or ".join(STRATEGIES))
