"""`kerasseg demo`: the whole job on synthetic heads, with the commands that one types for real slices."""

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
from kerasseg_cli.options import Debug, Json, Quiet
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import lock
from kerasseg_tfrecords.text import duration

if TYPE_CHECKING:
    from kerasseg.evaluation.schema import Evaluation, Mean

__all__ = ["demo"]

_MARK = ".kerasseg-demo"
"""The file by which an earlier demonstration's folder is known: only such a folder is ever replaced."""

_BUSY = "another demonstration is running in this folder"

_ROOM = 200_000_000
"""Bytes that all of it takes, with air."""

_EXPORT = 'keras.models.load_model("runs/pretrained/model.keras", compile=False).export("pretrained-unet")'


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is made and trained.

    Attributes:
        patients: Of each scanner; a fifth of them for validation, a fifth for the test.
        slices: Of each patient.
        pixels: Side of the raw slices.
        size: Side that they are trained at.
        depth: Of the U-Net.
        pretrain, tune: Epochs on scanner A and on scanner B.
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
    fast: Annotated[bool, typer.Option("--fast", help="Fewer and smaller slices, fewer epochs: for CI.")] = False,
    keep: Annotated[
        Path,
        typer.Option("--keep", metavar="DIR", help="The folder in which everything is made, and stays."),
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(min=0, help="Of the heads; the commands keep their own seeds.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Show the whole job on synthetic slices of two scanners: a few minutes, no data, no GPU."""
    # A dozen networks in one process: TensorFlow takes that for a mistake in a loop, and says so at length.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    started = time.monotonic()
    root = _folder(keep)
    stage = _Stage(context.find_root().command, silent=quiet or as_json, as_json=as_json)
    with lock(root / _MARK, "demonstration", busy=_BUSY), _inside(root):
        _scanner_a(stage, _FAST if fast else _WHOLE, seed, keep)
        _scanner_b(stage, _FAST if fast else _WHOLE, seed)
        own, new = _figures("pretrained"), _figures(Path("runs/latest").read_text().strip())
    report = root / new.run / "evaluation" / "test" / "report.html"
    seconds = time.monotonic() - started
    if as_json:
        print_json(_document(own, new, root, report, seconds))
    elif not quiet:
        _verdict(stage, own, new)
        stage.say(f"Report: {report}")
        stage.say(f"Everything lies in {keep}, and took {duration(seconds)}. Next: kerasseg prepare YOUR-DATA")


# --- the two halves ------------------------------------------------------------------------------------------------------


def _scanner_a(stage: _Stage, plan: _Plan, seed: int, shown: Path) -> None:
    """Somebody else's work: a network that has learnt scanner A, as a SavedModel."""
    stage.title("Two scanners, synthetic heads")
    stage.say("Heads that never were: no figure below says anything about patients.")
    stage.typed(f"cd {shlex.quote(str(shown))}")
    for scanner in ("A", "B"):
        _write(stage, f"scanner-{scanner}", plan, scanner, seed)
    stage.title("Somebody pretrains a U-Net on scanner A, and exports it")
    shares = ("--split", "60/20/20", "--size", str(plan.size))
    stage.command("prepare", "scanner-A", "--out", "shards-A", *shares)
    network = ("--filters", "8", "--depth", str(plan.depth))
    epochs = ("--epochs", str(plan.pretrain))
    place = ("--shards", "shards-A", "--out", "runs/pretrained")
    stage.command("train", "--strategy", "scratch", *network, *epochs, *place)
    stage.command("evaluate", "runs/pretrained", "--threshold", "auto")
    stage.typed(_EXPORT, prompt=">>> ")
    import keras

    keras.models.load_model("runs/pretrained/model.keras", compile=False).export("pretrained-unet", verbose=False)


def _scanner_b(stage: _Stage, plan: _Plan, seed: int) -> None:
    """The user's work: the same network meets scanner B."""
    stage.title("You have slices of scanner B, and that SavedModel")
    stage.command("prepare", "scanner-B", "--split", "60/20/20", "--size", str(plan.size))
    if not stage.silent:  # it shows, and does nothing else
        stage.command("inspect", "pretrained-unet", "--strategy", "conservative")
    epochs = ("--epochs", str(plan.tune))
    stage.command("train", "--strategy", "conservative", "--checkpoint", "pretrained-unet", *epochs)
    stage.command("tune-threshold")
    stage.command("evaluate", "--threshold", "auto")
    stage.title("New slices come in")
    _write(stage, "new-slices", plan, "B", seed, first=plan.patients, patients=3, slices=1)
    stage.command("predict", "new-slices", "--out", "predicted", "--overlay")


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
    people = patients or plan.patients
    stage.say(f"{name}/: {len(made)} slices of {people} patients, as MATLAB files like those of figshare.")


def _figures(run: str) -> Evaluation:
    from kerasseg.evaluation.schema import read_evaluation

    return read_evaluation(Path("runs") / run / "evaluation" / "test" / "metrics.json")


# --- what is shown -------------------------------------------------------------------------------------------------------


class _Stage:
    """Shows commands as one would type them, and runs them.

    Args:
        kerasseg: The group of all commands.
        silent: Nothing is shown, and the commands are told to be quiet.
        as_json: The commands are asked for their documents, of which one that fails says why.
    """

    def __init__(self, kerasseg: Callable[..., Any], *, silent: bool, as_json: bool) -> None:
        self._kerasseg = kerasseg
        self.silent, self.as_json = silent, as_json

    def say(self, text: str) -> None:
        """A line of our own."""
        if not self.silent:
            screen().print(text, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """A heading, after a blank line."""
        if not self.silent:
            screen().print(f"\n{text}\n{'=' * len(text)}", markup=False, style="bold")

    def typed(self, text: str, prompt: str = "$ ") -> None:
        """What one would type."""
        if not self.silent:
            screen().print(f"\n{prompt}{text}", markup=False, style="bold cyan", soft_wrap=True)
            sys.stdout.flush()

    def command(self, *words: str) -> None:
        """Types a `kerasseg` command: the same function with the same arguments, in this process (TensorFlow loads once).

        Raises:
            KerassegError: It failed, and has said why; where it was asked for its document, its reason stands in ours.
            KeyboardInterrupt: It was interrupted.
        """
        self.typed(f"kerasseg {shlex.join(words)}")
        document = io.StringIO()
        with contextlib.redirect_stdout(document) if self.as_json else contextlib.nullcontext():
            manner = ["--json"] if self.as_json else ["--quiet"] if self.silent else []
            code = self._kerasseg([*words, *manner], standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            cause = json.loads(document.getvalue() or "{}")
            raise KerassegError(
                f"the demonstration ends here: `kerasseg {words[0]}` ended with exit code {code}",
                found=cause.get("error"),
            )


def _verdict(stage: _Stage, own: Evaluation, new: Evaluation) -> None:
    from rich.table import Table

    stage.title("What it brought")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("test Dice")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(f"{100 * new.confidence:g} % interval", no_wrap=True)
    for name, mean, sign in _rows(own, new):
        table.add_row(name, _number(mean.mean, sign), f"{_number(mean.low, sign)} to {_number(mean.high, sign)}")
    screen().print(table)
    gain = new.gain[new.final]
    stage.say(f"Final masks; intervals are over {gain.patients} test patients, the gain is paired.")


def _rows(own: Evaluation, new: Evaluation) -> list[tuple[str, Mean, str]]:
    before = next(s for s in new.baseline.stages if s.name == new.final) if new.baseline else None
    assert before is not None  # noqa: S101 - a run that was fine-tuned has a baseline
    return [
        ("pretrained network, its own scanner A", own.final_stage().all.measures["dice"], ""),
        ("pretrained network, scanner B", before.all.measures["dice"], ""),
        ("fine-tuned network, scanner B", new.final_stage().all.measures["dice"], ""),
        ("gain by fine-tuning", new.gain[new.final], "+"),
    ]


def _number(value: float | None, sign: str) -> str:
    return "none" if value is None else f"{value:{sign}.3f}"


def _document(own: Evaluation, new: Evaluation, root: Path, report: Path, seconds: float) -> dict[str, Any]:
    keys = ("own_scanner", "before", "after", "gain")
    figures = {key: mean.model_dump() for key, (_, mean, _) in zip(keys, _rows(own, new), strict=True)}
    return {"folder": str(root), "report": str(report), "seconds": seconds, **figures}


# --- the folder ----------------------------------------------------------------------------------------------------------


def _folder(keep: Path) -> Path:
    """An empty folder, in the place of an earlier demonstration's."""
    from kerasseg_tfrecords.files import explain_os_error

    try:
        if keep.is_dir() and any(keep.iterdir()):
            if not (keep / _MARK).is_file():
                raise UsageError(
                    "the folder holds something else than an earlier demonstration",
                    path=keep,
                    remedy="Name another with --keep, or remove it.",
                )
            with lock(keep / _MARK, "demonstration", busy=_BUSY):
                shutil.rmtree(keep)
        keep.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(keep).free
        if free < _ROOM:
            raise KerassegError(
                "too little space for the demonstration",
                path=keep,
                found=f"{free / 1e6:.0f} MB free",
                expected=f"{_ROOM / 1e6:.0f} MB",
                remedy="Free some, or name a folder on another disk with --keep.",
            )
        (keep / _MARK).write_text("Made by `kerasseg demo`, which replaces this folder when it is run again.\n")
    except OSError as error:
        raise explain_os_error(error, keep) from error
    return keep.resolve()


@contextlib.contextmanager
def _inside(root: Path) -> Iterator[None]:
    """Works in the folder, as after `cd`; says what is left where somebody stops it."""
    try:
        with contextlib.chdir(root):
            yield
    except KeyboardInterrupt:
        stopped = f"The demonstration was stopped. What it made lies in {root}; run again, it begins anew."
        complain(stopped, kind="interrupted", exit_code=INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
