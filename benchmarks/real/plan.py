"""What is tried: data sets, and trainings on them. Everything is a command that a user could have typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["DataSet", "Trial", "few", "leaking", "long", "many", "quicker", "trials_on_few", "trials_on_many"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A shard directory.

    Attributes:
        name: Of its folder.
        inputs: Folders of the raw data, below the data folder.
        size: Pixels.
        split_by: "patient" or "slice".
    """

    name: str
    inputs: tuple[str, ...]
    size: int
    split_by: str = "patient"

    def command(self, data: str) -> list[str]:
        """What makes it."""
        options = [] if self.split_by == "patient" else ["--split-by", self.split_by]
        folders = [f"{data}/{name}" for name in self.inputs]
        return ["prepare", *folders, "--size", str(self.size), "--out", self.name, *options]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training.

    Attributes:
        data: On which data set.
        strategy: Of `kerasseg train`.
        rate: Of the first epoch; None for the strategy's own.
        seed: Of every random choice.
        extra: Further options.
    """

    data: DataSet
    strategy: str
    rate: str | None = None
    seed: int = 42
    extra: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As the page calls it."""
        return " ".join([self.strategy, *([] if self.rate is None else [f"at {self.rate}"]), *self.extra])

    @property
    def name(self) -> str:
        """Of its run."""
        words = [self.data.name, *self.label.replace("--", "").replace(" at ", " ").split()]
        return "-".join([*words, *([] if self.seed == 42 else [f"seed{self.seed}"])])

    def options(self, checkpoint: str) -> list[str]:
        """Of `train` and `cross-validate`."""
        rate = [] if self.rate is None else ["--learning-rate", self.rate]
        seed = [] if self.seed == 42 else ["--seed", str(self.seed)]
        # A network of its own size is described, not opened.
        network = [] if "--filters" in self.extra else ["--checkpoint", checkpoint]
        named = ["--shards", self.data.name, *network, "--strategy", self.strategy]
        return [*named, *rate, *self.extra, *seed]

    def with_seed(self, seed: int) -> Trial:
        """The same once more."""
        return replace(self, seed=seed)


def few(size: int) -> DataSet:
    """308 slices of 34 heads: what a student has."""
    return DataSet(f"mat{size}", ("figshare-mat",), size)


def many(size: int, split_by: str = "patient") -> DataSet:
    """2,271 slices."""
    ending = "" if split_by == "patient" else f"-by-{split_by}"
    return DataSet(f"both{size}{ending}", ("figshare-mat", "figshare-png"), size, split_by)


_STRATEGIES = ("scratch", "conservative", "moderate", "aggressive", "progressive")
_RATES = (("conservative", "3e-4"), ("conservative", "1e-3"), ("moderate", "1e-3"), ("aggressive", "1e-3"))


def trials_on_few(size: int) -> list[Trial]:
    """Every strategy at the recipe's own rate, then other rates; scratch first."""
    data = few(size)
    return [Trial(data, strategy) for strategy in _STRATEGIES] + [Trial(data, *pair) for pair in _RATES]


def trials_on_many(size: int, best: Trial) -> list[Trial]:
    """Scratch first, the recipe, and what did best on the small set."""
    data = many(size)
    return list(dict.fromkeys([Trial(data, "scratch"), Trial(data, "conservative"), replace(best, data=data)]))


def leaking(trials: Sequence[Trial], size: int) -> list[Trial]:
    """The same on the slice-wise split."""
    return [replace(trial, data=many(size, "slice")) for trial in trials]


def long(trial: Trial, size: int) -> Trial:
    """The same at another size."""
    return replace(trial, data=many(size))


def quicker(trial: Trial) -> Trial:
    """The same in half precision, where `auto` would take single: on processors that multiply it, half the time."""
    return replace(trial, extra=(*trial.extra, "--precision", "mixed_bfloat16"))
