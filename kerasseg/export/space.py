"""The files that turn an export into a Hugging Face Space: `app.py`, `requirements.txt` and the Space's front matter."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from kerasseg.export.schema import ExportMetadata
from kerasseg_tfrecords._version import __version__

_APP = '''"""A page on which people drop slices, move the threshold and download masks. Not for clinical use."""

from pathlib import Path

from kerasseg.app import launch_space

launch_space(Path(__file__).parent)
'''
_GRADIO = "6.31.0"
"""Used where no Gradio is installed; a Space names an exact version."""


def write_space(folder: Path) -> None:
    """Write `app.py` and `requirements.txt`."""
    (folder / "app.py").write_text(_APP, encoding="utf-8")
    (folder / "requirements.txt").write_text(f"kerasseg[app]=={__version__}\n", encoding="utf-8")


def space_front_matter(metadata: ExportMetadata) -> str:
    """Return the YAML that the Hub reads from a Space's README.md."""
    from huggingface_hub import SpaceCardData  # heavy

    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = _GRADIO
    return (
        SpaceCardData(
            title=re.sub(r"\s+", " ", metadata.name)[:60],
            colorFrom="blue",
            colorTo="gray",
            sdk="gradio",
            sdk_version=gradio,
            python_version="3.12",
            app_file="app.py",
            license=metadata.license or "other",
            short_description="Brain-tumour masks on MRI slices: research only",
            tags=["kerasseg", "u-net", "mri", "brain-tumour", "medical-imaging"],
        )
        .to_yaml()
        .strip()
        + "\n"
    )
