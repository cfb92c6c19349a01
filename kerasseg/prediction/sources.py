"""Find the run or checkpoint that a name stands for, before Keras is imported."""

from __future__ import annotations

from pathlib import Path

from kerasseg.checkpoints.identify import missing
from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords.errors import KerassegError


def locate(source: Path | str | None) -> RunDirectory | Path | str:
    """Find a network by name, without opening it.

    Args:
        source: A run (its folder or name, "latest"), a checkpoint or an address; None for the latest run.

    Returns:
        A run with a network, an existing file or folder, or the address.

    Raises:
        DataError: There is no such run, or it has no network yet.
        CheckpointError: There is no such file.
        KerassegError: The run is still being trained.
    """
    text, path = str(source), Path(source or "")
    if source is not None and "://" in text:
        return text
    if path.is_file() or (path / "saved_model.pb").is_file():
        return path
    if path.suffix in {".keras", ".h5"}:
        if not path.exists():
            raise missing(path)
        return path
    return check_ready(RunDirectory.find(source))


def check_ready(run: RunDirectory) -> RunDirectory:
    """Return a run that has a network and is not being trained."""
    run.config()
    if run.is_running():
        raise KerassegError(
            "this run is still being trained",
            path=run.root,
            remedy=f"Wait until it has finished, or use its best weights so far: --model {run.model_file}",
        )
    run.require_network()
    return run
