"""`prepare` against only reading the same .mat files with h5py, and against loading and stacking all, as scripts do.

The slices are made like the figshare ones. Start-up (imports, worker processes) is taken off: it is the time of the same
command over 64 files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Cost, child_environment, children_costs, make_slices
from benchmarks.result import Result, compared, show, sized

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


STACK = """
import sys, cv2, h5py
import numpy as np
from pathlib import Path

images, masks = [], []
for path in sorted(Path(sys.argv[1]).glob("*.mat")):
    with h5py.File(path) as file:
        image, mask = file["cjdata/image"][()].T.astype("float32"), file["cjdata/tumorMask"][()].T
    image = (image - image.min()) / (image.max() - image.min())
    images.append(cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)[..., None])
    masks.append(cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST)[..., None].astype("float32"))
images, masks = np.stack(images), np.stack(masks)
order = np.random.default_rng(0).permutation(len(images))
cut = len(order) * 8 // 10
for name, rows in (("train", order[:cut]), ("test", order[cut:])):
    np.savez(f"{sys.argv[3]}-{name}.npz", image=images[rows], mask=masks[rows])
"""
PART = "prepare"


def run(script: Path, *arguments: object) -> Cost:
    command = [sys.executable, str(script), *map(str, arguments)]
    return children_costs(lambda: subprocess.run(command, check=True, cwd=ROOT, env=child_environment()))


def peak(script: Path, *arguments: object) -> float:
    """Peak resident memory in MB of the largest process."""
    code = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(script), *map(str, arguments)]
    environment = child_environment()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    return int(done.stdout.split()[-1]) / 1024


def results(*, quick: bool) -> list[Result]:
    count, rounds = (300, 1) if quick else (1000, 3)
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as name:
        work = Path(name)
        scripts = {"loop": LOOP, "prepare": PREPARE, "stack": STACK}
        for key, text in scripts.items():
            (work / f"{key}.py").write_text(text)
        folders = {number: work / f"slices{number}" for number in (64, 300, count)}
        for number, folder in folders.items():
            make_slices(folder, number)
        run(work / "loop.py", folders[count], 1)  # warm the page cache
        net: dict[tuple[str, int], list[Cost]] = {}
        for _ in range(rounds):
            for key, jobs in (("loop", 1), ("prepare", 1), ("stack", 1), ("loop", 2), ("prepare", 2)):
                few, many = (run(work / f"{key}.py", folders[n], jobs, work / "out") for n in (64, count))
                whole = Cost(many.time - few.time, many.processor - few.processor)
                net.setdefault((key, jobs), []).append(whole)
        lines = []
        for jobs in (1, 2):
            what = f"prepare --jobs {jobs}, start-up taken off"
            pair = net["prepare", jobs], net["loop", jobs]
            # The goal is on the clock: at most one and a half times what reading takes.
            lines.append(compared(PART, what, "only reading", *pair, slices=count - 64, goal=round(1 / 1.5, 2)))
        for jobs in (1, 2):
            pair = net["prepare", jobs], net["stack", 1]
            what = f"prepare --jobs {jobs}, start-up taken off"
            lines.append(compared(PART, what, "load all, np.stack, savez", *pair, slices=count - 64))
        pair = net["prepare", 2], net["prepare", 1]
        lines.append(compared(PART, "prepare --jobs 2", "--jobs 1", *pair, slices=count - 64))
        high = {key: peak(work / f"{key}.py", folders[count], 2, work / "out") for key in ("prepare", "stack")}
        low = {key: peak(work / f"{key}.py", folders[64], 2, work / "out") for key in ("prepare", "stack")}
        remark = "the largest process"
        peer = "load all, np.stack, savez"
        lines.append(sized(PART, f"peak memory, {count} slices", peer, high["prepare"], high["stack"], remark=remark))
        grown = {key: max(high[key] - low[key], 0.1) for key in high}
        lines.append(sized(PART, f"memory that {count - 64} more slices take", peer, grown["prepare"], grown["stack"]))
        return lines


if __name__ == "__main__":
    show(results)
