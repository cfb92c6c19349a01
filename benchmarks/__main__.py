"""`python -m benchmarks [part ...] [--quick]`: run parts, each in its own process, and write the results.

Results go to `benchmarks/results.json`, where other parts stay unchanged, and from there to `docs/benchmarks.md` and
`docs/benchmarks-tables.md`. `--quick` uses few rounds and small sizes and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.measure import ROOT, child_environment
from benchmarks.page import CHART, chart, page, tables
from benchmarks.result import Result
from kerasseg_tfrecords.files import write_atomically

# Approximate minutes on two idle cores.
PARTS = {
    "startup": 2,
    "commands": 6,
    "job": 12,
    "prepare": 2,
    "pipeline": 3,
    "freezing": 1,
    "roofline": 4,
    "training": 6,
    "training_others": 8,
    "training_avx2": 6,
    "prediction": 5,
    "thresholds": 5,
    "distances": 1,
    "scale": 4,
    "augmentation": 2,
    "duplicates": 2,
    "cluster": 20,
    "open_savedmodel": 1,
    "coverage": 1,
    "rule_choice": 10,
}
RESULTS, DOCS = ROOT / "benchmarks" / "results.json", ROOT / "docs"


def run(part: str, *, quick: bool) -> list[Result]:
    """Run a part and return its results; none if it failed."""
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks", "--inner", part, "--out", str(out), *["--quick"] * quick]
        done = subprocess.run(command, cwd=ROOT, check=False, env=child_environment())
        if done.returncode or not out.exists():
            print(f"== {part} failed", flush=True)
            return []
        return [Result.read(item) for item in json.loads(out.read_text())]


def inner(part: str, out: Path, *, quick: bool) -> None:
    results = importlib.import_module(f"benchmarks.{part}").results(quick=quick)
    out.write_text(json.dumps([result.document() for result in results]))


def merge(part: str, found: list[Result], seconds: float, results: Path) -> None:
    """Replace the earlier results of a part, with machine and duration in seconds."""
    document = json.loads(results.read_text()) if results.exists() else {"parts": {}}
    lines = [result.document() for result in found]
    document["parts"][part] = {"machine": describe(), "seconds": round(seconds), "results": lines}
    document["parts"] = {name: document["parts"][name] for name in PARTS if name in document["parts"]}
    write_atomically(results, json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    named = ", ".join(f"{part} ({minutes})" for part, minutes in PARTS.items())
    about = f"parts to run, with minutes on two idle cores: {named}. Default: all ({sum(PARTS.values())})"
    parser.add_argument("parts", nargs="*", metavar="part", help=about)
    parser.add_argument("--quick", action="store_true", help="use few rounds and small sizes, and write nothing")
    parser.add_argument("--page", action="store_true", help="only write the pages again from results.json")
    parser.add_argument("--inner", metavar="PART", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inner:
        inner(asked.inner, asked.out, quick=asked.quick)
        return 0
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; available: {', '.join(PARTS)}")
    failed = False
    for part in () if asked.page else asked.parts or PARTS:
        print(f"== {part}", flush=True)
        start = time.perf_counter()
        found = run(part, quick=asked.quick)
        took = time.perf_counter() - start
        failed |= not found
        for result in found:
            print(f"  {result}", flush=True)
        print(f"  {part} took {took:.0f} s", flush=True)
        if found and not asked.quick:
            merge(part, found, took, RESULTS)
    if not asked.quick and RESULTS.exists():
        document = json.loads(RESULTS.read_text())
        write_atomically(DOCS / "benchmarks.md", page(document))
        write_atomically(DOCS / "benchmarks-tables.md", tables(document))
        if "job" in document["parts"]:
            write_atomically(DOCS / CHART, chart(document))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
