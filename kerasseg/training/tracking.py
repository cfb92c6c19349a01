"""Send a run to MLflow or Weights & Biases: `kerasseg train --track`.

A tracker is an `Observer`. It works in its own thread, so that a server that is slow or down does not hold up training.
Figures that could not be sent are sent later, at the latest when the run is resumed; `tracking.json` in the run directory
records the tracker's run and how many lines of the history it has.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from kerasseg.checkpoints.provenance import public_name
from kerasseg.runs.config import RunConfig
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import EpochRow
from kerasseg.training.events import Began, Ended, Evaluated, Event, Message
from kerasseg.training.tensorboard import scalars
from kerasseg_tfrecords.documents import read_document
from kerasseg_tfrecords.errors import KerassegError, UsageError, one_line
from kerasseg_tfrecords.files import write_atomically
from kerasseg_tfrecords.text import without_credentials

if TYPE_CHECKING:
    from kerasseg.evaluation.schema import Evaluation

FILE = "tracking.json"
_FORMAT_VERSION = 1
_LOG = logging.getLogger("kerasseg")
_TITLES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
_PROJECT = "kerasseg"
_LAST = 600.0
"""Seconds that the end of a run waits for uploads at most; a failed request ends the wait."""
_FAILED = 20.0
"""The same where training failed or was interrupted twice."""
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own defaults wait for minutes, and print. What the user has set stays."""


class TrackerEntry(BaseModel):
    """One tracker of a run: where, its run there, and how many lines of the history it has."""

    model_config = ConfigDict(extra="forbid")

    tracker: Literal["mlflow", "wandb"]
    uri: str | None = None
    id: str | None = None
    rows: int = Field(default=0, ge=0)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format_version: int = _FORMAT_VERSION
    trackers: list[TrackerEntry]


def parse_trackers(texts: Iterable[str]) -> list[TrackerEntry]:
    """Parse the values of `--track`: `mlflow`, `mlflow:URI` or `wandb`.

    Example:
        >>> parse_trackers(["tensorboard"])
        Traceback (most recent call last):
            ...
        kerasseg_tfrecords.errors.UsageError: --track cannot be 'tensorboard' (expected mlflow, mlflow:URI or wandb)
    """
    entries: list[TrackerEntry] = []
    for text in dict.fromkeys(texts):
        name, _, uri = text.partition(":")
        if name not in _TITLES or (uri and name == "wandb"):
            shown = name if "@" in uri else without_credentials(text)
            raise UsageError(f"--track cannot be {shown!r}", expected="mlflow, mlflow:URI or wandb")
        if without_credentials(uri) != uri:
            raise UsageError(
                "--track takes no password or query in the address",
                remedy="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole address as "
                "MLFLOW_TRACKING_URI.",
            )
        if any(entry.tracker == name for entry in entries):
            raise UsageError(f"--track names {name} twice")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{_TITLES[name]} is not installed", remedy=f"Install it: pip install 'kerasseg[{name}]'")
        entries.append(TrackerEntry.model_validate({"tracker": name, "uri": _anywhere(uri) or None}))
    return entries


def begin_tracking(run: RunDirectory, trackers: Sequence[TrackerEntry]) -> None:
    """Record the trackers of a new run; `trackers_of` then gives them, also when the run is resumed."""
    if trackers:
        _write(run, trackers)


def trackers_of(run: RunDirectory) -> list[Tracker]:
    """Return an observer for each tracker of a run; none where there are none."""
    entries = _read(run)
    lock = threading.Lock()

    def keep() -> None:
        with lock:
            _write(run, entries)

    return [Tracker(run, entry, keep) for entry in entries]


class Tracker:
    """An observer that sends parameters, the figures of each epoch, curves and the best network.

    Args:
        run: The run directory, with its configuration.
        entry: The tracker; its `id` and `rows` are updated.
        keep: Writes the entry to the run.
    """

    def __init__(self, run: RunDirectory, entry: TrackerEntry, keep: Callable[[], None]) -> None:
        self._run, self._entry, self._keep = run, entry, keep
        self._title = _TITLES[entry.tracker]
        self._history: tuple[EpochRow, ...] = ()
        self._reason: str | None = None
        self._client: _Client | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None
        self._warned = False
        self._problem: Callable[[Message], None] = lambda message: _LOG.warning(message.text)

    def report_to(self, say: Callable[[Message], None]) -> Tracker:
        """Give the warning about a tracker that is down to a function; by default it goes to the log."""
        self._problem = say
        return self

    def __call__(self, event: Event) -> None:
        """Receive an event; nothing is raised, and only the end of the run waits for the tracker."""
        if isinstance(event, Message):
            return
        match event:
            case Began():
                self._thread = threading.Thread(target=self._work, name=f"kerasseg-{self._entry.tracker}", daemon=True)
                self._thread.start()
                self._wake.set()
            case Evaluated(history=history):
                self._history = history
                self._wake.set()
            case Ended(history=history, reason=reason):
                self._history = history
                self._end(reason, _LAST)
        self._warn()

    def fail(self) -> None:
        """End the tracker's run as failed, where training ends with an exception and therefore without `Ended`."""
        if self._reason is None:
            self._end("failed", _FAILED)

    def _end(self, reason: str, seconds: float) -> None:
        self._reason = reason
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _warn(self) -> None:
        """Say once that the tracker is down. In the training thread, as every message."""
        if self._trouble is not None and not self._warned:
            self._warned = True
            text = (
                f"{self._title} cannot be reached ({self._trouble}). Training continues; what is missing there is sent "
                "when it answers again, or when the run is resumed."
            )
            self._problem(Message("warning", "tracker-down", text))

    # --- the thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            reason = self._reason
            try:
                self._send(reason)
            except Exception as error:  # of whatever kind: the tracker is somebody else's program
                self._trouble = _gist(error)
            if reason is not None:
                return

    def _send(self, reason: str | None) -> None:
        if self._client is None:
            client = _client(self._entry)
            client.open(_Opening(self._run, self._entry.id, self._remember, parameters(self._run.config())))
            self._client = client
        history = self._history
        while self._entry.rows < len(history):
            step = self._entry.rows
            self._client.log(step, scalars(history[step]))
            self._entry.rows = step + 1
            self._keep()
        if reason is not None:
            files = {"curves": self._run.curves_file, "history": self._run.history_file}
            if reason in ("finished", "stopped"):
                files["model"] = self._run.model_file
            self._client.upload({name: path for name, path in files.items() if path.is_file()})
            self._client.close(reason)

    def _remember(self, identifier: str, uri: str | None) -> None:
        # The address may be that of MLFLOW_TRACKING_URI; with a password in it, it is read there again.
        self._entry.id, self._entry.uri = identifier, uri if uri is None or without_credentials(uri) == uri else None
        self._keep()


def track_evaluation(run: RunDirectory, folder: Path, evaluation: Evaluation) -> None:
    """Add the report and the Dice of an evaluation to the run's trackers; what goes wrong is a warning in the log."""
    try:
        entries = _read(run)
    except KerassegError as error:
        _LOG.warning(str(error))
        return
    for entry in entries:
        try:
            client = _client(entry)
            client.open(_Opening(run, entry.id))
            dice = evaluation.final_stage().all.measures["dice"].mean
            if dice is not None:
                client.summarise({f"{evaluation.split}/dice": dice})
            name = f"evaluation/{folder.name}"
            client.upload({name: folder / "metrics.json", f"{name}/report": folder / "report.html"})
            client.close("finished")
        except Exception as error:  # as in training
            text = f"{_TITLES[entry.tracker]} did not take the report ({_gist(error)}). Evaluate again to send it."
            _LOG.warning(text)


def parameters(config: RunConfig) -> dict[str, str]:
    """What a run was asked for and resolved to, name -> text, without paths of this machine."""
    settings = config.settings.model_dump(mode="json")
    for name in ("checkpoint", "encoder_weights"):
        settings[name] = None if settings[name] is None else public_name(settings[name])
    settings["shards"] = Path(settings["shards"]).name
    resolved = config.resolved
    settings |= {"precision": resolved.precision, "learning_rate": settings["learning_rate"] or resolved.rates}
    names = ["precision", "devices", "phases", "rates", "frozen", "parameters", "trained", "steps", "fingerprint"]
    names += ["intensity", "size", "channels", "input_channels", "classes"]
    facts = {name: getattr(resolved, name) for name in names}
    facts["slices"] = {split: sum(counts.values()) for split, counts in resolved.slices.items()}
    facts["opened"] = None if resolved.checkpoint is None else public_name(resolved.checkpoint)
    software = {"kerasseg": config.kerasseg, **config.software}
    return {**_flat("", settings), **_flat("resolved.", facts), **_flat("software.", software)}


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as one level of names, empty ones left out."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}{name}.", value)
        elif value is not None and value not in ((), []):
            found[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return found


# --- MLflow and Weights & Biases ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opening:
    """A run to begin at a tracker, or to continue there if it has an identifier.

    Attributes:
        run: The run directory.
        identifier: The tracker's identifier of the run.
        remember: Called with a new identifier and address; None to add to a run without changing its state.
        parameters: Sent with it.
    """

    run: RunDirectory
    identifier: str | None
    remember: Callable[[str, str | None], None] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.run.root.absolute().name

    def new(self, identifier: str, uri: str | None) -> str:
        if self.remember is not None:
            self.remember(identifier, uri)
        return identifier


class _Client(Protocol):
    """What a tracker can do. Every method may raise anything."""

    def open(self, run: _Opening) -> None:
        """Begin or continue a run there."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the figures of one line of the history."""

    def summarise(self, values: Mapping[str, float]) -> None:
        """Send figures of the whole run."""

    def upload(self, files: Mapping[str, Path]) -> None:
        """Send files, by name."""

    def close(self, reason: str) -> None:
        """End the run there."""


def _client(entry: TrackerEntry) -> _Client:
    return _Mlflow(entry.uri) if entry.tracker == "mlflow" else _Wandb()


class _Mlflow:
    def __init__(self, uri: str | None) -> None:
        for name, value in _MLFLOW.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._uri = mlflow.get_tracking_uri() if uri is None else uri
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        self._id = ""

    def open(self, run: _Opening) -> None:
        from mlflow.entities import Param

        identifier = run.identifier
        known: Mapping[str, str] = {}
        if identifier is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            # Without mlflow's fluent interface, which would record the name of the user and the path of the script.
            identifier = run.new(str(self._client.create_run(experiment, run_name=run.name).info.run_id), self._uri)
        elif run.remember is not None:
            self._client.update_run(identifier, status="RUNNING")
        if run.identifier is not None and run.parameters:
            known = self._client.get_run(identifier).data.params  # cannot be changed
        self._id = identifier
        items = [Param(name, value[:500]) for name, value in run.parameters.items() if name not in known]
        for first in range(0, len(items), 100):  # as many as a request may have
            self._client.log_batch(identifier, params=items[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def summarise(self, values: Mapping[str, float]) -> None:
        self.log(0, values)

    def upload(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            self._client.log_artifact(self._id, str(path), name.removesuffix("/report"))

    def close(self, reason: str) -> None:
        status = {"interrupted": "KILLED", "failed": "FAILED"}.get(reason, "FINISHED")
        self._client.set_terminated(self._id, status)


class _Wandb:
    def __init__(self) -> None:
        self._run: Any = None
        self._name = ""

    def open(self, run: _Opening) -> None:
        import wandb

        asked = wandb.setup().settings
        # A login prompt would wait for an answer for ever.
        if not (asked._offline or asked._noop) and not wandb.login(prompt=False):
            raise ConnectionError("not logged in: run wandb login, or set WANDB_MODE=offline")
        identifier = run.identifier or run.new(uuid.uuid4().hex[:8], None)
        self._name = run.name
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=identifier,
            name=self._name,
            dir=str(run.run.root),
            config=dict(run.parameters),
            resume="allow",
            reinit="create_new",
            allow_val_change=True,
            # No host, user, script, git remote or terminal output: a tracker is shared.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                init_timeout=30,
            ),
        )
        # W&B's own step never falls; lines of the history are counted by "epoch".
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"epoch": step, **values})

    def summarise(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def upload(self, files: Mapping[str, Path]) -> None:
        import wandb

        for name, path in files.items():
            if path.suffix == ".png":
                self._run.log({name: wandb.Image(str(path))})
                continue
            label = name.replace("/", "-")
            artifact = wandb.Artifact(f"{self._name}-{label}", type=label.rpartition("-")[2])
            artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def close(self, reason: str) -> None:
        self._run.finish(exit_code=0 if reason in ("finished", "stopped") else 1)


# --- small things ---------------------------------------------------------------------------------------------------------


def _read(run: RunDirectory) -> list[TrackerEntry]:
    path = run.root / FILE
    if not path.is_file():
        return []
    remedy = "Delete the file to continue without a tracker."
    return read_document(path, _File, _FORMAT_VERSION, "the list of trackers", remedy=remedy).trackers


def _write(run: RunDirectory, entries: Sequence[TrackerEntry]) -> None:
    write_atomically(run.root / FILE, _File(trackers=list(entries)).model_dump_json(indent=1) + "\n", durable=False)


def _anywhere(uri: str) -> str:
    """A local address in full, so that the run can be resumed from another folder.

    >>> _anywhere("http://127.0.0.1:5000")
    'http://127.0.0.1:5000'
    """
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return Path(uri).absolute().as_uri() if uri and not urlsplit(uri).scheme else uri


def _gist(error: Exception) -> str:
    """The first line of an error, without passwords in addresses."""
    lines = str(error).strip().splitlines()
    return one_line(without_credentials(lines[0]))[:200] if lines else type(error).__name__
