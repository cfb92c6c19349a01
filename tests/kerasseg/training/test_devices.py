"""Training on two devices is training on one; and what is said of devices that cannot be used."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from children import PATIENCE, Children
from factories import write_figshare
from kerasseg.training import devices as module
from kerasseg.training.cluster import breakable, meet
from kerasseg.training.devices import (
    Devices,
    agree,
    choose_devices,
    peak_memory_mb,
    plain_batchnorm,
    synchronized_batchnorm,
)
from kerasseg.workflows.train import _gist, _translated
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions

pytestmark = pytest.mark.rest

Results = Mapping[str, np.ndarray]

# ---------------------------------------------------------------------------
# Two devices against one
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `devices_probe.py` leaves."""
    folder = tmp_path_factory.mktemp("devices")
    raw = write_figshare(folder / "raw", patients=12, slices_each=2, size=24)
    prepare(raw, folder / "shards", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    done = Children(folder).python(Path(__file__).with_name("devices_probe.py"), folder, folder / "shards")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return dict(np.load(folder / "results.npz"))


def part(results: Results, name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(name): value for key, value in results.items() if key.startswith(name + "/")}


def largest_difference(one: Results, other: Results, kind: str = "") -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one if name.startswith(f"/{kind}"))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_five_steps_on_two_devices_are_those_on_one(results: Results, optimizer: str) -> None:
    """With BatchNorm, weights of slices, L2; Adam with decay and a limit of the norm. The optimizer's variables, too."""
    one, two = part(results, f"{optimizer}-1"), part(results, f"{optimizer}-2")
    assert one["/loss"].shape == (5,)
    assert one["/loss"][-1] < one["/loss"][0]
    assert (one["/slices"] == np.arange(40).reshape(5, 8)).all()
    assert largest_difference(one, two, "loss") < 1e-5
    assert largest_difference(one, two, "dice") < 1e-6
    assert largest_difference(one, two, "slices") == 0
    assert largest_difference(one, two, "model") < 1e-6
    assert largest_difference(one, two, "optimizer") < 1e-6


@pytest.mark.slow
def test_without_synchronized_batchnorm_they_would_not_be(results: Results) -> None:
    assert largest_difference(part(results, "adam-1"), part(results, "unsynchronized-2"), "model") > 1e-5


@pytest.mark.slow
def test_evaluation_on_two_devices_gives_each_slice_once(results: Results) -> None:
    one, two = part(results, "evaluation-1"), part(results, "evaluation-2")
    assert two["/slice"].tolist() == list(range(13))
    assert two["/label"].tolist() == [n % 3 for n in range(13)]
    assert set(one) > {"/loss", "/dice", "/soft_dice", "/iou", "/precision", "/recall"}
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_memory_that_runs_out_on_one_of_two_devices_halves_the_batch_and_loses_nothing(results: Results) -> None:
    """The third step fails; from it on both accumulate gradients. One device is told to from the third step on."""
    assert results["told"].tolist() == ["batch-in-2-parts"]
    one, two = part(results, "memory-1"), part(results, "memory-2")
    assert sorted(two["/slices"][2]) == sorted(one["/slices"][2]) == list(range(16, 24))
    assert largest_difference(one, two, "loss") < 1e-5
    assert largest_difference(one, two, "model") < 1e-6
    assert largest_difference(one, two, "optimizer") < 1e-6
    # BatchNorm measures parts: not the same as whole batches, or the comparison would show nothing.
    assert largest_difference(part(results, "adam-1"), two, "model") > 1e-5


@pytest.mark.slow
def test_a_run_on_two_devices_has_the_history_of_one(folder: Path) -> None:
    histories = json.loads((folder / "histories.json").read_text())
    assert len(histories["1"]) == 2
    np.testing.assert_allclose(histories["2"], histories["1"], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.keras", "baseline.keras"])
def test_no_saved_network_is_synchronized(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / "run-2" / name) as archive:
        text = archive.read("config.json").decode()
    assert text.count('"synchronized": false') == 6
    assert '"synchronized": true' not in text


# ---------------------------------------------------------------------------
# What is chosen, and what is refused
# ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)


def test_without_gpus_the_processor_is_chosen() -> None:
    found = choose_devices()
    assert (found.distribution, found.device, found.replicas, found.worker) == (None, "/CPU:0", 1, (0, 1))
    assert found.chief
    assert not found.gpu


@pytest.mark.parametrize("name", ["CPU:0", "cpu:0", "/CPU:0", "/device:CPU:0"])
def test_a_device_has_several_spellings(name: str) -> None:
    assert choose_devices([name]).device == "/CPU:0"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["CPU:0", "CPU:1"], r"no such device \(found CPU:1, expected CPU:0\)"),
        (["GPU:0"], r"no such device \(found GPU:0, expected CPU:0\)"),
        (["CPU:0", "/device:CPU:0"], r"a device is given twice \(found CPU:0, CPU:0\)"),
    ],
)
def test_devices_that_cannot_be_meant(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_devices(names)


@pytest.fixture
def three_processors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As if the processor were cut into three; what the strategy is asked for."""
    found = [SimpleNamespace(name=f"/device:CPU:{i}") for i in range(3)]
    asked: list[Any] = []
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: found if kind == "CPU" else [])
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda names, **_: asked.append(names))
    return asked


def test_the_batch_is_shared_evenly(three_processors: list[Any]) -> None:
    found = choose_devices(["CPU:0", "CPU:2"], 8)
    assert three_processors == [["/CPU:0", "/CPU:2"]]
    assert found.replicas == 2
    assert found.description == "2 devices: CPU:0, CPU:2"
    with pytest.raises(
        UsageError, match=r"batch size is not a multiple.*8 slices, 3 devices.*a multiple of 3.*--batch-size"
    ):
        choose_devices(["CPU:0", "CPU:1", "CPU:2"], 8)


GOOD = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        "{}",
        json.dumps(GOOD | {"task": {"type": "ps", "index": 0}}),
        json.dumps(GOOD | {"task": {"type": "worker", "index": 2}}),
        json.dumps(GOOD | {"task": {"type": "worker", "index": -1}}),
        json.dumps(GOOD | {"task": {"type": "worker", "index": "first"}}),
        json.dumps(GOOD | {"cluster": {"worker": ["a:1", "b:1"], "ps": ["c:1"]}}),
        json.dumps(GOOD | {"cluster": {"worker": []}}),
        json.dumps(GOOD | {"cluster": {"worker": "a:1"}}),
    ],
)
def test_a_cluster_that_cannot_be_read_is_refused_before_anybody_waits(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", told)
    with pytest.raises(UsageError, match=r"TF_CONFIG cannot be read.*expected \{\"cluster\""):
        choose_devices()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_machine_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow alone would wait without end, deaf to Ctrl-C."""
    addresses = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    told = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(told))
    monkeypatch.setenv("KERASSEG_MACHINES_TIMEOUT", "0.3")
    message = rf"worker 1 at {addresses[1]}: connection refused, expected an answer within 0\.3 s.*MACHINES_TIMEOUT="
    with pytest.raises(KerassegError, match=message):
        choose_devices()
    monkeypatch.setenv("KERASSEG_MACHINES_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="MACHINES_TIMEOUT cannot be used .found soon"):
        choose_devices()


def test_machines_meet_whenever_they_come() -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    met = threading.Barrier(3)

    def come(number: int) -> None:
        time.sleep(0.3 * number)
        meet(addresses, number, PATIENCE)
        # As TensorFlow does then: who has not looked here before meets it.
        with socket.create_server(("127.0.0.1", int(addresses[number].rpartition(":")[2]))):
            met.wait(PATIENCE)

    with ThreadPoolExecutor() as machines:
        for done in [machines.submit(come, number) for number in range(3)]:
            done.result()


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        mine = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(KerassegError, match=rf"cannot listen.*{mine}: Address already in use"):
            meet([mine, "127.0.0.1:1"], 0, 1)
    with pytest.raises(UsageError, match=r"an invalid address .found localhost, expected host:port"):
        meet(["localhost", "127.0.0.1:1"], 0, 1)


def test_ctrl_c_is_heard_by_the_system_while_tensorflow_waits() -> None:
    before = signal.getsignal(signal.SIGINT)
    with breakable():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_devices_and_a_cluster_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps(GOOD))
    with pytest.raises(UsageError, match=r"choose devices \(found CPU:0\).*Leave --devices out"):
        choose_devices(["CPU:0"])


def test_one_machine_has_nobody_to_agree_with() -> None:
    agree(Devices(None, None, ""), {"the options": "a"})


def test_machines_that_were_told_different_things_are_named() -> None:
    # As the gathering gives them: this machine's row, and that of another one.
    rows: list[Any] = []

    class Context:
        def all_gather(self, row: Any, axis: int) -> Any:
            assert axis == 0
            rows.append(row)
            return tf.concat([row, tf.where([[False, True]], row + 1, row)], 0)

    strategy = SimpleNamespace(run=lambda function: function(), experimental_local_results=lambda value: [value])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.distribute, "get_replica_context", Context)
        devices = Devices(strategy, None, "", 2, (1, 2))
        with pytest.raises(UsageError, match=r"different: the shards\)\. Run the same command"):
            agree(devices, {"the options": "a", "the shards": "b"})
    assert rows[0].shape == (1, 2)


# ---------------------------------------------------------------------------
# Memory, BatchNorm, words
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_that_of_this_process(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system counts in KiB or in bytes."""
    usage = SimpleNamespace(ru_maxrss=2_000_000_000 // unit)
    monkeypatch.setattr(module.resource, "getrusage", lambda who: usage if who == resource.RUSAGE_SELF else None)
    monkeypatch.setattr(module.sys, "platform", platform)
    assert peak_memory_mb(Devices(None, "/CPU:0", "")) == pytest.approx(2000)


def test_peak_memory_is_that_of_the_busiest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [SimpleNamespace(name=f"/device:GPU:{i}") for i in range(2)]
    monkeypatch.setattr(module.tf.config, "list_logical_devices", lambda kind: found if kind == "GPU" else [])
    monkeypatch.setattr(
        module.tf.config.experimental, "get_memory_info", lambda name: {"peak": {"GPU:0": 3e6, "GPU:1": 5e6}[name]}
    )
    assert peak_memory_mb(Devices(None, "/GPU:1", "", gpu=True)) == 5.0


def test_trained_batchnorm_alone_is_synchronized_and_not_where_it_is_saved() -> None:
    model = kerasseg.unet((16, 16, 1), filters=2, depth=2, seed=1)
    kerasseg.freeze(model, "conservative")
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    trained = [layer.trainable for layer in norms]
    assert True in trained
    assert False in trained
    assert synchronized_batchnorm(model, 2) == sum(trained)
    assert [layer.synchronized for layer in norms] == trained
    with plain_batchnorm(model):
        assert not any(layer.synchronized for layer in norms)
    assert [layer.synchronized for layer in norms] == trained
    assert synchronized_batchnorm(model, 1) == 0
    assert not any(layer.synchronized for layer in norms)


GONE = (
    "Graph execution error:\n\nDetected at node CollectiveReduceV2 defined at (most recent call last):\n"
    "<stack traces unavailable>\n{{function_node __wrapped__X}} {{node Y}}Collective ops is aborted by: connection lost\n"
)


def test_what_tensorflow_says_is_told_in_a_line() -> None:
    error = tf.errors.UnavailableError(None, None, GONE)
    assert _gist(error) == "Collective ops is aborted by: connection lost"
    assert _gist(tf.errors.UnavailableError(None, None, "")) == "UnavailableError"
    assert "another machine of this run stopped answering" in str(_translated(error, several=True))
    assert "TensorFlow failed" in str(_translated(error, several=False))
    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
    assert str(_translated(exhausted, several=True)).startswith("out of memory")


@pytest.mark.rest
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' own figures")
def test_freed_memory_is_returned():
    script = """
import re, tensorflow as tf
from pathlib import Path
from kerasseg.training.devices import return_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

return_freed_memory()
with tf.device("/CPU:0"):
    tensors = [tf.fill([16 << 20], 1.0) for _ in range(4)]
during = resident()
del tensors
print(during - resident())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 200
