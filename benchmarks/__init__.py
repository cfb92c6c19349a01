"""Benchmarks: kerasseg and its peers take turns in one run; results are ratios. Run all with `python -m benchmarks`."""
