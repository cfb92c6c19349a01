"""Time of `kerasseg --help` (goal: under 0.3 s), beside that of Python itself."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import ROOT, in_turn, spread


def main() -> None:
    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, capture_output=True)

    run("-m", "kerasseg_cli", "--help")
    rounds = in_turn(lambda: run("-c", "pass"), lambda: run("-m", "kerasseg_cli", "--help"), 7)
    print(f"kerasseg --help: seconds {spread([b for _, b in rounds])}; Python alone {spread([a for a, _ in rounds])}")


if __name__ == "__main__":
    main()
