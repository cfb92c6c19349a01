"""A training step of libraries that may use AVX2 only, as on processors without AVX-512: float32.

The limit is set by environment variables of oneDNN, XLA, PyTorch and MKL. A processor that has AVX2 only also has other
caches and clock rates, so ratios say more than times.
"""

from __future__ import annotations

import os

from benchmarks.result import Result, show
from benchmarks.training import against, race, title

PART = "training_avx2"
PYTORCH = ("PyTorch, float32, channels-last", "PyTorch, float32, channels-last, torch.compile")
LIMITS = {
    "BENCH_PRECISION": "float32",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def results(*, quick: bool) -> list[Result]:
    os.environ.update(LIMITS)
    filters, rounds = (16, 2) if quick else (64, 2)
    found = race(filters, ("aggressive", "conservative", *PYTORCH), rounds)
    return against(PART, found, [name for name in PYTORCH if name in found.costs], title(filters))


if __name__ == "__main__":
    show(results)
