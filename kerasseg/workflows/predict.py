"""`predict_files`: read files, predict, and write masks to a folder of their own."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasseg.interrupts import StopFlag
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.prediction.inputs import (
    OpenedUnit,
    Unit,
    check_folder,
    check_inputs,
    check_name,
    network_image,
    open_unit,
    plan_units,
)
from kerasseg.prediction.pipeline import Limits, run_flow
from kerasseg.prediction.resume import JOURNAL, Collected, Done, Entry, Journal
from kerasseg.prediction.sources import locate
from kerasseg.prediction.table import FoundTumour, count_tumours, describe, to_csv, volume_ml
from kerasseg.prediction.writers import draw_overlay, grey_levels, has_highdicom, png, segmentation
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.cluster import ClusterPool, cluster_pool
from kerasseg_tfrecords.errors import DataError, KerassegError, Problem, UsageError
from kerasseg_tfrecords.files import FULL, lock, make_folder, write_atomically
from kerasseg_tfrecords.intensity import IntensityRule, fit_image, restore
from kerasseg_tfrecords.sources.base import LeftOut, SourceOptions
from kerasseg_tfrecords.sources.unlabelled import ImageInput, list_images
from kerasseg_tfrecords.storage import local_copy, refuse_url
from kerasseg_tfrecords.text import Progress, count

if TYPE_CHECKING:
    from distributed import Client

    from kerasseg.prediction.predictor import Engine, Network, Source

TABLE = "predictions.csv"
_LOCK = ".lock"
_PLANES = ("axial", "coronal", "sagittal")
_BIDS_FILE = "dataset_description.json"
_BIDS_FACTS = {
    "Name": "Tumour masks predicted by kerasseg",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "kerasseg", "Version": __version__}],
}


@dataclass(frozen=True, slots=True)
class PredictedFile:
    """One predicted input.

    Attributes:
        name: Name of the input.
        files: Role ("mask", "seg", "overlay", "probabilities") -> files, relative to the output folder.
        rows: Rows of its slices.
        notes: Remarks for users.
        engines: Engines that computed it, "native" or "openvino"; none if an earlier version of kerasseg did.
    """

    name: str
    files: dict[str, list[str]]
    rows: tuple[FoundTumour, ...]
    notes: tuple[str, ...]
    engines: tuple[str, ...] = ()

    @property
    def tumour_slices(self) -> int:
        return sum(row.tumour for row in self.rows)

    @property
    def tumours(self) -> int | None:
        """Connected tumours; None if an earlier version of kerasseg predicted the input."""
        return self.rows[0].case_tumours if self.rows else 0

    @property
    def volume_ml(self) -> float | None:
        """Tumour volume in millilitres; None for single slices, and if the voxel size is unknown."""
        return self.rows[0].case_volume_ml if self.rows else None


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """The result of a prediction.

    Attributes:
        out: Output folder.
        networks: Names of the networks.
        rule: Rule from probabilities to masks.
        intensity, size, precision: Intensity rule, input size in pixels, and numeric precision.
        flip_average: Whether the predictions of image and mirror image were averaged.
        files: Predicted inputs in order, including those of earlier calls.
        earlier: How many of them were predicted by earlier calls.
        total: Number of inputs.
        problems: Inputs that could not be read.
        left_out: Files that are not images, with the reason.
        notes: Remarks for users.
        interrupted: Whether the prediction was stopped before the end.
        seconds: Time from the first slice to the last file.

    Example:
        `predict_files` returns such reports:

        >>> from kerasseg.postprocessing import MaskRule
        >>> asked = (Path("masks"), ("unet",), MaskRule(), "minmax", 256, "float32", False)
        >>> report = PredictionReport(*asked, (), 0, 0, (), (), (), False, 0.0)
        >>> len(report.files) + len(report.problems) == report.total
        True
    """

    out: Path
    networks: tuple[str, ...]
    rule: MaskRule
    intensity: str
    size: int
    precision: str
    flip_average: bool
    files: tuple[PredictedFile, ...]
    earlier: int
    total: int
    problems: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    interrupted: bool
    seconds: float

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that computed the files."""
        return tuple(sorted({engine for file in self.files for engine in file.engines}))


def predict_files(
    network: Source | Sequence[Source] | Network | None,
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    threshold: float | None = None,
    rule: MaskRule | None = None,
    intensity: IntensityRule | None = None,
    flip_average: bool = False,
    augment: Sequence[str] = (),
    overlay: bool = False,
    probabilities: bool = False,
    plane: str | None = None,
    channel: str | None = None,
    sequence: str | None = None,
    format_name: str | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    engine: Engine = "native",
    bids: bool = False,
    go_on: bool = False,
    overwrite: bool = False,
    cluster: Client | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> PredictionReport:
    """Write a mask for each slice, volume and series, in the geometry of its input, and `predictions.csv`.

    The run's size, intensity rule, threshold and post-processing are applied. Reading, network and writing overlap, and
    memory does not grow with the number of files. A file that cannot be read is reported and does not stop the others.

    Args:
        network: A run (its folder or name, "latest"), a checkpoint of any kind, a Keras model, or several of these, whose
            probabilities are averaged; None for the latest run. What `open_network` returned keeps its rule and options.
        inputs: Folders, zip archives, files or patterns of everything that `prepare` reads, or URLs. Masks are skipped.
        out: Output folder, created if missing.
        threshold: Threshold to use instead of the run's rule, in (0, 1], without post-processing.
        rule: Rule to use instead of the run's, with post-processing.
        intensity: Intensity rule to use instead of the run's: "minmax", "percentile" or "zscore".
        flip_average: Average the predictions of the image and its mirror image, which doubles the time.
        augment: Test-time augmentations by name: "flip" is `flip_average`, others are refused with the reason.
        overlay: Also write pictures of the slices with the outline of the mask.
        probabilities: Also write the probabilities: 16-bit PNG (65535 is 1), or float32 NIfTI for volumes.
        plane: Plane of the slices of volumes: "axial", "coronal" or "sagittal"; None for that of the run's shards.
        channel: Channel of volumes with several: a number from 0 or a name; None for that of the run's shards.
        sequence: Sequence of cases with several files, such as "t1ce"; None for that of the run's shards.
        format_name: Read only this format: "figshare", "pairs", "nifti" or "dicom".
        batch_size: Slices per batch; None chooses.
        precision: "auto" (float32, as in `evaluate_run`), "float32", "mixed_bfloat16" or "mixed_float16".
        engine: "native" (Keras), or "openvino" where its masks agree with those of Keras on the first slices (extra
            `openvino`; float32 only).
        bids: Name outputs as a BIDS derivative (sub-01/anat/sub-01_label-tumor_mask.nii.gz); inputs need BIDS names.
        go_on: Keep the results of an earlier call in the same folder, and predict the rest.
        overwrite: Replace the results of an earlier call.
        cluster: Dask client of a cluster whose workers predict instead; they must see `network`, local `inputs` and `out`.
        progress: Called with ("predict", finished inputs, all inputs).
        stop: Called now and then; True stops the prediction, which `go_on` can continue later.

    Returns:
        The predicted inputs, and those that could not be read.

    Raises:
        UsageError: An option is invalid; the output folder is an input or contains another prediction; two inputs would
            have the same mask file; the network does not fit its run.
        DataError: There are no images, or the run is missing or damaged.
        KerassegError: The run is being trained, the network returns NaN, or the disk is full; finished masks are kept.

    Example:
        >>> import kerasseg, numpy as np
        >>> from pathlib import Path
        >>> from kerasseg.prediction.writers import png
        >>> Path("slices").mkdir()
        >>> _ = Path("slices/1.png").write_bytes(png(np.arange(4800, dtype=np.uint8).reshape(60, 80)))
        >>> network = kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0)
        >>> report = predict_files(network, "slices", "masks", threshold=0.5)
        >>> report.files[0].name, report.files[0].files, report.problems
        ('1.png', {'mask': ['1_mask.png']}, ())
        >>> sorted(path.name for path in Path("masks").glob("[!.]*"))
        ['1_mask.png', 'predictions.csv']
    """
    refuse_url(out)
    folder = Path(out)
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    _check_options(folder, given, plane, go_on=go_on, overwrite=overwrite)
    copies = [local_copy(entry, progress) for entry in given]
    if cluster is not None:
        folder, copies = folder.absolute(), [path.absolute() for path in copies]
    options = SourceOptions(masks=False, channel=channel, sequence=sequence)
    check_inputs(folder, copies)
    listed = _listed(folder, copies, options, format_name)
    check_folder(folder, listed)
    units = plan_units(listed, bids=bids)
    _check_empty(folder, units, go_on=go_on, overwrite=overwrite)
    for source in network if isinstance(network, (list, tuple)) else [network]:
        if source is None or isinstance(source, (str, Path)):
            locate(source)
    # Imported here, so that wrong paths are reported before TensorFlow is loaded.
    from kerasseg.prediction.predictor import Network, check_averaging, open_network

    flip_average = check_averaging(augment) or flip_average
    if not isinstance(network, Network):
        asked = open_network(
            network,
            threshold=threshold,
            rule=rule,
            intensity=intensity,
            precision=precision,
            batch_size=batch_size,
            flip_average=flip_average,
            engine=engine,
        )
    elif cluster is None:
        asked = network
    else:
        raise UsageError("a cluster needs the run or checkpoint itself, not an opened network")
    trained = replace(options, channel=channel or asked.channel, sequence=sequence or asked.sequence)
    if trained != options:
        listed = _listed(folder, copies, trained, format_name)
        units = plan_units(listed, bids=bids)
    make_folder(folder)
    wants = _Wants(overlay, probabilities, plane, trained, bids)
    with _locked(folder, units):
        journal = Journal.begin(folder, _how(asked, wants), units, go_on=go_on)
        job = _Job(folder, asked, wants, journal, len(units), progress)
        earlier = len(journal.done)
        start = time.monotonic()
        with _table_written(folder, units, journal):
            left = [unit for unit in units if unit.name not in journal.done]
            if cluster is None:
                whole = job.run(left, stop or StopFlag())
            else:
                with _far(cluster, network, job, batch_size, copies, given) as pool:
                    whole = job.run_far(left, stop or StopFlag(), *pool)
            if bids and not (folder / _BIDS_FILE).exists():
                write_atomically(folder / _BIDS_FILE, json.dumps(_BIDS_FACTS, indent=1) + "\n")
    return _report(job, units, listed, earlier=earlier, interrupted=not whole, seconds=time.monotonic() - start)


# --- before ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wants:
    """What to write besides masks, and how to read files."""

    overlay: bool
    probabilities: bool
    plane: str | None
    options: SourceOptions
    bids: bool


def _check_options(
    folder: Path, given: Sequence[Path | str], plane: str | None, *, go_on: bool, overwrite: bool
) -> None:
    if not given:
        raise UsageError("no input is given", expected="folders or files")
    if plane is not None and plane not in _PLANES:
        raise UsageError("unknown plane", found=plane, expected=", ".join(_PLANES))
    if go_on and overwrite:
        raise UsageError("--continue and --overwrite contradict each other", remedy="Give only one of them.")
    if folder.exists() and not folder.is_dir():
        raise UsageError("the output folder is a file", path=folder, remedy="Choose another --out.")


def _listed(
    folder: Path, given: Sequence[Path | str], options: SourceOptions, format_name: str | None
) -> list[ImageInput]:
    """List the images, without those that earlier predictions wrote below the inputs."""
    folders = [Path(entry) for entry in given if Path(entry).is_dir()]
    earlier = [path.parent for entry in folders for path in entry.rglob(JOURNAL) if path.parent != entry]
    return list_images(given, options, format_name=format_name, hidden=(folder, *earlier))


def _how(network: Network, wants: _Wants) -> dict[str, Any]:
    """Everything that affects masks, for the journal."""
    return {
        "format": 1,
        "network": network.sha256 if all(network.sha256) else network.names,
        "rule": network.rule.model_dump(),
        "intensity": network.intensity,
        "size": network.size,
        "precision": network.precision,
        "flip_average": network.flip_average,
        "plane": wants.plane or network.plane,
        "reading": [wants.options.channel, wants.options.sequence],
        "overlay": wants.overlay,
        "probabilities": wants.probabilities,
        **({"bids": True} if wants.bids else {}),
        **({"engine": network.engine} if network.engine != "native" else {}),
    }


def _check_empty(folder: Path, units: Sequence[Unit], *, go_on: bool, overwrite: bool) -> None:
    if not folder.is_dir():
        return
    if (folder / JOURNAL).exists():
        if go_on or overwrite:
            return
        raise UsageError(
            "the output folder is not empty",
            path=folder,
            found="earlier predictions",
            remedy="Continue them with --continue, replace them with --overwrite, or choose another --out.",
        )
    roles = ("mask", "overlay", "probabilities", "probseg")
    endings = ("_seg.dcm", *(f"_{role}{suffix}" for role in roles for suffix in (".png", ".nii.gz")))
    there = (unit.stem + ending for unit in units for ending in endings if (folder / (unit.stem + ending)).exists())
    found = TABLE if (folder / TABLE).exists() else next(there, None)
    if found is not None:
        # They may be the only copy of masks drawn by hand: no option replaces files that kerasseg has not written.
        raise UsageError(
            "files that kerasseg did not write would be replaced",
            path=folder,
            found=found,
            remedy="Choose another --out, or move these files.",
        )


@contextlib.contextmanager
def _locked(folder: Path, units: Sequence[Unit]) -> Iterator[None]:
    busy = "another process is predicting into this folder"
    with lock(folder / _LOCK, "predictions", busy=busy):
        for place in {folder, *((folder / unit.stem).parent for unit in units)}:
            for left in place.glob(".tmp-*"):  # left by a killed process
                left.unlink(missing_ok=True)
        yield


# --- during ------------------------------------------------------------------------------------------------------------


class _Work:
    """An input in progress, with its finished slices."""

    def __init__(self, unit: Unit, stamp: list[list[int]], opened: OpenedUnit) -> None:
        self.unit, self.stamp, self.layout, self.notes = unit, stamp, opened.layout, opened.notes
        self.thickness = opened.thickness
        self.lock = threading.Lock()
        self.left = opened.count
        self.masks: list[Any] = [None] * opened.count
        self.probabilities: list[Any] = [None] * opened.count
        self.rows: list[Any] = [None] * opened.count
        self.overlays: list[str] = []
        self.engines: set[str] = set()


@dataclass(slots=True, eq=False)
class _Prepared:
    """A slice in progress.

    Attributes:
        work: The input that it belongs to.
        place: Index in the input.
        image: (size, size, channels) uint8, the network's input.
        height, width: Original size.
        spacing: Pixel size in millimetres.
        shown: (height, width) or (height, width, 3) uint8 for the overlay; None without.
        seconds: Time spent so far.
    """

    work: _Work
    place: int
    image: NDArray[np.uint8]
    height: int
    width: int
    spacing: tuple[float, float]
    shown: NDArray[np.uint8] | None
    seconds: float


@dataclass(slots=True, eq=False)
class _Job:
    """One prediction: the work of readers, network and writers."""

    out: Path
    network: Network
    wants: _Wants
    journal: Journal
    total: int
    progress: Progress | None
    problems: list[Problem] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    colour: int = 0
    series_without_seg: int = 0

    def run(self, units: Sequence[Unit], stop: Callable[[], bool]) -> bool:
        self._tell()
        limits = Limits.usual(self.network.batch_size)
        return run_flow(units, self.read, self.ask, self.write, limits, stop)

    def run_far(self, units: Sequence[Unit], stop: Callable[[], bool], pool: ClusterPool, asked: _Asked) -> bool:
        self._tell()
        crashed = partial(_crashed, pool, asked)
        chunks = _chunks(units, self.network.batch_size, pool.workers())
        for part in pool.map(partial(_predict_chunk, asked), chunks, crashed=crashed, trusted=True):
            for entry in part.entries:
                self.journal.append(entry)
            self.problems += part.problems
            self.colour += part.colour
            self.series_without_seg += part.series_without_seg
            self._tell()
            if stop():
                return False
        return True

    def read(self, unit: Unit) -> Iterator[_Prepared]:
        """Yield the slices of an input; one that cannot be read becomes a problem."""
        try:
            yield from self._slices(unit)
        except DataError as error:
            with self.lock:
                self.problems.append(Problem.of(error, unit.name if len(unit.items) == 1 else error.path))
            self._tell()

    def _slices(self, unit: Unit) -> Iterator[_Prepared]:
        start = time.perf_counter()
        check_name(unit)
        stamp = unit.stamp
        opened = open_unit(unit, self.network.intensity, self.wants.options, self.wants.plane, self.network.plane)
        work = _Work(unit, stamp, opened)
        for place, raw in enumerate(opened.slices):
            image = self._channels(fit_image(raw.image, raw.window, self.network.size, raw.spacing), unit)
            shown = grey_levels(raw.image, raw.window) if self.wants.overlay else None
            height, width = raw.image.shape[:2]
            seconds = time.perf_counter() - start
            yield _Prepared(work, place, image, height, width, raw.spacing, shown, seconds)
            start = time.perf_counter()

    def _channels(self, image: NDArray[np.uint8], unit: Unit) -> NDArray[np.uint8]:
        fitted = network_image(image, self.network.channels, unit.name)
        if image.shape[2] == 3 and self.network.grey:
            with self.lock:
                self.colour += 1
        return fitted

    def ask(self, batch: Sequence[_Prepared]) -> list[NDArray[np.float32]]:
        """Predict probabilities, (size, size) per slice."""
        start = time.perf_counter()
        answers = self.network.probabilities(np.stack([one.image for one in batch]))
        share = (time.perf_counter() - start) / len(batch)
        for one in batch:
            one.seconds += share
            one.work.engines |= self.network.engines
        return list(answers)

    def write(self, one: _Prepared, answer: NDArray[np.float32]) -> None:
        """Compute the mask of a slice; after the last slice of an input, write its files."""
        start = time.perf_counter()
        work, unit = one.work, one.work.unit
        native = np.clip(restore(answer, one.height, one.width, one.spacing), 0, 1)
        mask = apply_rule(native, self.network.rule)
        if one.shown is not None and (unit.kind == "picture" or mask.any()):
            # For volumes, only slices with a tumour.
            single = len(work.masks) == 1
            name = f"{unit.stem}_overlay.png" if single else f"{unit.stem}_overlay/{one.place:04}.png"
            self._save(name, png(draw_overlay(one.shown, mask)))
            with work.lock:
                work.overlays.append(name)
        place = None if unit.kind == "picture" and len(work.masks) == 1 else one.place
        file = unit.name if unit.kind != "series" else unit.prefix + unit.items[one.place].name
        row = describe(
            file,
            place,
            unit.stem + work.layout.name(one.place, "mask"),
            mask,
            native,
            one.spacing,
            one.seconds + time.perf_counter() - start,
        )
        with work.lock:
            work.masks[one.place], work.rows[one.place] = mask, row
            work.probabilities[one.place] = native if self.wants.probabilities else None
            work.left -= 1
            last = work.left == 0
        if last:
            self._finish(work)

    def _finish(self, work: _Work) -> None:
        unit = work.unit
        files = {"mask": self._encode(work, "mask", work.masks)}
        notes = list(work.notes)
        if unit.kind == "series" and not has_highdicom():
            with self.lock:
                self.series_without_seg += 1
        elif unit.kind == "series":
            data, reason = segmentation([item.files[0] for item in unit.items], work.masks, self.wants.options)
            if data is not None:
                files["seg"] = [f"{unit.stem}_seg.dcm"]
                self._save(files["seg"][0], data)
            elif reason:
                notes.append(reason)
        if self.wants.probabilities:
            files["probabilities"] = self._encode(work, "probabilities", work.probabilities)
        if work.overlays:
            files["overlay"] = sorted(work.overlays)
        rows = self._rows_of_case(work)
        with self.lock:
            self.journal.add(unit, work.stamp, Done(files, rows, tuple(notes), tuple(sorted(work.engines))))
        self._tell()

    def _rows_of_case(self, work: _Work) -> tuple[FoundTumour, ...]:
        tumours = work.rows[0].tumours if len(work.rows) == 1 else count_tumours(work.masks)
        volume = volume_ml(work.rows, work.thickness)
        return tuple(replace(row, case_tumours=tumours, case_volume_ml=volume) for row in work.rows)

    def _encode(self, work: _Work, what: Any, slices: Sequence[NDArray[Any]]) -> list[str]:
        names = []
        for ending, data in work.layout.encode(slices, what).items():
            if self.wants.bids:
                ending = ending.replace("_probabilities.", "_probseg.")
            names.append(work.unit.stem + ending)
            self._save(names[-1], data)
        return names

    def _save(self, name: str, data: bytes) -> None:
        path = self.out / name
        make_folder(path.parent)
        # After a power cut, `--continue` notices a lost file by its size and predicts it again.
        write_atomically(path, data, durable=False)

    def _tell(self) -> None:
        if self.progress is not None:
            with self.lock:
                self.progress("predict", len(self.journal.done) + len(self.problems), self.total)

    def notes(self) -> list[str]:
        """Return remarks about all inputs."""
        notes = []
        if self.colour:
            slices = count(self.colour, "colour slice")
            notes.append(f"{slices} converted for a network that was trained on grey slices: check the masks")
        if self.series_without_seg:
            series = count(self.series_without_seg, "series", "series")
            notes.append(
                f"no DICOM SEG files for {series}, because highdicom is not installed: pip install 'kerasseg[dicom]'"
            )
        return notes


# --- on a cluster ------------------------------------------------------------------------------------------------------

_CHUNK = 64
"""Largest number of pictures in a task; a volume or series is a task of its own."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a worker needs to predict.

    Attributes:
        out: Output folder.
        sources: Runs and checkpoints, as absolute paths or URLs.
        sha256: Hash of each, "" if unknown.
        options: Other arguments of `open_network`.
        wants: What to write, and how to read.
    """

    out: Path
    sources: tuple[str, ...]
    sha256: tuple[str, ...]
    options: dict[str, Any]
    wants: _Wants


@dataclass(frozen=True, slots=True)
class _Part:
    """What a worker returns for a chunk; the attributes are those of `_Job`."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    colour: int = 0
    series_without_seg: int = 0


@contextlib.contextmanager
def _far(
    client: Client,
    given: Any,
    job: _Job,
    batch_size: int | None,
    copies: Sequence[Path],
    inputs: Sequence[Path | str],
) -> Iterator[tuple[ClusterPool, _Asked]]:
    """Yield the workers, and what they need; networks in memory are in files meanwhile."""
    import keras

    network, sources, hashes = job.network, [], []
    several = isinstance(given, Sequence) and not isinstance(given, str)
    with contextlib.ExitStack() as stack:
        for number, (source, name) in enumerate(zip(given if several else [given], network.names, strict=True)):
            path = Path(name).absolute()
            if isinstance(source, keras.Model):
                path = job.out / f".tmp-network-{number}.keras"
                stack.callback(path.unlink, missing_ok=True)
                source.save(path)
            sources.append(str(source) if "://" in str(source) else str(path))
            hashes.append("" if isinstance(source, keras.Model) else network.sha256[number])
        options = {
            "rule": network.rule,
            "intensity": network.intensity,
            "precision": network.precision,
            "flip_average": network.flip_average,
            "engine": network.engine,
            "batch_size": batch_size,
        }
        reads = [path for path in (*map(Path, sources), *copies) if path.exists()]
        needs: dict[str, Any] = {"reads": reads, "inputs": inputs, "writes": job.out}
        pool = stack.enter_context(cluster_pool(client, **needs, tensorflow=True, gpu=True))
        yield pool, _Asked(job.out, tuple(sources), tuple(hashes), options, job.wants)
        with contextlib.suppress(Exception):  # memory of workers, which belong to others too
            client.run(_forget)


def _chunks(units: Sequence[Unit], batch_size: int, workers: int) -> Iterator[tuple[Unit, ...]]:
    """Yield tasks of whole batches, since a batch that is not full takes as long, and four or more for each worker."""
    size = max(1, min(_CHUNK, len(units) // (4 * workers)) // batch_size) * batch_size
    chunk: list[Unit] = []
    for unit in units:
        if chunk and (unit.kind != "picture" or len(chunk) == size):
            yield tuple(chunk)
            chunk = []
        chunk.append(unit)
        if unit.kind != "picture":
            yield tuple(chunk)
            chunk = []
    if chunk:
        yield tuple(chunk)


_OPENED: list[tuple[_Asked, Network]] = []
"""The network that this worker keeps from task to task."""


def _forget() -> None:
    _OPENED.clear()


def _predict_chunk(asked: _Asked, units: tuple[Unit, ...]) -> _Part:
    """Predict some inputs, in a worker."""
    from kerasseg.prediction.predictor import open_network

    if not _OPENED or _OPENED[0][0] != asked:
        _forget()
        network = open_network(asked.sources, **asked.options)
        for source, found, expected in zip(asked.sources, network.sha256, asked.sha256, strict=True):
            if expected and found != expected:
                raise DataError("the worker sees another network", path=source, remedy="Mount the same file system.")
        _OPENED.append((asked, network))
    journal = Collected(asked.out)
    job = _Job(asked.out, _OPENED[0][1], asked.wants, journal, len(units), None)
    job.run(units, lambda: False)
    order = {unit.name: number for number, unit in enumerate(units)}
    entries = sorted(journal.entries, key=lambda entry: order[entry.name])
    return _Part(entries, job.problems, job.colour, job.series_without_seg)


def _crashed(pool: ClusterPool, asked: _Asked, units: tuple[Unit, ...], error: DataError) -> _Part:
    """Handle a chunk that ended its process: halve it to find the cause."""
    if len(units) == 1:
        return _Part(problems=[Problem.of(error, units[0].name)])
    halves = [units[: len(units) // 2], units[len(units) // 2 :]]
    parts = list(
        pool.map(partial(_predict_chunk, asked), halves, isolated=True, crashed=partial(_crashed, pool, asked))
    )
    return _Part(
        [entry for part in parts for entry in part.entries],
        [problem for part in parts for problem in part.problems],
        sum(part.colour for part in parts),
        sum(part.series_without_seg for part in parts),
    )


# --- after -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _table_written(folder: Path, units: Sequence[Unit], journal: Journal) -> Iterator[None]:
    """Write the table of finished inputs at the end of the block, also of one that fails, if the disk has room for it."""
    try:
        yield
        _write_table(folder, units, journal)
    except BaseException as error:
        with contextlib.suppress(KerassegError):
            _write_table(folder, units, journal)
        if isinstance(error, KerassegError):
            raise _explained(error) from error
        raise


def _write_table(folder: Path, units: Sequence[Unit], journal: Journal) -> None:
    rows = [row for unit in units if unit.name in journal.done for row in journal.done[unit.name].rows]
    rows += [row for done in journal.others.values() for row in done.rows]
    write_atomically(folder / TABLE, to_csv(rows))


def _report(
    job: _Job, units: Sequence[Unit], listed: Sequence[ImageInput], *, earlier: int, interrupted: bool, seconds: float
) -> PredictionReport:
    done, network = job.journal.done, job.network
    unread = [
        problem if len(listed) == 1 else replace(problem, name=f"{entry.name}/{problem.name}")
        for entry in listed
        for problem in entry.problems
    ]
    return PredictionReport(
        out=job.out,
        networks=network.names,
        rule=network.rule,
        intensity=network.intensity,
        size=network.size,
        precision=network.precision,
        flip_average=network.flip_average,
        files=tuple(
            PredictedFile(unit.name, found.files, found.rows, found.notes, found.engines)
            for unit in units
            if (found := done.get(unit.name)) is not None
        ),
        earlier=earlier,
        total=len(units),
        problems=tuple(sorted([*unread, *job.problems])),
        left_out=tuple(entry for one in listed for entry in one.left_out),
        notes=(*network.notes, *(note for one in listed for note in one.notes), *job.notes()),
        interrupted=interrupted,
        seconds=seconds,
    )


def _explained(error: KerassegError) -> KerassegError:
    """Describe a full disk, with the remedy for predictions."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno not in FULL:
        return error
    free = None
    inodes = "inodes" in error.what
    if error.path is not None and not inodes:
        with contextlib.suppress(OSError):
            place = Path(error.path)
            free = f"{shutil.disk_usage(place if place.exists() else place.parent).free:,} bytes free"
    return KerassegError(
        error.what,
        path=error.path,
        found=free,
        remedy=f"Finished masks are kept. {'Delete some files' if inodes else 'Free some space'} and run the same command "
        "with --continue.",
    )
