"""docs/results.md and benchmarks/real.json; the page is made only from the document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from benchmarks.real.figures import Figures, TrialFigures
from kerasseg.evaluation.schema import Mean
from kerasseg_tfrecords.files import write_atomically

__all__ = ["page_text", "pictured", "write_page"]

_STAGES = {"raw": "at 0.5", "threshold": "+ threshold", "postprocessing": "+ post-processing"}


def write_page(found: Figures, page: Path, document: Path) -> None:
    """Write both.

    Args:
        found: All figures.
        page: Markdown file.
        document: JSON file.
    """
    text = page_text(found)
    page.parent.mkdir(parents=True, exist_ok=True)
    # The document first: the page can be remade from it.
    write_atomically(document, found.model_dump_json(indent=1) + "\n")
    write_atomically(page, text)


def page_text(found: Figures) -> str:
    """The page, in Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - this is Markdown, for which `plain` escapes
    )
    environment.filters.update(share=share, signed="{:+.3f}".format, mean=mean, gain=gain, zip=zip)
    environment.globals.update(dict=dict, stages=_STAGES, fresh=starts_fresh)
    environment.tests.update(fresh=starts_fresh, worse=_worse)
    template = environment.get_template("results.md.j2")
    return template.render(found=found, shown=pictured(found), groups=_groups(found))


def pictured(found: Figures) -> TrialFigures | None:
    """The best network on validation, of those on the largest data set and slice size."""
    sizes = {
        name: (sum(n for split in by.values() for n, _ in split.values()), name) for name, by in found.counts.items()
    }
    fair = [trial for trial in found.trials if "-by-slice" not in trial.data and trial.strategy != "scratch"]
    return max(fair, key=lambda trial: (sizes[trial.data], trial.best), default=None)


def starts_fresh(label: str) -> bool:
    """Whether a training did not start from the checkpoint, so that what it gained over its start says nothing."""
    return label.startswith("scratch") or "--encoder" in label


def share(value: float | None) -> str:
    """Format as 0.714, or a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def mean(value: Mean) -> str:
    """Format as 0.714 (0.61 to 0.80)."""
    if value.low is None or value.high is None:
        return share(value.mean)
    return f"{share(value.mean)} ({value.low:.2f} to {value.high:.2f})"


def gain(value: Mean) -> str:
    """Format as +0.550 (+0.451 to +0.644)."""
    middle = "-" if value.mean is None else f"{value.mean:+.3f}"
    return middle if value.low is None or value.high is None else f"{middle} ({value.low:+.3f} to {value.high:+.3f})"


def _worse(trial: TrialFigures) -> bool:
    """Whether the tuned rule made test worse."""
    assert trial.test is not None
    stages = trial.test.stages
    return (stages["postprocessing"].mean or 0) < (stages["raw"].mean or 0)


def _groups(found: Figures) -> dict[str, list[TrialFigures]]:
    """Table -> its trainings."""
    groups: dict[str, list[TrialFigures]] = {"few": [], "many": [], "long": [], "leak": []}
    sizes: dict[str, Any] = {}
    for trial in found.trials:
        kind = "leak" if trial.data.endswith("-by-slice") else "few" if trial.data.startswith("mat") else "many"
        sizes.setdefault(kind, trial.data)
        groups[kind if trial.data == sizes[kind] else "long"].append(trial)
    return groups
