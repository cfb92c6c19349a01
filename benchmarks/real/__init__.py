"""Strategies compared on real slices, and the figures of the best. See `python -m benchmarks.real --help`."""
