"""What must not creep upwards, by measures that are the same on every machine: operations, traces, bytes, calls.

Bounds are generous: each stands well above what is true today and below what a known mistake would give. The two ratios
compare with a reference loop in the same process, in processor time, at a fraction of what is measured by `make bench`.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import kerasseg
from factories import write_figshare
from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.tf_data import TrainingData
from kerasseg.evaluation.surface_distances import hd95
from kerasseg.training.engine import Engine
from kerasseg.training.precision import compute_in
from kerasseg.tuning.thresholds import sweep_thresholds
from kerasseg_tfrecords import load_manifest, prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions
from kerasseg_tfrecords.records.shards import ShardRecords
from kerasseg_tfrecords.sources import figshare


def batch(seed: int = 0) -> dict[str, Any]:
    image = np.random.default_rng(seed).random((2, 32, 32, 3), "float32")
    mask = (image[..., :1] > 0.8).astype("float32")
    ones = np.ones(2, "float32")
    return {"image": image, "mask": mask, "weight": ones, "label": np.zeros(2, np.int64), "slice": np.arange(2)}


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = kerasseg.unet((32, 32, 3), filters=2, depth=2, seed=0)
    compute_in(model, "mixed_bfloat16")
    engine = Engine(model, kerasseg.DecayedAdam(1e-3), batch_size=2)
    engine.train_step(batch())
    return engine


def kinds(engine: Engine) -> Counter[str]:
    return Counter(operation.type for operation in graph(engine).get_operations())


def graph(engine: Engine) -> tf.Graph:
    return engine._train_function.get_concrete_function(batch()).graph


@pytest.mark.rest
def test_a_step_is_traced_once(engine: Engine) -> None:
    for seed in (1, 2):
        engine.train_step(batch(seed))
    engine.set_rate(1e-4)
    engine.train_step(batch(3))
    assert engine._train_function.experimental_get_tracing_count() == 1


def test_batchnorm_is_one_operation_there_and_one_back(engine: Engine) -> None:
    layers = 10  # two in each of two encoder blocks, the bottleneck and two decoder blocks
    found = kinds(engine)
    assert found["FusedBatchNormV3"] == found["FusedBatchNormGradV3"] == layers
    # Its inputs stay bfloat16: a float32 copy of each activation is what made it slow.
    copies = [
        operation
        for operation in graph(engine).get_operations()
        if operation.type == "Cast"
        and operation.outputs[0].dtype == tf.float32
        and len(operation.outputs[0].shape) == 4
    ]
    # The gradients of 16 kernels, and the head's float32.
    assert len(copies) <= 20


def test_a_step_is_no_more_operations_than_it_was(engine: Engine) -> None:
    found = kinds(engine)
    convolutions = sum(found[name] for name in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"))
    # 10 convolutions, 2 transposed ones and the head: each once forward and twice back. The first one's input is pruned.
    assert convolutions == 3 * 13
    # 2,000 for 44 weights; an optimizer or a loss written carelessly doubles them.
    assert sum(found.values()) < 3000


SLICES = 20


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_figshare(tmp_path_factory.mktemp("gate") / "raw", patients=10, slices_each=2, size=80)


@pytest.fixture(scope="module")
def shards(raw: Path) -> Path:
    prepare(raw, raw.with_name("shards"), PrepareOptions(size=64, split="60/20/20"), jobs=1)
    return raw.with_name("shards")


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """A list that grows by one whenever the function is called."""
    calls: list[None] = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_a_slice_takes_so_many_bytes_in_the_shards(shards: Path) -> None:
    manifest = load_manifest(shards)
    records = sum(manifest.slices_in(split) for split in ("train", "val", "test"))
    stored = sum(path.stat().st_size for path in shards.rglob("*.tfrecord"))
    assert records == SLICES
    # 4,096 of the image, 512 of the mask in bits, and less than a kilobyte for the rest.
    assert 64 * 64 * 9 / 8 < stored / records < 64 * 64 * 9 / 8 + 1024


def test_prepare_reads_a_file_once(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg_tfrecords.isolation._inside", True)  # files are read in this process
    read = counted(monkeypatch, figshare, "read_bytes")
    prepare(raw, tmp_path / "shards", PrepareOptions(size=32, split="60/20/20"), jobs=1)
    # And up to 16 of them, however many there are, to tell the format.
    assert SLICES <= len(read) <= SLICES + 16


@pytest.mark.parametrize(("cache", "reads_again"), [("none", True), ("memory", False)])
def test_an_epoch_reads_a_record_once_and_augments_once_a_batch(
    shards: Path, monkeypatch: pytest.MonkeyPatch, cache: Literal["none", "memory"], reads_again: bool
) -> None:
    data = TrainingData(shards, batch_size=4, channels=3, cache=cache)
    for _batch in data.epoch(0):
        pass
    read = counted(monkeypatch, ShardRecords, "read")
    augmented = counted(monkeypatch, SafeAugmentation, "apply_numpy")
    for _batch in data.epoch(1):
        pass
    assert data.steps >= 2
    assert len(augmented) == data.steps
    assert len(read) == (4 * data.steps if reads_again else 0)


def processor_time(action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def test_the_sweep_over_thresholds_does_not_count_one_by_one() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.random((24, 128, 128), "float32") ** 8
    masks = probabilities > draw.random((24, 128, 128), "float32")

    def loop() -> None:
        for k in range(1, 100):
            found = probabilities >= k / 100
            (found & masks).sum((1, 2))
            found.sum((1, 2))

    # Twenty times as fast, by `make bench`, with ten times as many thresholds.
    assert processor_time(lambda: sweep_thresholds(probabilities, masks)) < processor_time(loop)


def test_distances_are_measured_around_the_tumour_alone() -> None:
    rows, columns = np.ogrid[:512, :512]
    a, b = ((rows - 200 - shift) ** 2 + (columns - 250) ** 2 < 400 for shift in (0, 3))

    def whole() -> float:
        edges = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
        there = ndimage.distance_transform_edt(~edges[1])[edges[0]]
        back = ndimage.distance_transform_edt(~edges[0])[edges[1]]
        return float(max(np.percentile(there, 95), np.percentile(back, 95)))

    assert hd95(a, b) == pytest.approx(whole())
    assert processor_time(lambda: hd95(a, b)) < processor_time(whole)
