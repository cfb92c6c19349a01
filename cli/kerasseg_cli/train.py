"""`kerasseg train`: shards and a checkpoint -> a fine-tuned network, and a run that can be repeated or gone on with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kerasseg_cli.completion import AUGMENTATIONS, BLOCKS, STRATEGIES, listed, proposing
from kerasseg_cli.options import COMMON, Json, Quiet
from kerasseg_tfrecords.errors import DataError, UsageError

if TYPE_CHECKING:
    from kerasseg.runs.settings import TrainSettings

__all__ = ["given", "refuse_others", "settings_of", "train"]

WHAT, RECIPE, SCHEDULE, DATA, MACHINE, RUN = (
    "What is trained",
    "Recipe",
    "Schedule",
    "Data",
    "Machine",
    "The run",
)


_TYPED = ("COMMANDLINE", "ENVIRONMENT")

_AS_TYPED = (
    *("checkpoint", "architecture", "head", "strategy", "freeze_batchnorm"),
    *("batchnorm_momentum", "learning_rate", "weight_decay", "l2"),
    *("clipnorm", "ema", "epochs", "steps", "batch_size", "balance", "train_on_positives", "guard", "seed"),
    *("precision", "deterministic", "xla", "save_every", "cache"),
)
"""Options that are settings as they stand."""


def train(
    context: typer.Context,
    shards: Annotated[Path, typer.Option(help="The shard directory.", rich_help_panel=DATA)] = Path("shards"),
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A .keras or .h5 file, a SavedModel folder, hf://owner/name or https://...; without it the network that "
            "the recipe was made for is fetched.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="conservative (freezes the first half of the encoder), moderate (a quarter), aggressive (nothing, rate "
            "1e-5), progressive (thaws block by block), auto (conservative, then moderate, the better is kept), scratch.",
            rich_help_panel=WHAT,
            autocompletion=proposing(STRATEGIES),
        ),
    ] = "conservative",
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Blocks or layers to freeze instead, such as 'encoder_*'.",
            rich_help_panel=WHAT,
            autocompletion=listed(BLOCKS),
        ),
    ] = None,
    freeze_batchnorm: Annotated[
        bool, typer.Option("--freeze-batchnorm", help="Hold every BatchNorm layer.", rich_help_panel=WHAT)
    ] = False,
    batchnorm_momentum: Annotated[
        float | None,
        typer.Option(
            help="Of BatchNorm in training; lowered by itself where epochs are short.", rich_help_panel=RECIPE
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="For files that hold weights alone: the network they belong to.", rich_help_panel=WHAT),
    ] = None,
    head: Annotated[
        str, typer.Option(help="The last layer: auto, keep, or binary (a fresh one).", rich_help_panel=WHAT)
    ] = "auto",
    filters: Annotated[
        int | None, typer.Option(help="Of encoder_1, for scratch without a checkpoint.", rich_help_panel=WHAT)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Encoder blocks, for scratch without a checkpoint.", rich_help_panel=WHAT)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the first epoch; 1e-4, aggressive 1e-5, scratch 1e-3.", rich_help_panel=RECIPE),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Slices in a batch, all devices.", rich_help_panel=RECIPE)] = 8,
    epochs: Annotated[int, typer.Option(help="At most.", rich_help_panel=RECIPE)] = 20,
    steps: Annotated[
        int | None, typer.Option(help="Steps an epoch at most, for short runs.", rich_help_panel=RECIPE)
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="Decoupled; next to nothing at these rates, see --l2.", rich_help_panel=RECIPE)
    ] = 1e-5,
    l2: Annotated[float, typer.Option(help="L2 on kernels, in the loss.", rich_help_panel=RECIPE)] = 0.0,
    clipnorm: Annotated[
        float | None, typer.Option(help="Limit of the norm of all gradients.", rich_help_panel=RECIPE)
    ] = None,
    dice_weight: Annotated[float, typer.Option(help="Of Dice in the loss.", rich_help_panel=RECIPE)] = 1.0,
    bce_weight: Annotated[float, typer.Option(help="Of cross-entropy in the loss.", rich_help_panel=RECIPE)] = 1.0,
    smooth: Annotated[float, typer.Option(help="Pixels that smooth Dice in the loss.", rich_help_panel=RECIPE)] = 1.0,
    positive_weight: Annotated[
        float, typer.Option(help="Of a tumour pixel in cross-entropy.", rich_help_panel=RECIPE)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of every random choice.", rich_help_panel=RECIPE)] = 42,
    schedule: Annotated[
        Literal["plateau", "cosine"] | None,
        typer.Option(
            help="Lower the rate on plateaus, or warm up and follow a cosine to 0. Default: cosine for scratch, otherwise "
            "plateau.",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps that warm up, cosine schedule.", rich_help_panel=SCHEDULE)
    ] = 0.05,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of a moving average of the weights, such as 0.999. The better weights are kept.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    stages: Annotated[
        str, typer.Option(help="EPOCHS:RATE,...: flat epochs, and the rate that follows.", rich_help_panel=SCHEDULE)
    ] = "5:1e-5,3:1e-6",
    stop_after: Annotated[
        int, typer.Option(min=0, help="Epochs without a gain until the stop; 0 never stops.", rich_help_panel=SCHEDULE)
    ] = 7,
    stop_counter: Annotated[
        str,
        typer.Option(help="stage (counts anew at each drop) or total (from the best epoch).", rich_help_panel=SCHEDULE),
    ] = "stage",
    guard: Annotated[
        bool,
        typer.Option(
            "--guard", help="Where training falls clearly below epoch 0: go back, rate / 10.", rich_help_panel=SCHEDULE
        ),
    ] = False,
    balance: Annotated[
        str, typer.Option(help="Batches: proportional, or balanced (equal classes).", rich_help_panel=DATA)
    ] = "proportional",
    flip: Annotated[float, typer.Option(help="Share that is mirrored, 0 to 1.", rich_help_panel=DATA)] = 0.5,
    brightness: Annotated[float, typer.Option(help="Largest shift.", rich_help_panel=DATA)] = 0.1,
    contrast: Annotated[float, typer.Option(help="Largest relative change.", rich_help_panel=DATA)] = 0.1,
    zoom: Annotated[float, typer.Option(help="Largest relative change.", rich_help_panel=DATA)] = 0.05,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these of flip, brightness, contrast, zoom; or none.",
            rich_help_panel=DATA,
            autocompletion=listed(AUGMENTATIONS),
        ),
    ] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced, or glioma=2,meningioma=1,...", rich_help_panel=DATA)
    ] = None,
    train_on_positives: Annotated[
        bool, typer.Option("--train-on-positives", help="Leave out slices without tumour.", rich_help_panel=DATA)
    ] = False,
    cache: Annotated[str, typer.Option(help="auto, memory, disk or none.", rich_help_panel=DATA)] = "auto",
    memory_budget: Annotated[str, typer.Option(help="Memory that the slices may take.", rich_help_panel=DATA)] = "2GB",
    precision: Annotated[
        str, typer.Option(help="auto, float32, mixed_float16 or mixed_bfloat16.", rich_help_panel=MACHINE)
    ] = "auto",
    devices: Annotated[str | None, typer.Option(help="Such as GPU:0,GPU:1; all GPUs.", rich_help_panel=MACHINE)] = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Same seed, same weights, bit for bit.", rich_help_panel=MACHINE),
    ] = False,
    xla: Annotated[
        bool | None, typer.Option("--xla/--no-xla", help="Compile with XLA; on a single GPU.", rich_help_panel=MACHINE)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The run's folder; runs/<date-time-strategy>.", rich_help_panel=RUN),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, or the latest one.", rich_help_panel=RUN),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Replay an earlier run's config.json; other options win over it.", rich_help_panel=RUN),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Save the state every so many steps, too.", rich_help_panel=RUN)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a U-Net on the shards, and keep the best weights by validation Dice."""
    # All of them by their names, so that `cross-validate`, which has the same, resolves them alike.
    options = dict(locals())
    if resume:
        refuse_others(given(context) - {"resume", "out", "shards", *COMMON})
        _go_on(out, shards if "shards" in given(context) else None, as_json=as_json, quiet=quiet)
        return
    settings = settings_of(context, options)

    from kerasseg.workflows.train import train as run

    _show(lambda observer: run(settings, out, [observer]), as_json=as_json, quiet=quiet)


def given(context: typer.Context) -> set[str]:
    """Names of the options that were typed, or set in the environment."""
    # By its name: typer brings the class along from a click of its own.
    return {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") in _TYPED}


def settings_of(context: typer.Context, options: Mapping[str, Any]) -> TrainSettings:
    """Settings from the options of `train`, by their names there.

    Raises:
        UsageError: One that cannot be meant.
    """
    asked: dict[str, Any] = {
        **{name: options[name] for name in _AS_TYPED},
        "shards": str(options["shards"]),
        "freeze": tuple(name for text in options["freeze"] or () for name in text.split(",") if name),
        "class_weight": _weights(options["class_weight"]),
        "devices": tuple(part.strip() for part in (options["devices"] or "").split(",") if part.strip()),
        "memory_budget": _bytes(options["memory_budget"]),
    }
    # Fields of a field: those that were typed win over the file's, the others stay the file's.
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
    for field, part in parts.items():
        if part:
            values[field] = (values.get(field) or {}) | part
    chosen = _augmentations(augment)
    if chosen is not None:
        amounts = values.get("augmentation") or {}
        off = {name: 0.0 for name in ("flip", "brightness", "contrast", "zoom") if name not in chosen}
        values["augmentation"] = (amounts | off) if chosen else None
    return parse_settings(None, **values)


def _go_on(out: Path | None, shards: Path | None, *, as_json: bool, quiet: bool) -> None:
    from kerasseg.runs.directory import RunDirectory

    try:
        found = RunDirectory.find(out)
    except DataError as error:
        if not os.environ.get("TF_CONFIG"):
            raise
        remedy = "Of several machines each reads the run: --out names a folder that all of them see."
        raise DataError(error.what, path=error.path, expected=error.expected, remedy=remedy) from None
    from kerasseg.workflows.train import resume

    _show(lambda observer: resume(found, [observer], shards=shards), as_json=as_json, quiet=quiet)


def _show(run: Any, *, as_json: bool, quiet: bool) -> None:
    """Runs with somebody watching, and ends as the run ended."""
    from kerasseg_cli.train_display import summary, watching

    with watching(as_json=as_json, quiet=quiet) as observer:
        ended, directory = run(observer)
    summary(ended, directory, as_json=as_json, quiet=quiet)
    if ended.reason == "interrupted":
        raise typer.Exit(130)


def refuse_others(names: set[str]) -> None:
    """Refuses options beside `--resume`."""
    if names:
        options = ", ".join("--" + name.replace("_", "-") for name in sorted(names))
        raise UsageError(
            "a run goes on as it was begun",
            found=f"--resume with {options}",
            remedy="Leave these out, or begin a new run: --config RUN/config.json and what is to change.",
        )


def _augmentations(names: list[str] | None) -> set[str] | None:
    """The augmentations that stay on; None for all. Unsafe ones are refused by name, with the reason."""
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
    """The part of the schedule that was typed. Options for plateaus ask for a plateau schedule."""
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
