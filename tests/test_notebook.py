"""The notebook runs from top to bottom, and is kept without its outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
from nbclient import NotebookClient

import kerasseg

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"

SHORT = "PATIENTS, SLICES, PIXELS, SIZE = 15, 1, 32, 32\nPRETRAIN, TUNE, FILTERS, DEPTH = 1, 1, 2, 1"

IN_PROCESS = """
import shlex
from kerasseg_cli.app import app

def typed(line):
    program, *words = shlex.split(get_ipython().var_expand(line))
    assert program == "kerasseg"
    code = app(words, standalone_mode=False)
    assert not code, (line, code)

get_ipython().system = typed
"""
"""Lines that begin with `!` run in the notebook's own process: TensorFlow is loaded once and not eight times."""


def test_outputs_are_not_kept() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 8
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.rest
# Jupyter's own: tornado's event loops and sockets that it leaves to the garbage collector.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_runs(tmp_path: Path, child_environment: dict[str, str]) -> None:
    """On a few small slices; every command ends well, and pictures are shown."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = SHORT
    notebook.cells.insert(0, nbformat.v4.new_code_cell(IN_PROCESS))
    with patch.dict(os.environ, child_environment):
        client = NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # the slices, the curves, before and after
    # In this process rich sees Jupyter and shows tables as such; a child's lines come as a stream.
    text = "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "frozen" in text
    assert "Test Dice" in text
    assert (tmp_path / "runs" / "mine" / "evaluation" / "test" / "report.html").is_file()


def test_it_uses_public_names_only() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert re.search(r"(from|import) kerasseg[._]", code) is None
    assert set(re.findall(r"\bkerasseg\.(\w+)\(", code)) <= set(kerasseg.__all__)
