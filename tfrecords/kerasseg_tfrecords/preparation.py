"""`prepare`: inputs -> items -> converted slices (spool) -> groups and split -> shards.

Every slice is read once. Workers write what they converted to a spool beside the shard directory (`OUT.partial`); the
split needs all slices, so the shards are written from the spool afterwards, in a folder inside `OUT.partial` that becomes
`OUT` by one rename: nothing can be read before all is done. A run that was killed finds its finished chunks again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.arrangement import Arrangement, arrange, check_request
from kerasseg_tfrecords.conversion import Conversion
from kerasseg_tfrecords.errors import BadInputError, DataError, Problem, UsageError
from kerasseg_tfrecords.files import explain_os_error, lock, sync_folder, write_atomically
from kerasseg_tfrecords.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS_FILE,
    Counts,
    InputFacts,
    Manifest,
    PrepareOptions,
    ShardFacts,
    dataset_fingerprint,
)
from kerasseg_tfrecords.parallel import available_cpus, ordered_map
from kerasseg_tfrecords.records import Payload
from kerasseg_tfrecords.sources import find_items
from kerasseg_tfrecords.sources.base import Item, LeftOut, SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree
from kerasseg_tfrecords.split import SPLITS
from kerasseg_tfrecords.splits_file import dump
from kerasseg_tfrecords.spool import Chunk, Spooled, SpoolReader, Task, run_task, tasks

__all__ = ["Progress", "prepare"]

Progress = Callable[[str, int, int], None]
"""Called with the stage (`read`, `compare`, `write`), how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class _Input:
    """One input after listing."""

    name: str
    format: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def prepare(
    inputs: Path | str | Sequence[Path | str],
    out: Path | str = "shards",
    options: PrepareOptions | None = None,
    *,
    splits: Path | str | None = None,
    exclude_overlap: Path | str | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Turns raw slices into a shard directory with a frozen split.

    The same inputs, options and seed give byte-identical files, whatever `jobs` is. A run that was interrupted continues
    when it is called again.

    Args:
        inputs: Folders, archives or files; each one's format is detected. Several make one data set.
        out: The shard directory; it must not exist, or be empty, or be replaced with `overwrite`.
        options: Defaults are the recipe's (256x256, min-max, 80/10/10 by patient, seed 42).
        splits: A `splits.csv` to use again instead of splitting; it must fit the data.
        exclude_overlap: A shard directory; slices that it already holds, re-encoded copies included, are left out.
        overwrite: Replace an existing shard directory. Anything else that lies there is never deleted.
        jobs: Worker processes; None for one a processor.
        progress: Told what is done.

    Returns:
        The manifest, as it stands in `out/manifest.json`.

    Raises:
        BadInputError: Lists every bad file, before any shard is written; with `options.skip_bad` they are left out.
        DataError: Where the split cannot be made, or `splits` does not fit.
        UsageError: Options that cannot be meant.
        KerassegError: A full disk, no permission, another process at work on `out`.

    Example:
        >>> manifest = prepare("data", "shards", PrepareOptions(split="70/15/15"))  # doctest: +SKIP
        >>> manifest.slices_in("train")  # doctest: +SKIP
        2145
    """
    options = options or PrepareOptions()
    roots = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(entry) for entry in inputs]
    target = Path(out)
    _check_target(target, roots, overwrite=overwrite)
    check_request(options, splits, exclude_overlap)
    listed = _list_inputs(roots, options, hidden=(target, _partial(target)))
    with _work_folder(target) as work:
        _check_target(target, roots, overwrite=overwrite)  # again, now that nobody else can be writing it
        chunks = _convert(listed, options, work / "spool", jobs or available_cpus(), progress)
        slices, problems, left_out = _collect(listed, chunks)
        if problems and not options.skip_bad:
            remedy = (
                f"Mend or remove them, or leave them out with --skip-bad. What was read is kept in {_partial(target)}."
            )
            raise BadInputError(problems, remedy=remedy)
        if not slices:
            raise (
                BadInputError(problems, "not one good slice", remedy="Mend the files.")
                if problems
                else DataError("not one slice in the input")
            )
        arrangement = arrange(slices, options, splits=splits, exclude_overlap=exclude_overlap, progress=progress)
        shards = _write_shards(arrangement, options, work, progress)
        manifest = _manifest(arrangement, options, listed, slices, shards, problems, left_out)
        _finish(work, target, manifest, arrangement)
    return manifest


# ---- before


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _check_target(target: Path, roots: Sequence[Path], *, overwrite: bool) -> None:
    if not roots:
        raise UsageError("no input", expected="a folder, an archive or files with slices")
    resolved = target.resolve()
    for root in roots:
        if resolved == root.resolve() or root.resolve().is_relative_to(resolved):
            raise UsageError(
                "the shard directory would replace the input", path=target, remedy="Choose another folder with --out."
            )
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError("is a file", path=target, expected="a folder", remedy="Choose another one with --out.")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise UsageError(
            "exists and is no shard directory",
            path=target,
            remedy="Choose another folder with --out; it is not deleted.",
        )
    if not overwrite:
        raise UsageError(
            "holds shards already",
            path=target,
            remedy="Replace them with --overwrite, or choose another folder with --out.",
        )


def source_options(options: PrepareOptions) -> SourceOptions:
    """What of the options concerns the readers."""
    return SourceOptions(
        classes=options.classes,
        plane=options.plane,
        foreground=options.foreground,
        empty_share=options.empty_share,
        patient_pattern=options.patient_pattern,
        seed=options.seed,
    )


def _list_inputs(roots: Sequence[Path], options: PrepareOptions, hidden: Iterable[Path]) -> list[_Input]:
    """Finds the items of every input; whatever lies in the shard directory itself is not input."""
    names = _input_names(roots)
    listed = []
    for root, name in zip(roots, names, strict=True):
        tree = open_tree(root)
        inside = [
            path.resolve().relative_to(root.resolve()).as_posix() + "/"
            for path in hidden
            if path.resolve().is_relative_to(root.resolve())
        ]
        if inside:
            outside = tuple(place for place in tree.locations if not place.name.startswith(tuple(inside)))
            tree = replace(tree, locations=outside)
        found = find_items(tree, source_options(options), options.format)
        listed.append(
            _Input(
                name=name,
                format=options.format or (found.items[0].format if found.items else ""),
                items=found.items,
                problems=tuple(
                    replace(problem, name=name if problem.name == "." else f"{name}/{problem.name}")
                    for problem in found.problems
                    if problem.level == "error"
                ),
                left_out=tuple(replace(entry, name=f"{name}/{entry.name}") for entry in found.left_out),
                notes=(
                    *(f"{name}/{problem}" for problem in found.problems if problem.level == "warning"),
                    *(f"{name}: {note}" for note in found.notes),
                ),
            )
        )
    return listed


def _input_names(roots: Sequence[Path]) -> list[str]:
    """A short name for each input, unique: the folder's, with a number where two are alike."""
    names: list[str] = []
    for root in roots:
        base = (root.resolve().name or "data").removesuffix(".zip")
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """`OUT.partial`, locked. It stays where the run fails with work done, so that the next run continues."""
    work = _partial(target)
    try:
        (work / "spool").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, work) from error
    with lock(work / "lock", "shards"):
        try:
            yield work
        except BaseException:
            shutil.rmtree(work / "shards", ignore_errors=True)
            if not any((work / "spool").glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


# ---- reading and converting


def _convert(
    listed: Sequence[_Input], options: PrepareOptions, spool: Path, jobs: int, progress: Progress | None
) -> dict[str, list[Chunk]]:
    """Runs all tasks; chunks of each input in the order of its items."""
    conversion = Conversion(size=options.size, intensity=options.intensity, source=source_options(options))
    todo = [(entry.name, task) for entry in listed for task in tasks(entry.items, entry.name, conversion, spool)]
    total, done = sum(len(task.items) for _, task in todo), 0
    chunks: dict[str, list[Chunk]] = {entry.name: [] for entry in listed}
    if progress:
        progress("read", 0, total)
    work = ordered_map(run_task, [task for _, task in todo], jobs=min(jobs, len(todo)), batch=1, crashed=_crashed)
    for (name, task), (_, chunk) in zip(todo, work, strict=True):
        chunks[name].append(chunk)
        done += len(task.items)
        if progress:
            progress("read", done, total)
    return chunks


def _crashed(task: Task) -> tuple[str, Chunk]:
    """The chunk of a task that ended its process: its items one by one, and the culprit named."""
    if len(task.items) > 1:
        alone = [replace(task, items=(item,)) for item in task.items]
        parts = [chunk for _, chunk in ordered_map(run_task, alone, jobs=2, batch=1, crashed=_crashed)]
        return "", Chunk(
            slices=tuple(piece for part in parts for piece in part.slices),
            problems=tuple(problem for part in parts for problem in part.problems),
            left_out=tuple(entry for part in parts for entry in part.left_out),
        )
    message = "ended the process that read it. Check the file and the free memory, or use fewer --jobs."
    return "", Chunk((), (Problem(f"{task.prefix}/{task.items[0].name}", "crashed", message),), ())


def _collect(
    listed: Sequence[_Input], chunks: dict[str, list[Chunk]]
) -> tuple[list[Spooled], list[Problem], list[LeftOut]]:
    """Good slices in order, and everything that is wrong: two slices with one id are both named."""
    problems = [problem for entry in listed for problem in entry.problems]
    left_out = [remark for entry in listed for remark in entry.left_out]
    slices: list[Spooled] = []
    for entry in listed:
        for chunk in chunks[entry.name]:
            slices.extend(chunk.slices)
            problems.extend(chunk.problems)
            left_out.extend(chunk.left_out)
    times = Counter(piece.facts.slice_id for piece in slices)
    first: dict[str, str] = {}
    good = []
    for piece in slices:
        facts = piece.facts
        if times[facts.slice_id] == 1:
            good.append(piece)
        elif facts.slice_id not in first:
            first[facts.slice_id] = facts.source
            good.append(piece)
        else:
            message = f"has the same id as {first[facts.slice_id]} ({facts.slice_id}). Rename one of the two."
            problems.append(Problem(facts.source, "duplicate-id", message))
    return good, sorted(problems), sorted(left_out)


# ---- writing


def _write_shards(
    arrangement: Arrangement, options: PrepareOptions, work: Path, progress: Progress | None
) -> list[ShardFacts]:
    from kerasseg_tfrecords.schema import encode  # TensorFlow: only now, and only in this process
    from kerasseg_tfrecords.shards import family_names, write_family

    root = work / "shards"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    families = family_names(arrangement.classes)
    chosen: dict[tuple[str, str], list[int]] = {(split, label): [] for split in SPLITS for label in arrangement.classes}
    for index, split in enumerate(arrangement.splits):
        if split in SPLITS:
            chosen[split, arrangement.labels[index]].append(index)
    total, done = sum(map(len, chosen.values())), 0
    shards: list[ShardFacts] = []
    with SpoolReader(work / "spool") as spool:

        def serialized(order: Sequence[int], number: int) -> bytes:
            nonlocal done
            index = order[number]
            piece = arrangement.slices[index]
            payload = _with_channels(spool.read(piece), piece.facts.channels, arrangement.channels)
            done += 1
            if progress and (done % 32 == 0 or done == total):
                progress("write", done, total)
            label = arrangement.classes.index(arrangement.labels[index])
            return encode(payload, piece.facts, label=label, group=arrangement.groups[index])

        for (split, label), members in chosen.items():
            # A fixed shuffle: a reader that takes shards from the front sees no order of patients or files.
            order = sorted(members, key=lambda i: _shuffle_key(options.seed, arrangement.slices[i].facts.slice_id))
            shards += write_family(
                root,
                split,
                label,
                families[label],
                functools.partial(serialized, order),
                len(order),
                options.records_per_shard,
            )
    return shards


def _shuffle_key(seed: int, slice_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {slice_id}".encode()).digest()


def _with_channels(payload: Payload, have: int, want: int) -> Payload:
    """Repeats grey where the data set also holds colour."""
    if have == want:
        return payload
    import numpy as np

    return replace(payload, image=np.repeat(np.frombuffer(payload.image, np.uint8), 3).tobytes())


def _manifest(
    arrangement: Arrangement,
    options: PrepareOptions,
    listed: Sequence[_Input],
    slices: Sequence[Spooled],
    shards: Sequence[ShardFacts],
    problems: Sequence[Problem],
    left_out: Sequence[LeftOut],
) -> Manifest:
    rows = arrangement.rows()
    found = Counter(piece.facts.slice_id.split("/", 1)[0] for piece in slices)
    return Manifest(
        format_version=FORMAT_VERSION,
        kerasseg=__version__,
        software=_software(),
        options=options,
        inputs=tuple(
            InputFacts(name=entry.name, format=entry.format, items=len(entry.items), slices=found[entry.name])
            for entry in listed
        ),
        size=options.size,
        channels=arrangement.channels,
        intensity=options.intensity,
        mask_bits=1,
        classes=arrangement.classes,
        counts=_counts(arrangement),
        split=arrangement.facts,
        shards=tuple(shards),
        splits_sha256=hashlib.sha256(dump(rows).encode()).hexdigest(),
        fingerprint=dataset_fingerprint(rows, options),
        duplicates=arrangement.duplicates,
        unmerged_chains=arrangement.unmerged_chains,
        overlap=arrangement.overlap,
        skipped=tuple((problem.name, problem.kind, problem.message) for problem in problems),
        left_out=tuple((entry.name, entry.reason) for entry in left_out),
        remarks=tuple((piece.facts.slice_id, note) for piece in slices for note in piece.facts.notes),
        notes=(*(note for entry in listed for note in entry.notes), *arrangement.notes),
    )


def _counts(arrangement: Arrangement) -> tuple[Counts, ...]:
    counts = []
    for split in SPLITS:
        for label in arrangement.classes:
            members = [
                index
                for index, (where, what) in enumerate(zip(arrangement.splits, arrangement.labels, strict=True))
                if where == split and what == label
            ]
            facts = [arrangement.slices[index].facts for index in members]
            areas = [piece.tumour_pixels * piece.spacing[0] * piece.spacing[1] for piece in facts]
            known = all(min(piece.spacing) > 0 for piece in facts)
            counts.append(
                Counts(
                    split=split,
                    label=label,
                    slices=len(members),
                    patients=len({arrangement.groups[index] for index in members}),
                    tumour_pixels=sum(piece.tumour_pixels for piece in facts),
                    tumour_mm2=round(sum(areas), 3) if facts and known else None,
                    empty=sum(piece.tumour_pixels == 0 for piece in facts),
                )
            )
    return tuple(counts)


def _software() -> dict[str, str]:
    versions = {}
    for package in ("h5py", "nibabel", "numpy", "opencv-python-headless", "pydicom", "scikit-learn", "tensorflow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a data node may have a differently named build (tensorflow-cpu, opencv-python)
            versions[package] = "unknown"
    return versions


def _finish(work: Path, target: Path, manifest: Manifest, arrangement: Arrangement) -> None:
    """Adds what makes the folder readable, then puts it in place by one rename."""
    root = work / "shards"
    for shard in manifest.shards:
        _sync_file(root / shard.path)
    write_atomically(root / SPLITS_FILE, dump(arrangement.rows()))
    write_atomically(root / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    for folder in {(root / shard.path).parent for shard in manifest.shards}:
        sync_folder(folder)
    old = work / "old"
    try:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        root.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise explain_os_error(error, target) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
