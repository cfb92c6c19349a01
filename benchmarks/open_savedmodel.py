"""Opening the 31-million-parameter SavedModel that people start from: seconds and memory, against copying the file.

    python -m benchmarks.open_savedmodel

One process writes it (`kerasseg.unet` and `model.export`); fresh ones open it, so that memory is that of opening alone.
The import of TensorFlow and Keras is shown apart: whoever opens a checkpoint pays it once, whatever the checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, spread

ROUNDS = 3
BUDGET_SECONDS = 20
BUDGET_MEGABYTES = 1500

_WRITE = """
import sys, keras, kerasseg
model = kerasseg.unet(seed=0)
model.export(sys.argv[1], verbose=False)
print(model.count_params())
"""

_OPEN = """
import resource, sys, time
start = time.perf_counter()
import keras, tensorflow
imported = time.perf_counter()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from kerasseg.checkpoints.savedmodel import open_savedmodel
opened = open_savedmodel(sys.argv[1], compare=sys.argv[2] == "compare")
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(imported - start, done - imported, memory / 1024, peak / 1024, opened.largest_difference)
"""


def _run(code: str, *arguments: str) -> str:
    paths = [ROOT, ROOT / "cli", ROOT / "tfrecords"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.splitlines()[-1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "unet")
        print(f"SavedModel of {int(_run(_WRITE, path)):,} parameters at 256x256x3")
        for how in ("compare", "trust"):
            rounds = [_run(_OPEN, path, how).split() for _ in range(ROUNDS)]
            importing, opening, before, peak = ([float(r[i]) for r in rounds] for i in range(4))
            what = "opened, and compared with the original" if how == "compare" else "opened without comparing"
            print(f"  {what}: {spread(opening)} s (budget {BUDGET_SECONDS})")
            print(
                f"    peak memory {max(peak):,.0f} MB (budget {BUDGET_MEGABYTES:,}), imports alone {max(before):,.0f} MB"
            )
            print(f"    importing TensorFlow and Keras, once a process: {spread(importing)} s")
            if how == "compare":
                print(f"    largest difference {rounds[0][4]}")
            if max(opening) > BUDGET_SECONDS or max(peak) > BUDGET_MEGABYTES:
                sys.exit("over budget")


if __name__ == "__main__":
    main()
