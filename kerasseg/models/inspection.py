"""Description of a checkpoint as one record: `inspect_checkpoint`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasseg.checkpoints.identify import missing
from kerasseg.checkpoints.provenance import Provenance, provenance
from kerasseg.models.blocks import Blocks, find_blocks
from kerasseg.models.graph import Graph, is_a
from kerasseg.models.outline import read_outline
from kerasseg.recipe import STRATEGIES, frozen_encoder_blocks
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.text import without_credentials

if TYPE_CHECKING:
    import keras

    from kerasseg.models.freezing import FreezeReport
    from kerasseg.models.input_scaling import InputScaling

_FEW = 6  # longest list of names that is not shortened
_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: Its name in the network.
        shape: With the batch axis; None for sizes that are not fixed.
        dtype: For instance `float32`.
        activation: Name of an output's activation (`sigmoid`), if the last layer has one.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    activation: str | None = None


@dataclass(frozen=True, slots=True)
class Strategy:
    """The effect of a freezing strategy or of patterns.

    Attributes:
        name: The strategy, or the patterns separated by commas.
        frozen_blocks: Blocks that would be frozen completely.
        trained: Number of parameters that the optimizer would update.
        frozen: Number of parameters that would be frozen; the rest are BatchNorm statistics.
        share_trained: `trained` as a fraction (0..1) of the trainable parameters.
    """

    name: str
    frozen_blocks: tuple[str, ...]
    trained: int
    frozen: int
    share_trained: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """Description of a checkpoint.

    Attributes:
        path: The path as given.
        provenance: Writer and translations; None if unknown.
        inputs: Its inputs.
        outputs: Its outputs.
        layers: Number of layers with weights.
        variables: Number of weight tensors.
        parameters: Number of parameters.
        blocks: Blocks of the U-Net; None for other networks, which `problem` describes.
        prefixes: Shortened names of the layers with weights in `encoder`, `bottleneck`, `decoder` and `head`:
            `conv2d .. conv2d_7`, `block1_*`.
        strategies: The effect of each strategy.
        chosen: The effect of the requested strategy or patterns.
        states: State of each block after these: `frozen`, `trained`, `partly trained` or `no weights`.
        problem: The reason why there are no blocks.
        scaling: The expected intensities if the first layers rescale them; None for 0..1.
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
        """Return the record as plain JSON values; `docs/blocks.md` describes them."""
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
    """Describe a checkpoint: files of plain U-Nets by reading them, others by opening them with Keras."""
    if "://" not in str(path):
        if not Path(path).exists():
            raise missing(Path(path))
        names = (what,) if isinstance(what, str) else tuple(what or ())
        if (
            architecture is None
            and not allow_partial
            and (what is None or (len(names) == 1 and names[0] in STRATEGIES))
        ):
            outline = read_outline(Path(path))
            found = None if outline is None else _from_outline(*outline, path, names)
            if found is not None:
                return found
    from kerasseg.checkpoints.open import open_checkpoint

    model = open_checkpoint(path, architecture=architecture, allow_partial=allow_partial)
    return inspect_model(model, path=path, what=what)


def inspect_model(model: keras.Model, *, path: str | Path = "", what: str | Sequence[str] | None = None) -> Inspection:
    """Describe a network in memory, which is left unchanged.

    Example:
        >>> import kerasseg
        >>> found = inspect_model(kerasseg.unet((32, 32, 1), filters=4, depth=2))
        >>> found.parameters, found.prefixes["encoder"], found.outputs[0].activation
        (7637, ('encoder_*',), 'sigmoid')
    """
    from kerasseg.models.freezing import freeze
    from kerasseg.models.input_scaling import read_input_scaling
    from kerasseg.models.layers import all_layers, trainable_restored

    about: dict[str, Any] = {
        "path": without_credentials(str(path)),
        "provenance": provenance(model),
        "inputs": tuple(_tensor(t) for t in model.inputs),
        "outputs": tuple(_tensor(t, made=True) for t in model.outputs),
        "layers": sum(bool(layer.weights) for layer in all_layers(model) if not is_a(layer, "Model")),
        "variables": len(model.weights),
        "parameters": model.count_params(),
        "scaling": read_input_scaling(model),
    }
    try:
        blocks = find_blocks(model)
    except CheckpointError as error:
        return Inspection(**about, problem=str(error))
    with trainable_restored(model):
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


def _from_outline(graph: Graph, record: Provenance, path: str | Path, what: Sequence[str]) -> Inspection | None:
    """Describe the outline of a U-Net; None for other networks."""
    layers = [node.operation for node in graph.nodes]
    try:
        blocks = find_blocks(graph)
    except CheckpointError:
        return None
    strategies = {name: _effect(blocks, name) for name in STRATEGIES}
    chosen = strategies[what[0]] if what else None
    held = chosen.frozen_blocks if chosen else ()
    states = {
        block.name: "no weights" if not block.parameters else "frozen" if block.name in held else "trained"
        for block in (blocks if chosen else ())
    }
    ends = [graph.nodes[i] for i in graph.outputs]
    return Inspection(
        path=without_credentials(str(path)),
        provenance=record,
        inputs=tuple(Tensor(graph.nodes[i].path, graph.nodes[i].shape, "float32") for i in graph.inputs),
        outputs=tuple(Tensor(n.operation.name, n.shape, "float32", _activation(n.operation)) for n in ends),
        layers=sum(bool(layer.weights) for layer in layers),
        variables=sum(len(layer.weights) for layer in layers),
        parameters=sum(block.parameters for block in blocks),
        blocks=blocks,
        prefixes=layer_prefixes(blocks),
        strategies=tuple(strategies.values()),
        chosen=chosen,
        states=states,
    )


def _effect(blocks: Blocks, strategy: str) -> Strategy:
    """Return what `freeze` would report."""
    frozen = blocks.encoder[: frozen_encoder_blocks(strategy, len(blocks.encoder))]
    trainable = {
        block.name: sum(math.prod(w.shape) for layer in block.layers for w in layer.weights if w.trainable)
        for block in blocks
    }
    trained = sum(trainable.values()) - sum(trainable[block.name] for block in frozen)
    return Strategy(
        name=strategy,
        frozen_blocks=tuple(block.name for block in frozen if block.parameters),
        trained=trained,
        frozen=sum(block.parameters for block in frozen),
        share_trained=trained / max(1, sum(trainable.values())),
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


def _tensor(tensor: Any, *, made: bool = False) -> Tensor:
    operation = tensor._keras_history.operation
    while made and is_a(operation, "Model") and getattr(operation, "outputs", None):
        operation = operation.outputs[0]._keras_history.operation
    name = operation.name if made else tensor.name
    return Tensor(name, tuple(tensor.shape), str(tensor.dtype), _activation(operation) if made else None)


def _activation(layer: Any) -> str | None:
    return "softmax" if is_a(layer, "Softmax") else getattr(getattr(layer, "activation", None), "__name__", None)


def layer_prefixes(blocks: Blocks) -> dict[str, tuple[str, ...]]:
    """Return the names of the layers with weights in each part of the U-Net, shortened for display.

    Returns:
        For `encoder`, `bottleneck`, `decoder` and `head`: runs of numbered names (`conv2d .. conv2d_7`), or if these are
        too many, prefixes that no other part shares (`block1_*`).
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
    """Split a numbered name into stem and number; a name without number sorts before `name_1`, as Keras numbers them."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (f"{name}_", -1)


def _runs(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Shorten numbered names to runs that contain no number of another part."""
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
    """Return the shortest prefixes, up to an underscore, that match the names and none of the others."""
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
