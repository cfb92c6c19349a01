"""Checks of raw data and of shards."""
