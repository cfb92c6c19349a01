"""Data sets and trainings; each is a command that a user could type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["DataSet", "Trial", "few", "leaking", "long", "many", "quicker", "trials_on_few", "trials_on_many"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A shard directory.

    Attributes:
        name: Folder name.
        inputs: Folders of raw slices, relative to the data folder.
        size: Slice size in pixels.
        split_by: "patient" or "slice".
    """

    name: str
    inputs: tuple[str, ...]
    size: int
    split_by: str = "patient"

    def command(self, data: str) -> list[str]:
        """The `prepare` command."""
        options = [] if self.split_by == "patient" else ["--split-by", self.split_by]
        folders = [f"{data}/{name}" for name in self.inputs]
        return ["prepare", *folders, "--size", str(self.size), "--out", self.name, *options]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training.

    Attributes:
        data: Data set.
        strategy: Strategy of `kerasseg train`.
        rate: Learning rate; None for the strategy's default.
        seed: Random seed.
        extra: Additional options.
        trunk: Weights of the encoder that `extra` names; scratch does without.
    """

    data: DataSet
    strategy: str
    rate: str | None = None
    seed: int = 42
    extra: tuple[str, ...] = ()
    trunk: str | None = None

    @property
    def label(self) -> str:
        """Name in the page."""
        return " ".join([self.strategy, *([] if self.rate is None else [f"at {self.rate}"]), *self.extra])

    @property
    def name(self) -> str:
        """Name of the run."""
        words = [self.data.name, *self.label.replace("--", "").replace(" at ", " ").split()]
        return "-".join([*words, *([] if self.seed == 42 else [f"seed{self.seed}"])])

    def options(self, checkpoint: str) -> list[str]:
        """Options for `train` and `cross-validate`."""
        rate = [] if self.rate is None else ["--learning-rate", self.rate]
        seed = [] if self.seed == 42 else ["--seed", str(self.seed)]
        # A network of its own size or encoder is described, not opened.
        network = [] if {"--filters", "--encoder"} & set(self.extra) else ["--checkpoint", checkpoint]
        if self.trunk is not None and self.strategy != "scratch":
            network = ["--encoder-weights", self.trunk]
        named = ["--shards", self.data.name, *network, "--strategy", self.strategy]
        return [*named, *rate, *self.extra, *seed]

    def with_seed(self, seed: int) -> Trial:
        """The same training with another seed."""
        return replace(self, seed=seed)


def few(size: int) -> DataSet:
    """The small data set: 308 slices of 34 patients."""
    return DataSet(f"mat{size}", ("figshare-mat",), size)


def many(size: int, split_by: str = "patient") -> DataSet:
    """The large data set: 2,271 slices."""
    ending = "" if split_by == "patient" else f"-by-{split_by}"
    return DataSet(f"both{size}{ending}", ("figshare-mat", "figshare-png"), size, split_by)


_STRATEGIES = ("scratch", "conservative", "moderate", "aggressive", "progressive")
_RATES = (("conservative", "3e-4"), ("conservative", "1e-3"), ("moderate", "1e-3"), ("aggressive", "1e-3"))


def trials_on_few(size: int) -> list[Trial]:
    """Every strategy at the recipe's own rate, then other rates; scratch first."""
    data = few(size)
    return [Trial(data, strategy) for strategy in _STRATEGIES] + [Trial(data, *pair) for pair in _RATES]


def trials_on_many(size: int, best: Trial) -> list[Trial]:
    """Scratch, the recipe, and the best of the small set."""
    data = many(size)
    return list(dict.fromkeys([Trial(data, "scratch"), Trial(data, "conservative"), replace(best, data=data)]))


def leaking(trials: Sequence[Trial], size: int) -> list[Trial]:
    """The same training on the slice-wise split."""
    return [replace(trial, data=many(size, "slice")) for trial in trials]


def long(trial: Trial, size: int) -> Trial:
    """The same training at another size."""
    return replace(trial, data=many(size))


def quicker(trial: Trial) -> Trial:
    """The same training in bfloat16 where `auto` means float32; half the time on CPUs that support it."""
    return replace(trial, extra=(*trial.extra, "--precision", "mixed_bfloat16"))
