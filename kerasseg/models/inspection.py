"""What a checkpoint is, as one record: `inspect_checkpoint`. `kerasseg inspect` shows it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kerasseg.checkpoints import Provenance, open_checkpoint, provenance
from kerasseg.models.blocks import Blocks, find_blocks
from kerasseg.models.freezing import STRATEGIES, FreezeReport, freeze
from kerasseg.models.input_scaling import InputScaling, read_input_scaling
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.text import without_credentials

__all__ = ["Inspection", "Strategy", "Tensor", "inspect_checkpoint", "inspect_model", "layer_prefixes"]

_FEW = 6  # entries that a part's list of names may have before it is shortened
_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: As the network calls it.
        shape: The batch first; None where open.
        dtype: For instance `float32`.
        activation: Name of the activation that makes an output (`sigmoid`), where the last layer has one.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    activation: str | None = None


@dataclass(frozen=True, slots=True)
class Strategy:
    """What a strategy, or patterns, would freeze.

    Attributes:
        name: The strategy's name, or the patterns with commas between.
        frozen_blocks: Blocks in which nothing would change.
        trained: Numbers that the optimizer would move.
        frozen: Numbers that would be held; the rest are BatchNorm statistics, which training keeps measuring.
        share_trained: `trained` as a share (0..1) of what can be trained.
    """

    name: str
    frozen_blocks: tuple[str, ...]
    trained: int
    frozen: int
    share_trained: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: As it was given.
        provenance: What wrote it and what had to be translated; None where that is not known.
        inputs: Its inputs.
        outputs: Its outputs.
        layers: How many layers have weights.
        variables: How many weight tensors it has.
        parameters: How many numbers they hold.
        blocks: The U; None where the network is none, `problem` then says what it is.
        prefixes: For `encoder`, `bottleneck`, `decoder` and `head` the names of their layers with weights, shortened:
            `conv2d .. conv2d_7`, `block1_*`.
        strategies: What each strategy would train.
        chosen: The same for the strategy or the patterns that were asked for.
        states: For each block what these would make of it: `frozen`, `trained`, `partly trained` or `no weights`.
        problem: Why it has no blocks.
        scaling: The grey levels that the network expects, where its first layers rescale them; None for 0..1.
    """

    path: str
    provenance: Provenance | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: int
    variables: int
    parameters: int
    blocks: Blocks | None = None
    prefixes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    strategies: tuple[Strategy, ...] = ()
    chosen: Strategy | None = None
    states: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str | None = None
    scaling: InputScaling | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; `docs/blocks.md` describes them."""
        blocks = None
        if self.blocks is not None:
            blocks = [
                {
                    "name": block.name,
                    "scale": block.scale,
                    "size": list(block.size),
                    "filters": block.filters,
                    "parameters": block.parameters,
                    "layers": list(block.paths),
                    "state": self.states.get(block.name),
                }
                for block in self.blocks
            ]
        return {
            "format": 1,
            "path": self.path,
            "provenance": None if self.provenance is None else self.provenance.to_json(),
            "inputs": [dataclasses.asdict(t) for t in self.inputs],
            "outputs": [dataclasses.asdict(t) for t in self.outputs],
            "layers": self.layers,
            "variables": self.variables,
            "parameters": self.parameters,
            "blocks": blocks,
            "skips": [dataclasses.asdict(s) for s in self.blocks.skips] if self.blocks else [],
            "prefixes": {part: list(names) for part, names in self.prefixes.items()},
            "strategies": [dataclasses.asdict(s) for s in self.strategies],
            "chosen": dataclasses.asdict(self.chosen) if self.chosen else None,
            "problem": self.problem,
            "scaling": None if self.scaling is None else dataclasses.asdict(self.scaling),
        }


def inspect_checkpoint(
    path: str | Path,
    what: str | Sequence[str] | None = None,
    *,
    architecture: str | keras.Model | None = None,
    allow_partial: bool = False,
) -> Inspection:
    """Open a checkpoint and tell what it is.

    Args:
        path: Whatever `open_checkpoint` takes.
        what: A strategy or patterns, as `freeze` takes them, to show what they would freeze.
        architecture: As for `open_checkpoint`.
        allow_partial: As for `open_checkpoint`.

    Raises:
        CheckpointError: No network can be made of the file. (A network that is no U-Net is an answer, not an error.)
        UsageError: `what` names nothing in the network.
    """
    model = open_checkpoint(path, architecture=architecture, allow_partial=allow_partial)
    return inspect_model(model, path=path, what=what)


def inspect_model(model: keras.Model, *, path: str | Path = "", what: str | Sequence[str] | None = None) -> Inspection:
    """The same for a network in memory, which is left as it was.

    Example:
        >>> import kerasseg
        >>> found = inspect_model(kerasseg.unet((32, 32, 1), filters=4, depth=2))
        >>> found.parameters, found.prefixes["encoder"], found.outputs[0].activation
        (7637, ('encoder_*',), 'sigmoid')
    """
    about: dict[str, Any] = {
        "path": without_credentials(str(path)),
        "provenance": provenance(model),
        "inputs": tuple(_tensor(t) for t in model.inputs),
        "outputs": tuple(_tensor(t, made=True) for t in model.outputs),
        "layers": sum(bool(layer.weights) for layer in _leaves(model)),
        "variables": len(model.weights),
        "parameters": model.count_params(),
        "scaling": read_input_scaling(model),
    }
    try:
        blocks = find_blocks(model)
    except CheckpointError as error:
        return Inspection(**about, problem=str(error))
    with _kept(model):
        reports = {name: freeze(model, name) for name in STRATEGIES}
        asked = None if what is None else freeze(model, what)
    most = reports["aggressive"].trained
    return Inspection(
        **about,
        blocks=blocks,
        prefixes=layer_prefixes(blocks),
        strategies=tuple(_strategy(report, most) for report in reports.values()),
        chosen=_strategy(asked, most) if asked else None,
        states={block.name: block.state for block in asked.blocks} if asked else {},
    )


def _strategy(report: FreezeReport, most: int) -> Strategy:
    measured = sum(block.statistics for block in report.blocks)
    return Strategy(
        name=", ".join(report.what),
        frozen_blocks=report.frozen_blocks,
        trained=report.trained,
        frozen=report.parameters - report.trained - measured,
        share_trained=report.trained / max(1, most),
    )


class _kept:  # noqa: N801 - reads as a word in a with statement
    """Puts what is trainable back as it was."""

    def __init__(self, model: keras.Model) -> None:
        self._layers = [(layer, layer._trainable) for layer in model._flatten_layers()]
        self._variables = [(v, v.trainable) for v in model.variables]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for layer, trainable in self._layers:
            layer._trainable = trainable
        for variable, trainable in self._variables:
            variable.trainable = trainable


def _tensor(tensor: Any, *, made: bool = False) -> Tensor:
    operation = tensor._keras_history.operation
    while made and isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
        operation = operation.outputs[0]._keras_history.operation
    activation = getattr(getattr(operation, "activation", None), "__name__", None) if made else None
    if made and isinstance(operation, keras.layers.Softmax):
        activation = "softmax"
    return Tensor(tensor.name if not made else operation.name, tuple(tensor.shape), str(tensor.dtype), activation)


def _leaves(model: keras.Model) -> list[keras.Layer]:
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if not isinstance(layer, keras.Model)]


def layer_prefixes(blocks: Blocks) -> dict[str, tuple[str, ...]]:
    """Names of the layers with weights in each part of the U, shortened so that they can be taken in at a glance.

    Args:
        blocks: What `find_blocks` found.

    Returns:
        For `encoder`, `bottleneck`, `decoder` and `head`: runs of numbered names (`conv2d .. conv2d_7`); where these are
        too many, beginnings that no other part shares (`block1_*`).
    """
    parts: dict[str, list[str]] = {"encoder": [], "bottleneck": [], "decoder": [], "head": []}
    for block in blocks:
        parts[block.name.partition("_")[0]] += [layer.name for layer in block.layers if layer.weights]
    made = {}
    for part, names in parts.items():
        others = [name for other, theirs in parts.items() if other != part for name in theirs]
        runs = _runs(names, others)
        made[part] = tuple(runs if len(runs) <= _FEW else _beginnings(names, others))
    return made


def _split(name: str) -> tuple[str, int]:
    """A numbered name as its stem and number; a bare one comes before its numbered fellows, as Keras names them."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (f"{name}_", -1)


def _runs(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Numbered names as runs that no number of another part interrupts."""
    foreign = {_split(name) for name in others}
    stems: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        stem, number = _split(name)
        stems.setdefault(stem, []).append((number, name))
    made = []
    for stem, members in stems.items():
        run: list[tuple[int, str]] = []
        for number, word in [*sorted(members), (-2, "")]:
            broken = run and any((stem, n) in foreign for n in range(run[-1][0], number))
            if run and (broken or not word):
                made += [name for _, name in run] if len(run) < 3 else [f"{run[0][1]} .. {run[-1][1]}"]
                run = []
            run.append((number, word))
    return made


def _beginnings(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The shortest beginnings, up to an underscore, that cover the names and none of the others."""
    made: dict[str, int] = {}
    for name in names:
        words = name.split("_")
        for length in range(1, len(words)):
            beginning = "_".join(words[:length]) + "_"
            if not any(other.startswith(beginning) or other == beginning[:-1] for other in others):
                made[beginning + "*"] = made.get(beginning + "*", 0) + 1
                break
        else:
            made[name] = 1
    return list(made)
