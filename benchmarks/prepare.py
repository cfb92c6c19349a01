"""`prepare` against a loop that only opens the same files with h5py and reads image and mask.

    python -m benchmarks.prepare [--slices 3000] [--data FOLDER] [--rounds 3]

Without --data it makes slices like the figshare ones; with it, the .mat files there are linked under new names until there
are enough. Start-up (imports, worker processes) is shown apart: it is the time of the same command over 64 files.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, make_slices, seconds, spread

LOOP = """
import sys, h5py
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

def read(paths):
    for path in paths:
        with h5py.File(path) as file:
            file["cjdata/image"][()], file["cjdata/tumorMask"][()]

if __name__ == "__main__":
    paths, jobs = sorted(Path(sys.argv[1]).glob("*.mat")), int(sys.argv[2])
    if jobs == 1:
        read(paths)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            list(pool.map(read, [paths[i : i + 32] for i in range(0, len(paths), 32)]))
"""

PREPARE = """
import sys
from pathlib import Path
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.manifest import PrepareOptions
if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[3]), PrepareOptions(split_by="slice"), jobs=int(sys.argv[2]), overwrite=True)
"""


def run(script: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True, cwd=ROOT)


def peak(script: Path, *arguments: object) -> float:
    """Peak resident memory in MB of the largest process."""
    code = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(script), *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=3000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        work = Path(name)
        loop, script = work / "loop.py", work / "run.py"
        loop.write_text(LOOP)
        script.write_text(PREPARE)
        folders = {count: work / f"slices{count}" for count in (64, 300, asked.slices)}
        for count, folder in folders.items():
            if asked.data:
                link(asked.data, folder, count)
            else:
                make_slices(folder, count)
        many, few, out = folders[asked.slices], folders[64], work / "out"
        run(loop, many, 1)  # warm the page cache
        net: dict[tuple[str, int], list[float]] = {}
        for _ in range(asked.rounds):
            for jobs in (1, 2):
                for label, command in (("loop", (loop,)), ("prepare", (script,))):
                    start = seconds(lambda c=command, j=jobs: run(*c, few, j, out))
                    whole = seconds(lambda c=command, j=jobs: run(*c, many, j, out))
                    net.setdefault((label, jobs), []).append(whole - start)
                    net.setdefault((f"{label} start-up", jobs), []).append(start)
        print(f"prepare, {asked.slices} .mat files, start-up taken off")
        for (label, jobs), times in net.items():
            rate = "" if "start" in label else f", {(asked.slices - 64) / statistics.median(times):.0f} slices/s"
            print(f"  {label}, {jobs} process(es): seconds {spread(times)}{rate}")
        for jobs in (1, 2):
            ratios = [p / q for p, q in zip(net["prepare", jobs], net["loop", jobs], strict=True)]
            print(f"  time of prepare / time of the loop, --jobs {jobs}: {spread(ratios)}   (goal: at most 1.5)")
        ratios = [p / q for p, q in zip(net["prepare", 1], net["prepare", 2], strict=True)]
        print(f"  speed of --jobs 2 / --jobs 1: {spread(ratios)}   (goal: at least 1.6)")
        low, high = peak(script, folders[300], 2, out), peak(script, many, 2, out)
        print(
            f"  peak memory: {low:.0f} MB for 300, {high:.0f} MB for {asked.slices}: +{high - low:.0f} MB (goal: < 50)"
        )
        shutil.rmtree(out, ignore_errors=True)


def link(source: Path, folder: Path, count: int) -> None:
    """The files of `source` under as many names as are asked for, copied where the file system knows no links."""
    folder.mkdir(parents=True)
    files = sorted(source.glob("*.mat"))
    for number in range(count):
        origin, path = files[number % len(files)], folder / f"{number + 1}.mat"
        if number < len(files):
            shutil.copyfile(origin, path)
        else:
            path.hardlink_to(folder / f"{number % len(files) + 1}.mat")


if __name__ == "__main__":
    main()
