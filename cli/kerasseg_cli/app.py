"""The `kerasseg` command: each subcommand is a function in its own module, which imports the library when it runs."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from kerasseg_cli import (
    checkpoints,
    compare,
    convert,
    cross_validate,
    demo,
    doctor,
    evaluate,
    export,
    fetch,
    inspect,
    predict,
    prepare,
    train,
    tune_threshold,
    verify,
    web_app,
)
from kerasseg_cli.errors import Commands, Interrupts, guarded
from kerasseg_cli.help import Command
from kerasseg_cli.options import Debug, Json, Quiet, Verbose
from kerasseg_cli.status import start
from kerasseg_cli.tf_logs import quiet_tf_logs


def _show_version(asked: bool) -> None:
    if asked:
        from kerasseg_tfrecords._version import __version__

        typer.echo(f"kerasseg {__version__}")
        raise typer.Exit


def _build() -> typer.Typer:
    application = typer.Typer(
        name="kerasseg",
        cls=Commands,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @application.callback()
    def kerasseg(
        context: typer.Context,
        _version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
        ] = False,
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
        debug: Debug = False,
    ) -> None:
        """Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices. Not for clinical use.

        Without a command, kerasseg lists the steps and your progress in this folder.
        """
        if context.invoked_subcommand is None:
            guarded(start)(as_json=as_json, quiet=quiet, verbose=verbose, debug=debug)
            return
        given = {"--json": as_json, "--quiet": quiet, "--verbose": verbose, "--debug": debug}
        option = next((name for name, is_given in given.items() if is_given), None)
        if option is not None:
            raise typer.BadParameter(
                f"{option} comes after the command: kerasseg {context.invoked_subcommand} {option}"
            )

    commands = (
        fetch.fetch,
        prepare.prepare,
        verify.verify,
        checkpoints.checkpoints,
        inspect.inspect,
        convert.convert,
        train.train,
        tune_threshold.tune_threshold,
        evaluate.evaluate,
        predict.predict,
        web_app.app,
        export.export,
        compare.compare,
        cross_validate.cross_validate,
        demo.demo,
        doctor.doctor,
    )
    for command in commands:
        application.command(cls=Command)(guarded(command))
    return application


app = _build()


def main() -> None:
    """Run the command line; the entry point of the console script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, Interrupts())
    try:
        if "--debug" in sys.argv or "KERASSEG_DEBUG" in os.environ:
            app()
            return
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with quiet_tf_logs():
            app()
    finally:
        # Python gives a handler of ours up before it has ended.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
