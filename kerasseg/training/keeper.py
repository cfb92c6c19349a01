"""Where a run keeps what it must not lose: in a run directory, or nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import keras

from kerasseg.training.events import EpochRow
from kerasseg.training.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["Keeper", "Nothing"]


class Keeper(Protocol):
    """What the loop asks of a run directory.

    The order within `save` is what makes a run survive a kill at any moment: the best weights are written under a name of
    their own first, then the state that names them, then `model.keras` is pointed at them.
    """

    def keep_best(self, tag: str, model: keras.Model) -> None:
        """Writes the best weights so far, under the tag."""

    def save(self, progress: Progress, variables: Mapping[str, NDArray[Any]]) -> None:
        """Writes the state; the best weights it names have been kept."""

    def write_history(self, history: tuple[EpochRow, ...]) -> None:
        """Writes what people look at."""


class Nothing:
    """Keeps nothing: for `fine_tune` without a run directory, and for workers that are not the chief."""

    def keep_best(self, tag: str, model: keras.Model) -> None:
        """Does nothing."""

    def save(self, progress: Progress, variables: Mapping[str, NDArray[Any]]) -> None:
        """Does nothing."""

    def write_history(self, history: tuple[EpochRow, ...]) -> None:
        """Does nothing."""
