"""Pages of benchmarks in `docs`, generated from `benchmarks/results.json`."""

from __future__ import annotations

from typing import Any

from benchmarks.result import Result, figure

TITLES = {
    "startup": "Start-up",
    "commands": "Whole commands",
    "job": "The whole job",
    "prepare": "Prepare",
    "pipeline": "Input",
    "freezing": "What freezing saves, counted",
    "roofline": "What the processor gives",
    "training": "A step of training",
    "training_others": "A step of training: slower peers, fixed costs",
    "training_avx2": "A step of training with AVX2 only",
    "prediction": "Prediction",
    "thresholds": "Thresholds and post-processing",
    "distances": "Distances",
    "scale": "Scale",
    "augmentation": "Augmentation alone",
    "duplicates": "The search for copies",
    "cluster": "Worker processes of a Dask cluster",
    "open_savedmodel": "Opening a SavedModel",
    "coverage": "Coverage of intervals",
    "rule_choice": "Tuned rules on new patients",
}
INTRODUCTIONS = {
    "startup": "Whole processes, from start to end.",
    "job": "From raw slices to a report, a network of 1.9 million parameters from scratch: four commands against one "
    "script in the same precision. kerasseg also looks for duplicates, hashes, saves states to resume from, searches for "
    "post-processing and computes intervals, and each command loads TensorFlow again.",
    "prepare": "`kerasseg prepare` against a loop that only opens and reads the same .mat files, and against a script "
    "that reads everything, resizes it and calls `np.stack`. Starting worker processes is included, imports are not.",
    "pipeline": "Augmented batches of 8 slices, 256x256, after the first epoch.",
    "cluster": "A scheduler and its workers on one machine, against as many processes of the local pool. The search for "
    "copies and the split, which stay with the caller, run over fingerprints that are drawn at random.",
    "freezing": "Frozen blocks still run forward; only the computation of their gradients is saved.",
    "roofline": "The default U-Net, 256x256x3, batch 8. The bound is the fastest 3x3 convolution of its own shapes, alone: "
    "a network that only convolved, at that rate. The goal is a share of 0.6. What a step takes beyond its convolutions "
    "alone is normalisation, activations, pooling, concatenation, loss and optimizer.",
    "training": "The default U-Net, 256x256x3, batch 8. Plain Keras and PyTorch train everything, with the same network, "
    "loss and optimizer, each in a process of its own. Peak memory is that of the process, and is divided into what was "
    "there before the first step (libraries, network) and what training added. kerasseg creates Adam's moments before "
    "the first step, the others in it, so only the whole peaks compare.",
    "training_others": "As above, with fewer rounds, because a step takes half a minute.",
    "training_avx2": "The same in float32, where oneDNN, XLA, PyTorch and MKL are limited to AVX2: an estimate for "
    "processors without AVX-512, whose caches and clock rates differ.",
    "prediction": "The same files, from disk to masks on disk: a public SavedModel and real slices where "
    "`KERASSEG_REAL_DATA` has them, else synthetic ones. kerasseg reads, computes and writes at the same time, the peers "
    "one after the other. PyTorch has the same weights in the same layers, in eager inference mode; OpenVINO, LiteRT and "
    "ONNX Runtime convert the network themselves. Network alone is one batch of 8, without files.",
    "thresholds": "Synthetic probability maps of a confident network and of an unsure one (soft).",
    "distances": "HD95 of tumours of radius 20 in 256x256 masks. surface-distance is rewritten from its formulae; Metrics "
    "Reloaded is on no package index, so its definition is written in SciPy here.",
    "scale": "Cost per slice with many more slices, 64x64. The peer is kerasseg with few slices: a flat cost has ratio 1.",
    "augmentation": "256x256, all four augmentations, in a `tf.data` pipeline from slices in memory.",
    "duplicates": "Drawn heads, distorted at random; one in forty has a copy, mirrored and compressed with JPEG.",
    "open_savedmodel": "`tf.saved_model.load` returns functions; kerasseg returns Keras layers that can be frozen and "
    "trained. Imports are not included.",
    "coverage": "How often a 95 % interval over patients contains the truth, simulated; the ratio compares the "
    "distances from 95 %, plus one.",
    "rule_choice": "Rules tuned on a few patients of small networks and evaluated on the others: mean gain in points of "
    "Dice. The ratio says nothing here.",
}
HEADLINES = (
    ("The whole job, from slices to report", "job", "the whole job", "a plain Keras script"),
    ("Training step, everything trained", "training", "aggressive, step", "plain Keras"),
    (
        "Training step, everything trained",
        "training",
        "aggressive, step",
        "PyTorch, bfloat16, channels-last, torch.compile",
    ),
    (
        "Training step, conservative",
        "training",
        "conservative, step",
        "PyTorch, bfloat16, channels-last, torch.compile",
    ),
    ("Training step, conservative", "training", "conservative, step", "aggressive"),
    ("Training step, AVX2 only", "training_avx2", "aggressive, step", "PyTorch, float32, channels-last"),
    ("`predict`, from disk to disk, float32", "prediction", "predict, float32", "the SavedModel"),
    ("`predict`, from disk to disk, float32", "prediction", "predict, float32", "ONNX Runtime"),
    ("`predict`, from disk to disk, float32", "prediction", "predict, float32", "PyTorch"),
    ("`predict`, from disk to disk, bfloat16", "prediction", "predict, mixed_bfloat16", "PyTorch, bfloat16"),
    ("`predict`, from disk to disk, float32", "prediction", "predict, float32", "OpenVINO, float32"),
    ("`predict`, from disk to disk, bfloat16", "prediction", "predict, mixed_bfloat16", "OpenVINO, bfloat16"),
    (
        "Prediction, float32, share of the bound",
        "roofline",
        "prediction, 31 million parameters, float32",
        "the fastest",
    ),
    (
        "Prediction, bfloat16, share of the bound",
        "roofline",
        "prediction, 31 million parameters, bfloat16",
        "the fastest",
    ),
    ("Training step, share of the bound", "roofline", "step, aggressive", "the fastest"),
    ("Augmented input, grey", "pipeline", "grey to 3 channels, cache in memory", "tf.data"),
    ("Augmented input, grey", "pipeline", "grey to 3 channels, cache in memory", "MONAI"),
    ("HD95, the same values", "distances", "HD95 of a pair", "MONAI"),
    ("1,000 thresholds over 210 slices", "thresholds", "1,000 thresholds", "99 one by one"),
    ("`prepare`, one process", "prepare", "prepare --jobs 1", "only reading"),
    ("`prepare`, one process", "prepare", "prepare --jobs 1", "load all"),
    ("Peak memory of training", "training", "peak memory, aggressive", "PyTorch"),
)
"""Label, part, prefix of the line's name, prefix of the peer's name; the first matching line is shown."""
_HEAD = """# Benchmarks

`make bench` measures everything on your machine (90 minutes on two cores, 10 GB of memory), in an environment of its own.
It writes this page, [the full tables](benchmarks-tables.md) and `benchmarks/results.json`.
`.venv-bench/bin/python -m benchmarks training distances` repeats parts of it.

kerasseg and the peer take turns in one run. The ratio is the peer's cost divided by ours, as median (and range) over
rounds: **above 1, kerasseg is cheaper**. A ratio in bold is behind the peer or a goal. The network is the default U-Net
with 31 million parameters, 256x256x3, batch 8, unless the tables say otherwise.
"""
_TABLES_HEAD = """# Benchmarks: the full tables

[How to read them](benchmarks.md). A bold ratio is below its goal, or below 0.97 where there is none, by processor time
where it is known, because a busy machine disturbs wall-clock time.
"""
# Why a peer is faster or smaller, by prefixes of the line's name and of the peer.
_LOCK = (
    "two of our threads compete for Python's lock about ten times per slice; without a cache, each slice is also decoded "
    "again every epoch, while the peer keeps it."
)
_BEYOND = (
    "small and wide layers convolve at lower rates (the tables list them), and the line against its convolutions alone "
    "shows what normalisation, activations, pooling, concatenation, loss and optimizer add."
)
_OPENVINO = (
    "it computes the graph as a whole, TensorFlow one operation at a time; in bfloat16 its masks differ (the tables "
    "give the Dice), so that `predict --engine openvino` offers it in float32 only."
)
_INT8 = "8 bits, which change masks (Dice 0.88 with ours): not offered."
REASONS: dict[tuple[str, str], str] = {
    (
        "the whole job",
        "a plain Keras",
    ): "it also looks for duplicates, hashes, saves states, searches for "
    "post-processing and computes intervals; four processes load TensorFlow.",
    (
        "predict, ",
        "a script",
    ): "it also compares the network with the original, checks names and counts tumours.",
    ("kerasseg --help", "Python alone"): "the bound is an interpreter that does nothing.",
    ("import kerasseg", "Python alone"): "the bound is an interpreter that does nothing.",
    ("prepare", "only reading"): "the bound is reading; prepare also resizes, normalises, finds duplicates, writes and "
    "hashes.",
    ("prepare --jobs 2", "prepare --jobs 1"): "starting and feeding a second process costs processor time and saves "
    "wall-clock time.",
    ("predict, float32", "the SavedModel"): "both spend most of the time in the same float32 convolutions.",
    ("predict, float32", "OpenVINO"): "the networks alone are level by processor time.",
    ("predict, float32", "ONNX Runtime"): "the networks alone are level by processor time.",
    ("predict, mixed_bfloat16", "OpenVINO, bfloat16"): _OPENVINO,
    ("network alone, mixed_bfloat16", "OpenVINO, bfloat16"): _OPENVINO,
    ("predict, mixed_bfloat16", "OpenVINO, int8"): _INT8,
    ("network alone, mixed_bfloat16", "OpenVINO, int8"): _INT8,
    ("aggressive, step of 31 million parameters, float32", "PyTorch"): "both spend most of a step in the same "
    "oneDNN convolutions.",
    (
        "prepare, workers",
        "local processes",
    ): "results travel through the scheduler, one more process on the same cores.",
    ("predict, workers", "one local process"): "a task reads its first batch before the network can start; on one "
    "machine, more workers share its cores.",
    ("search for copies and split", "10,000 slices"): "hash tables no longer fit in the processor's caches.",
    ("peak memory of the caller", "10,000 slices"): "below 2 kB a slice: names, places and fingerprints of all.",
    ("step, ", "the fastest convolution"): _BEYOND,
    ("prediction, ", "the fastest convolution"): _BEYOND,
    ("of it libraries", "plain Keras"): "includes Adam's moments, which Keras creates in the first step.",
    ("peak memory, aggressive", "conservative"): "ours with fewer gradients.",
    ("peak memory, aggressive", "PyTorch"): "the next two lines of the table divide it.",
    (
        "peak memory with --save-memory",
        "PyTorch",
    ): "TensorFlow's libraries take more, as the lines of the table before the first step show.",
    ("of it libraries", "PyTorch"): "TensorFlow and Keras before any computation, and Adam's moments.",
    ("of it added by training", "PyTorch"): "tensors that are alive at the same time, by TensorFlow's allocator.",
    (
        "peak memory of evaluate",
        "300 slices",
    ): "resampled patients for the intervals, up to a bound, and each slice's scores.",
    ("search for copies", "2,000 slices"): "with more slices, more of them share a key of the hash tables.",
    (
        "SavedModel",
        "tf.saved_model.load",
    ): "it returns functions; kerasseg builds layers, copies weights and compares outputs.",
    (
        "peak memory, SavedModel",
        "tf.saved_model.load",
    ): "weights exist twice while they are copied, and outputs are compared.",
    ("fixed cost of a step", "plain Keras"): "our step also returns loss and Dice per slice and keeps BatchNorm's "
    "statistics in case memory runs out: milliseconds, where a real step takes seconds.",
    ("grey to 3 channels, cache in", "tf.data"): _LOCK,
    ("3 channels, cache in", "tf.data"): _LOCK,
}


CHART = "images/benchmarks-job.svg"
"""Where the time of the whole job goes, below the folder of documents."""

_COLOURS = ("#8da0cb", "#66c2a5", "#fc8d62", "#e78ac3")


def chart(document: dict[str, Any]) -> str:
    """Return a bar chart (SVG) of the stages of the whole job, kerasseg's and the script's."""
    _, *stages = (Result.read(item) for item in document["parts"]["job"]["results"])
    names = [stage.name.removeprefix("of it kerasseg ") for stage in stages]
    bars = {"kerasseg": [stage.ours for stage in stages], "a plain Keras script": [stage.peer for stage in stages]}
    scale, shapes = 480 / max(map(sum, bars.values())), []
    for row, (who, seconds) in enumerate(bars.items()):
        left, top = 150.0, 20 + 50 * row
        shapes.append(f'<text x="140" y="{top + 20}" text-anchor="end">{who}</text>')
        for value, colour in zip(seconds, _COLOURS, strict=True):
            shapes.append(f'<rect x="{left:.1f}" y="{top}" width="{value * scale:.1f}" height="30" fill="{colour}"/>')
            left += value * scale
        shapes.append(f'<text x="{left + 8:.1f}" y="{top + 20}">{figure(sum(seconds))} s</text>')
    for place, (name, colour) in enumerate(zip(names, _COLOURS, strict=True)):
        shapes.append(f'<rect x="{150 + 130 * place}" y="125" width="12" height="12" fill="{colour}"/>')
        shapes.append(f'<text x="{168 + 130 * place}" y="136">{name}</text>')
    body = "\n".join(shapes)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 150" font-family="sans-serif" font-size="14" '
        'fill="#777">\n'
        f"<title>Seconds of each stage of the whole job</title>\n{body}\n</svg>\n"
    )


def page(document: dict[str, Any]) -> str:
    """Return the page of headline ratios, and of the lines where kerasseg is behind.

    Args:
        document: The content of `results.json`.
    """
    parts = {part: [Result.read(item) for item in found["results"]] for part, found in document["parts"].items()}
    lines = ["| what | against | times as fast, or as small |", "| --- | --- | --- |"]
    for label, part, name, peer in HEADLINES:
        for result in parts.get(part, []):
            if result.name.startswith(name) and result.peer_name.startswith(peer):
                mark = "**" if slower(result) else ""
                lines.append(f"| {label} | {result.peer_name} | {mark}{result.ratio}{mark} |")
                break
    behind = [_reason(result) for results in parts.values() for result in results if slower(result)]
    blocks = [_HEAD, "## Headline ratios\n", "\n".join(lines) + "\n"]
    shown = {part for _, part, _, _ in HEADLINES} & parts.keys()
    if machines := sorted({_machine(document["parts"][part]["machine"], load=False) for part in shown}):
        blocks += [f"{machine}\n" for machine in machines]
    if "job" in parts:
        blocks += ["## Where the time of a whole job goes\n", f"{parts['job'][0].name.capitalize()}:\n"]
        blocks += [f"![Seconds of each stage, of kerasseg and of a plain Keras script]({CHART})\n"]
    blocks += ["## What is behind\n", "\n".join(behind) + "\n" if behind else "Nothing, by these figures.\n"]
    if missing := [title for part, title in TITLES.items() if part not in parts]:
        blocks.append(f"Not measured yet: {', '.join(missing)}.\n")
    return "\n".join(blocks)


def tables(document: dict[str, Any]) -> str:
    """Return the page of all tables.

    Args:
        document: The content of `results.json`.
    """
    blocks = [_TABLES_HEAD]
    for part, found in document["parts"].items():
        blocks.append(f"## {TITLES[part]}\n")
        if part in INTRODUCTIONS:
            blocks.append(INTRODUCTIONS[part] + "\n")
        blocks.append("\n".join(_table([Result.read(item) for item in found["results"]])) + "\n")
        took = f" It took {found['seconds'] / 60:.1f} minutes." if "seconds" in found else ""
        blocks.append(_machine(found["machine"]) + took + "\n")
    return "\n".join(blocks)


def slower(result: Result) -> bool:
    """Return whether a peer or a goal is ahead, by processor time if it is known."""
    ratio = (result.processor or result.ratio).median
    return ratio < (0.97 if result.goal is None else result.goal)


def _table(results: list[Result]) -> list[str]:
    lines = [
        "| what | ours | against | peer | peer / ours, time | in processor time | rounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        mark = "**" if slower(result) else ""
        goal = "" if result.goal in (None, 0.0, 1.0) else f" (goal {result.goal:g})"
        remark = f" ({result.remark})" if result.remark else ""
        lines.append(
            f"| {result.name}{remark} | {figure(result.ours)} {result.unit} | {result.peer_name} | "
            f"{figure(result.peer)} {result.unit} | {mark}{result.ratio}{mark}{goal} | {result.processor or ''} | "
            f"{result.rounds} |"
        )
    return lines


def _machine(machine: dict[str, Any], *, load: bool = True) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = f", load {machine['load']} at the end" if load else ""
    return (
        f"{machine['date']}: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{machine['memory_gib']} GiB{busy}; {machine['system']}; {versions}."
    )


def _reason(result: Result) -> str:
    reason = next(
        (
            why
            for (name, peer), why in REASONS.items()
            if result.name.startswith(name) and result.peer_name.startswith(peer)
        ),
        "",
    )
    ratio = result.processor or result.ratio
    return f"- {result.name}, against {result.peer_name}: {ratio}" + (f"; {reason}" if reason else "")
