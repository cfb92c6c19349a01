"""Start-up: `kerasseg --help` and `import kerasseg` against Python alone, the first training step against plain Keras."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure import ROOT, Cost, child_environment, costs, rounds_of
from benchmarks.result import Result, compared, show

KERAS = """
import keras, numpy as np
import kerasseg  # noqa: E402
model = kerasseg.unet((128, 128, 3), filters=8, seed=0)
model.compile(keras.optimizers.AdamW(1e-4), kerasseg.DiceBCELoss(), metrics=[kerasseg.DiceScore(name="dice")])
image = np.zeros((8, 128, 128, 3), "float32")
model.train_on_batch(image, image[..., :1])
"""
OURS = """
import numpy as np
import kerasseg  # noqa: E402
from kerasseg.training.engine import Engine  # noqa: E402
model = kerasseg.unet((128, 128, 3), filters=8, seed=0)
engine = Engine(model, kerasseg.DecayedAdam(1e-4), batch_size=8)
image = np.zeros((8, 128, 128, 3), "float32")
ones = np.ones(8, "float32")
numbers = np.arange(8)
engine.train_step({"image": image, "mask": image[..., :1], "weight": ones, "label": numbers, "slice": numbers})
"""


# In one process, one after the other: between processes, TensorFlow's own import varies by more than ours takes.
IMPORTS = """
import json, time
def took(action):
    start, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - used
def framework():
    import tensorflow, keras
def ours():
    import kerasseg
    for name in kerasseg.__all__:
        getattr(kerasseg, name)
print(json.dumps([took(framework), took(ours)]))
"""


def run(*arguments: str) -> Cost:
    return costs(lambda: said(*arguments))


def said(*arguments: str) -> str:
    """Return the last line that Python prints when run with these arguments."""
    command, environment = [sys.executable, *arguments], child_environment()
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=environment)
    return done.stdout[-10_000:].strip().rpartition("\n")[2]


def results(*, quick: bool) -> list[Result]:
    lines = []
    run("-m", "kerasseg_cli", "--help")
    light = {
        "Python alone": lambda: run("-c", "pass"),
        "kerasseg --help": lambda: run("-m", "kerasseg_cli", "--help"),
        "import kerasseg": lambda: run("-c", "import kerasseg"),
    }
    found = rounds_of(light, 2 if quick else 7)
    for name in list(light)[1:]:
        remark = "goal: under 0.3 s in total" if name == "kerasseg --help" else ""
        lines.append(compared("startup", name, "Python alone", found[name], found["Python alone"], remark=remark))
    pairs = [[Cost(*cost) for cost in json.loads(said("-c", IMPORTS))] for _ in range(1 if quick else 5)]
    what = "import kerasseg and all its names, after TensorFlow and Keras"
    framework, ours = zip(*pairs, strict=True)
    lines.append(compared("startup", what, "TensorFlow and Keras themselves", ours, framework))
    first = {"ours": lambda: run("-c", OURS), "theirs": lambda: run("-c", KERAS)}
    found = rounds_of(first, 1 if quick else 3)
    what = "from start to the end of the first step (0.5 million parameters, 128x128)"
    lines.append(compared("startup", what, "plain Keras", found["ours"], found["theirs"]))
    return lines


if __name__ == "__main__":
    show(results)
