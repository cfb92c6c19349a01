"""All benchmarks, one after another."""

from __future__ import annotations

from benchmarks import augmentation, prepare, startup

if __name__ == "__main__":
    for part in (startup, prepare, augmentation):
        part.main()
