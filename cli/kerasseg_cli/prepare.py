"""`kerasseg prepare`: convert raw slices to shards with a frozen split."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.completion import FORMATS, proposing
from kerasseg_cli.console import print_json, progress_bar, screen
from kerasseg_cli.options import Json, MaxMemory, Quiet, one_of
from kerasseg_tfrecords.errors import UsageError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from kerasseg_tfrecords.records.manifest import Manifest

__all__ = ["prepare"]

READ, SPLIT, WRITE = "Reading", "Splitting", "Writing"


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Folders, zip archives or files; several are combined into one data set."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Shard directory to create.", rich_help_panel=WRITE)
    ] = Path("shards"),
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar=f"[{'|'.join(FORMATS)}]",
            help="Format of the inputs. [default: detected]",
            rich_help_panel=READ,
            autocompletion=proposing(FORMATS),
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Class names in label order, comma-separated.", rich_help_panel=READ),
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Regular expression for file names or patient ids, with a group for the patient.",
            rich_help_panel=READ,
        ),
    ] = None,
    plane: Annotated[
        str,
        typer.Option(
            metavar="[axial|coronal|sagittal]", help="Plane in which volumes are sliced.", rich_help_panel=READ
        ),
    ] = "axial",
    foreground: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL,...",
            help="Mask labels that count as tumour, comma-separated. [default: all but 0]",
            rich_help_panel=READ,
        ),
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
            help="Sequence of a case with several, such as t1ce or flair. [default: T1 with contrast]",
            rich_help_panel=READ,
        ),
    ] = None,
    empty_share: Annotated[
        float,
        typer.Option(
            metavar="RATIO",
            help="Slices without tumour to keep per slice with tumour (volumes only).",
            rich_help_panel=READ,
        ),
    ] = 0.2,
    exclude_overlap: Annotated[
        Path | None,
        typer.Option(metavar="SHARDS", help="Shard directory whose slices are left out.", rich_help_panel=READ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip bad files instead of stopping.", rich_help_panel=READ)
    ] = False,
    split: Annotated[
        str,
        typer.Option(
            metavar="TRAIN/VAL/TEST", help="Percentages for training, validation and test.", rich_help_panel=SPLIT
        ),
    ] = "80/10/10",
    split_by: Annotated[
        str,
        typer.Option(
            metavar="[patient|id|slice]",
            help="Unit that stays in one split: a patient, a patient id, or a slice (which may leak patients).",
            rich_help_panel=SPLIT,
        ),
    ] = "patient",
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.", rich_help_panel=SPLIT)] = 42,
    per_class: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of slices to draw from each class. [default: all]", rich_help_panel=SPLIT
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="splits.csv to reuse instead of creating a split.", rich_help_panel=SPLIT),
    ] = None,
    duplicates: Annotated[
        bool, typer.Option(help="Keep copies of a slice in the same split.", rich_help_panel=SPLIT)
    ] = True,
    size: Annotated[
        int,
        typer.Option(metavar="PIXELS", help="Height and width of the stored images in pixels.", rich_help_panel=WRITE),
    ] = 256,
    intensity: Annotated[
        str,
        typer.Option(
            metavar="[minmax|percentile|zscore]", help="Mapping of grey values to 0-255.", rich_help_panel=WRITE
        ),
    ] = "minmax",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing shard directory.", rich_help_panel=WRITE)
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Number of worker processes. [default: one per processor]",
            rich_help_panel=WRITE,
        ),
    ] = None,
    max_memory: MaxMemory = None,  # noqa: ARG001 - its callback sets it
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert MRI slices to TFRecord shards with a frozen, patient-level split."""
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
        raise UsageError(f"invalid --foreground {text!r}", expected="comma-separated integers, such as 1,4") from None


def summary(manifest: Manifest, out: Path) -> dict[str, Any]:
    """Return what `--json` prints: the manifest without the list of files, and its folder."""
    return {"out": str(out), **manifest.model_dump(mode="json", exclude={"shards"})}


def show(manifest: Manifest, out: Path) -> None:
    """Print the table, notes and warnings, and the next command."""
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
    console.print(f"\nShards: {out}    Next: kerasseg verify {out}", markup=False, soft_wrap=True)


def lines(manifest: Manifest) -> list[str]:
    """Return the sentences below the table."""
    facts, options = manifest.split, manifest.options
    total = sum(entry.slices for entry in manifest.counts)
    unknown = options.split_by != "slice" and facts.slices_without_patient == total
    said = [f"Split {'without patient ids' if unknown else f'by {options.split_by}'}, seed {options.seed}."]
    warned = [note for note in manifest.notes if note.startswith("Warning: ")]
    if not warned:
        said[0] += f" Class shares are within {facts.worst_deviation:.1f} percentage points of {options.split}."
    said += warned
    if facts.patients_on_both_sides:
        said.append(f"LEAK: {count(facts.patients_on_both_sides, 'patient')} with slices in more than one split.")
    if manifest.duplicates:
        equal = sum(pair.kind == "equal" for pair in manifest.duplicates)
        near = len(manifest.duplicates) - equal
        said.append(
            f"Copies of slices: {count(equal, 'identical pair')}, {count(near, 'near-identical pair')}, each in one split."
        )
    said += [note for note in manifest.notes if note not in warned]
    if manifest.skipped:
        said.append(f"Skipped {count(len(manifest.skipped), 'bad file')}:")
        said += [f"  {name}: {message}" for name, _, message in manifest.skipped]
    said += _some(f"Left out {count(len(manifest.left_out), 'file')} without a slice", manifest.left_out)
    said += _some("Notes on slices", _together(manifest.remarks))
    return [one_line(line) for line in said]


def _together(remarks: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Merge notes that differ only in numbers: their count and the first slice, the most frequent first."""
    first: dict[str, tuple[str, str]] = {}
    times: Counter[str] = Counter()
    for name, text in remarks:
        kind = re.sub(r"\d+", "#", text)
        first.setdefault(kind, (name, text))
        times[kind] += 1
    return tuple(
        (first[kind][0] if number == 1 else f"{number} slices, such as {first[kind][0]}", first[kind][1])
        for kind, number in times.most_common()
    )


def _some(heading: str, entries: tuple[tuple[str, str], ...], most: int = 5) -> list[str]:
    """Return a heading and the first entries; the manifest has all."""
    if not entries:
        return []
    lines = [f"  {name}: {text}" for name, text in entries[:most]]
    more = [f"  and {len(entries) - most:,} more (see manifest.json)"] if len(entries) > most else []
    return [f"{heading}:", *lines, *more]
