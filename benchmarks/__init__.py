"""Benchmarks: every pair measured in turn in one run and reported as a ratio. Run all with `python -m benchmarks`."""
