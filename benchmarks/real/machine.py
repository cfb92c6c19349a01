"""What a figure was measured on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from kerasseg_tfrecords.parallel import available_cpus

__all__ = ["machine"]


def machine() -> str:
    """Processor, cores, memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {available_cpus()} cores, {memory:.0f} GiB, no GPU used"
