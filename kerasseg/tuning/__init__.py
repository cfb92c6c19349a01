"""Threshold and post-processing, chosen on validation."""
