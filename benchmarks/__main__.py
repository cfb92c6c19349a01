"""All benchmarks, one after another."""

from __future__ import annotations

from benchmarks import freezing, prepare, startup

if __name__ == "__main__":
    for part in (startup, freezing, prepare):
        part.main()
