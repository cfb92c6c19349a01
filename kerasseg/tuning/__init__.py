"""Threshold and post-processing, tuned on validation slices."""
