"""Figures of the fine-tuning recipe, without Keras, so that settings can be checked before it is imported."""

from __future__ import annotations

RECIPE_STAGES: tuple[tuple[int, float], ...] = ((5, 1e-5), (3, 1e-6))
"""(epochs without a better score, rate that follows)."""
