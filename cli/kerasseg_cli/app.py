"""The `kerasseg` command: every command is a function of its own module, which imports the library only when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kerasseg_cli import (
    compare,
    convert,
    cross_validate,
    evaluate,
    inspect,
    predict,
    prepare,
    train,
    tune_threshold,
    verify,
)
from kerasseg_cli.chatter import without_chatter
from kerasseg_cli.errors import guarded

__all__ = ["app", "main"]


def _show_version(asked: bool) -> None:
    if asked:
        from kerasseg_tfrecords._version import __version__

        typer.echo(f"kerasseg {__version__}")
        raise typer.Exit


def _build() -> typer.Typer:
    application = typer.Typer(
        name="kerasseg",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @application.callback()
    def kerasseg(
        _version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
        ] = False,
    ) -> None:
        """Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices. Not for clinical use."""

    commands = (
        prepare.prepare,
        verify.verify,
        inspect.inspect,
        convert.convert,
        train.train,
        tune_threshold.tune_threshold,
        evaluate.evaluate,
        compare.compare,
        cross_validate.cross_validate,
        predict.predict,
    )
    for command in commands:
        application.command()(guarded(command))
    return application


app = _build()


def main() -> None:
    """Entry point of the console script."""
    if "--debug" in sys.argv or "KERASSEG_DEBUG" in os.environ:
        app()
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_chatter():
        app()
