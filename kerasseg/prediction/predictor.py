"""Network of a run or checkpoint, or several, with the size, intensity rule and threshold that belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance, sha256_of
from kerasseg.data.augmentation import refuse
from kerasseg.evaluation.predictions import predict_batch
from kerasseg.models.adapt import fit_to_task
from kerasseg.models.folding import fold_batchnorm
from kerasseg.postprocessing import MaskRule
from kerasseg.prediction.sources import check_ready, locate
from kerasseg.runs.directory import RunDirectory
from kerasseg.training.precision import choose_precision, compute_in
from kerasseg.tuning.threshold_file import load_threshold
from kerasseg_tfrecords.errors import CheckpointError, KerassegError, UsageError
from kerasseg_tfrecords.intensity import IntensityRule
from kerasseg_tfrecords.records.manifest import PrepareOptions, load_manifest
from kerasseg_tfrecords.text import without_credentials

Source: TypeAlias = keras.Model | RunDirectory | Path | str
"""A network, a run (its folder or name, "latest"), or a checkpoint of any kind."""

Engine = Literal["native", "openvino"]
"""What computes the network: Keras, or OpenVINO (float32) where its masks agree with those of Keras."""

_USUAL_SIZE = 256
"""Size used by `prepare`, for networks that take any size."""


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """One network with its facts; None if unknown."""

    model: keras.Model
    name: str
    sha256: str
    rule: MaskRule | None
    intensity: IntensityRule | None
    size: int | None
    grey: bool
    notes: tuple[str, ...]
    plane: str = "axial"
    channel: str | None = None
    sequence: str | None = None
    tuned_flip: bool | None = None  # whether its rule was tuned with flip averaging; None without a tuned rule


class Network:
    """One network or the mean of several, ready for prediction; created by `open_network`.

    Attributes:
        names: Names of the members, as given.
        sha256: Hash of each member's file, or of the weights of a network in memory; "" if unknown.
        size: Side of the square input, pixels.
        channels: Input channels, 1 or 3.
        grey: Whether the members were trained on grey images.
        intensity: Intensity rule of the training images.
        rule: Rule from probabilities to masks.
        precision: Numeric precision of the computation.
        batch_size: Slices per batch.
        flip_average: Whether the predictions of image and mirror image are averaged.
        engine: The engine that was asked for.
        engines: The engines that computed the last probabilities; two where OpenVINO begins.
        plane, channel, sequence: Reading options of the shards that the members were trained on.
    """

    def __init__(
        self,
        members: Sequence[_Member],
        *,
        rule: MaskRule,
        size: int,
        intensity: IntensityRule,
        precision: str,
        batch_size: int,
        flip_average: bool,
        notes: Sequence[str],
        engine: Engine = "native",
    ) -> None:
        self.names = tuple(member.name for member in members)
        self.sha256 = tuple(member.sha256 for member in members)
        self.size, self.intensity, self.rule = size, intensity, rule
        self.channels = int(members[0].model.inputs[0].shape[-1])
        self.grey = all(member.grey for member in members)
        self.precision, self.batch_size, self.flip_average = precision, batch_size, flip_average
        self.engine, self._notes = engine, tuple(notes)
        planes = {member.plane for member in members}
        self.plane = planes.pop() if len(planes) == 1 else "axial"
        self.channel, self.sequence = members[0].channel, members[0].sequence
        self.engines: set[str] = set()
        self._models = [_for_prediction(member, precision, engine, rule, self.engines) for member in members]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for users, which can become more while the network predicts."""
        return (*self._notes, *(note for model in self._models if (note := getattr(model, "note", ""))))

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict tumour probabilities.

        Args:
            images: (slices, size, size, channels), 0 to 255; at most `batch_size` slices.

        Returns:
            (slices, size, size) in [0, 1].

        Raises:
            UsageError: The network does not return probabilities.
            KerassegError: The network returns NaN.
        """
        count = len(images)
        scaled = images.astype(np.float32) / np.float32(255)
        if count < self.batch_size:  # each new shape would be compiled
            scaled = np.concatenate([scaled, np.zeros((self.batch_size - count, *scaled.shape[1:]), np.float32)])
        total = np.zeros((count, self.size, self.size), np.float32)
        self.engines.clear()
        if self.engine == "native":
            self.engines.add("native")
        for model in self._models:
            total += predict_batch(model, scaled, flip_average=self.flip_average)[:count]
        return total / np.float32(len(self._models))


def open_network(
    sources: Source | Sequence[Source] | None,
    *,
    threshold: float | None = None,
    rule: MaskRule | None = None,
    intensity: IntensityRule | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    flip_average: bool = False,
    engine: Engine = "native",
) -> Network:
    """Open one or several networks for prediction.

    Args:
        sources: One or several networks; None for the latest run.
        threshold: Threshold to use instead of the run's rule, in (0, 1], without post-processing.
        rule: Rule to use instead of the run's; not together with `threshold`.
        intensity: Intensity rule to use instead of that of the run or checkpoint.
        precision: "auto" is float32, as in `tune-threshold`, `evaluate` and exports, so that masks are those that were
            evaluated. "mixed_bfloat16" or "mixed_float16" is faster where the processor or GPU supports it.
        batch_size: Slices per batch; None chooses.
        flip_average: Whether to average the predictions of image and mirror image.
        engine: "native", or "openvino" where its masks agree with those of Keras on the first slices; in float32 only.

    Raises:
        UsageError: An argument is invalid, or the networks do not fit each other or their run.
        DataError: The run does not exist or is damaged, or its threshold belongs to other weights.
        CheckpointError: A network cannot be opened.
        KerassegError: The run is still being trained.
    """
    given = [sources] if sources is None or isinstance(sources, (keras.Model, RunDirectory, Path, str)) else sources
    if not given:
        raise UsageError("no network is given", expected="a run, a checkpoint or several")
    if threshold is not None and not 0 < threshold <= 1:  # also catches NaN
        raise UsageError("invalid threshold", found=threshold, expected="a probability in (0, 1]")
    if threshold is not None and rule is not None:
        raise UsageError("threshold and rule exclude each other", remedy="Give only one of them.")
    if intensity is not None and intensity not in get_args(IntensityRule):
        raise UsageError("unknown intensity rule", found=intensity, expected=", ".join(get_args(IntensityRule)))
    if batch_size is not None and batch_size < 1:
        raise UsageError("invalid batch size", found=batch_size, expected="at least 1")
    if engine not in get_args(Engine):
        raise UsageError("unknown engine", found=engine, expected=", ".join(get_args(Engine)))
    chosen = choose_precision("float32" if precision == "auto" else precision, gpu=False).name
    if engine == "openvino" and chosen != "float32":
        raise UsageError(
            "engine openvino computes in float32 only: in 16 bits, its masks differ from those of Keras",
            found=f"precision {chosen}",
            expected="float32",
            remedy="Leave out the precision or the engine.",
        )
    if rule is None and threshold is not None:
        rule = MaskRule(threshold=float(threshold))
    members = [_open(source, needs_rule=rule is None) for source in given]
    notes = [note for member in members for note in member.notes]
    for member in members:
        if member.tuned_flip is not None and member.tuned_flip != flip_average:
            how, then = ("with", "add") if member.tuned_flip else ("without", "leave out")
            notes.append(f"the rule of {member.name} was tuned {how} --flip-average: {then} it here, or tune again")
    size = _size_of(members)
    if chosen != "float32":
        notes.append(
            f"computing in {chosen}: masks can differ slightly from those of evaluate, app and exports (float32)"
        )
    return Network(
        members,
        rule=rule or _rule_of(members, notes),
        size=size,
        intensity=intensity or _intensity_of(members, notes),
        precision=chosen,
        batch_size=batch_size or _batch_size(size),
        flip_average=flip_average,
        notes=notes,
        engine=engine,
    )


def check_averaging(names: Sequence[str]) -> bool:
    """Check test-time augmentations, and return whether they include the mirror image.

    Raises:
        UsageError: An augmentation is not "flip"; the message gives the reason.

    Example:
        >>> check_averaging(["flip"]), check_averaging([])
        (True, False)
    """
    for name in names:
        if name in ("brightness", "contrast", "zoom"):
            raise UsageError(
                f"augmentation {name!r} is refused for prediction: the network was trained to return the same mask with "
                "and without it, so averaging only costs time",
                remedy="Use --flip-average, which averages the mirror image.",
            )
        if name != "flip":
            refuse(name)
    return bool(names)


# --- one network -----------------------------------------------------------------------------------------------------


def _open(source: Source | None, *, needs_rule: bool) -> _Member:
    if isinstance(source, keras.Model):
        return _from_model(source, "the network", _digest(source))
    found = check_ready(source) if isinstance(source, RunDirectory) else locate(source)
    if isinstance(found, RunDirectory):
        return _from_run(found, needs_rule=needs_rule)
    opened = open_checkpoint(found)
    if isinstance(found, Path):
        return _from_model(opened, str(source), sha256_of(found))
    known = provenance(opened)
    return _from_model(opened, without_credentials(found), "" if known is None else known.sha256)


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def _from_run(run: RunDirectory, *, needs_rule: bool) -> _Member:
    config = run.config()
    name = str(run.root)
    notes: tuple[str, ...] = ()
    rule = tuned_flip = None
    if needs_rule:
        if run.threshold_file.is_file():
            tuned = load_threshold(run)
            rule, tuned_flip = tuned.model.rule, bool(tuned.flip_average)
        else:
            rule = MaskRule()
            notes = (f"{name} has no tuned threshold: using 0.5. Tune it: kerasseg tune-threshold {run.root}",)
        if rule.class_thresholds:
            notes = (*notes, f"{name} has thresholds per class: using the common one, because the class is unknown")
    model = open_checkpoint(run.model_file)
    height, width, channels = model.inputs[0].shape[1:]
    resolved = config.resolved
    if height not in (None, resolved.size) or width not in (None, resolved.size) or channels != resolved.input_channels:
        raise UsageError(
            "the network and its run have different image sizes",
            path=run.model_file,
            found=f"input {height}x{width}x{channels}",
            expected=f"{resolved.size}x{resolved.size}x{resolved.input_channels} ({run.config_file.name})",
            remedy="If model.keras was replaced, use the file without the run: --model FILE.",
        )
    made = _options_of(Path(config.settings.shards))
    return _Member(
        model=model,
        name=name,
        sha256=sha256_of(run.model_file),
        rule=rule,
        intensity=_known_rule(resolved.intensity),
        size=resolved.size,
        grey=resolved.channels == 1,
        notes=notes,
        plane=made.plane,
        channel=made.channel,
        sequence=made.sequence,
        tuned_flip=tuned_flip,
    )


def _options_of(shards: Path) -> PrepareOptions:
    try:
        return load_manifest(shards).options
    except KerassegError:
        return PrepareOptions()


def _from_model(model: keras.Model, name: str, digest: str) -> _Member:
    fitted = fit_to_task(model)
    known = provenance(model)
    height, width, channels = fitted.model.inputs[0].shape[1:]
    if height != width or channels not in (1, 3):
        raise UsageError(
            "the input of the network is not a square grey or colour image",
            path=name,
            found=f"{height}x{width}x{channels}",
            expected="a square with 1 or 3 channels",
        )
    notes = tuple(f"{name}: {change}" for change in fitted.changes)
    return _Member(
        model=fitted.model,
        name=name,
        sha256=digest,
        rule=None,
        intensity=None if known is None else _known_rule(known.intensity),
        size=height,
        grey=False,
        notes=notes,
    )


def _known_rule(name: str | None) -> IntensityRule | None:
    known = {rule: rule for rule in get_args(IntensityRule)}
    return known.get(name)


# --- several together ------------------------------------------------------------------------------------------------


def _size_of(members: Sequence[_Member]) -> int:
    sizes = {member.size for member in members if member.size is not None}
    channels = {int(member.model.inputs[0].shape[-1]) for member in members}
    if len(sizes) > 1 or len(channels) > 1:
        each = ", ".join(f"{m.name} {m.size}x{m.size}x{m.model.inputs[0].shape[-1]}" for m in members)
        raise UsageError("the networks take different images", found=each, expected="the same size and channels")
    return sizes.pop() if sizes else _USUAL_SIZE


def _intensity_of(members: Sequence[_Member], notes: list[str]) -> IntensityRule:
    rules = {member.intensity for member in members if member.intensity is not None}
    if len(rules) > 1:
        each = ", ".join(f"{member.name} {member.intensity}" for member in members)
        raise UsageError(
            "the networks were trained with different intensity rules", found=each, expected="one intensity rule"
        )
    if rules:
        return rules.pop()
    notes.append("the intensity rule of the network is unknown: using minmax; choose another with --intensity")
    return "minmax"


def _rule_of(members: Sequence[_Member], notes: list[str]) -> MaskRule:
    rules = [member.rule or MaskRule() for member in members]
    if all(rule == rules[0] for rule in rules):
        return rules[0]
    threshold = float(np.mean([rule.threshold for rule in rules]))
    same = {
        name: getattr(rules[0], name)
        for name in MaskRule.model_fields
        if all(getattr(rule, name) == getattr(rules[0], name) for rule in rules)
    }
    notes.append(
        f"no rule was tuned for this ensemble: using the mean threshold ({threshold:.3g}) and the post-processing that all "
        "members share"
    )
    return MaskRule(**{**same, "threshold": threshold})


def _batch_size(size: int) -> int:
    """16 on a GPU; on a CPU 8 slices of 256x256, a tenth faster than one and as fast as more."""
    return 16 if _has_gpu() else int(np.clip(8 * 256 * 256 // size**2, 1, 16))


def _has_gpu() -> bool:
    return bool(keras.distribution.list_devices("gpu"))


def _for_prediction(member: _Member, precision: str, engine: Engine, rule: MaskRule, engines: set[str]) -> Any:
    network = member.model
    try:
        network = fold_batchnorm(network)
    except CheckpointError:  # its graph cannot be read, so it is used unchanged
        pass
    else:
        compute_in(network, precision)
    if engine == "native":
        return network
    from kerasseg.prediction.openvino import OpenVINONetwork

    return OpenVINONetwork(network, rule, member.name, engines)
