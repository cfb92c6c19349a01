"""`kerasseg demo`: run the whole workflow on synthetic head slices, with the usual commands."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.console import print_json, screen
from kerasseg_cli.errors import INTERRUPTED, complain
from kerasseg_cli.options import Debug, Json, Quiet, Verbose
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import lock
from kerasseg_tfrecords.text import count, duration

if TYPE_CHECKING:
    from kerasseg.evaluation.schema import Evaluation, Mean

_MARK = ".kerasseg-demo"
"""File that marks the folder of an earlier demonstration; only such a folder is ever replaced."""

_BUSY = "another demonstration is running in this folder"

_ROOM = 200_000_000
"""Bytes of free space needed, with a margin."""

_EXPORT = 'keras.models.load_model("runs/pretrained/model.keras", compile=False).export("pretrained-unet")'


@dataclass(frozen=True, slots=True)
class _Plan:
    """Amount of data and training.

    Attributes:
        patients: Patients per scanner: three fifths for training, one each for validation and test.
        slices: Slices per patient.
        pixels: Side of the raw slices.
        size: Side of the prepared slices.
        depth: Depth of the U-Net.
        pretrain, tune: Maximum number of epochs on scanner A and on scanner B.
    """

    patients: int
    slices: int
    pixels: int
    size: int
    depth: int
    pretrain: int
    tune: int


_WHOLE = _Plan(patients=60, slices=3, pixels=128, size=96, depth=4, pretrain=16, tune=20)
_FAST = _Plan(patients=30, slices=3, pixels=64, size=64, depth=3, pretrain=14, tune=14)


def demo(
    context: typer.Context,
    fast: Annotated[bool, typer.Option("--fast", help="Use fewer, smaller slices and fewer epochs (for CI).")] = False,
    keep: Annotated[
        Path, typer.Option("--keep", metavar="DIR", help="Output folder; an earlier demonstration in it is replaced.")
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the synthetic heads.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Run the whole workflow on synthetic slices of two scanners, in a few minutes, without data or GPU."""
    # TensorFlow would warn that a dozen networks in one process look like a mistake in a loop.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    started = time.monotonic()
    root = _folder(keep)
    silent = quiet or as_json
    stage = _Stage(context.find_root().command, silent=silent, whole=verbose and not silent)
    plan = _FAST if fast else _WHOLE
    with lock(root / _MARK, "demonstration", busy=_BUSY), _inside(root):
        _scanner_a(stage, plan, seed, keep)
        _scanner_b(stage, plan, seed)
        own, new = _figures("pretrained"), _figures(Path("runs/latest").read_text().strip())
    report = root / new.run / "evaluation" / "test" / "report.html"
    seconds = time.monotonic() - started
    if as_json:
        print_json(_document(own, new, root, report, seconds))
    elif not quiet:
        _verdict(stage, own, new)
        stage.say(f"All files are in {keep}; this took {duration(seconds)}. Next: kerasseg prepare YOUR-DATA")
        stage.say(f"Report: {report}")


# --- the two halves ------------------------------------------------------------------------------------------------------


def _scanner_a(stage: _Stage, plan: _Plan, seed: int, shown: Path) -> None:
    """Pretrain a network on scanner A and export it as a SavedModel, as another group would have done."""
    stage.title("Data: synthetic heads on two scanners")
    stage.say("These are not real patients: no figure below says anything about real images.")
    stage.typed(f"cd {shlex.quote(str(shown))}")
    for scanner in ("A", "B"):
        _write(stage, f"scanner-{scanner}", plan, scanner, seed)
    stage.title("1. Another group pretrains a U-Net on scanner A and exports it")
    stage.label = "pretraining on scanner A"
    shares = ("--split", "60/20/20", "--size", str(plan.size))
    stage.command("prepare", "scanner-A", "--out", "shards-A", *shares)
    stage.result("prepare", shards="shards-A")
    network = ("--filters", "8", "--depth", str(plan.depth))
    epochs = ("--epochs", str(plan.pretrain))
    place = ("--shards", "shards-A", "--out", "runs/pretrained")
    stage.command("train", "--strategy", "scratch", *network, *epochs, *place)
    stage.result("train")
    stage.command("evaluate", "runs/pretrained", "--threshold", "auto")
    stage.result("evaluate")
    stage.typed(_EXPORT, prompt=">>> ")
    import keras

    keras.models.load_model("runs/pretrained/model.keras", compile=False).export("pretrained-unet", verbose=False)


def _scanner_b(stage: _Stage, plan: _Plan, seed: int) -> None:
    """Fine-tune that network on scanner B, as the user would."""
    stage.title("2. You fine-tune that SavedModel on your slices of scanner B")
    stage.label = "fine-tuning on scanner B"
    stage.command("prepare", "scanner-B", "--split", "60/20/20", "--size", str(plan.size))
    stage.result("prepare")
    if not stage.silent:  # it only shows facts
        found = stage.command("inspect", "pretrained-unet", "--strategy", "conservative")
        if found:
            frozen = [block["name"] for block in found["blocks"] or () if block["state"] == "frozen"]
            stage.say(f"  {found['parameters']:,} parameters; conservative freezes {', '.join(frozen)}")
    epochs = ("--epochs", str(plan.tune))
    stage.command("train", "--strategy", "conservative", "--checkpoint", "pretrained-unet", *epochs)
    stage.result("train")
    stage.command("tune-threshold")
    stage.result("tune-threshold")
    stage.command("evaluate", "--threshold", "auto")
    stage.result("evaluate")
    stage.title("3. You predict masks for new slices")
    stage.label = "new slices"
    _write(stage, "new-slices", plan, "B", seed, first=plan.patients, patients=3, slices=1)
    found = stage.command("predict", "new-slices", "--out", "predicted", "--overlay")
    if found:
        tumours = sum(file["tumour_slices"] for file in found["files"])
        stage.say(f"  a tumour in {tumours} of {count(found['total'], 'slice')}; masks and overlays: predicted/")


def _write(
    stage: _Stage,
    name: str,
    plan: _Plan,
    scanner: str,
    seed: int,
    *,
    first: int = 0,
    patients: int | None = None,
    slices: int | None = None,
) -> None:
    from kerasseg import write_phantoms

    made = write_phantoms(
        name,
        patients or plan.patients,
        slices or plan.slices,
        scanner=scanner,
        size=plan.pixels,
        seed=seed,
        first=first,
    )
    people = count(patients or plan.patients, "patient")
    stage.say(f"{name}/: {count(len(made), 'slice')} of {people}, as MATLAB files in the layout of figshare")


def _figures(run: str) -> Evaluation:
    from kerasseg.evaluation.schema import read_evaluation

    return read_evaluation(Path("runs") / run / "evaluation" / "test" / "metrics.json")


# --- what is shown -------------------------------------------------------------------------------------------------------


class _Labelled(io.TextIOBase):
    """Standard error with a label before each line, because two trainings give the same warnings."""

    def __init__(self, label: str) -> None:
        self._label, self._target, self._new_line = f"  {label}: ", sys.stderr, True

    def write(self, text: str) -> int:
        """Write text."""
        for line in text.splitlines(keepends=True):
            self._target.write(self._label + line if self._new_line and line.strip() else line)
            self._new_line = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Flush standard error."""
        self._target.flush()


class _Stage:
    """Show commands as a user would type them, and run them."""

    def __init__(self, kerasseg: Callable[..., Any], *, silent: bool, whole: bool) -> None:
        self._kerasseg = kerasseg
        self.label = "data"
        self.silent, self.whole = silent, whole

    def say(self, text: str) -> None:
        if not self.silent:
            screen().print(text, soft_wrap=True)

    def title(self, text: str) -> None:
        """Print a heading after a blank line."""
        if not self.silent:
            screen().print(f"\n{text}", style="bold underline")

    def typed(self, text: str, prompt: str = "$ ") -> None:
        """Print what a user would type."""
        if not self.silent:
            blank = "\n" if self.whole else ""
            screen().print(f"{blank}{prompt}{text}", style="bold cyan", soft_wrap=True)
            sys.stdout.flush()

    def result(self, step: str, *, shards: str = "shards") -> None:
        """Print the main figure of the latest run's step, unless the command's own output shows it."""
        from kerasseg.workflows.status import look_around

        figure = next(line.figure for line in look_around(shards=shards).steps if line.name == step)
        if figure and not self.whole:
            self.say(f"  {figure}")

    def command(self, *words: str) -> dict[str, Any] | None:
        """Run a `kerasseg` command in this process, where TensorFlow is already loaded.

        Returns:
            The document printed with `--json`; None if the output was shown.

        Raises:
            KerassegError: The command failed.
            KeyboardInterrupt: The command was interrupted.
        """
        self.typed(f"kerasseg {shlex.join(words)}")
        output = io.StringIO()
        with contextlib.ExitStack() as stack:
            if not self.whole:
                stack.enter_context(contextlib.redirect_stdout(output))
                stack.enter_context(contextlib.redirect_stderr(_Labelled(self.label)))
            code = self._kerasseg([*words, *([] if self.whole else ["--json"])], standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        document = json.loads(output.getvalue() or "{}")
        if code:
            raise KerassegError(
                f"the demonstration stops here: `kerasseg {words[0]}` ended with exit code {code}",
                found=document.get("error"),
            )
        return None if self.whole else document


def _verdict(stage: _Stage, own: Evaluation, new: Evaluation) -> None:
    from rich.table import Table

    stage.title("Result")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("test Dice")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(f"{100 * new.confidence:g} % interval", no_wrap=True)
    for name, mean, sign in _rows(own, new):
        table.add_row(name, _number(mean.mean, sign), f"{_number(mean.low, sign)} to {_number(mean.high, sign)}")
    screen().print(table)
    gain = new.gain[new.final]
    stage.say(f"Final masks; intervals over {count(gain.patients, 'test patient')}; the gain is paired.")
    if not gain.is_clear:
        stage.say(
            "The gain may be chance: with more patients its interval is narrower (kerasseg demo has more than --fast)."
        )


def _rows(own: Evaluation, new: Evaluation) -> list[tuple[str, Mean, str]]:
    before = next(s for s in new.baseline.stages if s.name == new.final) if new.baseline else None
    assert before is not None  # noqa: S101 - a fine-tuned run has a baseline
    return [
        ("pretrained network, its own scanner A", own.final_stage().all.measures["dice"], ""),
        ("pretrained network, scanner B", before.all.measures["dice"], ""),
        ("fine-tuned network, scanner B", new.final_stage().all.measures["dice"], ""),
        ("gain from fine-tuning", new.gain[new.final], "+"),
    ]


def _number(value: float | None, sign: str) -> str:
    return "none" if value is None else f"{value:{sign}.3f}"


def _document(own: Evaluation, new: Evaluation, root: Path, report: Path, seconds: float) -> dict[str, Any]:
    keys = ("own_scanner", "before", "after", "gain")
    figures = {key: mean.model_dump() for key, (_, mean, _) in zip(keys, _rows(own, new), strict=True)}
    return {"folder": str(root), "report": str(report), "seconds": seconds, **figures}


# --- the folder ----------------------------------------------------------------------------------------------------------


def _folder(keep: Path) -> Path:
    """Create the output folder, or empty that of an earlier demonstration."""
    from kerasseg_tfrecords.files import explain_os_error

    try:
        if keep.is_dir() and any(keep.iterdir()):
            if not (keep / _MARK).is_file():
                raise UsageError(
                    "the folder is not empty and contains no earlier demonstration",
                    path=keep,
                    remedy="Choose another folder with --keep.",
                )
            with lock(keep / _MARK, "demonstration", busy=_BUSY):
                shutil.rmtree(keep)
        keep.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(keep).free
        if free < _ROOM:
            raise KerassegError(
                "too little disk space for the demonstration",
                path=keep,
                found=f"{free / 1e6:.0f} MB free",
                expected=f"{_ROOM / 1e6:.0f} MB",
                remedy="Free some space, or choose a folder on another disk with --keep.",
            )
        (keep / _MARK).write_text("Made by `kerasseg demo`, which replaces this folder when it is run again.\n")
    except OSError as error:
        raise explain_os_error(error, keep) from error
    return keep.resolve()


@contextlib.contextmanager
def _inside(root: Path) -> Iterator[None]:
    """Work in the folder, as after `cd`; on Ctrl-C, report what is left."""
    try:
        with contextlib.chdir(root):
            yield
    except KeyboardInterrupt:
        stopped = f"The demonstration was stopped. Its files are in {root}; the next run replaces them."
        complain(stopped, kind="interrupted", exit_code=INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
