"""Evaluate the network of a run on a split: load, predict, score, summarise, write."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.data.split import MEMORY_BUDGET, SPLITS
from kerasseg.evaluation.arrays import Scores
from kerasseg.evaluation.calibration import calibrate
from kerasseg.evaluation.figures import USUAL, Resampling
from kerasseg.evaluation.inter_rater import SecondMasks, compare_readers, open_second
from kerasseg.evaluation.joined import PredictionPictures, output_range, predict_splits
from kerasseg.evaluation.per_slice import SliceRow, to_csv
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.robustness import Transform, measure_robustness, measure_speed
from kerasseg.evaluation.schema import (
    Evaluation,
    NetworkFigures,
    Robustness,
    SecondReader,
    Speed,
    SplitFacts,
    StageName,
    Target,
    read_evaluation,
)
from kerasseg.evaluation.scoring import score_slices, stage_rules, with_baseline
from kerasseg.evaluation.targets import Goal, is_recipe_checkpoint, targets_of, usual_goals
from kerasseg.evaluation.test_use_log import LOOKS, count_looks, record_look
from kerasseg.phantom.slices import is_phantom
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.config import RunConfig, shards_of
from kerasseg.runs.directory import RunDirectory
from kerasseg.training.tracking import track_evaluation
from kerasseg.tuning.threshold_file import ThresholdFile, load_threshold
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import atomic_folder, write_atomically
from kerasseg_tfrecords.records.manifest import SPLITS_FILE, Manifest, load_manifest, local_shards
from kerasseg_tfrecords.records.shards import read_records
from kerasseg_tfrecords.splitting.duplicates import overlap
from kerasseg_tfrecords.splitting.fingerprints import Fingerprint, Fingerprints, fingerprint
from kerasseg_tfrecords.splitting.splits_file import load
from kerasseg_tfrecords.storage import url_of
from kerasseg_tfrecords.text import Progress, count, without_credentials

_PHANTOMS = "These slices are synthetic (phantoms): the figures say nothing about patients."
_NO_TUMOUR = (
    "No evaluated slice has a tumour: there is no verdict, and the figures do not say how well tumours are found."
)

_Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True, slots=True)
class Extras:
    """Optional measurements.

    Attributes:
        calibration: Calibration of the network's probabilities.
        speed: Speed of network and baseline.
        robustness: Dice under corruption: 40 more passes over the slices.
        reference_2: A second annotator's masks, see `kerasseg.evaluation.inter_rater`.
        seed: Random seed of the corruptions.
    """

    calibration: bool = True
    speed: bool = True
    robustness: bool = False
    reference_2: Path | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Data:
    """The slices that a run is evaluated on.

    Attributes:
        root: The shard directory.
        manifest: Its manifest.
        split: Name of the split; "all" for the whole of another directory.
        splits: Splits that contain slices.
        external: Whether the run was trained on other data.
    """

    root: Path
    manifest: Manifest
    split: _Split
    splits: tuple[str, ...]
    external: bool


@dataclass(frozen=True, slots=True)
class _Rules:
    """Rules of network and baseline, with the evidence if they were tuned."""

    model: MaskRule
    baseline: MaskRule
    final: StageName
    evidence: ThresholdFile | None


@dataclass(frozen=True, slots=True)
class _Options:
    """Options of `evaluate_run`."""

    resolution: Resolution
    extras: Extras
    flip_average: bool
    batch_size: int
    memory_budget: int
    resampling: Resampling
    progress: Progress | None

    def tell(self, stage: str) -> Callable[[int, int], None]:
        progress = self.progress
        return lambda done, total: None if progress is None else progress(stage, done, total)


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A run with everything needed to evaluate it.

    Attributes:
        run, config, data, rules: As above.
        model, baseline: Networks; no baseline if its file is missing.
        second: A second annotator's masks.
        seen: Number of slices that are also in the training data; None if unknown.
        warnings: Sentences to show.
    """

    run: RunDirectory
    config: RunConfig
    data: _Data
    rules: _Rules
    model: keras.Model
    baseline: keras.Model | None
    second: SecondMasks | None
    seen: int | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Scored(Scores):
    """Scores of every slice, and the predictions of the network."""

    predictions: Predictions


@dataclass(frozen=True, slots=True)
class _Measured:
    """Results of the optional measurements; None if not requested."""

    reader: SecondReader | None
    robustness: Robustness | None
    speed: Speed | None


def evaluate_run(
    run: RunDirectory | Path | str | None = None,
    split: str | None = None,
    shards_other: Path | str | None = None,
    threshold: Literal["auto"] | float = "auto",
    *,
    resolution: Resolution = "native",
    goals: Sequence[Goal] | Literal["recipe"] | None = None,
    extras: Extras = Extras(),
    flip_average: bool = False,
    batch_size: int = 8,
    memory_budget: int = MEMORY_BUDGET,
    resampling: Resampling = USUAL,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate the best weights of a run and, for comparison, the checkpoint that training started from.

    Writes `metrics.json`, `per_slice.csv` and `report.html` to `evaluation/<split>/` in the run, all or none. An earlier
    evaluation with other options moves to `evaluation/earlier/`. Each evaluation of a test split is counted.

    Args:
        run: The run, its folder or name; None for the latest one.
        split: "test" (None), "validation" or "train"; another data set is evaluated as a whole.
        shards_other: Another shard directory, or the new location of the run's shards if they were moved.
        threshold: "auto" for the rule that `tune-threshold` chose (it runs first if there is none), or a threshold in
            (0, 1] without post-processing.
        resolution: "native", or "model" for the network's size.
        goals: Goals to judge; "recipe" for the recipe's. None: the recipe's if the run started from the recipe's
            checkpoint and the slices are real, otherwise none.
        extras: Optional measurements.
        flip_average: Whether to average the predictions of each image and its mirror image.
        batch_size: Slices per batch.
        memory_budget: Memory for the probabilities of a network, in bytes.
        resampling: Options of the intervals.
        progress: Called with a stage ("tune", "overlap", "predict", "baseline", "score", "robustness", "speed"), the
            amount done and the total.

    Raises:
        UsageError: The split or a goal is unknown, the threshold is invalid, or the network does not fit the shards.
        DataError: The run or shards are missing or damaged.
        KerassegError: The run is being trained, the network returns NaN, or the folder cannot be written to.

    Example:
        >>> evaluate_run("runs/latest", split="validation").final_stage().all.measures["dice"]  # doctest: +SKIP
        Mean(mean=0.87, low=0.84, high=0.9, slices=300, patients=21)
    """
    options = _Options(resolution, extras, flip_average, batch_size, memory_budget, resampling, progress)
    loaded = _load(run, split, shards_other, threshold, options)
    scored = _score(loaded, options)
    measured = _measure(loaded, scored, options)
    evaluation = _summarise(loaded, scored, measured, goals, options)
    return _write(loaded, scored, evaluation)


def run_id(config: RunConfig) -> str:
    """Return the SHA-256 of a run's configuration."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def evaluation_folder(run: RunDirectory | Path, evaluation: Evaluation) -> Path:
    """Return the folder of an evaluation: `evaluation/<split>` in the run, or `evaluation/all-<name>-<fingerprint>`."""
    root = run.root if isinstance(run, RunDirectory) else run
    # Most shard directories are called "shards", so the fingerprint distinguishes other data sets.
    split, data = evaluation.split, evaluation.data.fingerprint[:8]
    return root / "evaluation" / (split if split != "all" else f"all-{Path(evaluation.shards).name}-{data}")


# --- load -------------------------------------------------------------------------------------------------------------


def _load(
    run: RunDirectory | Path | str | None,
    split: str | None,
    shards_other: Path | str | None,
    threshold: Literal["auto"] | float,
    options: _Options,
) -> _Loaded:
    directory = run if isinstance(run, RunDirectory) else RunDirectory.find(run)
    config = directory.config()
    fixed = None if threshold == "auto" else _fixed(threshold)
    data = _data(config, split, shards_other, options.progress)
    reference = options.extras.reference_2
    second = None if reference is None else open_second(reference)
    warnings = _about_the_run(directory, data)
    directory.require_network()
    rules = fixed or _tuned(directory, data, options)
    if rules.evidence is not None:
        warnings += _about_tuning(rules, rules.evidence, data, options)
    seen = _overlap(config, data, options)
    if seen:
        some = f"{seen} of {sum(data.manifest.slices_in(s) for s in data.splits)} slices"
        warnings.append(
            f"{some} are also in the run's training data, so that these figures are too good. Leave them out: kerasseg "
            "prepare ... --exclude-overlap TRAINING_SHARDS."
        )
    elif seen is None and data.external:
        warnings.append("The run's training shards are missing: whether it was trained on these slices is unknown.")
    model = open_checkpoint(directory.model_file)
    there = directory.baseline_file.is_file()
    # A gain over fresh weights says nothing.
    baseline = open_checkpoint(directory.baseline_file) if there and config.pretrained else None
    if not there:
        warnings.append("The run has no baseline.keras: its gain cannot be computed.")
    return _Loaded(directory, config, data, rules, model, baseline, second, seen, tuple(warnings))


def _fixed(threshold: float) -> _Rules:
    if not 0 < threshold <= 1:  # also catches NaN
        raise UsageError("invalid threshold", found=threshold, expected="auto, or a probability in (0, 1]")
    rule = MaskRule(threshold=float(threshold))
    return _Rules(rule, rule, "raw" if rule == MaskRule() else "threshold", None)


def _data(config: RunConfig, split: str | None, other: Path | str | None, progress: Progress | None) -> _Data:
    name = "val" if split == "validation" else split
    if name is not None and name not in SPLITS:
        raise UsageError("unknown split", found=repr(split), expected="test, validation or train")
    root, manifest = shards_of(config, other)
    external = manifest.fingerprint != config.resolved.fingerprint
    if external and other is None:
        raise DataError(
            "these shards hold other slices, or another split, than the run was trained on",
            path=root,
            found=f"fingerprint {manifest.fingerprint[:12]}",
            expected=config.resolved.fingerprint[:12],
            remedy=f"They were prepared again since. To evaluate on them as another data set: --shards {root}",
        )
    if manifest.intensity != config.resolved.intensity:
        raise UsageError(
            "these shards have other grey levels than the run was trained on",
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
    local_shards(root, splits, progress=progress)
    found: _Split = name  # type: ignore[assignment]
    return _Data(root, manifest, found, splits, external)


def _tuned(run: RunDirectory, data: _Data, options: _Options) -> _Rules:
    if run.threshold_file.exists():
        evidence = load_threshold(run)
    else:
        from kerasseg.workflows.tune import tune_run

        # On the run's own validation slices, wherever they are; never on those of another data set.
        evidence = tune_run(
            run,
            shards=None if data.external else data.root,
            batch_size=options.batch_size,
            flip_average=options.flip_average,
            progress=options.progress,
        )
    before = evidence.baseline or evidence.model  # without a baseline, its rule is not used
    return _Rules(evidence.model.rule, before.rule, "postprocessing", evidence)


def _overlap(config: RunConfig, data: _Data, options: _Options) -> int | None:
    """Count the slices that are also in the training data; None for the run's own shards, or if unknown."""
    if not data.external:
        return None
    training = Path(config.settings.shards)
    try:
        if load_manifest(training).fingerprint != config.resolved.fingerprint:
            return None
    except KerassegError:
        return None
    told = options.tell("overlap")
    told(0, 1)
    found = len(seen_in_training(training, data.root, data.splits))
    told(1, 1)
    return found


def _about_the_run(run: RunDirectory, data: _Data) -> list[str]:
    if run.is_running():
        if data.split in ("test", "all"):
            raise KerassegError(
                "this run is still being trained, and the test split is for the final evaluation",
                path=run.root,
                remedy="Wait until it has finished, or use the validation split: --split validation",
            )
        return ["The run is still being trained: these are the figures of its best weights so far."]
    if data.external:
        return []
    if data.split == "train" or (run.folds and data.split == "val"):
        return ["The network was trained on these slices: the figures are too good."]
    return []


def _about_tuning(rules: _Rules, evidence: ThresholdFile, data: _Data, options: _Options) -> list[str]:
    found = []
    if not data.external and data.split == "val":
        found.append("Epoch, threshold and post-processing were chosen on these slices: the figures are too good.")
    if rules.model.class_thresholds:
        found.append(
            "The rule has a threshold for each class: these figures apply only if the class is known beforehand."
        )
    if bool(evidence.flip_average) != options.flip_average:
        how = "with" if evidence.flip_average else "without"
        found.append(f"The rule was tuned {how} --flip-average: tune it in the same way (kerasseg tune-threshold).")
    return found


# --- predict and score --------------------------------------------------------------------------------------------------


def _predict(loaded: _Loaded, network: keras.Model, stage: str, options: _Options) -> Predictions:
    return _predict_changed(loaded, network, None, options, options.tell(stage))


def _predict_changed(
    loaded: _Loaded,
    network: keras.Model,
    transform: Transform | None,
    options: _Options,
    told: Callable[[int, int], None] | None = None,
) -> Predictions:
    return predict_splits(
        network,
        loaded.data.root,
        loaded.data.splits,
        batch_size=options.batch_size,
        memory_budget=options.memory_budget,
        progress=told,
        transform=transform,
        flip_average=options.flip_average,
    )


def _score(loaded: _Loaded, options: _Options) -> _Scored:
    rules, resolution = loaded.rules, options.resolution
    predictions = _predict(loaded, loaded.model, "predict", options)
    stages = stage_rules(rules.model, rules.final)
    rows = score_slices(predictions, stages, resolution=resolution, progress=options.tell("score"))
    if loaded.baseline is None:
        return _Scored(rows, None, stages, {}, predictions)
    others = _predict(loaded, loaded.baseline, "baseline", options)
    stages_before = stage_rules(rules.baseline, rules.final)
    before = score_slices(others, stages_before, resolution=resolution)
    return _Scored(with_baseline(rows, before), before, stages, stages_before, predictions)


def _measure(loaded: _Loaded, scored: _Scored, options: _Options) -> _Measured:
    extras, rule = options.extras, loaded.rules.model
    reader = None
    if loaded.second is not None:
        reader = compare_readers(
            scored.predictions,
            scored.rows,
            rule,
            loaded.second,
            source=str(extras.reference_2),
            resolution=options.resolution,
            resampling=options.resampling,
        )
    robustness = None
    if extras.robustness:
        clean = float(np.mean([row.stage(loaded.rules.final).dice for row in scored.rows]))
        robustness = measure_robustness(
            lambda transform: _predict_changed(loaded, loaded.model, transform, options),
            rule,
            clean,
            resolution=options.resolution,
            seed=extras.seed,
            progress=options.tell("robustness"),
        )
    speed = None
    if extras.speed:
        told = options.tell("speed")
        told(0, 1)
        speed = measure_speed(loaded.model, loaded.baseline, size=loaded.data.manifest.size)
        told(1, 1)
    return _Measured(reader, robustness, speed)


# --- summarise ----------------------------------------------------------------------------------------------------------


def _summarise(
    loaded: _Loaded,
    scored: _Scored,
    measured: _Measured,
    goals: Sequence[Goal] | Literal["recipe"] | None,
    options: _Options,
) -> Evaluation:
    config, data, rules, resampling = loaded.config, loaded.data, loaded.rules, options.resampling
    figures = scored.figures(data.manifest.classes, rules.final, resampling)
    looks = count_looks([data.root / LOOKS, loaded.run.root / LOOKS], data.manifest.fingerprint)
    evidence = rules.evidence
    reader = measured.reader
    return Evaluation(
        **figures,
        run=_shareable(loaded.run.root),
        run_id=run_id(config),
        network=_network(config),
        shards=_shareable(data.root),
        split=data.split,
        resolution=options.resolution,
        precision="float32",  # of saved networks
        threshold="auto" if evidence is not None else f"{rules.model.threshold:g}",
        rule_decision="" if evidence is None else evidence.model.decision,
        targets=_targets(loaded, figures["model"], scored.rows, goals, resampling),
        calibration=calibrate(scored.predictions, resolution=options.resolution)
        if options.extras.calibration
        else None,
        speed=measured.speed,
        robustness=measured.robustness,
        second_reader=None if reader is None else reader.model_copy(update={"source": _shareable(reader.source)}),
        data=_split_facts(data, loaded.seen),
        test_looks=looks + (data.split in ("test", "all")),
        flip_average=options.flip_average,
        warnings=(*loaded.warnings, *_about_the_figures(scored, measured)),
    )


def _targets(
    loaded: _Loaded,
    figures: NetworkFigures,
    rows: Sequence[SliceRow],
    goals: Sequence[Goal] | Literal["recipe"] | None,
    resampling: Resampling,
) -> tuple[Target, ...]:
    """Judge the goals; without tumours there are none."""
    final = figures.stages[-1]
    if goals is None:
        recipe = is_recipe_checkpoint(loaded.config.resolved.checkpoint, loaded.config.resolved.provenance)
        goals = "recipe" if recipe and not _all_phantoms(rows) else ()
    wanted = usual_goals(tuple(final.classes)) if goals == "recipe" else tuple(goals)
    found = targets_of(final, wanted, rows, resampling)
    return found if final.all.with_tumour else ()


def _all_phantoms(rows: Sequence[SliceRow]) -> bool:
    return all(is_phantom(row.patient) for row in rows)


def _about_the_figures(scored: _Scored, measured: _Measured) -> list[str]:
    rows, reader = scored.rows, measured.reader
    found = []
    low, high = output_range(scored.predictions)
    if low == high:
        found.append(f"The network returns the same value for every pixel ({low:g}): it has learned nothing.")
    elif not any(row.predicted_pixels for row in rows):
        found.append(f"No pixel of any slice reaches the threshold (the largest probability is {high:.3g}).")
    if not any(row.reference_pixels for row in rows):
        found.append(_NO_TUMOUR)
    if _all_phantoms(rows):
        found.append(_PHANTOMS)
    if reader is not None and reader.without:
        found.append(
            f"The second annotator's masks cover {reader.slices} of {count(len(rows), 'slice')}: agreement and network "
            "are compared on these only."
        )
    return found


def _shareable(path: Path | str) -> str:
    """Return a path without private parts: unchanged if relative, and otherwise only its last part."""
    url = url_of(path)
    named = Path(path) if url is None else Path("/", without_credentials(url))
    if named.is_absolute() or ".." in named.parts or not named.name:
        return named.resolve().name
    return str(named)


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


# --- write --------------------------------------------------------------------------------------------------------------


def _write(loaded: _Loaded, scored: _Scored, evaluation: Evaluation) -> Evaluation:
    """Write the evaluation's folder, and count the look at a test split."""
    folder = evaluation_folder(loaded.run, evaluation)
    earlier = _place_for_earlier(folder, evaluation)
    if earlier is not None:
        evaluation = evaluation.model_copy(update={"earlier": f"earlier/{earlier.name}"})
    data, rules = loaded.data, loaded.rules

    def before_exchange() -> None:
        # All files are written by now: an evaluation that fails is not counted and leaves earlier files unchanged.
        if data.split in ("test", "all"):
            record_look(
                local_shards(data.root),
                loaded.run.root,
                run_id=evaluation.run_id,
                fingerprint=data.manifest.fingerprint,
                split=data.split,
            )
        if earlier is not None:
            earlier.parent.mkdir(exist_ok=True)
            folder.rename(earlier)

    with atomic_folder(folder, replace=True, check=before_exchange) as draft:
        to_csv(scored.rows, draft / "per_slice.csv")
        pictures = PredictionPictures(scored.predictions, [row.slice_id for row in scored.rows], rules.model)
        _write_page(evaluation, scored.rows, pictures, rules.evidence, draft / "report.html")
        write_atomically(draft / "metrics.json", evaluation.model_dump_json(indent=1) + "\n")
    track_evaluation(loaded.run, folder, evaluation)
    return evaluation


def _write_page(
    evaluation: Evaluation,
    rows: Sequence[SliceRow],
    pictures: PredictionPictures,
    evidence: ThresholdFile | None,
    path: Path,
) -> None:
    from kerasseg.report.evaluation import write_report
    from kerasseg.report.sections import ThresholdCurve

    curve = None
    if evidence is not None:
        before = evidence.baseline
        curve = ThresholdCurve(
            thresholds=evidence.model.curve.thresholds,
            dice=evidence.model.curve.dice,
            chosen=evidence.model.rule.threshold,
            baseline=None if before is None else before.curve.dice,
            baseline_chosen=None if before is None else before.rule.threshold,
        )
    write_report(evaluation, rows, pictures, path, threshold_curve=curve)


_PARTS = ("calibration", "speed", "robustness", "second_reader")


def _place_for_earlier(folder: Path, new: Evaluation) -> Path | None:
    """Return where to move the evaluation in `folder`: `earlier/<split>-<date>`.

    None if there is none, or if the new one has the same options and all of its parts, and replaces it.
    """
    try:
        old = read_evaluation(folder / "metrics.json")
    except KerassegError:  # unreadable, not worth keeping
        return None
    if _covers(new, old):
        return None
    moment = re.sub(r"\D", "", old.created.split("+")[0])
    name = f"{folder.name}-{moment[:8]}-{moment[8:14]}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    shelf = folder.parent / "earlier"
    return next(shelf / candidate for candidate in names if not (shelf / candidate).exists())


def _covers(new: Evaluation, old: Evaluation) -> bool:
    """Return whether the new evaluation has the same options and all parts of the old one."""
    if any(getattr(new, name) != getattr(old, name) for name in ("threshold", "resolution", "flip_average")):
        return False
    if any(getattr(new, part) is None and getattr(old, part) is not None for part in _PARTS):
        return False
    return (
        old.second_reader is None or new.second_reader is None or old.second_reader.source == new.second_reader.source
    )


_SEEN = ("train", "val")
"""Splits for training, and for choosing epoch and rule."""


def seen_in_training(training: Path, other: Path, splits: Sequence[str] = ("train", "val", "test")) -> tuple[str, ...]:
    """Find the slices that are also in the training or validation split of another shard directory.

    A slice counts if it was read from the same bytes or shows the same image, re-encoded, resized or mirrored
    (`kerasseg_tfrecords.splitting.duplicates`, as with `prepare --exclude-overlap`). Ids are ignored, since they are not
    unique across data sets.
    """
    training, other = local_shards(training, _SEEN), local_shards(other, splits)
    known = {row.sha256.lower() for row in load(training / SPLITS_FILE) if row.split in _SEEN and row.sha256}
    equal = {row.slice_id for row in load(other / SPLITS_FILE) if row.sha256.lower() in known}
    names: list[str] = []

    def theirs() -> Iterator[Fingerprint]:
        for record in read_records(other, splits):
            names.append(record.slice_id)
            yield fingerprint(record.image)

    asked = Fingerprints.of(theirs())
    ours = Fingerprints.of(fingerprint(record.image) for record in read_records(training, _SEEN))
    near = {names[match.first] for match in overlap(asked, ours)}
    return tuple(name for name in names if name in near or name in equal)
