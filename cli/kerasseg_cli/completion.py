"""Values for shell completion. Heavy imports are avoided, because the shell waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

STRATEGIES = {
    "conservative": "freezes the first half of the encoder",
    "moderate": "freezes a quarter of the encoder",
    "aggressive": "freezes nothing, learning rate 1e-5",
    "progressive": "unfreezes block by block",
    "two-stage": "trains a fresh decoder first, then conservative",
    "auto": "trains conservative and moderate, keeps the better",
    "scratch": "starts from random weights",
}
_FREEZING = ("conservative", "moderate", "aggressive")
# Blocks of networks of the default depth.
BLOCKS = (
    "encoder_*",
    *(f"encoder_{k}" for k in range(1, 6)),
    "bottleneck",
    *(f"decoder_{k}" for k in range(5, 0, -1)),
    "decoder_*",
    "head",
)
FORMATS = ("figshare", "pairs", "nifti", "dicom")
AUGMENTATIONS = ("flip", "brightness", "contrast", "zoom", "none")


def proposing(values: Iterable[str] | dict[str, str]) -> Callable[[str], list[tuple[str, str]]]:
    """Return a function that completes one of these values; a dictionary also gives their meanings.

    >>> proposing(["native", "model"])("n")
    [('native', '')]
    """
    known = values if isinstance(values, dict) else dict.fromkeys(values, "")

    def propose(incomplete: str) -> list[tuple[str, str]]:
        return [(name, help_) for name, help_ in known.items() if name.startswith(incomplete)]

    return propose


def listed(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that completes the last value of a comma-separated list, without repeating values.

    >>> listed(["encoder_1", "encoder_2"])("encoder_1,enc")
    ['encoder_1,encoder_2']
    """
    known = tuple(values)

    def propose(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in known if name.startswith(last) and name not in before.split(",")]

    return propose


strategies_and_blocks = listed((*_FREEZING, *BLOCKS))
"""For `inspect --strategy`."""


def runs(incomplete: str) -> list[str]:
    """Complete `latest` and the names of runs, newest first."""
    from kerasseg.workflows.status import RUNS, run_names

    names = run_names(Path(RUNS))[::-1]
    return [name for name in ("latest", *names) if names and name.startswith(incomplete)]


def starting_points(incomplete: str) -> list[tuple[str, str]]:
    """Complete the names of `kerasseg checkpoints`."""
    from kerasseg.catalogue import STARTING_POINTS

    return [(point.name, point.task) for point in STARTING_POINTS if point.name.startswith(incomplete)]
