"""`docs/benchmarks.md`, made from `benchmarks/results.json`: it holds only figures that were printed."""

from __future__ import annotations

from typing import Any

from benchmarks.result import Result, figure

TITLES = {
    "startup": "Start-up",
    "prepare": "Prepare",
    "pipeline": "Input",
    "freezing": "What freezing saves, counted",
    "training": "A step of training",
    "training_others": "A step of training: slower peers, fixed costs",
    "prediction": "Prediction",
    "thresholds": "Thresholds and post-processing",
    "distances": "Distances",
    "scale": "Scale",
    "augmentation": "Augmentation alone",
    "duplicates": "The search for copies",
    "open_savedmodel": "Opening a SavedModel",
}
INTRODUCTIONS = {
    "startup": "New processes, from the start to the end.",
    "prepare": "`kerasseg prepare` against a loop that only opens and reads the same .mat files, and against a script "
    "that reads everything, resizes it and calls `np.stack`. The start of worker processes is counted, imports are not.",
    "pipeline": "Augmented batches of 8 slices, 256x256, after the first epoch, against what people write.",
    "freezing": "Frozen blocks are still run forward; only gradients are saved.",
    "training": "The default U-Net, 256x256x3, batch 8. Plain Keras and PyTorch train everything, on the same network, "
    "with the same loss and optimizer. Each is a process of its own. Peak memory is that of the process, and told apart: "
    "what it had before the first step, when libraries were imported and the network was built, and what training added. "
    "Ours makes Adam's moments before the first step, the others in it: only the whole peak is the same work.",
    "training_others": "As above; where half a minute goes into a step, there are fewer rounds.",
    "prediction": "The same files from disk to mask on disk: a SavedModel of others and real slices where "
    "`KERASSEG_REAL_DATA` has them, else synthetic ones. Ours reads, computes and writes at once; the peers in turn, as "
    "one writes it first. PyTorch has the same weights in the same layers, in eager inference mode.",
    "thresholds": "Synthetic slices, as a network that is fairly sure of itself, or not (soft), puts them out.",
    "distances": "HD95 of tumours of radius 20 in 256x256. surface-distance is written from its formulae; Metrics "
    "Reloaded is on no package index, and its definition stands here in SciPy.",
    "scale": "The cost of a slice where there are many more of them, 64x64. The peer is ourselves with few slices: flat is "
    "a ratio near 1.",
    "augmentation": "256x256, all four augmentations, in a `tf.data` pipeline from slices in memory.",
    "duplicates": "Drawn heads, bent at random; one in forty has a copy, mirrored and through JPEG.",
    "open_savedmodel": "`tf.saved_model.load` gives functions; ours gives Keras layers that can be frozen and trained. "
    "Imports are not in the seconds.",
}
_HEAD = """# Benchmarks

`make bench` prints every figure of this page, in an environment of its own (`benchmarks/requirements.txt`), and
writes it and `benchmarks/results.json`. `.venv-bench/bin/python -m benchmarks training distances` measures parts of
it again; `--help` says how many minutes each takes. All of it takes about forty on two cores, and 10 GB of memory.

**How to read it.** Ours and the peer take turns in one run; the ratio is the peer's cost over ours, the median (and
the range) of the rounds: above 1 we are cheaper. Where others work on a machine at the same time, wall clocks of one
round differ several fold, and so the ratio is given in processor time, too, which is disturbed less. A line that is
measured below its goal, below 1 where a peer does the same, or below 0.97 elsewhere, by processor time where it is known,
is **bold**, and stands again in the list at the end.
"""
# Why a peer is ahead, by how the line begins and whom it is compared with.
_LOCK = (
    "two threads of ours meet at Python's lock, some ten times a slice; without a cache each slice is decoded again "
    "every epoch, too, where the peer keeps it."
)
REASONS: dict[tuple[str, str], str] = {
    ("kerasseg --help", "Python alone"): "an interpreter that does nothing is the bound, not a peer.",
    ("import kerasseg", "Python alone"): "an interpreter that does nothing is the bound, not a peer.",
    (
        "prepare",
        "only reading",
    ): "reading is the bound: we resize, normalise, search for duplicates, write and hash besides.",
    (
        "prepare --jobs 2",
        "prepare --jobs 1",
    ): "what starts and feeds a second process is processor time; what it saves is time by the clock.",
    ("predict, float32", "the SavedModel"): "both compute the same convolutions in float32, which are most of it.",
    ("of it libraries", "plain Keras"): "Adam's moments are among it; Keras makes them in the first step.",
    ("peak memory, aggressive", "conservative"): "ourselves, with fewer gradients to keep.",
    ("peak memory, aggressive", "PyTorch"): "the two lines below it in the table say what of it are libraries.",
    ("of it libraries", "PyTorch"): "TensorFlow and Keras, before anything is computed, and Adam's moments.",
    (
        "of it added by training",
        "PyTorch",
    ): "tensors that are needed at once, by the count of TensorFlow's allocator; its pool keeps little besides.",
    (
        "peak memory of evaluate",
        "300 slices",
    ): "the draws of patients for the intervals are held, up to a bound, and the scores of each slice.",
    ("search for copies", "2,000 slices"): "more slices share a key of the tables where there are more.",
    (
        "SavedModel",
        "tf.saved_model.load",
    ): "it gives functions; ours builds layers, copies weights and compares outputs.",
    (
        "peak memory, SavedModel",
        "tf.saved_model.load",
    ): "the weights are there twice while they are copied, and activations of the comparison.",
    (
        "fixed cost of a step",
        "plain Keras",
    ): "a step of ours gives back loss and Dice of each slice, and keeps BatchNorm's "
    "statistics for the case that memory runs out: milliseconds, where a real step takes seconds.",
    ("grey to 3 channels, cache in", "tf.data"): _LOCK,
    ("3 channels, cache in", "tf.data"): _LOCK,
    ("whole search", "99 thresholds"): "the search tries post-processing rules after the threshold; the loop does not.",
}


def page(document: dict[str, Any]) -> str:
    """The page.

    Args:
        document: What `results.json` holds.
    """
    blocks, behind = [_HEAD], []
    for part, found in document["parts"].items():
        results = [Result.read(item) for item in found["results"]]
        blocks.append(f"## {TITLES[part]}\n")
        if part in INTRODUCTIONS:
            blocks.append(INTRODUCTIONS[part] + "\n")
        blocks.append("\n".join(_table(results)) + "\n")
        took = f" It took {found['seconds'] / 60:.1f} minutes." if "seconds" in found else ""
        blocks.append(_machine(found["machine"]) + took + "\n")
        behind += [result for result in results if slower(result)]
    blocks.append("## Where we are behind\n")
    blocks.append("\n".join(_reason(result) for result in behind) + "\n" if behind else "Nowhere, by these figures.\n")
    if missing := [title for part, title in TITLES.items() if part not in document["parts"]]:
        blocks.append(f"Not measured yet, so that nothing is claimed: {', '.join(missing)}.\n")
    return "\n".join(blocks)


def slower(result: Result) -> bool:
    """Whether a peer, or a goal, is ahead of us: by processor time where the line has it."""
    ratio = (result.processor or result.ratio).median
    return ratio < (0.97 if result.goal is None else result.goal)


def _table(results: list[Result]) -> list[str]:
    lines = [
        "| what | ours | against | peer | peer / ours, time | in processor time | rounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        mark = "**" if slower(result) else ""
        goal = "" if result.goal in (None, 1.0) else f" (goal {result.goal:g})"
        remark = f" ({result.remark})" if result.remark else ""
        lines.append(
            f"| {result.name}{remark} | {figure(result.ours)} {result.unit} | {result.peer_name} | "
            f"{figure(result.peer)} {result.unit} | {mark}{result.ratio}{mark}{goal} | {result.processor or ''} | "
            f"{result.rounds} |"
        )
    return lines


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{machine['memory_gib']} GiB, load {machine['load']} at the end; {machine['system']}; {versions}."
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
