"""An evaluation that was asked otherwise is no earlier draft of the new one: it is kept."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from kerasseg.evaluation.document import Evaluation, read_evaluation
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import explain_os_error

__all__ = ["put_aside"]

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
