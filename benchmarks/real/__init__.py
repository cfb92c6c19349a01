"""The job itself on real slices: which strategy wins, and what the best one reaches. `python -m benchmarks.real --help`."""
