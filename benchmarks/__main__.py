"""All benchmarks, one after another."""

from __future__ import annotations

import importlib

PARTS = (
    "startup",
    "prepare",
    "duplicates",
    "freezing",
    "open_savedmodel",
    "augmentation",
    "pipeline",
    "training",
    "thresholds",
    "distances",
    "prediction",
)

if __name__ == "__main__":
    for part in PARTS:
        print(f"== {part}")
        importlib.import_module(f"benchmarks.{part}").main()
