"""`kerasseg fetch`: download a public data set from its publisher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.completion import proposing
from kerasseg_cli.console import Report, errors, print_json, screen
from kerasseg_cli.options import Json, Quiet, option

if TYPE_CHECKING:
    from kerasseg.data.published import FetchedDataset


def fetch(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="figshare",
            help="Data set: figshare is the one of Jun Cheng (3,064 slices, 0.88 GB).",
            autocompletion=proposing(["figshare"]),
        ),
    ] = "figshare",
    out: Annotated[Path, option("Folder for the downloaded files.", "--out", "-o", metavar="FOLDER")] = Path("data"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a public data set and verify its MD5 sums; an interrupted download is resumed."""
    from kerasseg.data.published import fetch_dataset

    with _bar(quiet=quiet or as_json) as progress:
        found = fetch_dataset(dataset, out, progress=progress)
    if as_json:
        print_json(_document(found))
    elif not quiet:
        _show(found)


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Report | None]:
    """Show a progress bar for each file; without a terminal, print a line for each."""
    console = errors()
    if quiet:
        yield None
        return
    if not console.is_terminal:
        yield _Lines()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        *((TransferSpeedColumn(),) if console.width >= 80 else ()),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        known = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in known:
                # Bytes from an earlier call would distort the speed.
                known[name] = bars.add_task(name.removeprefix("brainTumorDataPublic_"), total=total, completed=done)
            bars.update(known[name], completed=done)

        yield report


class _Lines:
    """Print one line for each complete file."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, name: str, done: int, total: int) -> None:
        if done >= total and name not in self._said:
            self._said.add(name)
            errors().print(f"{name}: {total / 1e6:,.1f} MB")


def _document(found: FetchedDataset) -> dict[str, object]:
    about = found.dataset
    return {
        "dataset": about.name,
        "title": about.title,
        "doi": about.doi,
        "licence": about.licence,
        "citation": about.citation,
        "folder": str(found.folder),
        "files": [{"name": f.name, "url": f.url, "bytes": f.bytes, "md5": f.md5} for f in about.files],
        "fetched": list(found.fetched),
        "present": list(found.present),
        "next": f"kerasseg prepare {found.folder}",
    }


def _show(found: FetchedDataset) -> None:
    from kerasseg_cli.inspect import facts_table

    about = found.dataset
    came = f"{len(found.fetched)} downloaded" if found.fetched else "all present"
    rows = [
        ("data set", about.title),
        ("files", f"{len(about.files)} ({about.bytes / 1e9:.2f} GB), MD5 sums as published; {came}"),
        ("source", f"https://doi.org/{about.doi}"),
        ("licence", about.licence),
        ("please cite", about.citation),
    ]
    console = screen()
    console.print(facts_table(rows))
    console.print()
    console.print(f"Next: kerasseg prepare {found.folder}", soft_wrap=True)
