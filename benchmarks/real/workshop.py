"""Run and print the commands, skipping finished work, so that `make results` can be resumed."""

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
    """A folder with shards and runs, in which commands run.

    Attributes:
        folder: The folder.
        data: Folder of raw slices.
        checkpoint: Network to fine-tune.
        extra: Additional options of every training.
    """

    folder: Path
    data: Path
    checkpoint: Path
    extra: tuple[str, ...] = ()

    def run(self, trial: Trial) -> Path:
        """Run directory of a training."""
        return self.folder / "runs" / trial.name

    def prepare(self, data: DataSet) -> None:
        """Prepare the shards of a data set."""
        if (self.folder / data.name / "manifest.json").exists():
            return
        for name in data.inputs:
            if not (self.data / name).exists():
                sys.exit(
                    f"{self.data / name} is missing. Set its parent with --data or KERASSEG_REAL_DATA; "
                    "docs/results.md says what is in it."
                )
        self._type(*data.command(str(self.data)))

    def done(self, trial: Trial) -> bool:
        """Whether the training has finished."""
        # An interrupted run has the file too, but an unfinished state.
        return (self.run(trial) / "validation.csv").exists() and _finished(self.run(trial))

    def train(self, trial: Trial) -> None:
        """Run a training to its end."""
        done = self.done(trial)
        # Checked first: preparing shards takes minutes.
        if not done and not self.checkpoint.exists():
            sys.exit(f"{self.checkpoint} is missing. Set the network to fine-tune with --checkpoint.")
        self.prepare(trial.data)
        if done:
            return
        out = ["--out", f"runs/{trial.name}"]
        if (self.run(trial) / "config.json").exists():
            self._type("train", "--resume", *out)
        else:
            self._type("train", *trial.options(str(self.checkpoint)), *self.extra, *out)

    def judge(self, trial: Trial, split: str) -> None:
        """Tune threshold and post-processing on validation; evaluate on a split."""
        run = self.run(trial)
        if not (run / "threshold.json").exists():
            self._type("tune-threshold", f"runs/{trial.name}", "--quiet")
        if not (run / "evaluation" / {"validation": "val"}.get(split, split) / "metrics.json").exists():
            self._type("evaluate", f"runs/{trial.name}", "--split", split, "--quiet", "--no-speed")

    def crossed(self, trial: Trial) -> bool:
        """Whether the cross-validation has finished."""
        from kerasseg.workflows.cross_validate import read_cross_validation
        from kerasseg_tfrecords.errors import KerassegError

        # Written last, after the ensemble.
        try:
            return read_cross_validation(self._cross(trial)).out_of_fold is not None
        except KerassegError:
            return False

    def cross_validate(self, trial: Trial, folds: int = 5) -> Path:
        """Cross-validate on training and validation slices; return the folder."""
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
        with subprocess.Popen([sys.executable, "-m", "kerasseg_cli", *words], cwd=self.folder) as command:
            try:
                ended = command.wait()
            except KeyboardInterrupt:
                # The command got Ctrl-C too and saves its state; subprocess.run would kill it meanwhile.
                command.wait()
                sys.exit("Stopped; the same command goes on from here.")
        if ended:
            sys.exit(f"kerasseg {words[0]} failed with exit code {ended}. Run the same command again to resume.")


def _finished(run: Path) -> bool:
    from kerasseg.runs.state import StateStore
    from kerasseg.training.state import Progress

    saved = StateStore(run / "state").newest()
    return saved is not None and bool(Progress.from_saved(saved.facts, saved.arrays).finished)
