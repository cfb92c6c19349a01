"""Runs in MLflow (its real server on loopback) and Weights & Biases (offline): figures, resuming, servers that are down."""

from __future__ import annotations

import csv
import getpass
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluated_runs import write_run
from factories import write_figshare
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.settings import TrainSettings
from kerasseg.training.events import Ended, Evaluated, Event, Message
from kerasseg.training.tracking import FILE, parameters, parse_trackers
from kerasseg.workflows.train import resume, train
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions

# Libraries that are imported in the tracker's thread warn about one another.
pytestmark = [pytest.mark.filterwarnings("ignore")]
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    options = PrepareOptions(size=16, split="60/20/20")
    prepare(write_figshare(folder / "raw", 15, slices_each=1, size=32), folder / "shards", options, jobs=1)
    return folder / "shards"


@pytest.fixture
def settings(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSettings:
    """Of a run of two epochs that takes a second; no telemetry of the trackers."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # of a server that answers, on a busy machine
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(name, value)
    return TrainSettings(
        shards=str(shards),
        strategy="scratch",
        network={"filters": 2, "depth": 1},
        epochs=2,
        batch_size=3,
        precision="float32",
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of MLflow's own server."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**os.environ, **quiet, "PYTHONWARNINGS": ""}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *places], env=environment, stdout=log, stderr=log, start_new_session=True)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=1)  # noqa: S310 - loopback
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail((folder / "log").read_text()[-2000:])
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def messages(events: list[Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Message) and event.kind == "tracker-down"]


def entry(run: RunDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.root / FILE).read_text())["trackers"][0]
    return found


def validation_dice(run: RunDirectory) -> list[float]:
    with run.history_file.open() as stream:
        return [float(row["val_dice"]) for row in csv.DictReader(stream)]


def log_records(path: Path) -> Iterator[bytes]:
    """Records of a `.wandb` file: LevelDB's log format behind a header of 7 bytes."""
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def stopped_after(epoch: int) -> Callable[[Event], None]:
    """An observer that types Ctrl-C's gentler sister when an epoch has been validated."""

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated) and event.row.epoch == epoch:
            signal.raise_signal(signal.SIGTERM)

    return listen


@pytest.mark.rest
@needs_mlflow
def test_a_run_in_mlflow(settings: TrainSettings, server: str, tmp_path: Path) -> None:
    """Parameters, every epoch's figures, curves and model; then the report. Nothing of this machine."""
    from mlflow import MlflowClient

    from kerasseg.workflows.evaluate import Extras, evaluate_run

    events: list[Event] = []
    ended, run = train(settings, tmp_path / "first", [events.append], track=[f"mlflow:{server}"])
    assert run is not None
    assert ended.reason == "finished"
    assert messages(events) == [], events
    client = MlflowClient(server)
    found = client.get_run(entry(run)["id"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    assert found.data.params["network.filters"] == "2"
    assert found.data.params["shards"] == "shards"
    assert found.data.params["learning_rate"] == found.data.params["resolved.rates"] == "0.001"
    assert found.data.params["resolved.fingerprint"] == run.config().resolved.fingerprint
    logged = client.get_metric_history(found.info.run_id, "dice/validation")
    assert [point.step for point in logged] == [0, 1, 2]
    assert [point.value for point in logged] == pytest.approx(validation_dice(run))
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert names == {"curves", "history", "model"}
    copy = client.download_artifacts(found.info.run_id, "model/model.keras", str(tmp_path))
    assert Path(copy).read_bytes() == run.model_file.read_bytes()
    assert str(tmp_path) not in str(found.to_dictionary())
    assert getpass.getuser() not in str([found.data.params, found.data.tags, found.info.user_id]).split("'")

    evaluation = evaluate_run(run, extras=Extras(calibration=False, speed=False), threshold=0.5)
    again = client.get_run(found.info.run_id)
    assert again.info.status == "FINISHED"
    assert again.data.metrics["test/dice"] == pytest.approx(evaluation.final_stage().all.measures["dice"].mean)
    assert [f.path for f in client.list_artifacts(found.info.run_id, "evaluation/test")] == [
        "evaluation/test/metrics.json",
        "evaluation/test/report.html",
    ]


@pytest.mark.rest
@needs_mlflow
def test_a_resumed_run_continues_in_mlflow(settings: TrainSettings, server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    ended, run = train(settings, tmp_path / "run", [stopped_after(1)], track=[f"mlflow:{server}"])
    assert run is not None
    assert ended.reason == "interrupted"
    client, before = MlflowClient(server), entry(run)
    assert client.get_run(before["id"]).info.status == "KILLED"
    ended, _ = resume(RunDirectory(tmp_path / "run"))
    assert ended.reason == "finished"
    assert entry(run)["id"] == before["id"]
    steps = [point.step for point in client.get_metric_history(before["id"], "dice/validation")]
    assert steps == [0, 1, 2]
    assert client.get_run(before["id"]).info.status == "FINISHED"


@pytest.mark.rest
@needs_mlflow
def test_what_a_server_missed_is_sent_when_the_run_is_resumed(
    settings: TrainSettings, server: str, tmp_path: Path
) -> None:
    """Down from the start: training is not disturbed, and warns once. Then it is up."""
    from mlflow import MlflowClient

    port, events = free_port(), []
    ended, run = train(
        settings, tmp_path / "run", [events.append, stopped_after(1)], track=[f"mlflow:http://127.0.0.1:{port}"]
    )
    assert run is not None
    assert ended.reason == "interrupted"
    assert messages(events) == ["tracker-down"]
    known = json.loads((run.root / FILE).read_text())
    assert known["trackers"][0]["rows"] == 0
    known["trackers"][0]["uri"] = server
    (run.root / FILE).write_text(json.dumps(known))
    resume(run)
    logged = MlflowClient(server).get_metric_history(entry(run)["id"], "dice/validation")
    assert [point.value for point in logged] == pytest.approx(validation_dice(run))


@pytest.mark.rest
@needs_mlflow
def test_a_password_in_the_environment_is_not_kept(
    settings: TrainSettings, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the server is down nor where it answers; and the run can be resumed."""
    events: list[Event] = []
    address = "http://ann:secret@{}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(f"127.0.0.1:{free_port()}"))
    train(settings, tmp_path / "run", [events.append, stopped_after(0)], track=["mlflow"])
    assert messages(events) == ["tracker-down"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(server.removeprefix("http://")))
    run = RunDirectory(tmp_path / "run")
    resume(run, [events.append, stopped_after(1)])
    before = entry(run)
    ended, _ = resume(run, [events.append])
    assert ended.reason == "finished"
    assert (entry(run)["id"], entry(run)["rows"]) == (before["id"], 3)
    assert "secret" not in str(events)
    assert not [path for path in run.root.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


@pytest.mark.rest
@needs_mlflow
def test_a_server_that_never_answers_does_not_hold_up_training(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    events: list[Event] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        address = f"mlflow:http://127.0.0.1:{silent.getsockname()[1]}"
        ended, run = train(settings, tmp_path / "run", [events.append], track=[address])
    assert run is not None
    assert ended.reason == "finished"
    assert messages(events) == ["tracker-down"]
    assert isinstance(events[-2 if isinstance(events[-1], Message) else -1], Ended)


@pytest.mark.rest
@needs_wandb
def test_a_run_in_wandb_offline(settings: TrainSettings, tmp_path: Path) -> None:
    """Two sessions, one run: the second one has the first one's id, and sends the lines that the first did not."""
    from wandb.proto.wandb_internal_pb2 import Record

    events: list[Event] = []
    _, run = train(settings, tmp_path / "run", [events.append, stopped_after(1)], track=["wandb"])
    assert run is not None
    resume(run, [events.append])
    assert messages(events) == [], events
    identifier = entry(run)["id"]
    files = sorted((run.root / "wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb"))
    assert files
    dice, names, configured = {}, set(), ""
    for file in files:
        for data in log_records(file):
            record = Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "dice/validation" in values:
                    dice[int(values["epoch"])] = float(values["dice/validation"])
            elif kind == "artifact":
                names.add(record.artifact.name)
            elif kind == "run":
                configured += str(record.run.config)
                assert record.run.run_id == identifier
    assert [dice[step] for step in range(3)] == pytest.approx(validation_dice(run))
    assert {"run-model", "run-history"} <= names
    assert "network.filters" in configured
    assert str(tmp_path) not in configured


@pytest.mark.rest
@needs_mlflow
def test_a_run_that_breaks_is_a_failed_one(settings: TrainSettings, server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    def broken(event: Event) -> None:
        if isinstance(event, Evaluated) and event.row.epoch == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(settings, tmp_path / "run", [broken], track=[f"mlflow:{server}"])
    identifier = entry(RunDirectory(tmp_path / "run"))["id"]
    assert MlflowClient(server).get_run(identifier).info.status == "FAILED"


@pytest.mark.rest
@needs_wandb
def test_wandb_without_a_login_is_a_warning(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked = SimpleNamespace(_offline=False, _noop=False)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=asked))
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    events: list[Event] = []
    ended, _ = train(settings, tmp_path / "run", [events.append], track=["wandb"])
    assert ended.reason == "finished"
    assert messages(events) == ["tracker-down"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tensorboard", "expected mlflow, mlflow:URI or wandb"),
        ("wandb:http://example.org", "expected mlflow, mlflow:URI or wandb"),
        ("wandb:http://example.org?key=secret", "expected mlflow, mlflow:URI or wandb"),
        ("mlflow:http://ann:secret@example.org", "MLFLOW_TRACKING_PASSWORD"),
        ("mlflow:http://example.org/?token=secret", "MLFLOW_TRACKING_URI"),
        ("mlflow:postgresql://example.org/db?password=secret", "MLFLOW_TRACKING_URI"),
    ],
)
def test_trackers_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_trackers([text])
    assert "secret" not in str(caught.value)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"MLflow is not installed. Install it: pip install 'kerasseg\[mlflow\]'"):
        parse_trackers(["mlflow"])


@needs_mlflow
def test_parameters_are_what_was_resolved(tmp_path: Path, shards: Path) -> None:
    """Not what was left open: a table of runs is sorted by learning rate and precision."""
    run = write_run(tmp_path / "run", shards).config()
    resolved = run.resolved.model_copy(
        update={
            "rates": (1e-4, 1e-5),
            "phases": ("decoder", "moderate"),
            "precision": "mixed_bfloat16",
            "devices": "CPU",
        }
    )
    sent = parameters(run.model_copy(update={"resolved": resolved}))
    assert (sent["learning_rate"], sent["precision"]) == ("0.0001, 1e-05", "mixed_bfloat16")
    assert (sent["resolved.phases"], sent["resolved.devices"]) == ("decoder, moderate", "CPU")
    asked = run.settings.model_copy(update={"learning_rate": 0.5})
    assert parameters(run.model_copy(update={"settings": asked}))["learning_rate"] == "0.5"
    assert not {"None", "auto"} & {sent["learning_rate"], sent["precision"], sent["resolved.devices"]}


def test_local_addresses_are_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_trackers(["mlflow:sqlite:///runs.db"])[0].uri == f"sqlite:///{tmp_path}/runs.db"
    assert parse_trackers(["mlflow:mlruns"])[0].uri == (tmp_path / "mlruns").as_uri()
    with pytest.raises(UsageError, match="twice"):
        parse_trackers(["mlflow:a", "mlflow:b"])
