"""`kerasseg prepare`: raw slices -> shards with a frozen split."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.completion import FORMATS, proposing
from kerasseg_cli.console import print_json, progress_bar, screen
from kerasseg_cli.options import Json, Quiet, one_of
from kerasseg_tfrecords.errors import UsageError, one_line

if TYPE_CHECKING:
    from kerasseg_tfrecords.records.manifest import Manifest

__all__ = ["prepare"]

READ, SPLIT, WRITE = "What is read", "How it is split", "What is written"


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Folders, zip archives or files; several make one data set."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The shard directory.", rich_help_panel=WRITE)] = Path(
        "shards"
    ),
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="figshare, pairs, nifti or dicom, instead of looking.",
            rich_help_panel=READ,
            autocompletion=proposing(FORMATS),
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names in label order, with commas.", rich_help_panel=READ)
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression that finds the patient in a file's name.", rich_help_panel=READ),
    ] = None,
    plane: Annotated[str, typer.Option(help="Of volumes: axial, coronal, sagittal.", rich_help_panel=READ)] = "axial",
    foreground: Annotated[
        str | None,
        typer.Option(help="Labels of a volume that count as tumour, with commas; all but 0.", rich_help_panel=READ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="Channel of a volume with several: number from 0, or name in dataset.json.", rich_help_panel=READ
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            help="Sequence of a case with several, such as t1ce or flair; default T1 with contrast.",
            rich_help_panel=READ,
        ),
    ] = None,
    empty_share: Annotated[
        float, typer.Option(help="Slices of a volume without tumour, a slice with tumour.", rich_help_panel=READ)
    ] = 0.2,
    exclude_overlap: Annotated[
        Path | None, typer.Option(help="Leave out slices that these shards already hold.", rich_help_panel=READ)
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad files out instead of stopping.", rich_help_panel=READ)
    ] = False,
    split: Annotated[str, typer.Option(help="Shares of train, validation, test.", rich_help_panel=SPLIT)] = "80/10/10",
    split_by: Annotated[
        str,
        typer.Option(help="patient (families of ids), id, or slice (leaks; as in some papers).", rich_help_panel=SPLIT),
    ] = "patient",
    seed: Annotated[int, typer.Option(help="Of every random choice.", rich_help_panel=SPLIT)] = 42,
    per_class: Annotated[
        int | None, typer.Option(help="Take a balanced subset of so many slices a class.", rich_help_panel=SPLIT)
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Use this splits.csv again instead of splitting.", rich_help_panel=SPLIT)
    ] = None,
    duplicates: Annotated[
        bool, typer.Option(help="Keep slices that look alike on one side of the split.", rich_help_panel=SPLIT)
    ] = True,
    size: Annotated[int, typer.Option(help="Side of the stored images, pixels.", rich_help_panel=WRITE)] = 256,
    intensity: Annotated[str, typer.Option(help="minmax, percentile or zscore.", rich_help_panel=WRITE)] = "minmax",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing shard directory.", rich_help_panel=WRITE)
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes; one a processor.", rich_help_panel=WRITE)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn raw MRI slices into TFRecord shards with a frozen, leak-free split."""
    if format_ is not None:
        one_of("--format", format_, FORMATS)
    from kerasseg_tfrecords.conversion.prepare import prepare as run
    from kerasseg_tfrecords.records.manifest import parse_options

    options = parse_options(
        format=format_,
        size=size,
        intensity=intensity,
        split=split,
        split_by=split_by,
        seed=seed,
        per_class=per_class,
        classes=_names(classes),
        plane=plane,
        foreground=_numbers(foreground),
        channel=channel,
        sequence=sequence,
        empty_share=empty_share,
        patient_pattern=patient_pattern,
        find_duplicates=duplicates,
        skip_bad=skip_bad,
    )
    with progress_bar(quiet=quiet or as_json) as progress:
        manifest = run(
            inputs,
            out,
            options,
            splits=splits,
            exclude_overlap=exclude_overlap,
            overwrite=overwrite,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        print_json(summary(manifest, out))
    elif not quiet:
        show(manifest, out)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--foreground cannot be {text!r}", expected="whole numbers with commas, such as 1,4"
        ) from None


def summary(manifest: Manifest, out: Path) -> dict[str, Any]:
    """What `--json` prints: the manifest without the list of files, and where it lies."""
    return {"out": str(out), **manifest.model_dump(mode="json", exclude={"shards"})}


def show(manifest: Manifest, out: Path) -> None:
    """The table, then what was skipped and why, then the next command."""
    from rich.table import Table

    console = screen()
    millimetres = all(entry.tumour_mm2 is not None for entry in manifest.counts if entry.slices)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    who = "groups" if manifest.split.slices_without_patient else "patients"
    for heading in ("split", "slices", "%", who, "empty", f"mean tumour {'mm²' if millimetres else 'px'}"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    of_class = {name: sum(c.slices for c in manifest.counts if c.label == name) for name in manifest.classes}
    for name in manifest.classes:
        for entry in manifest.counts:
            if entry.label != name:
                continue
            area = entry.tumour_mm2 if millimetres else entry.tumour_pixels
            filled = entry.slices - entry.empty
            table.add_row(
                name if entry.split == "train" else "",
                entry.split,
                f"{entry.slices:,}",
                f"{100 * entry.slices / of_class[name]:.1f}" if of_class[name] else "-",
                f"{entry.patients:,}",
                f"{entry.empty:,}",
                f"{(area or 0) / filled:,.0f}" if filled else "-",
            )
    console.print(table)
    for line in lines(manifest):
        console.print(line, markup=False)
    console.print(f"\nShards: {out}    next: kerasseg verify {out}", markup=False, soft_wrap=True)


def lines(manifest: Manifest) -> list[str]:
    """The sentences below the table."""
    facts = manifest.split
    said = []
    said.append(
        f"Split by {manifest.options.split_by}, seed {manifest.options.seed}: at most "
        f"{facts.worst_deviation:.1f} percentage points off {manifest.options.split} in any class."
    )
    if facts.patients_on_both_sides:
        said.append(f"LEAK: {facts.patients_on_both_sides} patients have slices in more than one split.")
    if manifest.duplicates:
        equal = sum(pair.kind == "equal" for pair in manifest.duplicates)
        said.append(
            f"Look-alikes: {equal} equal and {len(manifest.duplicates) - equal} near-equal pairs, kept on one side each."
        )
    said += manifest.notes
    if manifest.skipped:
        said.append(f"Skipped, {len(manifest.skipped)} bad:")
        said += [f"  {one_line(name)}: {one_line(message)}" for name, _, message in manifest.skipped]
    said += _some(f"Left out, {len(manifest.left_out)} that are no slices", manifest.left_out)
    said += _some("Remarks on slices", _together(manifest.remarks))
    return said


def _together(remarks: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Remarks that differ in numbers alone once, with their count and the first slice; the most frequent first."""
    first: dict[str, tuple[str, str]] = {}
    times: Counter[str] = Counter()
    for name, text in remarks:
        kind = re.sub(r"\d+", "#", text)
        first.setdefault(kind, (name, text))
        times[kind] += 1
    return tuple(
        (first[kind][0] if count == 1 else f"{count} slices, for instance {first[kind][0]}", first[kind][1])
        for kind, count in times.most_common()
    )


def _some(heading: str, entries: tuple[tuple[str, str], ...], most: int = 5) -> list[str]:
    """A heading and the first entries; the manifest has all."""
    if not entries:
        return []
    lines = [f"  {one_line(name)}: {one_line(text)}" for name, text in entries[:most]]
    more = [f"  and {len(entries) - most} more, in the manifest"] if len(entries) > most else []
    return [f"{heading}:", *lines, *more]
