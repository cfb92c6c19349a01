"""Run and print the commands, skipping finished work, so that `make results` can be resumed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real.plan import DataSet, Trial

__all__ = ["Workshop", "finished"]


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
        self.need(*data.inputs)
        self.command(*data.command(str(self.data)))

    def need(self, *folders: str) -> None:
        """Exit unless these folders of raw data exist."""
        for name in folders:
            if not (self.data / name).exists():
                sys.exit(
                    f"{self.data / name} is missing. Set its parent with --data or KERASSEG_REAL_DATA; "
                    "docs/results.md says what is in it."
                )

    def done(self, trial: Trial) -> bool:
        """Whether its training has come to its end."""
        # Both are written by then; an interrupted run has the file too, but an unfinished state.
        return (self.run(trial) / "validation.csv").exists() and finished(self.run(trial))

    def train(self, trial: Trial) -> None:
        """Run a training to its end."""
        done = self.done(trial)
        # Checked first: preparing shards takes minutes.
        if not done and not self.checkpoint.exists():
            sys.exit(f"{self.checkpoint} is missing. Set the network to fine-tune with --checkpoint.")
        self.prepare(trial.data)
        if done:
            return
        self.train_run(trial.name, *trial.options(str(self.checkpoint)))

    def train_run(self, name: str, *options: str) -> None:
        """Train a run to its end, resuming what an earlier call left."""
        root = self.folder / "runs" / name
        if (root / "validation.csv").exists() and finished(root):
            return
        if (root / "config.json").exists():
            self.command("train", "--resume", "--out", f"runs/{name}")
        else:
            self.command("train", *options, *self.extra, "--out", f"runs/{name}")

    def once(self, result: str, *words: str) -> None:
        """Type a command unless the file that it writes last exists.

        Args:
            result: The file, below `folder`.
            words: The command.
        """
        if not (self.folder / result).exists():
            self.command(*words)

    def judge(self, trial: Trial, split: str) -> None:
        """Tune threshold and post-processing on validation; evaluate on a split."""
        run = self.run(trial)
        if not (run / "threshold.json").exists():
            self.command("tune-threshold", f"runs/{trial.name}", "--quiet")
        if not (run / "evaluation" / {"validation": "val"}.get(split, split) / "metrics.json").exists():
            self.command("evaluate", f"runs/{trial.name}", "--split", split, "--quiet", "--no-speed")

    def crossed(self, trial: Trial) -> bool:
        """Whether the cross-validation has finished."""
        from kerasseg.workflows.cross_validate import read_cross_validation
        from kerasseg_tfrecords.errors import KerassegError

        # Written last, after the ensemble.
        try:
            return read_cross_validation(self.cross_root(trial)).out_of_fold is not None
        except KerassegError:
            return False

    def cross_validate(self, trial: Trial, folds: int = 5) -> Path:
        """Cross-validate on training and validation slices; return the folder."""
        self.prepare(trial.data)
        root = self.cross_root(trial)
        if not self.crossed(trial):
            options = [*trial.options(str(self.checkpoint)), *self.extra]
            self.command("cross-validate", "--folds", str(folds), *options, "--out", f"runs/{root.name}", "--quiet")
        return root

    def cross_root(self, trial: Trial) -> Path:
        """Folder of its cross-validation."""
        return self.folder / "runs" / f"cv-{trial.name}"

    def command(self, *words: str) -> None:
        """Type a command of kerasseg, and exit if it fails."""
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


def finished(run: Path) -> bool:
    """Whether a training has come to its end."""
    from kerasseg.runs.state import StateStore
    from kerasseg.training.state import Progress

    saved = StateStore(run / "state").newest()
    return saved is not None and bool(Progress.from_saved(saved.facts, saved.arrays).finished)
