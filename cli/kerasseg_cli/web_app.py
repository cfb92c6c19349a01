"""`kerasseg app`: a local web page on which slices are dropped and the threshold is moved."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from kerasseg_cli.completion import runs
from kerasseg_cli.console import errors, print_json, screen
from kerasseg_cli.options import FLIP_AVERAGE, Debug, Json, Quiet, option, panel

_server = panel("Server")


def app(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Run whose network is used: its folder, its name or latest. A checkpoint is accepted, too. "
            "[default: latest]",
            show_default=False,
            autocompletion=runs,
        ),
    ] = None,
    host: Annotated[
        str,
        _server(
            "Address to listen on; 0.0.0.0 makes the page reachable from other machines, without a password.",
            metavar="ADDRESS",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        _server("Port. [default: the first free one from 7860]", min=1, max=65535, metavar="PORT", show_default=False),
    ] = None,
    max_upload: Annotated[int, _server("Largest uploaded file in megabytes.", min=1, metavar="MB")] = 200,
    flip_average: Annotated[bool, option(FLIP_AVERAGE, "--flip-average", panel="Network")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Serve a local web page: drop slices, move the threshold, download masks. Not for clinical use."""
    from kerasseg.app import check_gradio, serve

    check_gradio()  # before the network is opened
    from kerasseg.interrupts import stop_on_signals
    from kerasseg.prediction.predictor import open_network

    network = open_network(run, flip_average=flip_average)
    for note in network.notes:
        errors().print(f"Note: {note}", style="yellow")
    with (
        stop_on_signals(lambda _name: None) as stop,
        serve(network, host=host, port=port, max_upload_mb=max_upload) as page,
    ):
        if as_json:
            print_json({"url": page.url, "networks": network.names, "max_upload_mb": max_upload})
        elif not quiet:
            screen().print(f"{page.url}  (Ctrl-C ends it)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            errors().print("Warning: other machines can reach this page, without a password.", style="yellow")
        sys.stdout.flush()  # a program that reads the address waits for it
        while not stop():
            time.sleep(0.2)
