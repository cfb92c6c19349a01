"""`kerasseg prepare`: convert raw slices to shards with a frozen split."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.completion import FORMATS
from kerasseg_cli.console import print_json, progress_bar, screen
from kerasseg_cli.options import Cluster, Json, MaxMemory, Quiet, one_of, panel
from kerasseg_tfrecords.errors import UsageError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from kerasseg_tfrecords.records.manifest import Manifest

READ, SPLIT, WRITE = map(panel, ("Reading", "Splitting", "Writing"))


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Folders, zip archives or files; several are combined into one data set."),
    ],
    out: Annotated[Path, WRITE("Shard directory to create.", "--out", "-o", metavar="FOLDER")] = Path("shards"),
    format_: Annotated[
        str | None, READ("Format of the inputs. [default: detected]", "--format", values=FORMATS)
    ] = None,
    classes: Annotated[str | None, READ("Class names in label order, comma-separated.", metavar="NAME,...")] = None,
    patient_pattern: Annotated[
        str | None,
        READ("Regular expression for file names or patient ids, with a group for the patient.", metavar="REGEX"),
    ] = None,
    plane: Annotated[
        str, READ("Plane in which volumes are sliced.", values=("axial", "coronal", "sagittal"))
    ] = "axial",
    foreground: Annotated[
        str | None, READ("Mask labels that count as tumour, comma-separated. [default: all but 0]", metavar="LABEL,...")
    ] = None,
    channel: Annotated[
        str | None, READ("Channel of a volume with several: number from 0, or name in dataset.json.")
    ] = None,
    sequence: Annotated[
        str | None, READ("Sequence of a case with several, such as t1ce or flair. [default: T1 with contrast]")
    ] = None,
    empty_share: Annotated[
        float, READ("Slices without tumour to keep per slice with tumour (volumes only).", metavar="RATIO")
    ] = 0.2,
    exclude_overlap: Annotated[
        Path | None, READ("Shard directory whose slices are left out.", metavar="SHARDS")
    ] = None,
    skip_bad: Annotated[bool, READ("Skip bad files instead of stopping.", "--skip-bad")] = False,
    split: Annotated[
        str, SPLIT("Percentages for training, validation and test.", metavar="TRAIN/VAL/TEST")
    ] = "80/10/10",
    split_by: Annotated[
        str,
        SPLIT(
            "Unit that stays in one split: a patient, a patient id, or a slice (which may leak patients).",
            values=("patient", "id", "slice"),
        ),
    ] = "patient",
    seed: Annotated[int, SPLIT("Random seed.", metavar="N")] = 42,
    per_class: Annotated[
        int | None, SPLIT("Number of slices to draw from each class. [default: all]", metavar="N")
    ] = None,
    splits: Annotated[Path | None, SPLIT("splits.csv to reuse instead of creating a split.", metavar="FILE")] = None,
    duplicates: Annotated[bool, SPLIT("Keep copies of a slice in the same split.")] = True,
    size: Annotated[int, WRITE("Height and width of the stored images in pixels.", metavar="PIXELS")] = 256,
    intensity: Annotated[
        str, WRITE("Mapping of grey values to 0-255.", values=("minmax", "percentile", "zscore"))
    ] = "minmax",
    overwrite: Annotated[bool, WRITE("Replace an existing shard directory.", "--overwrite")] = False,
    jobs: Annotated[
        int | None,
        WRITE("Number of worker processes. [default: one per processor]", "--jobs", "-j", min=1, metavar="N"),
    ] = None,
    max_memory: MaxMemory = None,  # noqa: ARG001 - its callback sets it
    cluster: Cluster = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert MRI slices to TFRecord shards with a frozen, patient-level split."""
    if format_ is not None:
        one_of("--format", format_, FORMATS)
    from kerasseg_tfrecords.cluster import connect
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
    with connect(cluster) as client, progress_bar(quiet=quiet or as_json) as progress:
        manifest = run(
            inputs,
            out,
            options,
            splits=splits,
            exclude_overlap=exclude_overlap,
            overwrite=overwrite,
            jobs=jobs,
            cluster=client,
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
        console.print(line)
    console.print(f"\nShards: {out}    Next: kerasseg verify {out}", soft_wrap=True)


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
    if not entries:
        return []
    lines = [f"  {name}: {text}" for name, text in entries[:most]]
    more = [f"  and {len(entries) - most:,} more (see manifest.json)"] if len(entries) > most else []
    return [f"{heading}:", *lines, *more]
