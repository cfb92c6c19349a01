"""Facts about a run for the model card and `metadata.json`, without folders of this machine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from kerasseg.checkpoints.provenance import Provenance, public_name
from kerasseg.checkpoints.savedmodel import NETWORK_SIGNATURE
from kerasseg.evaluation.schema import Evaluation, read_evaluation
from kerasseg.export.parity import Shards
from kerasseg.export.schema import Calling, ClassFigures, DataFacts, EvaluationFacts, MaskFacts, Port, SplitCounts
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.config import RunConfig
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.threshold_file import ThresholdFile
from kerasseg_tfrecords.errors import KerassegError

T = TypeVar("T")
_ABSOLUTE = re.compile(r"""(?<![\w:/.~])~?(?:/[^\s/'"]+)+/([^\s/'"]*)""")
"""A path with at least two folders; neither `https://...` nor `1/255`."""

_SETTINGS = (
    *(
        "strategy",
        "freeze",
        "freeze_batchnorm",
        "weight_decay",
        "l2",
        "clipnorm",
        "epochs",
        "steps",
        "batch_size",
        "loss",
    ),
    *("schedule", "balance", "augmentation", "class_weight", "train_on_positives", "seed", "deterministic"),
)


def without_paths(value: T, folders: Iterable[Path] = ()) -> T:
    """Copy JSON values, with every absolute path in their texts shortened to the name of the file.

    Args:
        value: A text, list or dictionary; other values are returned unchanged.
        folders: Folders whose names are removed even if they contain spaces.

    Example:
        >>> without_paths({"from": "read /home/ann/nets/unet.keras", "see": ["https://example.org/a/b", 3]})
        {'from': 'read unet.keras', 'see': ['https://example.org/a/b', 3]}
    """
    found: Any = value
    if isinstance(found, str):
        known = {str(folder.absolute()) for folder in folders if len(folder.absolute().parts) > 2}
        for folder in sorted(known, key=len, reverse=True):
            found = found.replace(f"{folder}/", "")
        found = _ABSOLUTE.sub(r"\1", found)
    elif isinstance(found, dict):
        found = {key: without_paths(one, folders) for key, one in found.items()}
    elif isinstance(found, list | tuple):
        found = type(found)(without_paths(one, folders) for one in found)
    return cast("T", found)


def origin(record: Provenance | None, run: RunDirectory, sha256: str, intensity: str, writer: str) -> Provenance:
    """Return the provenance of an export: the origin of the network, and its intensity rule."""
    if record is None:
        name = f"{run.root.absolute().name}/{run.model_file.name}"
        return Provenance(name, sha256, writer, "Keras 3 archive", intensity=intensity)
    return dataclasses.replace(
        record,
        path=public_name(record.path),
        intensity=intensity,
        file=None,
        file_sha256=None,
        translated=without_paths(record.translated),
        changes=without_paths(record.changes),
    )


def steps_of(rule: MaskRule) -> tuple[str, ...]:
    """Return the names of the steps after the threshold, in order.

    >>> steps_of(MaskRule(threshold=0.4, min_diameter=0.02, fill_holes=True))
    ('min_diameter', 'fill_holes')
    """
    plain = MaskRule()
    names = ("min_diameter", "close_radius", "fill_holes", "keep_largest", "open_radius")
    return tuple(name for name in names if getattr(rule, name) != getattr(plain, name))


def callings(form: str, mask: MaskFacts, size: int, channels: int, stored: int) -> tuple[Calling, ...]:
    """Describe how an export is called."""
    seen = "grey levels 0 to 255 after intensity rule and resize, times 1/255"
    image = Port(name="image", dtype="float32", shape=(None, size, size, channels), meaning=seen)
    probability = Port(name="probability", dtype="float32", shape=(None, size, size, 1), meaning="of tumour, 0 to 1")
    network: tuple[Port, ...] = (probability,)
    if form in ("keras", "app"):
        return (Calling(name="", inputs=(image,), outputs=network),)
    if form != "savedmodel":
        if mask.inside:
            meaning = f"1 if the probability is at least {mask.rule.threshold:g}, else 0"
            network += (Port(name="mask", dtype="uint8", shape=(None, size, size, 1), meaning=meaning),)
        return (Calling(name="", inputs=(image,), outputs=network),)
    free = (None, None, None)
    outputs = (
        Port(name="mask", dtype="uint8", shape=free, meaning=f"tumour 1, else 0; inside: {', '.join(mask.inside)}"),
        Port(name="probability", dtype="float32", shape=free, meaning="of tumour, 0 to 1, at the slice's own size"),
    )

    def stored_slices(name: str, dtype: str, meaning: str) -> Calling:
        port = Port(name="image", dtype=dtype, shape=(None, None, None, stored), meaning=meaning)
        return Calling(name=name, inputs=(port,), outputs=outputs)

    return (
        stored_slices("serving_default", "uint8", "slices as stored, of any size"),
        stored_slices("stored_values", "float32", "slices as stored, 16-bit or floating-point values in any unit"),
        stored_slices("volume", "float32", "the slices of one volume, which share one window of grey levels"),
        Calling(name=NETWORK_SIGNATURE, inputs=(image,), outputs=network),
    )


def data_facts(config: RunConfig, shards: Shards | None) -> DataFacts:
    """Return facts about the training data, from the shards or, if they are missing, from the configuration."""
    resolved = config.resolved
    if shards is None:
        split = {
            name: SplitCounts(slices=sum(classes.values()), patients=None, empty=None)
            for name, classes in resolved.slices.items()
        }
        return DataFacts(
            fingerprint=resolved.fingerprint,
            inputs=(),
            classes=resolved.classes,
            split=split,
            split_by=None,
            shares=None,
            seed=None,
            patients_on_both_sides=None,
        )
    manifest = shards.manifest
    split = {}
    for name in ("train", "val", "test"):
        counts = [count for count in manifest.counts if count.split == name]
        if counts:
            split[name] = SplitCounts(
                slices=sum(c.slices for c in counts),
                patients=sum(c.patients for c in counts),
                empty=sum(c.empty for c in counts),
            )
    return DataFacts(
        fingerprint=manifest.fingerprint,
        inputs=tuple(f"{source.name} ({source.format})" for source in manifest.inputs),
        classes=manifest.classes,
        split=split,
        split_by=manifest.options.split_by,
        shares=manifest.options.split,
        seed=manifest.options.seed,
        patients_on_both_sides=manifest.split.patients_on_both_sides,
    )


def recipe(config: RunConfig) -> dict[str, Any]:
    """Return how the run was trained: settings, and their resolved values."""
    asked = config.settings.model_dump(mode="json")
    resolved = config.resolved
    return {
        **{name: asked[name] for name in _SETTINGS if name in asked},
        "phases": list(resolved.phases),
        "learning_rates": list(resolved.rates),
        "frozen": list(resolved.frozen),
        "trained_parameters": resolved.trained,
        "precision": resolved.precision,
        "devices": resolved.devices,
        "changes": list(resolved.changes),
        "software": {"kerasseg": config.kerasseg, **config.software},
        "begun": config.created,
    }


def evaluations(run: RunDirectory, mask: MaskFacts, tuned: ThresholdFile | None) -> tuple[EvaluationFacts, ...]:
    """Return every readable evaluation of the run, the test split first."""
    order = {"test": 0, "val": 1}
    found = []
    for path in run.root.glob("evaluation/*/metrics.json"):
        try:
            found.append((path.parent.name, read_evaluation(path)))
        except KerassegError:
            continue
    found.sort(key=lambda pair: (order.get(pair[0], 2), pair[0]))
    return tuple(_facts(name, evaluation, run.model_file, mask, tuned) for name, evaluation in found)


def _facts(
    name: str, evaluation: Evaluation, network: Path, mask: MaskFacts, tuned: ThresholdFile | None
) -> EvaluationFacts:
    final = evaluation.final_stage()
    stage = next((s for s in evaluation.model.stages if s.rule == mask.meant_rule), final)
    warnings = list(evaluation.warnings)
    # If figures were taken after tuning, whose file contains the hash of the weights, a newer file is only a copy.
    sure = tuned is not None and _time(evaluation.created) >= _time(tuned.created)
    if not sure and _written_after(network, evaluation.created):
        warnings.append(
            "The network file is newer than these figures, which may belong to earlier weights. Evaluate again."
        )
    if stage.rule != mask.meant_rule and stage.rule != mask.rule:
        warnings.append(f"These figures use another rule than the export ({stage.rule!r}).")
    baseline = None
    if evaluation.baseline is not None:
        stages: Sequence[Any] = evaluation.baseline.stages
        baseline = next((s.all.measures["dice"] for s in stages if s.name == stage.name), None)
    return EvaluationFacts(
        name=name,
        split=evaluation.split,
        created=evaluation.created,
        fingerprint=evaluation.data.fingerprint,
        resolution=evaluation.resolution,
        rule=stage.rule,
        slices=stage.all.slices,
        patients=stage.all.patients,
        with_tumour=stage.all.with_tumour,
        missed=stage.all.missed,
        false_alarms=stage.all.false_alarms,
        measures=stage.all.measures,
        classes={
            label: ClassFigures(dice=figures.measures["dice"], missed=figures.missed)
            for label, figures in stage.classes.items()
        },
        baseline_dice=baseline,
        gain=evaluation.gain.get(stage.name),
        whole_rule_dice=final.all.measures["dice"] if final.rule == mask.rule != stage.rule else None,
        confidence=evaluation.confidence,
        test_looks=evaluation.test_looks,
        warnings=without_paths(tuple(warnings), network.absolute().parents),
    )


def _written_after(network: Path, created: str) -> bool:
    try:
        return network.stat().st_mtime > _time(created)
    except OSError:
        return False


def _time(written: str) -> float:
    """Convert a time in ISO 8601 to seconds; minus infinity if it is invalid."""
    try:
        return datetime.fromisoformat(written).timestamp()
    except ValueError:
        return float("-inf")
