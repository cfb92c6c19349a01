"""Prepare a shard directory: inputs -> items -> converted slices (spool) -> groups and split -> shards.

Every slice is read once. Workers write converted slices to a spool beside the shard directory (`OUT.partial`). The split
needs all slices, so the shards are written afterwards, from the spool, and put in place as a whole. A run that was killed
reuses the finished part of its spool.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kerasseg_tfrecords.cluster import choose_pool
from kerasseg_tfrecords.conversion.assign import arrange, check_request
from kerasseg_tfrecords.conversion.convert import Conversion
from kerasseg_tfrecords.conversion.inputs import ListedInput, list_inputs, source_options
from kerasseg_tfrecords.conversion.staging import Chunk, Spooled, Task, run_task, tasks
from kerasseg_tfrecords.conversion.write import make_manifest, write_index, write_shards
from kerasseg_tfrecords.errors import BadInputError, DataError, Problem, UsageError
from kerasseg_tfrecords.files import atomic_folder, lock, make_folder
from kerasseg_tfrecords.records.manifest import MANIFEST, Manifest, PrepareOptions
from kerasseg_tfrecords.sources.base import LeftOut
from kerasseg_tfrecords.sources.tree import open_tree
from kerasseg_tfrecords.splitting.fingerprints import FingerprintFile
from kerasseg_tfrecords.storage import local_copy, refuse_url, url_of
from kerasseg_tfrecords.text import Progress
from kerasseg_tfrecords.workers import Pool

if TYPE_CHECKING:
    from distributed import Client

_LOG = logging.getLogger("kerasseg")


def prepare(
    inputs: Path | str | Sequence[Path | str],
    out: Path | str = "shards",
    options: PrepareOptions | None = None,
    *,
    splits: Path | str | None = None,
    exclude_overlap: Path | str | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    cluster: Client | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Convert raw slices to a shard directory with a frozen split.

    The same inputs, options and seed give byte-identical files for any number of `jobs` or workers. Calling it again
    continues an interrupted run.

    Args:
        inputs: Folders, archives or files (or their URLs), each in a format that is detected; together they are one data
            set.
        out: The shard directory; new, empty, or replaced with `overwrite`.
        options: By default 256x256 pixels, min-max, 80/10/10 by patient, seed 42.
        splits: A `splits.csv` to reuse instead of splitting; it must fit the data.
        exclude_overlap: A shard directory; slices of which it has copies, including re-encoded ones, are left out.
        overwrite: Replace an existing shard directory. Any other folder is never replaced.
        jobs: Number of worker processes; None means one per processor.
        cluster: Dask client of a cluster whose workers read and write instead; they must see local `inputs`, and `out`.
        progress: Called with "read", "compare" and "write".

    Returns:
        The manifest, as in `out/manifest.json`.

    Raises:
        BadInputError: Lists all bad files, before any shard is written; `options.skip_bad` leaves them out instead.
        DataError: No split can be made, or `splits` does not fit.
        UsageError: An option is invalid.
        KerassegError: The disk is full, cannot be written, or another process is writing `out`.

    Example:
        >>> manifest = prepare("data", "three-parts", PrepareOptions(size=32, split="60/20/20"), jobs=1)
        >>> [manifest.slices_in(split) for split in ("train", "val", "test")]
        [24, 6, 6]
    """
    options = options or PrepareOptions()
    target = Path(out) if Path(out).name else Path(out).resolve()
    refuse_url(out)
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if not given:
        raise UsageError("no input", expected="a folder, an archive or files with slices")
    roots = [Path(entry) for entry in given if url_of(entry) is None]
    # Inputs and options first: shards from an earlier run must not hide a mistyped input.
    for root in roots:
        if not root.exists():
            open_tree(root)  # raises, with the reason
    check_request(options, splits, exclude_overlap)
    _check_target(target, roots, overwrite=overwrite)
    roots = [local_copy(entry, progress) for entry in given]
    if cluster is not None:
        roots, target = [root.absolute() for root in roots], target.absolute()
    with (
        _work_folder(target) as work,
        choose_pool(jobs, cluster, reads=roots, inputs=given, writes=work / "spool") as pool,
    ):
        listed = list_inputs(roots, options, hidden=(target, _partial(target)))
        for root, entry in zip(roots, listed, strict=True):
            _LOG.info("%s: %d items, read as %s", root, len(entry.items), entry.format or "nothing")
        _check_target(target, roots, overwrite=overwrite)  # again, now that no other process can be writing it
        prints = FingerprintFile(work / "details")
        chunks = _convert(listed, options, work / "spool", pool, prints, progress)
        slices, used, problems, left_out = _collect(listed, chunks)
        if problems and not options.skip_bad:
            remedy = f"Repair or remove them, or use --skip-bad. The converted slices are kept in {_partial(target)}."
            raise BadInputError(problems, remedy=remedy)
        if not slices:
            raise (
                BadInputError(problems, "no usable slice: every file is bad", remedy="Repair the files.")
                if problems
                else DataError("the input holds no slices")
            )
        arrangement = arrange(
            slices,
            prints.fingerprints(used),
            options,
            splits=splits,
            exclude_overlap=exclude_overlap,
            progress=progress,
        )
        with atomic_folder(target, replace=overwrite, within=work) as root:
            shards = write_shards(arrangement, options, work / "spool", root, pool, progress)
            manifest = make_manifest(arrangement, options, listed, slices, shards, problems, left_out)
            write_index(root, manifest, arrangement)
    _LOG.info("%s: %d shards, data set %s", target, len(manifest.shards), manifest.fingerprint[:12])
    return manifest


# ---- before


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _check_target(target: Path, roots: Sequence[Path], *, overwrite: bool) -> None:
    resolved = target.resolve()
    for root in roots:
        if resolved == root.resolve() or root.resolve().is_relative_to(resolved):
            raise UsageError("the shard directory would replace the input", path=target, remedy="Choose another --out.")
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError("this is a file", path=target, expected="a folder", remedy="Choose another --out.")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise UsageError(
            "this folder is not a shard directory, so it is not replaced", path=target, remedy="Choose another --out."
        )
    if not overwrite:
        raise UsageError(
            "shards already exist", path=target, remedy="Replace them with --overwrite, or choose another --out."
        )


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """Lock `OUT.partial`. A failed run leaves it if it holds converted slices, so that the next run continues."""
    work = _partial(target)
    make_folder(work / "spool")
    with lock(work / "lock", "shards"):
        try:
            yield work
        except BaseException:
            if not any((work / "spool").glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


# ---- reading and converting


def _convert(
    listed: Sequence[ListedInput],
    options: PrepareOptions,
    spool: Path,
    pool: Pool,
    prints: FingerprintFile,
    progress: Progress | None,
) -> dict[str, list[Chunk]]:
    """Run all tasks; return the chunks of each input in the order of its items, with their fingerprints in `prints`."""
    conversion = Conversion(size=options.size, intensity=options.intensity, source=source_options(options))
    todo = [(entry.name, task) for entry in listed for task in tasks(entry.items, entry.name, conversion, spool)]
    total, done = sum(len(task.items) for _, task in todo), 0
    chunks: dict[str, list[Chunk]] = {entry.name: [] for entry in listed}
    if progress:
        progress("read", 0, total)
    work = pool.map(run_task, [task for _, task in todo], crashed=partial(_crashed, pool))
    for (name, task), chunk in zip(todo, work, strict=True):
        prints.add(chunk.prints)
        chunks[name].append(replace(chunk, prints=()))
        done += len(task.items)
        if progress:
            progress("read", done, total)
    return chunks


def _crashed(pool: Pool, task: Task, error: DataError) -> Chunk:
    """Handle a task that ended its process: leave out the item that was being read, or look for it."""
    items = task.items
    place = next((at for at, item in enumerate(items) if error.path in {file.name for file in item.files}), None)
    if len(items) == 1:
        return Chunk(problems=(Problem.of(error, f"{task.prefix}/{items[0].name}"),))
    pieces = [(item,) for item in items] if place is None else [items[:place], (items[place],), items[place + 1 :]]
    crashed = partial(_crashed, pool)
    parts = [
        crashed(part, error)
        if place is not None and part.items == (items[place],)
        else next(pool.map(run_task, [part], crashed=crashed))
        for part in (replace(task, items=piece) for piece in pieces if piece)
    ]
    return Chunk(
        slices=tuple(piece for part in parts for piece in part.slices),
        prints=tuple(print_ for part in parts for print_ in part.prints),
        problems=tuple(problem for part in parts for problem in part.problems),
        left_out=tuple(entry for part in parts for entry in part.left_out),
    )


def _collect(
    listed: Sequence[ListedInput], chunks: dict[str, list[Chunk]]
) -> tuple[list[Spooled], list[int], list[Problem], list[LeftOut]]:
    """Return the usable slices (the first of those with the same id), their indices, all problems, and files left out."""
    problems = [problem for entry in listed for problem in entry.problems]
    left_out = [remark for entry in listed for remark in entry.left_out]
    slices: list[Spooled] = []
    for entry in listed:
        for chunk in chunks[entry.name]:
            slices.extend(chunk.slices)
            problems.extend(chunk.problems)
            left_out.extend(chunk.left_out)
    first: dict[str, str] = {}
    used = []
    for index, piece in enumerate(slices):
        facts = piece.facts
        if facts.slice_id not in first:
            first[facts.slice_id] = facts.source
            used.append(index)
        else:
            message = f"has the same id as {first[facts.slice_id]} ({facts.slice_id}). Rename one of the two."
            problems.append(Problem(facts.source, "duplicate-id", message))
    return [slices[index] for index in used], used, sorted(problems), sorted(left_out)
