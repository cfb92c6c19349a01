"""Whole commands as processes, from start to end: `predict` against a script that loads the SavedModel and loops.

`inspect`, `verify` and `doctor` are compared with a goal in seconds. The slices and the network are those of
`benchmarks.prediction`; beyond 308 files they are links to the same ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import ROOT, Cost, child_environment, costs, make_slices, rounds_of
from benchmarks.result import Result, compared, show

PART, SCRIPT = "commands", "a script that loads the SavedModel and loops"
GOALS = {"inspect": 2.0, "verify": 4.0, "doctor": 4.0}
"""Seconds."""


def loop(savedmodel: Path, slices: Path, out: Path) -> None:
    """Predict as a short script would."""
    from benchmarks.prediction import by_signature, write_masks

    write_masks(by_signature(savedmodel), sorted(slices.glob("*.mat")), out, 1)


def process(*arguments: object) -> Callable[[], Cost]:
    """Return an action that runs Python with these arguments, and measures it."""
    command = [sys.executable, *map(str, arguments)]
    return lambda: costs(lambda: subprocess.run(command, check=True, capture_output=True, env=child_environment()))


def command(*words: object) -> Callable[[], Cost]:
    return process("-m", "kerasseg_cli", *words)


def counted(slices: list[Path], count: int, folder: Path) -> Path:
    """Create a folder of so many slices."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}.mat").symlink_to(slices[number % len(slices)])
    return folder


def predictions(folder: Path, slices: list[Path], savedmodel: Path, counts: list[int], rounds: int) -> list[Result]:
    lines = []
    for count in counts:
        files = counted(slices, count, folder / f"slices{count}")
        out = folder / "masks"
        ours = command("predict", files, "--model", savedmodel, "--out", out, "--overwrite")
        theirs = process("-m", "benchmarks.commands", savedmodel, files, folder / "theirs")
        found = rounds_of({"ours": ours, "theirs": theirs}, rounds if count < 500 else 1)
        plural = "" if count == 1 else "s"
        lines.append(compared(PART, f"predict, {count} file{plural}", SCRIPT, found["ours"], found["theirs"]))
    return lines


def results(*, quick: bool) -> list[Result]:
    import kerasseg

    real = Path(os.environ.get("KERASSEG_REAL_DATA", ROOT.parent / "shared" / "data"))
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        folder = Path(name)
        savedmodel, made = real / "checkpoints" / "unet-lgg-savedmodel", real / "figshare-mat"
        if not savedmodel.is_dir():
            savedmodel, made = folder / "network", folder / "slices"
            kerasseg.unet((256, 256, 3), filters=16, seed=0).export(str(savedmodel), verbose=False)
            make_slices(made, 60)
        slices = [path.resolve() for path in sorted(made.glob("*.mat"))]
        lines = predictions(folder, slices, savedmodel, [1, 8] if quick else [1, 8, 48, 500], 1 if quick else 3)
        kerasseg.unet((256, 256, 3), seed=0).save(folder / "network.keras")
        shards = folder / "shards"
        command("prepare", counted(slices, 48, folder / "few"), "--split-by", "slice", "--out", shards)()
        words = {"inspect": [folder / "network.keras"], "verify": [shards], "doctor": []}
        found = rounds_of({what: command(what, *rest) for what, rest in words.items()}, 1 if quick else 5)
        names = {
            "inspect": "inspect, .keras of 31 million parameters",
            "verify": "verify, 48 slices",
            "doctor": "doctor",
        }
        for what, goal in GOALS.items():
            pair = found[what], [Cost(goal, 0)] * len(found[what])
            lines.append(compared(PART, names[what], f"goal of {goal:g} s", *pair, goal=1.0))
    return lines


if __name__ == "__main__":
    if "--quick" in sys.argv or len(sys.argv) < 4:
        show(results)
    else:
        loop(*map(Path, sys.argv[1:4]))
