"""Suggest the command or option that a mistyped one stands for: by its meaning first, then by its letters.

The tables list names from Keras, nnU-Net, MONAI, PyTorch Lightning and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

_OPTIONS = {
    "learning-rate": "lr learningrate rate base-lr init-lr initial-lr initial-learning-rate max-lr eta alpha",
    "batch-size": "bs batch batchsize batch-sz mini-batch minibatch minibatch-size b train-batch-size sw-batch-size",
    "devices": "gpu gpus device cuda gpu-id gpu-ids num-gpus n-gpus accelerator accelerators cpu tpu",
    "epochs": "epoch n-epochs num-epochs max-epochs max-epoch nb-epochs nb-epoch e ep num-train-epochs",
    "steps": "steps-per-epoch max-steps iterations iters max-iter num-iterations num-iterations-per-epoch iter",
    "stop-after": "patience early-stopping early-stop early-stopping-patience earlystopping",
    "stages": "schedule scheduler lr-schedule lr-scheduler learning-rate-schedule reduce-lr plateau",
    "weight-decay": "wd decay regularization",
    "l2": "l2-reg l2-regularization regularizer kernel-regularizer",
    "clipnorm": "clip grad-clip gradient-clip gradient-clipping clip-norm clip-grad max-grad-norm gradient-clip-val",
    "positive-weight": "pos-weight foreground-weight",
    "class-weight": "class-weights classweight loss-weights",
    "freeze": "frozen freeze-layers freeze-blocks freeze-encoder trainable unfreeze",
    "strategy": "mode recipe method freezing",
    "encoder": "backbone encoder-name arch",
    "encoder-weights": "backbone-weights imagenet",
    "filters": "base-filters features n-filters num-filters start-filters init-filters channels width",
    "depth": "levels n-levels num-levels num-pool stages-count",
    "checkpoint": "weights model pretrained pretrained-weights ckpt ckpt-path init-from load load-weights restore net",
    "model": "weights checkpoint ckpt pretrained network net",
    "run": "experiment run-dir model-dir model-folder log-dir logdir name",
    "architecture": "arch model-config network structure",
    "ensemble": "models average folds",
    "shards": "data dataset data-dir dataset-dir data-path data-root dataset-path train-data tfrecords shard-dir input i",
    "out": "output output-dir output-folder output-path outdir out-dir save-dir save-path save dest destination "
    "result-dir results o log-dir logdir model-dir target-dir dir",
    "keep": "out output output-dir dir",
    "resume": "continue c continue-training restart reload auto-resume",
    "continue": "resume continue-prediction continue-predictions c skip-existing",
    "overwrite": "force f replace clobber yes y exist-ok",
    "seed": "random-seed random-state rng rng-seed",
    "precision": "fp16 bf16 fp32 amp no-amp mixed-precision dtype half float16 bfloat16",
    "deterministic": "determinism reproducible benchmark",
    "xla": "jit jit-compile compile",
    "save-memory": "remat gradient-checkpointing checkpointing low-memory",
    "augment": "aug augs augmentation augmentations data-augmentation transforms",
    "flip": "horizontal-flip hflip fliplr mirror",
    "flip-average": "tta test-time-augmentation disable-tta flip-tta mirroring",
    "brightness": "brightness-range",
    "contrast": "contrast-range gamma",
    "zoom": "zoom-range scale",
    "balance": "balanced sampler sampling oversample oversampling",
    "train-on-positives": "positives positive-only positives-only foreground-only skip-empty",
    "memory-budget": "memory mem ram max-memory",
    "cache": "cache-dir in-memory",
    "track": "tracker logger wandb mlflow",
    "jobs": "workers num-workers n-workers n-jobs processes num-processes np npp nps threads n-procs num-proc",
    "folds": "k n-folds nfolds num-folds n-splits cv kfold k-fold fold",
    "split": "val-split validation-split test-size val-size train-size ratio ratios fractions train-val-test",
    "split-by": "group-by groups stratify by",
    "size": "img-size image-size input-size input-shape imgsz target-size resize spatial-size patch-size",
    "classes": "labels class-names num-classes n-classes",
    "foreground": "label positive-label tumour-label tumor-label labels",
    "intensity": "normalization normalisation normalize normalise norm scaling rescale",
    "plane": "axis orientation view",
    "format": "type kind file-format input-format output-format to",
    "skip-bad": "ignore-errors skip-errors ignore-bad skip-invalid",
    "threshold": "thr thresh cutoff cut-off confidence conf prob-threshold",
    "overlay": "overlays save-overlay visualize visualise vis plot show-boundaries",
    "probabilities": "save-probabilities probs save-probs softmax proba save-softmax npz logits",
    "with-postprocessing": "postprocessing post-processing postprocess postproc",
    "int8": "quantize quantise quantization quantized",
    "push": "push-to-hub upload repo repo-id hub",
    "fail-under": "min-dice fail-below",
    "resolution": "native",
    "quiet": "silent s no-progress",
    "verbose": "log-level loglevel show-log",
    "debug": "traceback trace",
    "json": "as-json output-json machine-readable",
    "help": "usage h man",
}
"""Option -> its names in other tools. If a command has several options that fit, the first here is suggested."""

_COMMANDS = {
    "fetch": "download get get-data pull download-data",
    "prepare": "preprocess preprocessing plan plan-and-preprocess ingest import-data build dataset make-dataset tfrecord "
    "tfrecords convert-dataset data",
    "verify": "check check-data verify-dataset-integrity integrity sanity-check lint",
    "inspect": "info show summary summarise summarize describe print model",
    "convert": "migrate translate upgrade",
    "train": "fit finetune fine-tune fine_tune retrain learn tune-model resume",
    "tune-threshold": "tune threshold thresholds tune-thresholds postprocess postprocessing find-best-configuration "
    "determine-postprocessing optimise optimize",
    "evaluate": "eval evaluation test score scores validate validation metrics report results evaluate-folder",
    "predict": "prediction predictions segment segmentation infer inference apply run detect label",
    "export": "save deploy onnx tflite savedmodel serve package push upload",
    "compare": "diff comparison benchmark versus vs",
    "cross-validate": "cv crossval cross-val cross-validation crossvalidate crossvalidation kfold k-fold folds",
    "demo": "example examples tutorial quickstart try start",
    "doctor": "diagnose diagnosis env environment health debug check-install selftest self-test",
    "app": "ui gui web webapp gradio browser view viewer",
    "checkpoints": "models zoo list networks pretrained model-zoo hub",
    "--help": "help usage commands man",
    "--version": "version",
}


def either(names: Sequence[str]) -> str:
    """Join names with commas and "or".

    Example:
        >>> either(["--a", "--b", "--c"])
        '--a, --b or --c'
    """
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def suggest_commands(name: str, known: Sequence[str]) -> list[str]:
    """Return the commands that a mistyped one may stand for, the likeliest first.

    Example:
        >>> suggest_commands("segment", ["train", "predict"]), suggest_commands("trian", ["train", "predict"])
        (['predict'], ['train'])
    """
    wanted = name.lower().replace("_", "-")
    return (
        [command for command in known if command == wanted]
        or _by_meaning(wanted, [*known, "--help", "--version"], _COMMANDS)
        or get_close_matches(wanted, known, n=3)
        or get_close_matches(wanted, known, n=1, cutoff=0.5)
    )


def suggest_options(name: str, known: Iterable[str]) -> list[str]:
    """Return the options of a command that a mistyped one may stand for, the likeliest first.

    Example:
        >>> suggest_options("--lr", ["--epochs", "--learning-rate"])
        ['--learning-rate']
    """
    wanted = name.lstrip("-").partition("=")[0].lower().replace("_", "-")
    options = [option.removeprefix("--") for option in known if option.startswith("--")]
    parts = set(wanted.split("-"))
    found = (
        [option for option in options if option.replace("-", "") == wanted.replace("-", "")]
        or _by_meaning(wanted, options, _OPTIONS)
        or get_close_matches(wanted, options, n=1, cutoff=0.8)
        or [option for option in options if parts <= set(option.split("-"))][:5]
        or [option for option in options if option.startswith(wanted) and len(wanted) > 2][:5]
        or get_close_matches(wanted, options, n=1)
        or _by_misspelt_meaning(wanted, options)
    )
    return [f"--{option}" for option in found]


def _by_meaning(wanted: str, known: Sequence[str], synonyms: Mapping[str, str]) -> list[str]:
    return [name for name, others in synonyms.items() if name in known and wanted in others.split()][:1]


def _by_misspelt_meaning(wanted: str, options: Sequence[str]) -> list[str]:
    words = {word for name, others in _OPTIONS.items() if name in options for word in others.split() if len(word) > 3}
    near = get_close_matches(wanted, sorted(words), n=1, cutoff=0.75)
    return _by_meaning(near[0], options, _OPTIONS) if near else []
