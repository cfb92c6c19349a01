"""Check versions, devices, memory, shards and runs, with one line of advice for each problem."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.text import count
from kerasseg_tfrecords.workers import available_cpus

Verdict = Literal["ok", "note", "warning", "bad"]
Topic = Literal["versions", "extras", "machine", "environment", "shards", "runs"]

SUPPORTED = {
    "python": "3.11",
    "keras": "3.15",
    "tensorflow": "2.18",
    "numpy": "1.26",
    "opencv-python-headless": "4.10",
    "h5py": "3.14",
}
"""Lowest supported versions of the packages that affect results; the same as in pyproject.toml."""

EXTRAS = {
    "app": ("web page", "gradio"),
    "cluster": ("Dask clusters", "distributed"),
    "dicom": ("compressed DICOM, DICOM SEG", "highdicom"),
    "mlflow": ("tracking", "mlflow"),
    "onnx": ("ONNX export", "tf2onnx"),
    "openvino": ("another engine of predict", "openvino"),
    "remote": ("s3:// inputs and shards", "s3fs"),
    "volumes": (".mha, .mgz, .hdr", "SimpleITK"),
    "wandb": ("tracking", "wandb"),
}
"""Extras except `gpu`, which is found by its GPUs -> purpose, and the package that only this extra installs."""

_LITTLE_MEMORY, _LITTLE_DISK = 4e9, 3e9
"""Bytes. Training the 31-million-parameter network takes about 3 GB of memory, its run 1.5 GB of disk."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        topic: "versions", "extras", "machine", "environment", "shards" or "runs".
        name: What was checked.
        value: What was found.
        verdict: "ok"; "note": for information; "warning": needs attention; "bad": does not work.
        advice: What to do, in one line; "" for nothing.
    """

    topic: Topic
    name: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of all checks.

    Attributes:
        findings: Results in the order of the topics.
    """

    findings: tuple[Finding, ...]

    @property
    def data_bad(self) -> bool:
        """Whether shards or runs are damaged."""
        return any(f.verdict == "bad" and f.topic in ("shards", "runs") for f in self.findings)

    @property
    def installation_bad(self) -> bool:
        """Whether kerasseg does not work in this installation."""
        return any(f.verdict == "bad" and f.topic not in ("shards", "runs") for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "sound": not (self.data_bad or self.installation_bad),
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(folder: Path | str = ".") -> Diagnosis:
    """Check the installation, the machine, and the shards and runs in a folder, without changing anything.

    Args:
        folder: Working folder, which contains `shards` and `runs`.

    Example:
        >>> import tempfile
        >>> found = examine(tempfile.mkdtemp())
        >>> found.data_bad, [f.value for f in found.findings if f.topic in ("shards", "runs")]
        (False, ['none in this folder', 'none in this folder'])
    """
    here = Path(folder)
    parts = (_versions(), _extras(), _machine(here), _environment(), _shards(here / "shards"), _runs(here / "runs"))
    return Diagnosis(tuple(finding for part in parts for finding in part))


# --- the installation ----------------------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    from kerasseg_tfrecords._version import __version__

    yield Finding("versions", "kerasseg", __version__)
    for name, least in SUPPORTED.items():
        found = _installed(name)
        if found is None:
            advice = f"pip install '{name}>={least}'"
            yield Finding("versions", name, "not installed", "bad", advice)
        elif _numbers(found) < _numbers(least):
            advice = f"Make a new environment with Python {least} or later."
            if name != "python":
                advice = f"pip install --upgrade '{name}>={least}'"
            yield Finding("versions", name, f"{found}, older than {least}", "warning", advice)
        else:
            yield Finding("versions", name, found)


def _extras() -> Iterator[Finding]:
    for extra, (purpose, package) in EXTRAS.items():
        found = _installed(package)
        text = f"not installed: pip install 'kerasseg[{extra}]'" if found is None else f"{package} {found}"
        yield Finding("extras", f"[{extra}]", f"{purpose}; {text}", "note" if found is None else "ok")


def _installed(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


# --- the machine ---------------------------------------------------------------------------------------------------------


def _machine(here: Path) -> Iterator[Finding]:
    yield Finding("machine", "processors", str(available_cpus()))
    yield from _devices()
    total, available = _memory()
    text = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available"
    little = available < _LITTLE_MEMORY
    advice = "This is little for training: close other programs, or train with --batch-size 2." if little else ""
    yield Finding("machine", "memory", text, "warning" if little else "ok", advice)
    free = shutil.disk_usage(here).free
    little = free < _LITTLE_DISK
    advice = "A run takes up to 1.5 GB, the data 0.9 GB: free some space, or use another disk." if little else ""
    yield Finding("machine", "disk", f"{free / 1e9:.1f} GB free", "warning" if little else "ok", advice)


def _devices() -> Iterator[Finding]:
    from kerasseg.training.precision import choose_precision

    there = _nvidia()
    gpus, capability, trouble = _gpus() if there or _installed("tensorflow-metal") else ([], None, _load_error())
    if trouble:
        advice = "Install kerasseg in a new environment: pip install kerasseg"
        yield Finding("machine", "TensorFlow", f"cannot be loaded ({trouble})", "bad", advice)
        return
    precision = choose_precision("auto", gpu=bool(gpus), capability=capability)
    if gpus:
        memory = f"; {', '.join(there)}" if there else ""
        yield Finding("machine", "GPU", f"{', '.join(gpus)}{memory}")
    elif there and not _hidden():
        advice = "pip install 'kerasseg[gpu]' installs the libraries that TensorFlow needs for GPUs."
        yield Finding("machine", "GPU", f"{', '.join(there)}, but TensorFlow does not see it", "warning", advice)
    else:
        advice = "Training runs on the CPU, which is slower." if not there else ""
        yield Finding("machine", "GPU", "none", "note", advice)
    name = precision.name
    yield Finding(
        "machine", "precision", f"{name}: {precision.reason}", "ok", "This is what train --precision auto uses."
    )


def _gpus() -> tuple[list[str], tuple[int, int] | None, str]:
    """Import TensorFlow, and return the GPUs that it sees, the compute capability of the first, and what went wrong."""
    try:
        from kerasseg.training.devices import compute_capability, gpu_names

        return gpu_names(), compute_capability(), ""
    except Exception as error:  # an installation can be broken in any way
        return [], None, f"{type(error).__name__}: {error}"


def _load_error() -> str:
    """Load TensorFlow's library in a process of its own, faster than an import; return what went wrong, or ""."""
    spec = find_spec("tensorflow")
    if spec is None or spec.origin is None:
        return "not installed"
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    for library in sorted(Path(spec.origin).parent.glob("libtensorflow_cc.*")):
        try:
            command = [sys.executable, "-S", "-c", load, str(library)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.returncode < 0:
            return f"it crashes with signal {-done.returncode}, as software for another processor does"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
    return ""


def _nvidia() -> list[str]:
    """Return name and memory of each GPU that the NVIDIA driver reports."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,memory.free,memory.total"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10, check=True
        )
        lines = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        return [f"{name} ({int(free) / 1024:.0f} of {int(total) / 1024:.0f} GiB free)" for name, free, total in lines]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def _memory() -> tuple[float, float]:
    """Return total and available bytes of memory of the machine, or of the container."""
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    available = total
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        available = float(found[1]) * 1024 if found else total
    except OSError:
        pass
    try:
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text())
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # "max": no limit
        return total, available
    return min(total, limit), min(available, max(limit - used, 0.0))


# --- the environment -----------------------------------------------------------------------------------------------------


def _environment() -> Iterator[Finding]:
    yield _backend()
    told = os.environ.get("TF_CONFIG")
    if told:
        try:
            workers = json.loads(told)["cluster"]["worker"]
            advice = "Training waits for all of them; unset TF_CONFIG to train on this machine only."
            yield Finding("environment", "TF_CONFIG", count(len(workers), "machine"), "note", advice)
        except (ValueError, KeyError, TypeError):
            advice = "Unset it, or correct it: docs/training.md shows the format."
            yield Finding("environment", "TF_CONFIG", "cannot be read", "warning", advice)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is not None:
        advice = "It hides all GPUs: unset it to train on them." if _hidden() else "Other GPUs are hidden."
        yield Finding("environment", "CUDA_VISIBLE_DEVICES", repr(seen), "note", advice)


def _backend() -> Finding:
    # As Keras reads them, whose import takes seconds.
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        stored = json.loads((home / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    backend = os.environ.get("KERAS_BACKEND") or stored.get("backend", "tensorflow")
    order = stored.get("image_data_format", "channels_last")
    if backend != "tensorflow":
        advice = "The commands need TensorFlow: unset KERAS_BACKEND, or correct ~/.keras/keras.json."
        return Finding("environment", "Keras backend", backend, "bad", advice)
    if order != "channels_last":
        advice = "Set image_data_format to channels_last in ~/.keras/keras.json."
        return Finding("environment", "Keras backend", f"{backend}, {order}", "bad", advice)
    return Finding("environment", "Keras backend", backend)


# --- shards --------------------------------------------------------------------------------------------------------------


def _shards(folder: Path) -> Iterator[Finding]:
    from kerasseg_tfrecords.checks.shards import check_files
    from kerasseg_tfrecords.records.manifest import load_manifest

    if not folder.exists():
        yield Finding("shards", "shards", "none in this folder", "note", "Create them: kerasseg prepare data/")
        return
    try:
        wrong = check_files(folder)
        manifest = load_manifest(folder)
    except KerassegError as error:
        yield Finding("shards", folder.name, error.sentence(), "bad", f"kerasseg prepare data/ --out {folder.name}")
        return
    slices = sum(shard.records for shard in manifest.shards)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        advice = f"kerasseg verify {folder.name} lists all problems; then run prepare again with --overwrite."
        yield Finding("shards", folder.name, f"{wrong[0]}{more}", "bad", advice)
    else:
        text = f"{count(slices, 'slice')} in {count(len(manifest.shards), 'file')}, all hashes correct"
        yield Finding("shards", folder.name, text, "ok", "")
    if manifest.split.patients_on_both_sides:
        patients = count(manifest.split.patients_on_both_sides, "patient")
        advice = "This makes figures too good: run prepare again with --split-by patient."
        yield Finding("shards", "split", f"{patients} in more than one split", "warning", advice)
    elif manifest.split.slices_without_patient:
        text = f"{count(manifest.split.slices_without_patient, 'slice')} of unknown patients"
        advice = "A leak is possible: if file names contain the patient, run prepare again with --patient-pattern."
        yield Finding("shards", "split", text, "note", advice)
    for split in ("val", "test"):
        if not manifest.slices_in(split):
            advice = "Run prepare again with other shares, such as --split 80/10/10."
            yield Finding("shards", "split", f"no slices in {split}", "warning", advice)


# --- runs ----------------------------------------------------------------------------------------------------------------


def _runs(folder: Path) -> Iterator[Finding]:
    from kerasseg.workflows.status import run_names

    names = run_names(folder)
    if not names:
        yield Finding("runs", "runs", "none in this folder", "note", "Start one: kerasseg train --checkpoint FILE")
        return
    try:
        latest = read_file(folder / "latest", 4096).decode().strip()
        if not (folder / latest / "config.json").is_file():
            advice = "Give a run in each command, or train a new one."
            yield Finding("runs", "latest", f"{latest} does not exist any more", "warning", advice)
    except (OSError, UnicodeDecodeError):
        yield Finding("runs", "latest", "not set", "warning", "Give a run in each command.")
    for name in names:
        yield _run(folder / name)


def _run(root: Path) -> Finding:
    """Return the most serious problem of a run."""
    from kerasseg.runs.directory import RunDirectory
    from kerasseg.workflows.status import newest_facts

    run, name = RunDirectory(root), root.name
    try:
        config = run.config()
    except KerassegError as error:
        return Finding(
            "runs", name, error.sentence(with_path=False), "bad", "Start a new run, if possible from its model.keras."
        )
    if run.is_running():
        return Finding("runs", name, "is being trained now", "note", "Wait until it has finished.")
    facts = newest_facts(run.state_folder)
    saved = any(run.state_folder.glob("state-*.npz"))
    again = f"kerasseg train --resume --out {root}"
    if saved and facts is None:
        advice = f"It cannot be resumed; start a new run: kerasseg train --checkpoint {run.model_file}"
        return Finding("runs", name, "its saved training state is damaged", "bad", advice)
    if facts is not None and not facts.get("finished"):
        return Finding("runs", name, f"interrupted after epoch {facts.get('epoch', 0)}", "warning", again)
    network = _network(run)
    if network is not None:
        return network
    rule = _rule(run)
    return rule or _data(run, _at(root.parent.parent, config.settings.shards), config.resolved.fingerprint)


def _network(run: Any) -> Finding | None:
    from kerasseg_tfrecords.formats.weights import is_whole

    for path in (run.model_file, run.baseline_file):
        with contextlib.suppress(DataError):  # it takes too long, or too much memory
            if path.is_file() and is_whole(path):
                continue
        text = f"{path.name} is {'damaged' if path.is_file() else 'missing'}"
        return Finding("runs", run.root.name, text, "bad", "Restore it from a copy of the run, or train again.")
    return None


def _rule(run: Any) -> Finding | None:
    from kerasseg.tuning.threshold_file import StaleRuleError, load_threshold

    name, tune = run.root.name, f"kerasseg tune-threshold {run.root}"
    if not run.threshold_file.is_file():
        return Finding("runs", name, "trained; threshold not tuned yet", "note", tune)
    try:
        load_threshold(run)
    except StaleRuleError:
        return Finding("runs", name, "its threshold was tuned for other weights", "warning", tune)
    except KerassegError as error:
        return Finding("runs", name, f"threshold.json: {error.what}", "bad", tune)
    return None


def _at(folder: Path, shards: str) -> str:
    from kerasseg_tfrecords.storage import url_of

    return url_of(shards) or str(folder / shards)


def _data(run: Any, shards: str, fingerprint: str) -> Finding:
    from kerasseg_tfrecords.records.manifest import load_manifest

    name = run.root.name
    try:
        other = load_manifest(shards).fingerprint != fingerprint
    except KerassegError:
        advice = "If you moved them, give their new location with --shards."
        return Finding("runs", name, f"complete, but its shards are not at {shards}", "note", advice)
    if other:
        advice = "Give commands the shards that it was trained on with --shards."
        return Finding("runs", name, f"the shards at {shards} are not those it was trained on", "warning", advice)
    return Finding("runs", name, "complete: trained, tuned, shards in place")
