"""Shards -> batches: against plain reading, at any epoch and step, for any cache, replica and worker."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from children import Children
from factories import blob, write_figshare
from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.sampling import stratified_batches
from kerasseg.data.stores import FileSlices, RowLayout, cache_key
from kerasseg.data.tf_data import EvaluationData, TrainingData, load_split
from kerasseg.losses import DiceBCELoss
from kerasseg.metrics import SoftDice
from kerasseg_tfrecords import load_manifest, prepare, read_records
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions
from kerasseg_tfrecords.records.shards import ShardRecords
from kerasseg_tfrecords.storage import default_cache_folder

OPTIONS = PrepareOptions(size=32, split="60/20/20", records_per_shard=4)
TOLERANCE = 5e-5  # float32
KINDS = ("memory", "disk", "none")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """54 training, 18 validation and 18 test slices of three classes, grey, 32 x 32."""
    folder = tmp_path_factory.mktemp("grey")
    prepare(write_figshare(folder / "raw", patients=30, slices_each=3, size=48), folder / "shards", OPTIONS, jobs=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """Pictures in colour with masks, one class; a third of them without tumour."""
    folder = tmp_path_factory.mktemp("colour")
    for name in ("images", "masks"):
        (folder / "raw" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        image, mask = blob(i, 32)
        picture = np.stack([image // 20, image // 30, rng.integers(0, 200, image.shape)], axis=-1).astype(np.uint8)
        cv2.imwrite(str(folder / "raw/images" / f"{i}.png"), picture)
        cv2.imwrite(str(folder / "raw/masks" / f"{i}.png"), (mask & (i % 3 > 0)).astype(np.uint8) * 255)
    prepare(folder / "raw", folder / "shards", OPTIONS, jobs=1)
    return folder / "shards"


@pytest.fixture
def own(shards, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def arrays(shards, split="train"):
    """Images, masks, labels and ids by plain reading."""
    records = list(read_records(shards, [split]))
    images, masks = np.stack([r.image for r in records]), np.stack([r.mask for r in records])[..., None]
    return images, masks, np.array([r.label for r in records]), [r.slice_id for r in records]


def numpy(dataset):
    return [tuple(part.numpy() for part in element) for element in dataset]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# What is in a batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("balance", ["proportional", "balanced"])
def test_batches_equal_plain_reading_and_the_reference(shards, kind, balance):
    images, masks, labels, _ = arrays(shards)
    data = TrainingData(shards, batch_size=8, channels=3, seed=5, cache=kind, balance=balance)
    assert data.cache == kind
    for epoch in (0, 3):
        batches = stratified_batches(labels, 8, balance, seed=5, epoch=epoch)
        table = SafeAugmentation().parameters(5, epoch, np.arange(len(labels)))
        got = numpy(data.epoch(epoch))
        assert len(got) == len(batches) == data.steps == len(data)
        for (image, mask), rows in zip(got, batches, strict=True):
            assert image.shape == (8, 32, 32, 3)
            assert mask.shape == (8, 32, 32, 1)
            assert image.dtype == mask.dtype == np.float32
            assert image.min() >= 0
            assert image.max() <= 1
            assert set(np.unique(mask)) <= {0, 1}
            plain = SafeAugmentation().apply(images[rows] / np.float32(255), masks[rows], table[rows])
            expected, expected_mask = (np.asarray(part) for part in plain)
            np.testing.assert_allclose(image, np.repeat(expected, 3, axis=-1), atol=TOLERANCE)
            assert (mask != expected_mask).mean() < 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_without_augmentation_slices_are_as_they_were_prepared(shards, kind):
    images, masks, _, _ = arrays(shards)
    data = TrainingData(shards, augmentation=None, cache=kind)
    for (image, mask), rows in zip(numpy(data.epoch(1)), data.batch_slices(1), strict=True):
        np.testing.assert_array_equal(image, images[rows] / np.float32(255))
        np.testing.assert_array_equal(mask, masks[rows])


def test_colour_stays_colour(colour):
    images, masks, _, _ = arrays(colour)
    data = TrainingData(colour, batch_size=4)
    assert data.channels == 3
    table = SafeAugmentation().parameters(42, 0, np.arange(len(images)))
    rows = data.batch_slices(0)[0]
    image, mask = numpy(data.epoch(0))[0]
    expected, expected_mask = SafeAugmentation().apply_numpy(images[rows], masks[rows], table[rows])
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(mask, expected_mask)
    with pytest.raises(UsageError, match="3 channels, expected 1"):
        TrainingData(colour, channels=1)


def test_each_slice_once_an_epoch_and_no_batch_partial(shards):
    data = TrainingData(shards, batch_size=8)
    for epoch in range(3):
        seen = Counter(data.batch_slices(epoch).ravel().tolist())
        assert set(seen) == set(range(54))
        assert sum(seen.values()) == 56
        assert max(seen.values()) <= 2
        for rows in data.batch_slices(epoch):
            assert len(set(data.labels[rows])) == 3


def test_a_slice_looks_the_same_in_an_epoch_whatever_the_batches(shards):
    def looks(**options):
        found = {}
        for element in TrainingData(shards, with_labels=True, **options).epoch(2):
            for image, number in zip(element["image"].numpy(), element["slice"].numpy(), strict=True):
                found.setdefault(int(number), []).append(image)
        return found

    first = looks(batch_size=8)
    for other in (looks(batch_size=5), looks(batch_size=8, balance="balanced"), looks(batch_size=54, cache="none")):
        assert set(other) == set(first) == set(range(54))
        for number, images in other.items():
            for image in images:
                np.testing.assert_array_equal(image, first[number][0])


def test_epochs_and_seeds_differ(shards):
    data, other = TrainingData(shards), TrainingData(shards, seed=7)
    zero, one = data.batch_slices(0), data.batch_slices(1)
    assert not np.array_equal(zero, one)
    assert not np.array_equal(zero, other.batch_slices(0))
    number = int(zero[0, 0])
    pictures = []
    for epoch in range(4):
        step, place = np.argwhere(data.batch_slices(epoch) == number)[0]
        pictures.append(data.batch(epoch, step).image[place])
    assert all(not np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_labels_weights_and_numbers(shards):
    _, _, labels, ids = arrays(shards)
    names = load_manifest(shards).classes
    weights = {names[0]: 1.0, names[1]: 2.0, names[2]: 5.0}
    data = TrainingData(shards, class_weight=weights, with_labels=True, augmentation=None)
    for element in data.epoch(0):
        numbers = element["slice"].numpy()
        np.testing.assert_array_equal(element["label"], labels[numbers])
        assert data.slices.slice_ids(numbers[:2]) == [ids[number] for number in numbers[:2]]
        asked = np.array([weights[names[label]] for label in labels[numbers]])
        mean = np.mean([weights[names[label]] for label in labels])
        np.testing.assert_allclose(element["weight"], asked / mean, rtol=1e-6)
    triple = next(iter(TrainingData(shards, class_weight=weights).epoch(0)))
    assert [tuple(part.shape) for part in triple] == [(8, 32, 32, 1), (8, 32, 32, 1), (8,)]
    with pytest.raises(UsageError, match="unknown class"):
        TrainingData(shards, class_weight=weights | {"lesion": 1.0})
    some = TrainingData(shards, class_weight={names[0]: 2.0}, with_labels=True)
    every = TrainingData(shards, class_weight=dict.fromkeys(names, 1.0) | {names[0]: 2.0}, with_labels=True)
    np.testing.assert_array_equal(some.batch(0, 0).weight, every.batch(0, 0).weight)  # classes not named weigh 1


@pytest.mark.parametrize("kind", KINDS)
def test_positives_alone(colour, kind):
    _, masks, _, _ = arrays(colour)
    positive = set(np.flatnonzero(masks.any(axis=(1, 2, 3))).tolist())
    assert 4 < len(positive) < len(masks)
    data = TrainingData(colour, batch_size=4, positives_only=True, cache=kind)
    assert set(data.batch_slices(0).ravel().tolist()) == positive
    # A slice keeps its number, and so its augmentation.
    everything = TrainingData(colour, batch_size=4)
    number = min(positive)
    step, place = np.argwhere(data.batch_slices(1) == number)[0]
    other_step, other_place = np.argwhere(everything.batch_slices(1) == number)[0]
    expected = everything.batch(1, int(other_step)).image[other_place]
    np.testing.assert_array_equal(data.batch(1, int(step)).image[place], expected)


# Order, resuming, use in fit


def test_any_epoch_and_step_can_be_had_at_once(shards):
    whole = [numpy(TrainingData(shards).epoch(epoch)) for epoch in range(3)]
    again = TrainingData(shards, cache="disk")
    same(numpy(again.epoch(2, start_step=3)), whole[2][3:])
    same(numpy(again.epoch(1, start_step=again.steps)), [])
    same(numpy(again.epochs(1, count=2, start_step=5)), whole[1][5:] + whole[2])
    batch = again.batch(1, 4)
    same([(batch.image, batch.mask)], [whole[1][4]])
    assert again.epoch(1, 2).cardinality() == again.steps - 2
    for step in (-1, again.steps + 1):
        with pytest.raises(UsageError, match=f"invalid step .found {step}"):
            again.epoch(0, step)
    with pytest.raises(UsageError, match="invalid epoch"):
        again.epoch(-1)
    with pytest.raises(UsageError, match="count"):
        again.epochs(0, start_step=1)
    with pytest.raises(UsageError, match="invalid epochs"):
        again.epochs(0, 0)


def test_a_dataset_can_be_iterated_again_with_the_same_result(shards):
    dataset = TrainingData(shards).epoch(0)
    first = numpy(dataset)
    for _ in range(3):
        same(numpy(dataset), first)


def test_load_split_gives_the_next_epoch_each_time(shards):
    data = TrainingData(shards, batch_size=6, channels=3, seed=9)
    train = load_split(shards, "train", batch_size=6, channels=3, seed=9, first_epoch=4)
    assert train.cardinality() == data.steps
    for epoch in (4, 5, 6):
        same(numpy(train), numpy(data.epoch(epoch)))
    two = load_split(shards, "train", batch_size=6, channels=3, seed=9, epochs=2)
    same(numpy(two), numpy(data.epoch(0)) + numpy(data.epoch(1)))


def test_fit_sees_every_epoch_in_turn(shards):
    """A stateful random map would show the same augmentation in each."""

    def fitted(train, **options):
        keras.utils.set_random_seed(0)
        source = keras.Input((32, 32, 1))
        model = keras.Model(source, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(source))
        model.compile("sgd", DiceBCELoss(), weighted_metrics=[SoftDice()], jit_compile=False)
        model.fit(train, verbose=0, shuffle=False, **options)
        return model

    model = fitted(load_split(shards, "train"), epochs=3)
    plain = fitted(TrainingData(shards).epochs(0, 3), epochs=1)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    images, masks, _, _ = arrays(shards, "val")
    _, expected = model.evaluate(images / np.float32(255), masks.astype("float32"), batch_size=len(images), verbose=0)
    for pad in (False, True):
        _, got = model.evaluate(load_split(shards, "val", pad=pad, batch_size=7), verbose=0)
        assert got == pytest.approx(expected, rel=1e-5)


# Validation and test


@pytest.mark.parametrize("split", ["val", "validation", "test"])
@pytest.mark.parametrize("kind", ["auto", "none", "disk"])
def test_other_splits_come_in_the_order_of_the_shards_as_they_are(shards, split, kind):
    images, masks, _, _ = arrays(shards, "val" if split == "validation" else split)
    got = numpy(load_split(shards, split, batch_size=8, channels=3, cache=kind))
    assert [len(image) for image, _ in got] == [8, 8, 2]
    np.testing.assert_array_equal(np.concatenate([i for i, _ in got]), np.repeat(images / np.float32(255), 3, axis=-1))
    np.testing.assert_array_equal(np.concatenate([m for _, m in got]), masks)


def test_padded_batches_have_one_size_and_weights(shards):
    images, _, labels, _ = arrays(shards, "test")
    data = EvaluationData(shards, "test", batch_size=8, pad=True, with_labels=True)
    assert data.dataset().element_spec["image"].shape == (8, 32, 32, 1)
    got = list(data.dataset())
    weight = np.concatenate([element["weight"] for element in got])
    np.testing.assert_array_equal(weight, [1] * 18 + [0] * 6)
    np.testing.assert_array_equal(np.concatenate([e["slice"] for e in got]), [*range(18), *[-1] * 6])
    np.testing.assert_array_equal(np.concatenate([e["label"] for e in got])[:18], labels)
    np.testing.assert_array_equal(np.concatenate([e["image"] for e in got])[:18], images / np.float32(255))
    assert len(next(iter(load_split(shards, "test", pad=True)))) == 3
    np.testing.assert_array_equal(data.batch(2).weight, weight[16:])


# Replicas and workers


def contexts(workers, replicas):
    return [tf.distribute.InputContext(workers, worker, replicas) for worker in range(workers)]


@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (1, 4), (2, 2), (2, 4)])
def test_parts_of_replicas_make_up_the_global_batch(shards, workers, replicas):
    data = TrainingData(shards, batch_size=8)
    for start in (0, 2):
        whole = numpy(data.epoch(1, start))
        parts = [numpy(data.epoch(1, start, input_context=context)) for context in contexts(workers, replicas)]
        here = replicas // workers
        for step, (image, _) in enumerate(whole):
            found = [part[step * here + k][0] for part in parts for k in range(here)]
            assert all(len(one) == 8 // replicas for one in found)
            np.testing.assert_array_equal(np.concatenate(found), image)
    with pytest.raises(UsageError, match="a multiple of 3"):
        data.epoch(0, input_context=contexts(1, 3)[0])
    evaluation = EvaluationData(shards, "val", batch_size=8, pad=True)
    parts = [numpy(evaluation.dataset(input_context=context)) for context in contexts(workers, replicas)]
    found = [parts[w][s * here + k] for s in range(3) for w in range(workers) for k in range(here)]
    for at in range(3):
        expected = np.concatenate([element[at] for element in numpy(evaluation.dataset())])
        np.testing.assert_array_equal(np.concatenate([element[at] for element in found]), expected)
    with pytest.raises(UsageError, match="pad=True"):
        EvaluationData(shards, "val").dataset(input_context=contexts(1, 2)[0])


@pytest.mark.parametrize("kind", ["memory", "none"])
def test_shards_are_read_once_among_workers(shards, monkeypatch, kind):
    reads: list[Counter[int]] = []
    original = ShardRecords.read

    def counted(self, number):
        reads[-1][number] += 1
        return original(self, number)

    monkeypatch.setattr(ShardRecords, "read", counted)
    redrawn = 0
    for worker, context in enumerate(contexts(2, 2)):
        reads.append(Counter())
        data = TrainingData(shards, batch_size=6, worker=(worker, 2), cache=kind)
        assert data.cache == kind
        redrawn = data.batch_slices(0).size - 54
        assert not reads[-1]
        numpy(data.epoch(0, input_context=context))
    assert redrawn == 0
    assert sum(reads, Counter()) == Counter(range(54))
    if kind == "memory":  # what is there is not read again
        numpy(data.epoch(0, input_context=context))
        assert max(reads[-1].values()) == 1


def test_workers_share_the_checking_of_files(shards, monkeypatch):
    checked = []
    monkeypatch.setattr("kerasseg.data.split.check_hashes", lambda _, files, __: checked.extend(files))
    for worker in range(3):
        TrainingData(shards, worker=(worker, 3))
    assert sorted(shard.path for shard in checked) == sorted(s.path for s in load_manifest(shards).shards_of("train"))


PROBE = """
import sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from kerasseg.losses import DiceBCELoss  # noqa: E402
from kerasseg.metrics import SoftDice
from kerasseg.data.tf_data import EvaluationData, TrainingData

data = TrainingData(sys.argv[1], batch_size=8, channels=3)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def parts(dataset):
    return [[np.concatenate([v.numpy() for v in strategy.experimental_local_results(x)]) for x in element]
            for element in dataset]

expected = [[x.numpy() for x in element] for element in data.epoch(2)]
whole = parts(strategy.experimental_distribute_dataset(data.epoch(2)))
split = parts(strategy.distribute_datasets_from_function(lambda context: data.epoch(2, input_context=context)))
endless = data.epochs(2)
again = parts(strategy.experimental_distribute_dataset(endless))
for other in (whole, split, again):
    assert len(other) == len(expected) == 7
    for a, b in zip(expected, other):
        assert a[0].shape == b[0].shape == (8, 32, 32, 3)
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)
for element in strategy.experimental_distribute_dataset(data.epoch(0)):
    assert [len(v) for v in strategy.experimental_local_results(element[0])] == [4, 4]
padded = EvaluationData(sys.argv[1], "val", batch_size=8, pad=True)
expected = [[x.numpy() for x in element] for element in padded.dataset()]
for a, b in zip(expected, parts(strategy.experimental_distribute_dataset(padded.dataset())), strict=True):
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
print("equal")
"""


@pytest.mark.rest
@pytest.mark.slow
def test_two_devices_see_the_same_global_batches(shards, tmp_path):
    done = Children(tmp_path).python(PROBE, shards)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"


# Caches


def test_auto_keeps_the_budget(shards, cache_folder):
    need = 54 * (32 * 32 + 32 * 4)
    assert TrainingData(shards).cache == "memory"
    assert TrainingData(shards, memory_budget=need).cache == "memory"
    assert not cache_folder.exists()
    assert TrainingData(shards, memory_budget=need - 1).cache == "disk"
    assert [path.stat().st_size for path in cache_folder.glob("*.slices")] == [need]
    assert TrainingData(shards, memory_budget=need - 1, worker=(0, 2)).cache == "none"
    assert EvaluationData(shards, "val", memory_budget=1).cache == "none"
    with pytest.raises(UsageError, match="budget"):
        TrainingData(shards, cache="memory", memory_budget=need - 1)
    with pytest.raises(UsageError, match="unknown cache"):
        TrainingData(shards, cache="tape")


def test_in_memory_nothing_is_read_after_loading(own):
    data = TrainingData(own)
    expected = numpy(data.epoch(1))
    shutil.rmtree(own)
    same(numpy(data.epoch(1)), expected)


def test_a_cache_on_disk_is_used_again_without_the_shards(shards, cache_folder, monkeypatch):
    expected = numpy(TrainingData(shards, cache="disk").epoch(0))
    (path,) = cache_folder.glob("*.slices")
    before = path.stat().st_mtime_ns

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(ShardRecords, "read", never)
    monkeypatch.setattr("kerasseg.data.split.check_hashes", never)
    same(numpy(TrainingData(shards, cache="disk").epoch(0)), expected)
    assert path.stat().st_mtime_ns == before


def test_a_stale_cache_is_replaced(own, cache_folder, tmp_path):
    old = TrainingData(own, cache="disk")
    EvaluationData(own, "val", cache="disk")
    expected = numpy(old.epoch(0))
    before = {path.name for path in cache_folder.iterdir()}
    shutil.rmtree(own)
    raw = write_figshare(tmp_path / "raw", patients=30, slices_each=3, size=48, seed=1)
    prepare(raw, own, OPTIONS, jobs=1)
    same(numpy(TrainingData(own, cache="disk").epoch(0)), numpy(TrainingData(own, cache="none").epoch(0)))
    assert cache_key(load_manifest(own), "train") not in "".join(before)
    names = {path.name.split("-")[0] for path in cache_folder.glob("*.slices")}
    assert names == {"train", "val"}  # the one of val is replaced when val is asked for
    assert len(list(cache_folder.glob("train-*.slices"))) == 1
    same(numpy(old.epoch(0)), expected)  # who still uses the old one keeps it
    shutil.rmtree(own)
    prepare(raw, tmp_path / "elsewhere", OPTIONS, jobs=1)
    EvaluationData(tmp_path / "elsewhere", "test", cache="disk")
    assert [path.name.split("-")[0] for path in cache_folder.glob("*.slices")] == ["test"]


def test_a_cache_moves_with_its_shards(own, cache_folder, tmp_path):
    TrainingData(own, cache="disk")
    moved = own.rename(tmp_path / "moved")
    TrainingData(moved, cache="disk")
    EvaluationData(moved, "val", cache="disk")
    assert len(list(cache_folder.glob("train-*.slices"))) == 1


@pytest.mark.parametrize("harm", ["cut", "left over"])
def test_a_broken_cache_is_built_anew(shards, cache_folder, harm):
    expected = numpy(TrainingData(shards, cache="disk").epoch(0))
    (path,) = cache_folder.glob("*.slices")
    if harm == "cut":
        with path.open("r+b") as stream:
            stream.truncate(1000)
    else:
        path.rename(cache_folder / ".tmp-killed")
    same(numpy(TrainingData(shards, cache="disk").epoch(0)), expected)
    assert not list(cache_folder.glob(".tmp-*"))


def test_a_cache_that_shrinks_in_use_is_an_error(shards, cache_folder):
    data = TrainingData(shards, cache="disk")
    (path,) = cache_folder.glob("*.slices")
    with path.open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(DataError, match="cache on disk is truncated"):
        data.batch(0, 0)


def test_one_builds_and_the_others_wait(shards, cache_folder, monkeypatch):
    reads = Counter()
    original = ShardRecords.read

    def counted(self, number):
        reads[number] += 1
        return original(self, number)

    monkeypatch.setattr(ShardRecords, "read", counted)
    threads = [threading.Thread(target=TrainingData, args=[shards], kwargs={"cache": "disk"}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == Counter(range(54))
    assert len(list(cache_folder.glob("*.slices"))) == 1


def test_a_cache_that_cannot_be_written_says_so(shards, tmp_path, cache_folder, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(KerassegError, match=r"file: cannot be written.*cache='none'"):
        TrainingData(shards, cache="disk", cache_folder=tmp_path / "file")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KerassegError, match="not enough disk space for the slice cache"):
        TrainingData(shards, cache="disk")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kerasseg.data.stores.os.fsync", full)
    with pytest.raises(KerassegError, match="no space left on the disk"):
        TrainingData(shards, cache="disk", cache_folder=tmp_path / "other")
    assert {path.name for path in (tmp_path / "other").iterdir()} == {".lock"}


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("KERASSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/kerasseg")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "kerasseg"


def test_200_000_slices_on_disk_take_no_memory(tmp_path):
    """A sparse file of the size, read here and there, a tenth of it in all."""
    layout = RowLayout(256, 1)
    assert layout.row_bytes == 73_728
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(200_000 * layout.row_bytes)
        stream.seek(199_999 * layout.row_bytes)
        stream.write(b"\7")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    slices = FileSlices(path, 200_000, layout)
    assert slices.take(np.array([0, 199_999]))[:, 0].tolist() == [0, 7]
    rng, before = np.random.default_rng(0), resident()
    for _ in range(2500):
        slices.take(rng.integers(0, 200_000, 8))
    assert resident() - before < 50e6


# What can be wrong


def first_shard(root):
    shard = load_manifest(root).shards_of("train")[0]
    return root / shard.path, shard


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_byte_is_noticed(own, kind):
    path, _ = first_shard(own)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name}: its bytes have changed.*kerasseg verify"):
        TrainingData(own, cache=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_record_is_an_error_even_unchecked(own, kind):
    path, shard = first_shard(own)
    data = bytearray(path.read_bytes())
    data[12:60] = bytes(48)
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        numpy([[tf.constant(TrainingData(own, cache=kind, check=False).slices.pixels(np.arange(54))[0])]])
    data[3] = 1  # a length that leads far beyond the end
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name}.*after 0 records.*expected {shard.records} records"):
        TrainingData(own, cache=kind, check=False).slices.pixels(np.arange(54))


def edit(root, change):
    path = root / "manifest.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def test_a_record_in_the_wrong_file_is_an_error(own):
    def swap(state):
        a, b = (next(s for s in state["shards"] if s["label"] == name) for name in ("glioma", "meningioma"))
        a["label"], b["label"] = b["label"], a["label"]

    edit(own, swap)
    with pytest.raises(DataError, match="class of a record differs"):
        TrainingData(own)


def test_shards_that_do_not_fit_their_manifest(own):
    path, shard = first_shard(own)
    edit(own, lambda state: state["shards"][0].update(records=shard.records + 1))
    with pytest.raises(DataError, match="number of records differs"):
        TrainingData(own)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name}: the shard does not fit the manifest.*bytes"):
        TrainingData(own)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        load_split(own, "train")
    (own / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="the manifest is damaged"):
        load_split(own, "val")
    with pytest.raises(DataError, match="not a shard directory"):
        load_split(own / "train", "val")


def test_splits_without_slices_or_classes(own):
    def without(split, label=None):
        def change(state):
            state["shards"] = [s for s in state["shards"] if s["split"] != split or label not in (None, s["label"])]

        return change

    edit(own, without("train", "glioma"))
    with pytest.raises(DataError, match="the split train holds no slices of glioma"):
        TrainingData(own)
    load_split(own, "val")
    edit(own, without("val"))
    with pytest.raises(DataError, match=r"the split val holds no slices .found 36 in train, 18 in test"):
        load_split(own, "val")
    with pytest.raises(UsageError, match="unknown split .found 'dev', expected one of train, val, test"):
        load_split(own, "dev")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 55}, "a batch is larger than the training split .found batches of 55, expected at most 54"),
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": 2.5}, "batch size"),
        ({"channels": 2}, "number of channels"),
        ({"balance": "equal"}, "unknown mode"),
        ({"seed": -1}, "invalid seed"),
        ({"worker": (2, 2)}, "invalid worker"),
    ],
)
def test_options_that_cannot_be_meant(shards, options, message):
    with pytest.raises(UsageError, match=message):
        TrainingData(shards, **options)


def test_progress_is_told(shards):
    told = []
    TrainingData(shards, cache="disk", progress=lambda *state: told.append(state))
    TrainingData(shards, cache="memory", progress=lambda *state: told.append(state))
    assert {stage for stage, _, _ in told} == {"check", "cache", "read"}
    assert ("cache", 54, 54) in told
    assert ("read", 54, 54) in told


def test_names_are_public():
    import kerasseg

    assert kerasseg.load_split is load_split
    assert kerasseg.TrainingData is TrainingData
    assert kerasseg.EvaluationData is EvaluationData
