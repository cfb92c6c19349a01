"""`kerasseg verify`: check shards or raw data."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_tfrecords.errors import DataError, UsageError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from kerasseg_tfrecords.checks.raw_data import IntegrityReport

from kerasseg_cli.completion import FORMATS
from kerasseg_cli.console import print_json, progress_bar, screen
from kerasseg_cli.options import Cluster, Json, MaxMemory, Quiet, one_of, option


def verify(
    shards: Annotated[Path | None, typer.Argument(metavar="SHARDS", help="Shard directory. [default: shards]")] = None,
    data: Annotated[
        list[Path] | None,
        option("Raw data to check instead of shards; may be repeated.", "--data", metavar="INPUT"),
    ] = None,
    format_: Annotated[
        str | None, option("Format of the raw data. [default: detected]", "--format", values=FORMATS)
    ] = None,
    jobs: Annotated[
        int | None,
        option("Worker processes for --data. [default: one per processor]", "--jobs", "-j", min=1, metavar="N"),
    ] = None,
    max_memory: MaxMemory = None,  # noqa: ARG001 - its callback sets it
    cluster: Cluster = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check shards (hashes, counts, records, masks, leaks), or raw data."""
    if format_ is not None:
        one_of("--format", format_, FORMATS)
    if data and shards:
        raise UsageError("use either a shard directory or --data, not both")
    if data:
        _verify_data(data, format_, jobs, cluster, as_json=as_json, quiet=quiet)
    else:
        _verify_shards(shards or Path("shards"), cluster, as_json=as_json, quiet=quiet)


def _verify_shards(folder: Path, cluster: str | None, *, as_json: bool, quiet: bool) -> None:
    from kerasseg_tfrecords.checks.shards import verify as run
    from kerasseg_tfrecords.cluster import connect
    from kerasseg_tfrecords.records.manifest import MANIFEST

    if folder.exists() and not (folder / MANIFEST).exists():
        remedy = f"To check raw data: kerasseg verify --data {folder}"
        raise DataError("not a shard directory", path=folder, expected=MANIFEST, remedy=remedy)
    with connect(cluster) as client, progress_bar(quiet=quiet or as_json) as progress:
        found = run(folder, cluster=client, progress=progress)
    if as_json:
        print_json(
            {
                "sound": found.sound,
                "records": found.records,
                "shards": found.shards,
                "errors": list(found.errors),
                "warnings": list(found.warnings),
            }
        )
    else:
        _say(found.errors, found.warnings, quiet=quiet)
        if found.sound and not quiet:
            screen().print(f"Sound: {count(found.records, 'record')} in {count(found.shards, 'shard')}.")
            named = "" if folder == Path("shards") else f" --shards {shlex.quote(str(folder))}"
            screen().print(f"Next: kerasseg train --checkpoint CHECKPOINT{named}", markup=False, soft_wrap=True)
        elif not found.sound:
            found_errors = count(len(found.errors), "error")
            screen().print(f"{found_errors} in {one_line(folder)}. Prepare the shards again.")
    if not found.sound:
        raise typer.Exit(3)


def _verify_data(
    inputs: list[Path], format_: str | None, jobs: int | None, cluster: str | None, *, as_json: bool, quiet: bool
) -> None:
    from kerasseg_tfrecords.checks.raw_data import check_data
    from kerasseg_tfrecords.cluster import connect
    from kerasseg_tfrecords.workers import available_cpus

    with connect(cluster) as client, progress_bar(quiet=quiet or as_json) as progress:
        found = check_data(
            inputs,
            format_name=format_,
            jobs=jobs or available_cpus(),
            cluster=client,
            progress=None if progress is None else lambda done, total: progress("check", done, total),
        )
    if as_json:
        print_json({"sound": found.ok, **asdict(found)})
    else:
        _say(tuple(map(str, found.problems)), (*map(str, found.warnings), *found.notes), quiet=quiet)
        if not quiet:
            screen().print(_sentence(found))
    if not found.ok:
        raise typer.Exit(3)


def _sentence(found: IntegrityReport) -> str:
    classes = ", ".join(f"{count:,} {label or 'without class'}" for label, count in found.labels.items())
    people = count(found.patients, "patient id")
    if found.slices_without_patient:
        people += f", {count(found.slices_without_patient, 'slice')} without one"
    if not found.items:
        return f"{count(len(found.problems), 'error')}." if found.problems else "No slices found."
    verdict = f"{count(len(found.problems), 'error')}: " if found.problems else "Sound: " if found.with_tumour else ""
    said = f"{count(found.slices, 'slice')} in {count(found.items, 'file')} ({classes or 'none'}; {people})"
    return f"{verdict}{said}{'' if found.with_tumour or not found.slices else ', but no mask holds a tumour'}."


def _say(wrong: tuple[str, ...], warnings: tuple[str, ...], *, quiet: bool) -> None:
    console = screen()
    for line in wrong:
        console.print(f"error    {one_line(line)}", soft_wrap=True)
    if not quiet:
        for line in warnings:
            console.print(f"warning  {one_line(line)}", soft_wrap=True)
