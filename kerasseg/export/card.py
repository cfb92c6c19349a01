"""The model card, `README.md`: front matter for the Hugging Face Hub, and the same facts as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jinja2

from kerasseg.evaluation.schema import Mean
from kerasseg.export.push import space_front_matter
from kerasseg.export.schema import EvaluationFacts, ExportMetadata
from kerasseg_tfrecords.errors import one_line

CARD = "README.md"

_LIBRARIES = {"keras": "keras", "savedmodel": "tensorflow", "onnx": "onnx", "litert": "litert"}
_MEASURES = {
    "dice": "Dice, all slices",
    "dice_tumour": "Dice, slices with tumour in mask or prediction",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "hd95": "HD95, pixels (misses left out, see below)",
    "hd95_mm": "HD95, mm (misses left out)",
    "hd95_with_misses": "HD95, pixels, a miss counting as the diagonal",
}
_SPLITS = {"test": "Test split", "val": "Validation split", "train": "Training split", "all": "Other data"}


def card(metadata: ExportMetadata) -> str:
    front = space_front_matter(metadata) if metadata.format == "app" else _front_matter(metadata)
    return f"---\n{front}---\n\n" + _environment().get_template("card.md.j2").render(
        m=metadata,
        measures=_MEASURES,
        splits=_SPLITS,
        example=metadata.format,
        parts=_rule_parts(metadata),
        title=_title(metadata),
        taken=[_taken(metadata, facts) for facts in metadata.evaluations],
    )


def _front_matter(metadata: ExportMetadata) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # slow to import

    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Brain tumour segmentation on MRI slices",
            dataset_type="other",
            dataset_name=_data_name(metadata, facts),
            dataset_split=facts.split,
            dataset_revision=facts.fingerprint[:12],
            metric_type=name,
            metric_name=f"{_MEASURES[name]}; {_taken(metadata, facts)}",
            metric_value=round(value, 4),
        )
        for facts in metadata.evaluations
        for name, value in _values(facts)
    ]
    shown = metadata.license or "other"
    data = ModelCardData(
        license=shown,
        license_name=None if metadata.license else "not-stated",
        library_name=_LIBRARIES[metadata.format],
        pipeline_tag="image-segmentation",
        tags=["kerasseg", "u-net", "mri", "brain-tumour", "medical-imaging", metadata.format]
        + (["int8"] if metadata.int8 else []),
        base_model=_base_model(metadata.network.checkpoint),
        metrics=sorted({result.metric_type for result in results}) or None,
        # The Hub requires a name for results, and refuses a name without results.
        model_name=_title(metadata) if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip() + "\n"


def _taken(metadata: ExportMetadata, facts: EvaluationFacts) -> str:
    """Return the rule behind figures, and whether the file applies it."""
    rule, mask = facts.rule, metadata.mask
    words = f"threshold {rule.threshold:g}"
    words += ", thresholds of classes" if rule.class_thresholds else ""
    words += " and post-processing" if rule.postprocesses else " only"
    if rule == mask.inner_rule and mask.inside and metadata.preprocessing.inside:
        return f"masks of the file: {words}"
    if rule in (mask.meant_rule, mask.rule):
        return f"{words}, applied to the file's probabilities"
    return f"{words}, which differs from the file's rule"


def _values(facts: EvaluationFacts) -> Iterator[tuple[str, float]]:
    for name in ("dice", "dice_tumour", "hd95"):
        mean = facts.measures[name].mean if name in facts.measures else None
        if mean is not None:
            yield name, mean


def _data_name(metadata: ExportMetadata, facts: EvaluationFacts) -> str:
    names = ", ".join(name.split(" ")[0] for name in metadata.data.inputs)
    return names if names and facts.fingerprint == metadata.data.fingerprint else facts.name


def _base_model(checkpoint: str | None) -> str | None:
    """Return the Hub repository of the checkpoint, if it came from the Hub."""
    found = re.match(r"hf://([\w.-]+/[\w.-]+)", checkpoint or "", re.ASCII)
    return found[1] if found else None


def _title(metadata: ExportMetadata) -> str:
    return f"{metadata.name}-{metadata.format}" + ("-int8" if metadata.int8 else "")


def _rule_parts(metadata: ExportMetadata) -> dict[str, str]:
    rule = metadata.mask.rule
    words = {
        "threshold": f"a pixel is tumour if its probability is at least {rule.threshold:g}",
        "class_thresholds": "thresholds per class, if the class is known: "
        + ", ".join(f"{name} {value:g}" for name, value in rule.class_thresholds.items()),
        "min_diameter": f"objects below {100 * rule.min_diameter:g} % of the slice's longer side across are removed",
        "close_radius": f"gaps are closed with a disk of radius {100 * rule.close_radius:g} % of it",
        "fill_holes": "holes are filled",
        "keep_largest": "only the largest object is kept",
        "open_radius": f"thin parts are removed with a disk of radius {100 * rule.open_radius:g} % of it",
    }
    return {name: words[name] for name in (*metadata.mask.inside, *metadata.mask.left)}


def interval(value: Mean | None, digits: int = 4) -> str:
    """Format a mean with its interval, such as `0.8712 (0.8431 to 0.8990)`.

    >>> interval(Mean(mean=0.5, low=None, high=None, slices=1, patients=1), 2)
    '0.50 (no interval: 1 patient)'
    """
    if value is None or value.mean is None:
        return "not available"
    if value.low is None or value.high is None:
        people = f"{value.patients} patient" + ("" if value.patients == 1 else "s")
        return f"{value.mean:.{digits}f} (no interval: {people})"
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def plain(text: Any) -> str:
    r"""Escape untrusted text (names of files, of classes) for a Markdown table.

    >>> plain("a|b<script>\n# c"), plain("$x$ ~~y~~" + chr(0x202E))
    ('a\\|b&lt;script&gt; # c', '\\$x\\$ \\~\\~y\\~\\~\\\\u202e')
    """
    flat = one_line(" ".join(str(text).split()))
    return re.sub(r"([\\`*_|\[\]$~])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kerasseg.export"),
        autoescape=False,  # noqa: S701 - Markdown, escaped by `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"interval": interval, "plain": plain}
    return environment
