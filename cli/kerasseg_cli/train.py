"""`kerasseg train`: fine-tune a checkpoint on shards into a run that can be resumed and repeated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.completion import AUGMENTATIONS, BLOCKS, STRATEGIES, listed, proposing, starting_points
from kerasseg_cli.options import ADVANCED, COMMON, Json, Quiet, choices
from kerasseg_tfrecords.errors import DataError, UsageError

if TYPE_CHECKING:
    from kerasseg.runs.settings import TrainSettings

__all__ = ["given", "refuse_others", "settings_of", "train"]

DATA, TRAINING, RUN = "Model and data", "Training", "Run"
MODEL, OPTIMISATION, SCHEDULE, SLICES, MACHINE = (
    f"{ADVANCED}: {name}" for name in ("model", "optimisation and loss", "schedule", "slices", "machine")
)

SCHEDULES = ("plateau", "cosine")
PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")

_TYPED = ("COMMANDLINE", "ENVIRONMENT")

_AS_TYPED = (
    *("checkpoint", "encoder", "encoder_weights", "architecture", "head", "strategy", "freeze_batchnorm"),
    *("recalibrate_batchnorm", "encoder_rate_factor"),
    *("batchnorm_momentum", "learning_rate", "weight_decay", "l2"),
    *("clipnorm", "ema", "epochs", "steps", "batch_size", "balance", "train_on_positives", "guard", "seed"),
    *("precision", "deterministic", "xla", "save_every", "cache"),
)
"""Options whose values are settings without conversion."""


def train(
    context: typer.Context,
    shards: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Shard directory from kerasseg prepare.", rich_help_panel=DATA)
    ] = Path("shards"),
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            autocompletion=starting_points,
            help="Pretrained network: a name from kerasseg checkpoints, a .keras or .h5 file, a SavedModel folder, "
            "hf://owner/name or https://... [default: recipe, downloaded]",
            rich_help_panel=DATA,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Pretrained encoder to use instead of a checkpoint, such as vgg16, with a fresh decoder.",
            rich_help_panel=DATA,
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            metavar=choices(STRATEGIES),
            autocompletion=proposing(STRATEGIES),
            help="Training strategy, see above; with a fresh head or decoder the default is two-stage.",
            rich_help_panel=TRAINING,
        ),
    ] = "conservative",
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs.", rich_help_panel=TRAINING)] = 20,
    batch_size: Annotated[int, typer.Option(help="Slices per batch, over all devices.", rich_help_panel=TRAINING)] = 8,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Initial learning rate. [default: 1e-4; aggressive 1e-5, scratch 1e-3]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar=choices(SCHEDULES),
            autocompletion=proposing(SCHEDULES),
            help="Schedule of the learning rate: lower it on plateaus, or follow a cosine to 0. [default: plateau; "
            "scratch and two-stage: cosine]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            autocompletion=listed(AUGMENTATIONS),
            help="Augmentations to use: flip, brightness, contrast, zoom, or none. [default: all four]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.", rich_help_panel=TRAINING)] = 42,
    precision: Annotated[
        str,
        typer.Option(
            metavar=choices(PRECISIONS),
            autocompletion=proposing(PRECISIONS),
            help="Number format; auto chooses the fastest that costs no Dice.",
            rich_help_panel=TRAINING,
        ),
    ] = "auto",
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE,...",
            help="Devices, such as GPU:0,GPU:1. [default: all GPUs, otherwise the CPU]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Run folder. [default: runs/<date-time-strategy>]",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or the latest run.", rich_help_panel=RUN)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="config.json of a run to repeat; other options override it.", rich_help_panel=RUN
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            autocompletion=proposing({"mlflow": "MLflow; mlflow:URI names a server", "wandb": "Weights & Biases"}),
            help="Send the run to a tracker: mlflow, mlflow:URI or wandb.",
            rich_help_panel=RUN,
        ),
    ] = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|imagenet",
            help="Weights of --encoder: imagenet, or a file. [default: imagenet]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BLOCK,...",
            autocompletion=listed(BLOCKS),
            help="Blocks or layers to freeze instead of the strategy's, such as 'encoder_*'.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    freeze_batchnorm: Annotated[
        bool,
        typer.Option(
            "--freeze-batchnorm",
            help="Freeze scale, offset and statistics of every BatchNorm layer.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    recalibrate_batchnorm: Annotated[
        bool,
        typer.Option(
            "--recalibrate-batchnorm",
            help="Measure BatchNorm statistics on the training slices before the first step, for images of another "
            "scanner; they are kept if validation Dice rises.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    batchnorm_momentum: Annotated[
        float | None,
        typer.Option(
            help="Momentum of BatchNorm in training. [default: the network's, or less if epochs are short]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            metavar=choices(("auto", "keep", "binary")),
            help="Last layer of the network: binary replaces it by a fresh one, auto only if its meaning is unclear.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    architecture: Annotated[
        str | None, typer.Option(help="Network for a file that contains only weights.", rich_help_panel=MODEL)
    ] = None,
    filters: Annotated[
        int | None,
        typer.Option(
            help="Filters in the first encoder block (scratch training only). [default: 64]", rich_help_panel=MODEL
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(help="Number of encoder blocks (scratch training only). [default: 4]", rich_help_panel=MODEL),
    ] = None,
    encoder_rate_factor: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the encoder as a multiple of the decoder's. [default: 0.1 for two-stage, otherwise 1]",
            rich_help_panel=OPTIMISATION,
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of a moving average of the weights, such as 0.999; the better weights are kept.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Maximum number of steps per epoch, for short runs.", rich_help_panel=OPTIMISATION),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.", rich_help_panel=OPTIMISATION)] = 1e-5,
    l2: Annotated[
        float, typer.Option(help="Strength of L2 regularization of kernels in the loss.", rich_help_panel=OPTIMISATION)
    ] = 0.0,
    clipnorm: Annotated[
        float | None, typer.Option(help="Maximum global norm of the gradients.", rich_help_panel=OPTIMISATION)
    ] = None,
    dice_weight: Annotated[float, typer.Option(help="Weight of Dice in the loss.", rich_help_panel=OPTIMISATION)] = 1.0,
    bce_weight: Annotated[
        float, typer.Option(help="Weight of cross-entropy in the loss.", rich_help_panel=OPTIMISATION)
    ] = 1.0,
    smooth: Annotated[
        float, typer.Option(help="Smoothing of Dice in the loss, in pixels.", rich_help_panel=OPTIMISATION)
    ] = 1.0,
    positive_weight: Annotated[
        float, typer.Option(help="Weight of a tumour pixel in cross-entropy.", rich_help_panel=OPTIMISATION)
    ] = 1.0,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps that warm up, 0 to 1 (cosine schedule).", rich_help_panel=SCHEDULE)
    ] = 0.05,
    stages: Annotated[
        str,
        typer.Option(
            metavar="EPOCHS:RATE,...",
            help="Epochs without improvement and the learning rate that follows (plateau schedule).",
            rich_help_panel=SCHEDULE,
        ),
    ] = "5:1e-5,3:1e-6",
    stop_after: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop after this many epochs without improvement; 0 never stops (plateau schedule).",
            rich_help_panel=SCHEDULE,
        ),
    ] = 7,
    stop_counter: Annotated[
        str,
        typer.Option(
            metavar=choices(("stage", "total")),
            help="Start of the count of --stop-after: the last drop of the rate (stage) or the best epoch (total).",
            rich_help_panel=SCHEDULE,
        ),
    ] = "stage",
    guard: Annotated[
        bool,
        typer.Option(
            "--guard",
            help="Restore the weights and divide the rate by 10 if Dice falls clearly below epoch 0.",
            rich_help_panel=SCHEDULE,
        ),
    ] = False,
    balance: Annotated[
        str,
        typer.Option(
            metavar=choices(("proportional", "balanced")),
            help="Composition of batches: classes as in the data, or in equal parts.",
            rich_help_panel=SLICES,
        ),
    ] = "proportional",
    class_weight: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Weights of the classes in the loss: balanced, or CLASS=WEIGHT,...",
            rich_help_panel=SLICES,
        ),
    ] = None,
    train_on_positives: Annotated[
        bool,
        typer.Option("--train-on-positives", help="Leave out training slices without tumour.", rich_help_panel=SLICES),
    ] = False,
    flip: Annotated[
        float, typer.Option(help="Probability of a horizontal flip, 0 to 1.", rich_help_panel=SLICES)
    ] = 0.5,
    brightness: Annotated[
        float,
        typer.Option(
            help="Largest shift of brightness, as a share of the range of grey levels.", rich_help_panel=SLICES
        ),
    ] = 0.1,
    contrast: Annotated[float, typer.Option(help="Largest relative change of contrast.", rich_help_panel=SLICES)] = 0.1,
    zoom: Annotated[float, typer.Option(help="Largest relative zoom.", rich_help_panel=SLICES)] = 0.05,
    cache: Annotated[
        str,
        typer.Option(
            metavar=choices(("auto", "memory", "disk", "none")),
            help="Where training slices are cached.",
            rich_help_panel=SLICES,
        ),
    ] = "auto",
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Maximum memory for slices.", rich_help_panel=SLICES)
    ] = "2GB",
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Make the weights depend only on the seed, bit for bit.", rich_help_panel=MACHINE
        ),
    ] = False,
    xla: Annotated[
        bool | None,
        typer.Option(
            "--xla/--no-xla", help="Compile with XLA. [default: only on a single GPU]", rich_help_panel=MACHINE
        ),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between additional saved states.", rich_help_panel=MACHINE)
    ] = None,
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

    from kerasseg.workflows.train import train as run

    _show(lambda observer: run(settings, out, [observer], track=track or ()), as_json=as_json, quiet=quiet)


def given(context: typer.Context) -> set[str]:
    """Return the names of the options that were typed or set in the environment."""
    # Compared by name, because typer may bundle its own click.
    return {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") in _TYPED}


def settings_of(context: typer.Context, options: Mapping[str, Any]) -> TrainSettings:
    """Return the settings for the options of `train`.

    Raises:
        UsageError: An option is invalid.
    """
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
    return parse_settings(None, **values)


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
        return [(int(patience), float(rate)) for patience, rate in pairs]
    except ValueError:
        raise UsageError(f"--stages cannot be {text!r}", expected="EPOCHS:RATE,... such as 5:1e-5,3:1e-6") from None


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
