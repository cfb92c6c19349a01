"""A Dask cluster of worker processes on this machine, against the local pool; and a million slices in the caller.

Prepare and predict run on a scheduler with 1, 2 and 4 workers, each a process, and locally with as many processes. The
goal is 0.9: less than 10 % overhead. Workers have done the same work with a few slices before. The part of `prepare` that
stays with the caller (patients, search for copies, split) is run over metadata and fingerprints that are drawn at random,
one process for each number of slices.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import make_slices, rounds_of
from benchmarks.result import Result, compared, show, sized
from benchmarks.turns import contenders
from kerasseg_tfrecords.cluster import connect

if TYPE_CHECKING:
    from kerasseg_tfrecords.conversion.staging import Spooled
    from kerasseg_tfrecords.splitting.fingerprints import Fingerprint

PART, FEW, GOAL, PER_PATIENT = "cluster", 64, 0.9, 10
_OPEN = contextlib.ExitStack()
"""Keeps the cluster of a contender until its process ends."""


def _connected(workers: int) -> Any:
    """Return the client of a new cluster; None without workers."""
    client = _OPEN.enter_context(connect(f"local:{workers}" if workers else None))
    atexit.register(_OPEN.close)  # before Dask's own
    return client


def prepare_on(workers: int, work: str, count: int, cluster: bool) -> Callable[[], object]:
    """Return `prepare` over `count` slices, after one over few."""
    from kerasseg_tfrecords import prepare
    from kerasseg_tfrecords.records.manifest import PrepareOptions

    client = _connected(workers if cluster else 0)

    def over(number: int) -> None:
        out = Path(work) / f"shards-{workers}-{cluster}"
        options = PrepareOptions(split_by="slice")
        prepare(Path(work) / f"slices{number}", out, options, jobs=workers, cluster=client, overwrite=True)

    over(FEW)
    return lambda: over(count)


def predict_on(workers: int, work: str, count: int) -> Callable[[], object]:
    """Return `predict` over `count` slices, after one over few; without workers in this process."""
    import kerasseg
    from kerasseg.workflows.predict import predict_files

    network = Path(work) / f"network-{workers}.keras"
    kerasseg.unet((256, 256, 1), filters=16, depth=4, seed=0).save(network)
    client = _connected(workers)

    def over(number: int) -> None:
        out, slices = Path(work) / f"masks-{workers}", Path(work) / f"slices{number}"
        predict_files(network, slices, out, threshold=0.5, overwrite=True, cluster=client)

    over(FEW)
    return lambda: over(count)


def arrange_drawn(count: int) -> Callable[[], object]:
    """Return the search for copies and the split over `count` slices of `count / 10` patients; 1 in 32 is a copy."""
    from kerasseg_tfrecords.conversion.assign import arrange
    from kerasseg_tfrecords.records.manifest import PrepareOptions
    from kerasseg_tfrecords.splitting.fingerprints import FingerprintFile

    folder = _OPEN.enter_context(tempfile.TemporaryDirectory(prefix="kerasseg-bench-"))
    prints, slices = FingerprintFile(Path(folder) / "details"), []
    for start in range(0, count, 32):
        pieces = list(drawn(start, min(start + 32, count)))
        slices += [piece for piece, _ in pieces]
        prints.add(print_ for _, print_ in pieces)
    return lambda: arrange(slices, prints.fingerprints(range(count)), PrepareOptions())


def drawn(start: int, stop: int) -> Iterator[tuple[Spooled, Fingerprint]]:
    """Yield slices as the workers of `prepare` return them."""
    from kerasseg_tfrecords.conversion.staging import Place, Spooled
    from kerasseg_tfrecords.records.schema import SliceFacts
    from kerasseg_tfrecords.splitting.fingerprints import HASH_SIZE, SIDE, Fingerprint

    rng = np.random.default_rng(start)
    before: Fingerprint | None = None
    for number in range(start, stop):
        name = f"scans/{number // 1000:04}/{number:07}.mat"
        digest = hashlib.sha256(name.encode())
        if number % 32 == 31 and before is not None:
            print_ = Fingerprint(digest.digest()[:16], before.hash, before.detail, before.variance)
        else:
            values = rng.normal(size=HASH_SIZE)
            detail = rng.integers(-127, 127, (SIDE, SIDE), dtype=np.int8)
            print_ = Fingerprint(
                digest.digest()[:16], (127 * values / np.linalg.norm(values)).astype(np.int8), detail, 900.0
            )
        before = print_
        facts = SliceFacts(
            slice_id=name.removesuffix(".mat"),
            source=name,
            sha256=digest.hexdigest(),
            label=("glioma", "meningioma", "pituitary")[number % 3],
            patient=f"P{number // PER_PATIENT}",
            volume="",
            slice_index=-1,
            height=512,
            width=512,
            channels=1,
            spacing=(0.49, 0.49),
            tumour_pixels=900,
            notes=(),
        )
        yield Spooled(facts, Place(f"{number // 32:032x}", number % 32 * 82_000, (65_536, 8_192, 8_000))), print_


def results(*, quick: bool) -> list[Result]:
    many, few, rounds = (200, 64, 1) if quick else (1500, 200, 3)
    lines = []
    with tempfile.TemporaryDirectory(prefix="kerasseg-bench-") as work:
        for number in (FEW, few, many):
            make_slices(Path(work) / f"slices{number}", number)
        for workers in (1, 2) if quick else (1, 2, 4):
            kinds = {"cluster": True, "local": False}
            makers = {
                name: ("benchmarks.cluster:prepare_on", workers, work, many, kind) for name, kind in kinds.items()
            }
            with contenders(makers, warm=False) as running:
                found = rounds_of(running, rounds)
            what, peer = f"prepare, workers: {workers}", f"local processes: {workers}"
            lines.append(compared(PART, what, peer, found["cluster"], found["local"], slices=many, goal=GOAL))
        makers = {str(w): ("benchmarks.cluster:predict_on", w, work, few) for w in ((0, 1) if quick else (0, 1, 2, 4))}
        with contenders(makers, warm=False) as running:
            found = rounds_of(running, rounds)
        for name in list(found)[1:]:
            goal = GOAL if name == "1" else None
            what = f"predict, workers: {name}"
            lines.append(compared(PART, what, "one local process", found[name], found["0"], slices=few, goal=goal))
    counts = (1000, 10_000) if quick else (10_000, 100_000, 1_000_000)
    base: tuple[list[object], float] | None = None
    for count in counts:
        with contenders({"drawn": ("benchmarks.cluster:arrange_drawn", count)}, warm=False) as running:
            cost = running["drawn"]()
        each, peak = [cost.each(count)], running["drawn"].peak
        base = base or (each, peak)
        what, peer = f"search for copies and split, {count:,} slices", f"{counts[0]:,} slices"
        remark = f"{cost.time:,.0f} s in all"
        lines.append(compared(PART, what, peer, each, base[0], unit="ms per slice", scale=1000.0, remark=remark))
        lines.append(sized(PART, f"peak memory of the caller, {count:,} slices", peer, peak, base[1]))
    return lines


if __name__ == "__main__":
    show(results)
