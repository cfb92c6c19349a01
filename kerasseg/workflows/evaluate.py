"""`evaluate_run`: everything about a run's network on a split, written into the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import keras

from kerasseg.checkpoints import open_checkpoint
from kerasseg.data.split import MEMORY_BUDGET, SPLITS
from kerasseg.evaluation.arrays import software
from kerasseg.evaluation.calibration import calibrate
from kerasseg.evaluation.figures import USUAL, Resampling, gain_classes, gains, network_figures, tuning_gain
from kerasseg.evaluation.inter_rater import compare_readers, open_second
from kerasseg.evaluation.joined import PredictionPictures, output_range, predict_splits
from kerasseg.evaluation.per_slice import SliceRow, to_csv
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.robustness import Transform, measure_robustness, measure_speed
from kerasseg.evaluation.schema import Evaluation, Robustness, SplitFacts, StageName
from kerasseg.evaluation.scoring import score_slices, stage_rules, with_baseline
from kerasseg.evaluation.targets import Goal, targets_of, usual_goals
from kerasseg.evaluation.test_use_log import LOOKS, count_looks, record_look
from kerasseg.phantom.slices import is_phantom
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.config import RunConfig
from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import explain_os_error, write_atomically
from kerasseg_tfrecords.records.manifest import Manifest, load_manifest
from kerasseg_tfrecords.text import Progress

if TYPE_CHECKING:
    from kerasseg.tuning.threshold_file import ThresholdFile
import itertools
import re
from collections.abc import Iterator

from kerasseg.evaluation.schema import read_evaluation
from kerasseg_tfrecords.records.manifest import SPLITS_FILE
from kerasseg_tfrecords.records.shards import read_records
from kerasseg_tfrecords.splitting.duplicates import Fingerprints, fingerprint, overlap
from kerasseg_tfrecords.splitting.fingerprints import Fingerprint
from kerasseg_tfrecords.splitting.splits_file import load

__all__ = ["Extras", "evaluate_run", "evaluation_folder", "put_aside", "run_id", "seen_in_training"]

_PARTS = ("calibration", "speed", "robustness", "second_reader")


def put_aside(folder: Path, new: Evaluation) -> Path | None:
    """Makes room for the files of an evaluation; those of one that answers another question move to `earlier/`.

    Args:
        folder: Of the split, in the run's `evaluation/`; it exists.
        new: What is going to be written there.

    Returns:
        Where the earlier evaluation lies now, `earlier/<split>-<date>` beside the folder; None where there was none, or
        where the new one says all that it said: then it is replaced.

    Raises:
        KerassegError: It cannot be moved.
    """
    try:
        old = read_evaluation(folder / "metrics.json")
    except KerassegError:  # nothing that could be read again
        return None
    if _answers(new, old):
        return None
    moment = re.sub(r"\D", "", old.created.split("+")[0])
    name = f"{folder.name}-{moment[:8]}-{moment[8:14]}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    shelf = folder.parent / "earlier"
    place = next(shelf / candidate for candidate in names if not (shelf / candidate).exists())
    try:
        shelf.mkdir(exist_ok=True)
        folder.rename(place)
        folder.mkdir()
    except OSError as error:
        raise explain_os_error(error, place) from error
    return place


def _answers(new: Evaluation, old: Evaluation) -> bool:
    """Whether the new figures are of what was asked for the old ones."""
    if (new.threshold, new.resolution) != (old.threshold, old.resolution):
        return False
    if any(getattr(new, part) is None and getattr(old, part) is not None for part in _PARTS):
        return False
    return (
        old.second_reader is None or new.second_reader is None or old.second_reader.source == new.second_reader.source
    )


_DRAWN = "These slices are phantoms, heads that never were: no figure says anything about patients, whom goals are for."

_Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True, slots=True)
class Extras:
    """What is measured besides.

    Attributes:
        calibration: Of the network's probabilities.
        speed: Of network and baseline.
        robustness: Dice under corruption: 40 more passes over the slices.
        reference_2: A second annotator's masks, see `kerasseg.evaluation.inter_rater`.
        seed: Of the corruptions.
    """

    calibration: bool = True
    speed: bool = True
    robustness: bool = False
    reference_2: Path | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Data:
    """On what a run is evaluated.

    Attributes:
        root: The shard directory.
        manifest: Its manifest.
        split: "all" for the whole of another directory.
        splits: Those of its splits that hold slices.
        external: Whether it is not the data that the run was trained on.
    """

    root: Path
    manifest: Manifest
    split: _Split
    splits: tuple[str, ...]
    external: bool


@dataclass(frozen=True, slots=True)
class _Rules:
    """From probabilities to masks: of the network and of the baseline; evidence where they were tuned."""

    model: MaskRule
    baseline: MaskRule
    final: StageName
    evidence: ThresholdFile | None


def evaluate_run(
    run: RunDirectory | Path | str | None = None,
    split: str | None = None,
    shards_other: Path | str | None = None,
    threshold: Literal["auto"] | float = "auto",
    *,
    resolution: Resolution = "native",
    goals: Sequence[Goal] | None = None,
    extras: Extras = Extras(),
    batch_size: int = 8,
    memory_budget: int = MEMORY_BUDGET,
    resampling: Resampling = USUAL,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluates the best weights of a run, beside the checkpoint that they came from.

    Writes `evaluation/<split>/` in the run: `metrics.json`, `per_slice.csv` and `report.html`. An evaluation that lies
    there and was asked otherwise is kept in `evaluation/earlier/`. A look at a test split is counted first.

    Args:
        run: The run, its folder or name; None for the latest one.
        split: "test" (None), "validation" or "train"; another data set is evaluated as a whole.
        shards_other: Another shard directory. Where it holds the data of the run (they were moved), it takes the place of
            the one that the run names.
        threshold: "auto" for the rule that `tune-threshold` found (it is run where there is none yet), or a threshold in
            (0, 1] without post-processing.
        resolution: "native", or "model" for the network's size.
        goals: To be judged; None for the recipe's, which are for real slices: none for phantoms.
        extras: What is measured besides.
        batch_size: Slices at once.
        memory_budget: Bytes of memory that probabilities of a network may take.
        resampling: Of the intervals.
        progress: Told a stage ("tune", "overlap", "predict", "baseline", "score", "robustness", "speed"), what is done, and
            how much there is.

    Returns:
        What `metrics.json` holds.

    Raises:
        UsageError: A split, threshold or goal that cannot be meant; a network that does not fit the shards.
        DataError: A run or shards that are missing or damaged.
        KerassegError: The run is being trained, the network puts out NaN, the folder cannot be written.

    Example:
        >>> evaluate_run("runs/latest", split="validation").final_stage().all.measures["dice"]  # doctest: +SKIP
        Mean(mean=0.87, low=0.84, high=0.9, slices=300, patients=21)
    """
    directory = run if isinstance(run, RunDirectory) else RunDirectory.find(run)
    config = directory.config()
    fixed = None if threshold == "auto" else _fixed(threshold)
    data = _data(config, split, shards_other)
    second = None if extras.reference_2 is None else open_second(extras.reference_2)
    warnings = _about_the_run(directory, data)
    directory.require_network()
    folder = _folder(directory.root, data.split, data.root, data.manifest.fingerprint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error

    rules = fixed or _tuned(directory, data, batch_size, progress)
    if rules.evidence is not None:
        warnings += _about_tuning(rules, data)
    seen = _overlap(config, data, progress)
    if seen:
        some = f"{seen} of {sum(data.manifest.slices_in(s) for s in data.splits)} slices"
        warnings.append(
            f"{some} stand in the run's training data too, so that these figures flatter. Leave them out: kerasseg prepare "
            "... --exclude-overlap TRAINING_SHARDS."
        )
    elif seen is None and data.external:
        warnings.append("The run's training shards are not there: whether these slices were trained on is not known.")

    model = open_checkpoint(directory.model_file)
    baseline = open_checkpoint(directory.baseline_file) if directory.baseline_file.is_file() else None
    if baseline is None:
        warnings.append("The run has no baseline.keras: no gain can be given.")

    def predict(network: keras.Model, stage: str | None, transform: Transform | None = None) -> Predictions:
        def told(done: int, total: int) -> None:
            if progress is not None and stage is not None:
                progress(stage, done, total)

        return predict_splits(
            network,
            data.root,
            data.splits,
            batch_size=batch_size,
            memory_budget=memory_budget,
            progress=told,
            transform=transform,
        )

    predictions = predict(model, "predict")
    stages = stage_rules(rules.model, rules.final)
    rows = _scored(predictions, stages, resolution, "score", progress)
    before: list[SliceRow] | None = None
    if baseline is not None:
        others = stage_rules(rules.baseline, rules.final)
        before = _scored(predict(baseline, "baseline"), others, resolution, None, progress)
        rows = with_baseline(rows, before)
    warnings += _about_the_output(predictions, rows)

    classes = data.manifest.classes
    figures = network_figures(rows, classes, stages, resampling)
    final = figures.stages[-1]
    drawn = all(is_phantom(row.patient) for row in rows)
    if drawn:
        warnings.append(_DRAWN)
    usual = () if drawn else usual_goals(tuple(final.classes))
    wanted = usual if goals is None else tuple(goals)
    reader = None
    if second is not None:
        reader = compare_readers(
            predictions,
            rows,
            rules.model,
            second,
            source=str(extras.reference_2),
            resolution=resolution,
            resampling=resampling,
        )
        if reader.without:
            warnings.append(
                f"The second annotator's masks cover {reader.slices} of {len(rows)} slices: agreement and the network's "
                "figures beside it are over these alone."
            )
    robustness: Robustness | None = None
    if extras.robustness:
        robustness = measure_robustness(
            lambda transform: predict(model, None, transform),
            rules.model,
            final.all.measures["dice"].mean,
            resolution=resolution,
            seed=extras.seed,
            progress=None if progress is None else lambda done, total: progress("robustness", done, total),
        )
    speed = None
    if extras.speed:
        if progress is not None:
            progress("speed", 0, 1)
        speed = measure_speed(model, baseline, size=data.manifest.size)
        if progress is not None:
            progress("speed", 1, 1)
    goals_met = targets_of(final, wanted)
    # Counted as soon as figures can be seen, and not before: a goal that cannot be meant shows none.
    if data.split in ("test", "all"):
        looks = record_look(
            data.root,
            directory.root,
            run_id=run_id(config),
            fingerprint=data.manifest.fingerprint,
            split=data.split,
        )
    else:
        looks = count_looks([data.root / LOOKS, directory.root / LOOKS], data.manifest.fingerprint)
    evaluation = Evaluation(
        kerasseg=__version__,
        software=software(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=str(directory.root),
        run_id=run_id(config),
        network=_network(config),
        shards=str(data.root),
        split=data.split,
        resolution=resolution,
        threshold="auto" if fixed is None else f"{fixed.model.threshold:g}",
        confidence=resampling.confidence,
        classes=classes,
        final=rules.final,
        model=figures,
        baseline=None
        if before is None
        else network_figures(before, classes, stage_rules(rules.baseline, rules.final), resampling),
        gain={} if before is None else gains(rows, tuple(stages), resampling),
        gain_classes={} if before is None else gain_classes(rows, classes, rules.final, resampling),
        tuning_gain=None if rules.final == "raw" else tuning_gain(rows, rules.final, resampling),
        targets=goals_met,
        calibration=calibrate(predictions, resolution=resolution) if extras.calibration else None,
        speed=speed,
        robustness=robustness,
        second_reader=reader,
        data=_split_facts(data, seen),
        test_looks=looks,
        warnings=tuple(warnings),
    )
    earlier = put_aside(folder, evaluation)
    evaluation = evaluation.model_copy(update={"earlier": None if earlier is None else str(earlier)})
    _write(folder, evaluation, rows, predictions, rules)
    return evaluation


def run_id(config: RunConfig) -> str:
    """SHA-256 of a run's configuration."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def evaluation_folder(evaluation: Evaluation) -> Path:
    """Where the files of an evaluation lie: `evaluation/<split>` in the run, or `evaluation/all-<name>-<fingerprint>`."""
    return _folder(Path(evaluation.run), evaluation.split, Path(evaluation.shards), evaluation.data.fingerprint)


def _folder(run: Path, split: str, shards: Path, fingerprint: str) -> Path:
    # Every shard directory is called "shards" until its owner thinks of a name: the data tell them apart.
    name = split if split != "all" else f"all-{shards.resolve().name}-{fingerprint[:8]}"
    return run / "evaluation" / name


# --- what is evaluated ------------------------------------------------------------------------------------------------


def _fixed(threshold: float) -> _Rules:
    if not 0 < threshold <= 1:  # also catches NaN
        raise UsageError("threshold cannot be used", found=threshold, expected="auto, or a probability in (0, 1]")
    rule = MaskRule(threshold=float(threshold))
    return _Rules(rule, rule, "raw" if rule == MaskRule() else "threshold", None)


def _data(config: RunConfig, split: str | None, other: Path | str | None) -> _Data:
    name = "val" if split == "validation" else split
    if name is not None and name not in SPLITS:
        raise UsageError("unknown split", found=repr(split), expected="test, validation or train")
    root = Path(config.settings.shards if other is None else other)
    if other is None and not root.is_dir():
        raise DataError(
            "the shards of this run are not here",
            path=root,
            remedy="Say where they lie now with --shards, or run the command in the folder where the run was begun.",
        )
    manifest = load_manifest(root)
    external = manifest.fingerprint != config.resolved.fingerprint
    if external and other is None:
        raise DataError(
            "these are not the slices, or not the split, that the run was trained on",
            path=root,
            found=f"fingerprint {manifest.fingerprint[:12]}",
            expected=config.resolved.fingerprint[:12],
            remedy=f"They were prepared anew since. To take them for another data set: --shards {root}",
        )
    if manifest.intensity != config.resolved.intensity:
        raise UsageError(
            "these shards have other grey levels than those the run was trained on",
            path=root,
            found=f"intensity rule {manifest.intensity}",
            expected=config.resolved.intensity,
            remedy=f"Prepare them with --intensity {config.resolved.intensity}.",
        )
    if external and name is not None:
        raise UsageError(
            "another data set is evaluated as a whole", path=root, found=f"split {name}", remedy="Leave out --split."
        )
    name = "all" if external else name or "test"
    splits = tuple(s for s in SPLITS if manifest.slices_in(s)) if name == "all" else (name,)
    if not splits or not all(manifest.slices_in(s) for s in splits):
        held = ", ".join(f"{manifest.slices_in(s)} in {s}" for s in SPLITS)
        raise DataError(f"the split {name} holds no slices", path=root, found=held)
    found: _Split = name  # type: ignore[assignment]
    return _Data(root, manifest, found, splits, external)


def _tuned(run: RunDirectory, data: _Data, batch_size: int, progress: Progress | None) -> _Rules:
    from kerasseg.tuning.threshold_file import load_threshold

    if run.threshold_file.exists():
        evidence = load_threshold(run)
    else:
        from kerasseg.workflows.tune import tune_run

        # With the run's own validation slices, wherever they lie; never with those of another data set.
        shards = None if data.external else data.root
        evidence = tune_run(run, shards=shards, batch_size=batch_size, progress=progress)
    return _Rules(evidence.model.rule, evidence.baseline.rule, "postprocessing", evidence)


def _overlap(config: RunConfig, data: _Data, progress: Progress | None) -> int | None:
    """Slices that the training data hold too; None where it was not asked, or cannot be known."""
    if not data.external:
        return None
    training = Path(config.settings.shards)
    try:
        if load_manifest(training).fingerprint != config.resolved.fingerprint:
            return None
    except KerassegError:
        return None
    if progress is not None:
        progress("overlap", 0, 1)
    found = len(seen_in_training(training, data.root, data.splits))
    if progress is not None:
        progress("overlap", 1, 1)
    return found


def _scored(
    predictions: Predictions,
    rules: dict[StageName, MaskRule],
    resolution: Resolution,
    stage: str | None,
    progress: Progress | None,
) -> list[SliceRow]:
    def told(done: int, total: int) -> None:
        if progress is not None and stage is not None:
            progress(stage, done, total)

    return score_slices(predictions, rules, resolution=resolution, progress=told)


# --- what people must know ----------------------------------------------------------------------------------------------


def _about_the_run(run: RunDirectory, data: _Data) -> list[str]:
    if run.is_running():
        if data.split in ("test", "all"):
            raise KerassegError(
                "this run is still being trained, and the test split is for the end",
                path=run.root,
                remedy="Wait for it, or look at the validation split: --split validation",
            )
        return ["The run is still being trained: these are the figures of its best weights so far."]
    if data.external:
        return []
    if data.split == "train" or (run.folds and data.split == "val"):
        return ["The network was trained on these slices: the figures flatter."]
    return []


def _about_tuning(rules: _Rules, data: _Data) -> list[str]:
    found = []
    if not data.external and data.split == "val":
        found.append("Epoch, threshold and post-processing were chosen on these slices: the figures flatter.")
    if rules.model.class_thresholds:
        found.append(
            "The rule has a threshold for each class: these figures hold only where the class is known beforehand."
        )
    return found


def _about_the_output(predictions: Predictions, rows: Sequence[SliceRow]) -> list[str]:
    low, high = output_range(predictions)
    if low == high:
        return [f"The network puts out the same value for every pixel ({low:g}): it has learned nothing."]
    if not any(row.predicted_pixels for row in rows):
        return [f"No pixel of any slice reaches the threshold (the largest probability is {high:.3g})."]
    return []


def _network(config: RunConfig) -> str:
    source = config.resolved.checkpoint
    name = "fresh weights" if source is None else source.rstrip("/").rsplit("/", 1)[-1]
    return f"{name}, {' then '.join(config.resolved.phases)}, {config.resolved.parameters:,} parameters"


def _split_facts(data: _Data, seen: int | None) -> SplitFacts:
    manifest = data.manifest
    return SplitFacts(
        split_by=manifest.options.split_by,
        seed=manifest.options.seed,
        shares=manifest.options.split,
        patients_on_both_sides=manifest.split.patients_on_both_sides,
        slices_without_patient=manifest.split.slices_without_patient,
        intensity=manifest.intensity,
        size=manifest.size,
        fingerprint=manifest.fingerprint,
        overlap_with_training=seen,
    )


# --- files --------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, evaluation: Evaluation, rows: Sequence[SliceRow], predictions: Predictions, rules: _Rules
) -> None:
    from kerasseg.report import ThresholdCurve, write_report

    figures = folder / "metrics.json"
    # Gone first and written last: figures are there only where all the rest belongs to them.
    figures.unlink(missing_ok=True)
    to_csv(rows, folder / "per_slice.csv")
    curve = None
    if rules.evidence is not None:
        tuned, before = rules.evidence.model, rules.evidence.baseline
        curve = ThresholdCurve(
            thresholds=tuned.curve.thresholds,
            dice=tuned.curve.dice,
            chosen=tuned.rule.threshold,
            baseline=before.curve.dice,
            baseline_chosen=before.rule.threshold,
        )
    pictures = PredictionPictures(predictions, [row.slice_id for row in rows], rules.model)
    write_report(evaluation, rows, pictures, folder / "report.html", threshold_curve=curve)
    write_atomically(figures, evaluation.model_dump_json(indent=1) + "\n")


_SEEN = ("train", "val")
"""Weights come from the one, the choice of the epoch and the rule from the other."""


def seen_in_training(training: Path, other: Path, splits: Sequence[str] = ("train", "val", "test")) -> tuple[str, ...]:
    """Slices that the training or validation split of one shard directory holds too.

    Those that were read from the same bytes, and those that show the same: re-encoded, resized, mirrored
    (`kerasseg_tfrecords.splitting.duplicates`, as with `prepare --exclude-overlap`). Equal ids alone mean nothing:
    every data set has its slice 1.

    Args:
        training: The shards that the run was trained on.
        other: Those to look through.
        splits: Of `other`.

    Returns:
        Ids in `other`, in the order of its shards.

    Raises:
        DataError: One of the two cannot be read.
    """
    known = {row.sha256.lower() for row in load(training / SPLITS_FILE) if row.split in _SEEN and row.sha256}
    equal = {row.slice_id for row in load(other / SPLITS_FILE) if row.sha256.lower() in known}
    names: list[str] = []

    def theirs() -> Iterator[Fingerprint]:
        for record in read_records(other, splits):
            names.append(record.slice_id)
            yield fingerprint(record.image)

    asked = Fingerprints.of(theirs())
    ours = Fingerprints.of(fingerprint(record.image) for record in read_records(training, _SEEN))
    near = {names[match.first] for match in overlap(asked, ours).matches}
    return tuple(name for name in names if name in near or name in equal)
