"""`python -m benchmarks [part ...] [--quick]`: runs parts, each in a process of its own, and writes what they found.

Writes `benchmarks/results.json`, in which the other parts stay as they were, and makes `docs/benchmarks.md` of it.
`--quick` does few rounds and small sizes, and writes nothing: its figures are no claims.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.measure import ROOT
from benchmarks.page import page
from benchmarks.result import Result

PARTS = (
    "startup",
    "prepare",
    "pipeline",
    "freezing",
    "training",
    "training_others",
    "prediction",
    "thresholds",
    "distances",
    "scale",
    "augmentation",
)
RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "benchmarks.md"


def run(part: str, *, quick: bool) -> list[Result] | None:
    """What a part found; None where it failed, which it has said by then."""
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks", "--inner", part, "--out", str(out), *["--quick"] * quick]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode or not out.exists():
            print(f"== {part} failed", flush=True)
            return None
        return [Result.read(item) for item in json.loads(out.read_text())]


def inner(part: str, out: Path, *, quick: bool) -> None:
    module = importlib.import_module(f"benchmarks.{part}")
    if not hasattr(module, "results"):  # prints what it finds, which no ratio says
        sys.argv = [part]
        module.main()
        out.write_text("[]")
        return
    results = module.results(quick=quick)
    out.write_text(json.dumps([result.document() for result in results]))


def merge(part: str, found: list[Result], results: Path) -> None:
    """Puts what a part found, and where, in the place of what it found before."""
    document = json.loads(results.read_text()) if results.exists() else {"parts": {}}
    document["parts"][part] = {"machine": describe(), "results": [result.document() for result in found]}
    document["parts"] = {name: document["parts"][name] for name in PARTS if name in document["parts"]}
    results.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--quick", action="store_true", help="few rounds, small sizes; nothing is written")
    parser.add_argument("--page", action="store_true", help="only make the page again from results.json")
    parser.add_argument("--inner", metavar="PART", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if asked.inner:
        inner(asked.inner, asked.out, quick=asked.quick)
        return 0
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = False
    there = [part for part in PARTS if (ROOT / "benchmarks" / f"{part}.py").exists()]
    for part in () if asked.page else asked.parts or there:
        print(f"== {part}", flush=True)
        found = run(part, quick=asked.quick)
        failed |= found is None
        for result in found or ():
            print(f"  {result}", flush=True)
        if found and not asked.quick:
            merge(part, found, RESULTS)
    if not asked.quick and RESULTS.exists():
        PAGE.write_text(page(json.loads(RESULTS.read_text())))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
