"""Synthetic head slices with tumours, for demonstrations and tests."""
