"""Time of `kerasseg --help` (goal: under 0.3 s), beside that of Python itself.

And of `import kerasseg` (goal: at most 0.3 s), behind that of TensorFlow and Keras.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure import ROOT, in_turn, spread

_IMPORTS = """
import json, time
moments = [time.perf_counter()]
import tensorflow, keras
moments.append(time.perf_counter())
import kerasseg
moments.append(time.perf_counter())
for name in kerasseg.__all__:
    getattr(kerasseg, name)
moments.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(moments, moments[1:])]))
"""


def main() -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, capture_output=True, text=True)
        return done.stdout

    run("-m", "kerasseg_cli", "--help")
    rounds = in_turn(lambda: run("-c", "pass"), lambda: run("-m", "kerasseg_cli", "--help"), 7)
    print(f"kerasseg --help: seconds {spread([b for _, b in rounds])}; Python alone {spread([a for a, _ in rounds])}")
    # In one process, one behind the other: between two processes TensorFlow's own import varies by more than ours takes.
    imports = list(zip(*(json.loads(run("-c", _IMPORTS)) for _ in range(5)), strict=True))
    framework, ours, names = (spread(list(part)) for part in imports)
    print(f"import kerasseg: seconds {ours} behind TensorFlow and Keras {framework}; all its names {names}")


if __name__ == "__main__":
    main()
