"""Types the commands, shows them, and leaves out what is done already: `make results` goes on where it stopped."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real.plan import DataSet, Trial

__all__ = ["Workshop"]


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder with shards and runs, in which commands are typed.

    Attributes:
        folder: Where they lie.
        data: Raw slices.
        checkpoint: That is fine-tuned.
        extra: Further options of every training: a short run's.
    """

    folder: Path
    data: Path
    checkpoint: Path
    extra: tuple[str, ...] = ()

    def run(self, trial: Trial) -> Path:
        """Its run directory."""
        return self.folder / "runs" / trial.name

    def prepare(self, data: DataSet) -> None:
        """Shards."""
        if not (self.folder / data.name / "manifest.json").exists():
            self._type(*data.command(str(self.data)))

    def done(self, trial: Trial) -> bool:
        """Whether its training has come to its end."""
        # Both are written by then; an interrupted run has the file too, but an unfinished state.
        return (self.run(trial) / "validation.csv").exists() and _finished(self.run(trial))

    def train(self, trial: Trial) -> None:
        """A training, to its end."""
        self.prepare(trial.data)
        if self.done(trial):
            return
        out = ["--out", f"runs/{trial.name}"]
        if (self.run(trial) / "config.json").exists():
            self._type("train", "--resume", *out)
        else:
            self._type("train", *trial.options(str(self.checkpoint)), *self.extra, *out)

    def judge(self, trial: Trial, split: str) -> None:
        """Threshold and post-processing on validation; figures on a split."""
        run = self.run(trial)
        if not (run / "threshold.json").exists():
            self._type("tune-threshold", f"runs/{trial.name}", "--quiet")
        if not (run / "evaluation" / {"validation": "val"}.get(split, split) / "metrics.json").exists():
            self._type("evaluate", f"runs/{trial.name}", "--split", split, "--quiet", "--no-speed")

    def crossed(self, trial: Trial) -> bool:
        """Whether it has been cross-validated."""
        return (self._cross(trial) / "ensemble" / "config.json").exists()

    def cross_validate(self, trial: Trial, folds: int = 5) -> Path:
        """A training for each fold of training and validation slices; the folder."""
        self.prepare(trial.data)
        root = self._cross(trial)
        if not self.crossed(trial):
            options = [*trial.options(str(self.checkpoint)), *self.extra]
            self._type("cross-validate", "--folds", str(folds), *options, "--out", f"runs/{root.name}", "--quiet")
        return root

    def _cross(self, trial: Trial) -> Path:
        return self.folder / "runs" / f"cv-{trial.name}"

    def _type(self, *words: str) -> None:
        print("$ kerasseg", shlex.join(words), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, "-m", "kerasseg_cli", *words], cwd=self.folder, check=False)
        if done.returncode:
            sys.exit(f"kerasseg {words[0]} ended with {done.returncode}; the same command goes on from here.")


def _finished(run: Path) -> bool:
    from kerasseg.runs.state import StateStore
    from kerasseg.training.progress import Progress

    saved = StateStore(run / "state").newest()
    return saved is not None and bool(Progress.from_saved(saved.facts, saved.arrays).finished)
