"""`kerasseg train`: fine-tune a checkpoint on shards into a run that can be resumed and repeated."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.completion import AUGMENTATIONS, BLOCKS, STRATEGIES, listed, proposing, starting_points
from kerasseg_cli.console import copy_shards
from kerasseg_cli.options import ADVANCED, COMMON, Json, Quiet, panel
from kerasseg_tfrecords.errors import DataError, UsageError

if TYPE_CHECKING:
    from kerasseg.runs.settings import TrainSettings

DATA, TRAINING, RUN = map(panel, ("Model and data", "Training", "Run"))
MODEL, OPTIMISATION, SCHEDULE, SLICES, MACHINE = (
    panel(f"{ADVANCED}: {name}") for name in ("model", "optimisation and loss", "schedule", "slices", "machine")
)

SCHEDULES = ("plateau", "cosine")
PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")

_TYPED = ("COMMANDLINE", "ENVIRONMENT")

_AS_TYPED = (
    *("checkpoint", "encoder", "encoder_weights", "architecture", "head", "strategy", "freeze_batchnorm"),
    *("recalibrate_batchnorm", "encoder_rate_factor"),
    *("batchnorm_momentum", "learning_rate", "weight_decay", "l2"),
    *("clipnorm", "ema", "epochs", "steps", "batch_size", "balance", "train_on_positives", "guard", "seed"),
    *("precision", "deterministic", "xla", "save_memory", "save_every", "cache"),
)
"""Options whose values are settings without conversion."""


def train(
    context: typer.Context,
    shards: Annotated[Path, DATA("Shard directory from kerasseg prepare.", metavar="FOLDER")] = Path("shards"),
    checkpoint: Annotated[
        str | None,
        DATA(
            "Pretrained network: a name from kerasseg checkpoints, a .keras or .h5 file, a SavedModel folder, "
            "hf://owner/name or https://... [default: recipe, downloaded]",
            metavar="CHECKPOINT",
            autocompletion=starting_points,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        DATA("Pretrained encoder to use instead of a checkpoint, such as vgg16, with a fresh decoder.", metavar="NAME"),
    ] = None,
    strategy: Annotated[
        str,
        TRAINING("Training strategy; with a fresh head or decoder the default is two-stage.", values=STRATEGIES),
    ] = "conservative",
    epochs: Annotated[int, TRAINING("Maximum number of epochs.")] = 20,
    batch_size: Annotated[int, TRAINING("Slices per batch, over all devices.")] = 8,
    learning_rate: Annotated[
        float | None, TRAINING("Initial learning rate. [default: 1e-4; aggressive 1e-5, scratch 1e-3]")
    ] = None,
    schedule: Annotated[
        str | None,
        TRAINING(
            "Schedule of the learning rate: lower it on plateaus, or follow a cosine to 0. [default: plateau; "
            "scratch and two-stage: cosine]",
            values=SCHEDULES,
        ),
    ] = None,
    augment: Annotated[
        list[str] | None,
        TRAINING(
            "Augmentations to use: flip, brightness, contrast, zoom, or none. [default: all four]",
            metavar="NAME,...",
            autocompletion=listed(AUGMENTATIONS),
        ),
    ] = None,
    seed: Annotated[int, TRAINING("Random seed.")] = 42,
    precision: Annotated[
        str, TRAINING("Number format; auto chooses the fastest that costs no Dice.", values=PRECISIONS)
    ] = "auto",
    devices: Annotated[
        str | None,
        TRAINING("Devices, such as GPU:0,GPU:1. [default: all GPUs, otherwise the CPU]", metavar="DEVICE,..."),
    ] = None,
    out: Annotated[
        Path | None, RUN("Run folder. [default: runs/<date-time-strategy>]", "--out", "-o", metavar="FOLDER")
    ] = None,
    resume: Annotated[bool, RUN("Resume the run in --out, or the latest run.", "--resume")] = False,
    config: Annotated[
        Path | None, RUN("config.json of a run to repeat; other options override it.", metavar="FILE")
    ] = None,
    track: Annotated[
        list[str] | None,
        RUN(
            "Send the run to a tracker: mlflow, mlflow:URI or wandb.",
            metavar="TRACKER",
            autocompletion=proposing({"mlflow": "MLflow; mlflow:URI names a server", "wandb": "Weights & Biases"}),
        ),
    ] = None,
    encoder_weights: Annotated[
        str | None, MODEL("Weights of --encoder: imagenet, or a file. [default: imagenet]", metavar="FILE|URL|imagenet")
    ] = None,
    freeze: Annotated[
        list[str] | None,
        MODEL(
            "Blocks or layers to freeze instead of the strategy's, such as 'encoder_*'.",
            metavar="BLOCK,...",
            autocompletion=listed(BLOCKS),
        ),
    ] = None,
    freeze_batchnorm: Annotated[
        bool, MODEL("Freeze scale, offset and statistics of every BatchNorm layer.", "--freeze-batchnorm")
    ] = False,
    recalibrate_batchnorm: Annotated[
        bool,
        MODEL(
            "Measure BatchNorm statistics on the training slices before the first step, for images of another "
            "scanner; they are kept if validation Dice rises.",
            "--recalibrate-batchnorm",
        ),
    ] = False,
    batchnorm_momentum: Annotated[
        float | None, MODEL("Momentum of BatchNorm in training. [default: the network's, or less if epochs are short]")
    ] = None,
    head: Annotated[
        str,
        MODEL(
            "Last layer of the network: binary replaces it by a fresh one, auto only if its meaning is unclear.",
            values=("auto", "keep", "binary"),
        ),
    ] = "auto",
    architecture: Annotated[str | None, MODEL("Network for a file that contains only weights.")] = None,
    filters: Annotated[
        int | None, MODEL("Filters in the first encoder block (scratch training only). [default: 64]")
    ] = None,
    depth: Annotated[int | None, MODEL("Number of encoder blocks (scratch training only). [default: 4]")] = None,
    encoder_rate_factor: Annotated[
        float | None,
        OPTIMISATION(
            "Learning rate of the encoder as a multiple of the decoder's. [default: 0.1 for two-stage, otherwise 1]"
        ),
    ] = None,
    ema: Annotated[
        float | None,
        OPTIMISATION("Decay of a moving average of the weights, such as 0.999; the better weights are kept."),
    ] = None,
    steps: Annotated[int | None, OPTIMISATION("Maximum number of steps per epoch, for short runs.")] = None,
    weight_decay: Annotated[float, OPTIMISATION("Decoupled weight decay.")] = 1e-5,
    l2: Annotated[float, OPTIMISATION("Strength of L2 regularization of kernels in the loss.")] = 0.0,
    clipnorm: Annotated[float | None, OPTIMISATION("Maximum global norm of the gradients.")] = None,
    dice_weight: Annotated[float, OPTIMISATION("Weight of Dice in the loss.")] = 1.0,
    bce_weight: Annotated[float, OPTIMISATION("Weight of cross-entropy in the loss.")] = 1.0,
    smooth: Annotated[float, OPTIMISATION("Smoothing of Dice in the loss, in pixels.")] = 1.0,
    positive_weight: Annotated[float, OPTIMISATION("Weight of a tumour pixel in cross-entropy.")] = 1.0,
    warmup: Annotated[float, SCHEDULE("Share of the steps that warm up, 0 to 1 (cosine schedule).")] = 0.05,
    stages: Annotated[
        str,
        SCHEDULE(
            "Epochs without improvement and the learning rate that follows (plateau schedule).",
            metavar="EPOCHS:RATE,...",
        ),
    ] = "5:1e-5,3:1e-6",
    stop_after: Annotated[
        int, SCHEDULE("Stop after this many epochs without improvement; 0 never stops (plateau schedule).", min=0)
    ] = 7,
    stop_counter: Annotated[
        str,
        SCHEDULE(
            "Start of the count of --stop-after: the last drop of the rate (stage) or the best epoch (total).",
            values=("stage", "total"),
        ),
    ] = "stage",
    guard: Annotated[
        bool, SCHEDULE("Restore the weights and divide the rate by 10 if Dice falls clearly below epoch 0.", "--guard")
    ] = False,
    balance: Annotated[
        str,
        SLICES(
            "Composition of batches: classes as in the data, or in equal parts.", values=("proportional", "balanced")
        ),
    ] = "proportional",
    class_weight: Annotated[
        str | None, SLICES("Weights of the classes in the loss: balanced, or CLASS=WEIGHT,...", metavar="WEIGHTS")
    ] = None,
    train_on_positives: Annotated[
        bool, SLICES("Leave out training slices without tumour.", "--train-on-positives")
    ] = False,
    flip: Annotated[float, SLICES("Probability of a horizontal flip, 0 to 1.")] = 0.5,
    brightness: Annotated[float, SLICES("Largest shift of brightness, as a share of the range of grey levels.")] = 0.1,
    contrast: Annotated[float, SLICES("Largest relative change of contrast.")] = 0.1,
    zoom: Annotated[float, SLICES("Largest relative zoom.")] = 0.05,
    cache: Annotated[
        str, SLICES("Where training slices are cached.", values=("auto", "memory", "disk", "none"))
    ] = "auto",
    memory_budget: Annotated[str, SLICES("Maximum memory for slices.", metavar="SIZE")] = "2GB",
    deterministic: Annotated[
        bool, MACHINE("Make the weights depend only on the seed, bit for bit.", "--deterministic")
    ] = False,
    xla: Annotated[bool | None, MACHINE("Compile with XLA. [default: only on a single GPU]", "--xla/--no-xla")] = None,
    save_memory: Annotated[
        bool, MACHINE("On a processor, need less memory and more time, with the same result.", "--save-memory")
    ] = False,
    save_every: Annotated[int | None, MACHINE("Steps between additional saved states.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a U-Net on prepared shards and keep the weights with the best validation Dice.

    Strategies: conservative freezes the first half of the encoder, moderate a quarter, aggressive nothing; progressive
    unfreezes block by block; two-stage trains a fresh decoder first; auto trains conservative, then moderate, and keeps
    the better; scratch starts from fresh weights.
    """
    # By name, so that `cross-validate`, which has the same options, resolves them alike.
    options = dict(locals())
    if resume:
        refuse_others(given(context) - {"resume", "out", "shards", *COMMON})
        _resume(out, shards if "shards" in given(context) else None, as_json=as_json, quiet=quiet)
        return
    settings = settings_of(context, options)
    _check_paths(settings, out, quiet=quiet or as_json)
    from kerasseg.workflows.train import train as run

    _show(lambda observer: run(settings, out, [observer], track=track or ()), as_json=as_json, quiet=quiet)


def _check_paths(settings: TrainSettings, out: Path | None, *, quiet: bool) -> None:
    """Report wrong paths before TensorFlow is loaded."""
    from kerasseg.checkpoints.identify import missing
    from kerasseg.runs.directory import RunDirectory

    if out is not None:
        RunDirectory.check_free(out)
    copy_shards(settings.shards, quiet=quiet)
    name = settings.checkpoint
    if name is not None and "://" not in name and not Path(name).exists():
        raise missing(Path(name))


def given(context: typer.Context) -> set[str]:
    """Return the names of the options that were typed or set in the environment."""
    # Compared by name, because typer may bundle its own click.
    return {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") in _TYPED}


def settings_of(context: typer.Context, options: Mapping[str, Any]) -> TrainSettings:
    """Return the settings for the options of `train`."""
    asked: dict[str, Any] = {
        # The default strategy may depend on the checkpoint.
        **{name: options[name] for name in _AS_TYPED if name != "strategy" or "strategy" in given(context)},
        "shards": str(options["shards"]),
        "freeze": tuple(name for text in options["freeze"] or () for name in text.split(",") if name),
        "class_weight": _weights(options["class_weight"]),
        "devices": tuple(part.strip() for part in (options["devices"] or "").split(",") if part.strip()),
        "memory_budget": _bytes(options["memory_budget"]),
    }
    # Nested settings: options that were typed override the file's.
    parts: dict[str, dict[str, Any]] = {
        "loss": {name: options[name] for name in ("dice_weight", "bce_weight", "smooth", "positive_weight")},
        "schedule": _schedule(options, given(context)),
        "augmentation": {name: options[name] for name in ("flip", "brightness", "contrast", "zoom")},
        "network": {name: options[name] for name in ("filters", "depth") if options[name] is not None},
    }
    return _settings(asked, parts, given(context), options["config"], options["augment"])


def _settings(
    asked: dict[str, Any],
    parts: dict[str, dict[str, Any]],
    given: set[str],
    config: Path | None,
    augment: list[str] | None,
) -> TrainSettings:
    from kerasseg.runs.settings import parse_settings

    values: dict[str, Any] = {}
    if config is not None:
        from kerasseg.runs.config import settings_from

        values = settings_from(config)
        asked = {name: value for name, value in asked.items() if name in given}
        parts = {
            field: {name: value for name, value in part.items() if field == "schedule" or name in given}
            for field, part in parts.items()
        }
    values |= asked
    if "checkpoint" in given and "encoder" not in given:
        from kerasseg.catalogue import settings_for

        named = settings_for(values["checkpoint"])
        values |= {name: value for name, value in named.items() if name == "checkpoint" or name not in given}
    for field, part in parts.items():
        if part:
            values[field] = (values.get(field) or {}) | part
    chosen = _augmentations(augment)
    if chosen is not None:
        amounts = values.get("augmentation") or {}
        off = {name: 0.0 for name in ("flip", "brightness", "contrast", "zoom") if name not in chosen}
        values["augmentation"] = (amounts | off) if chosen else None
    try:
        return parse_settings(None, **values)
    except UsageError as error:
        raise UsageError(
            _as_typed(error.what, given),
            path=error.path,
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
        ) from None


def _as_typed(text: str, given: set[str]) -> str:
    """Replace names of settings by the options that were typed.

    >>> _as_typed("learning_rate cannot be used", {"learning_rate"}), _as_typed("epochs cannot be used", set())
    ('--learning-rate cannot be used', 'epochs cannot be used')
    """
    text = text.replace("schedule.kind", "schedule")
    for name in given:
        anywhere = rf"|\b{name}\b" if "_" in name else ""  # such a name is no English word
        text = re.sub(
            rf"(\w+\.)?\b{name}\b(?= cannot be used)|\b{name}={anywhere}", "--" + name.replace("_", "-"), text
        )
    return text


def _resume(out: Path | None, shards: Path | None, *, as_json: bool, quiet: bool) -> None:
    from kerasseg.runs.directory import RunDirectory

    try:
        found = RunDirectory.find(out)
    except DataError as error:
        if not os.environ.get("TF_CONFIG"):
            raise
        remedy = "Every machine must be able to read the run: give its folder with --out."
        raise DataError(error.what, path=error.path, expected=error.expected, remedy=remedy) from None
    from kerasseg.workflows.train import resume

    _show(lambda observer: resume(found, [observer], shards=shards), as_json=as_json, quiet=quiet)


def _show(run: Any, *, as_json: bool, quiet: bool) -> None:
    """Run with progress on the screen, and exit with 130 if interrupted."""
    from kerasseg_cli.train_display import summary, watching

    with watching(as_json=as_json, quiet=quiet) as observer:
        ended, directory = run(observer)
    summary(ended, directory, as_json=as_json, quiet=quiet)
    if ended.reason == "interrupted":
        raise typer.Exit(130)


def refuse_others(names: set[str]) -> None:
    """Refuse options that have no effect with `--resume`."""
    if names:
        options = ", ".join("--" + name.replace("_", "-") for name in sorted(names))
        raise UsageError(
            "a resumed run keeps its options",
            found=f"--resume with {options}",
            remedy="Leave these options out, or start a new run with --config RUN/config.json and the options to change.",
        )


def _augmentations(names: list[str] | None) -> set[str] | None:
    """Return the augmentations to use; None for all. Others are refused with the reason."""
    if names is None:
        return None
    chosen = {part.strip() for name in names for part in name.split(",") if part.strip()}
    if chosen == {"none"}:
        return set()
    from kerasseg.data.augmentation import COLUMNS, refuse

    for name in sorted(chosen - set(COLUMNS)):
        refuse(name)
    return chosen


def _schedule(options: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """Return the typed settings of the schedule; options for plateaus select a plateau schedule."""
    values = {
        "warmup": options["warmup"],
        "stages": _stages(options["stages"]),
        "stop_after": options["stop_after"] or None,
        "stop_counter": options["stop_counter"],
    }
    typed = {name: value for name, value in values.items() if name in given}
    if "schedule" in given:
        return typed | {"kind": options["schedule"]}
    return typed | ({"kind": "plateau"} if set(typed) - {"warmup"} else {})


def _stages(text: str) -> list[tuple[int, float]]:
    try:
        pairs = [part.split(":") for part in text.split(",") if part.strip()]
        stages = [(int(patience), float(rate)) for patience, rate in pairs]
        falling = all(before[1] > after[1] for before, after in itertools.pairwise(stages))
        if falling and all(patience >= 1 and 0 < rate < math.inf for patience, rate in stages):
            return stages
    except ValueError:
        pass
    expected = "EPOCHS:RATE,... with falling rates, such as 5:1e-5,3:1e-6"
    raise UsageError(f"--stages cannot be {text!r}", expected=expected)


def _weights(text: str | None) -> str | dict[str, float] | None:
    if text is None or text == "balanced":
        return text
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        raise UsageError(
            f"--class-weight cannot be {text!r}", expected="balanced, or CLASS=WEIGHT,... such as glioma=2,meningioma=1"
        ) from None


def _bytes(text: str) -> int:
    units = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    number = text.strip().upper().rstrip("BKMGI ")
    unit = text.strip().upper()[len(number) :].strip()
    try:
        value = float(number) * units[unit]
        if not 0 <= value < 1 << 62:
            raise ValueError
    except (ValueError, KeyError):
        raise UsageError(f"--memory-budget cannot be {text!r}", expected="such as 512MB or 2GB") from None
    return int(value)
