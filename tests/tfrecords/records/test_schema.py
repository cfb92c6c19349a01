"""The record format: what goes in comes out, in NumPy and in tf.data, and it is the documented bytes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.records.parsing import parse_batch
from kerasseg_tfrecords.records.schema import (
    FEATURES,
    Payload,
    SliceFacts,
    decode,
    encode,
    pack_mask,
    pack_native_mask,
    unpack_mask,
    unpack_native_mask,
)
from kerasseg_tfrecords.records.shards import framed, read_shard, write_shard

FACTS = SliceFacts(
    slice_id="set/Müller 1\n2",
    source="set/Müller 1\n2.mat",
    sha256="00",
    label="glioma",
    patient="MR040240B",
    volume="",
    slice_index=-1,
    height=50,
    width=70,
    channels=1,
    spacing=(0.5, 0.75),
    tumour_pixels=3,
)


def example(size: int = 20, channels: int = 1, seed: int = 0) -> tuple[Payload, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, channels), np.uint8)
    mask, native = rng.random((size, size)) > 0.5, rng.random((50, 70)) > 0.5
    return Payload(image.tobytes(), pack_mask(mask), pack_native_mask(native)), image, mask, native


@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_masks_pack_and_unpack(size: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((size, size)) > 0.5
    packed = pack_mask(mask)
    assert len(packed) == size * ((size + 7) // 8)
    assert np.array_equal(unpack_mask(packed, size), mask)


def test_mask_bits_are_row_major_most_significant_first() -> None:
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = mask[0, 9] = mask[1, 1] = True
    assert pack_mask(mask)[:4] == bytes([0b10000000, 0b01000000, 0b01000000, 0])


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_native_masks_are_png_of_one_bit(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    png = pack_native_mask(mask)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[24] == 1  # bit depth in the header
    assert np.array_equal(unpack_native_mask(png), mask)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 20, 33])
def test_a_record_comes_back(size: int, channels: int) -> None:
    payload, image, mask, native = example(size, channels)
    record = decode(encode(payload, FACTS, label=1, group="MR040240"), size=size, channels=channels)
    assert np.array_equal(record.image, image)
    assert np.array_equal(record.mask, mask)
    assert np.array_equal(record.mask_native, native)
    assert (record.slice_id, record.patient, record.group) == (FACTS.slice_id, "MR040240B", "MR040240")
    assert (record.label, record.height, record.width, record.slice_index) == (1, 50, 70, -1)
    assert record.spacing == (0.5, 0.75)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 20])
def test_tensorflow_reads_the_same_arrays(size: int, channels: int) -> None:
    made = [example(size, channels, seed) for seed in range(3)]
    serialized = tf.constant([encode(payload, FACTS, label=2, group="g") for payload, *_ in made])
    batch = tf.function(lambda s: parse_batch(s, size=size, channels=channels))(serialized)
    assert np.array_equal(batch["image"], [image for _, image, _, _ in made])
    assert np.array_equal(batch["mask"][..., 0], [mask for _, _, mask, _ in made])
    native = cv2.imdecode(np.frombuffer(batch["mask_native"][1].numpy(), np.uint8), cv2.IMREAD_GRAYSCALE) > 0
    assert np.array_equal(native, made[1][3])
    assert list(batch["label"].numpy()) == [2, 2, 2]
    assert batch["slice_id"][0].numpy().decode() == FACTS.slice_id


def test_the_features_are_the_documented_ones() -> None:
    payload, *_ = example()
    features = tf.train.Example.FromString(encode(payload, FACTS, label=0, group="g")).features.feature
    assert set(features) == set(FEATURES)
    kinds = {name: value.WhichOneof("kind") for name, value in features.items()}
    assert {name for name, kind in kinds.items() if kind == "int64_list"} == {"label", "height", "width", "slice_index"}
    assert {name for name, kind in kinds.items() if kind == "float_list"} == {"spacing"}


def test_equal_records_are_equal_bytes() -> None:
    payload, *_ = example()
    first = encode(payload, FACTS, label=0, group="g")
    assert first == encode(payload, replace(FACTS), label=0, group="g")
    # Map entries stand in the order of their names; otherwise bytes would depend on the process.
    places = [first.index(name.encode()) for name in ("group", "height", "label", "patient", "slice_index", "width")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"rubbish",
        tf.train.Example().SerializeToString(),
    ],
)
def test_other_records_are_refused(damaged: bytes) -> None:
    with pytest.raises(DataError, match="a damaged record"):
        decode(damaged, size=16, channels=1)


def test_records_that_grow_when_parsed_are_refused_before() -> None:
    with pytest.raises(DataError, match="the record is too long"):
        decode(b"\n\0" * (20 << 20), size=16, channels=1)


def test_a_native_mask_of_gigabytes_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg_tfrecords.records.schema.cv2.imdecode", lambda *_: np.ones((1, 1), np.uint8))
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    small = header + (512).to_bytes(4) * 2
    assert unpack_native_mask(small + b"\1\0").all()
    large = header + (30_000).to_bytes(4) * 2 + b"\1\0"
    for other in (large, small + b"\x10\0", small + b"\x08\6", small, b"\xff\xd8\xff" + bytes(99)):
        with pytest.raises(DataError, match="not a PNG"):
            unpack_native_mask(other)


def test_an_image_of_another_size_is_refused() -> None:
    payload, *_ = example(16)
    with pytest.raises(DataError, match="wrong length of image.*1024 bytes"):
        decode(encode(payload, FACTS, label=0, group="g"), size=32, channels=1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image", tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"short"])), "length of image"),
        ("mask", tf.train.Feature(bytes_list=tf.train.BytesList(value=[])), "0 values of mask"),
        ("label", tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"1"])), "0 values of label"),
        ("spacing", tf.train.Feature(float_list=tf.train.FloatList(value=[1.0])), "1 values of spacing"),
        ("height", None, "0 values of height"),
    ],
)
def test_a_damaged_record_in_a_batch_raises(name: str, value: object, words: str) -> None:
    payload, *_ = example(16)
    good = encode(payload, FACTS, label=0, group="g")
    bad = tf.train.Example.FromString(good)
    del bad.features.feature[name]
    if value is not None:
        bad.features.feature[name].CopyFrom(value)
    data = tf.data.Dataset.from_tensor_slices([good, bad.SerializeToString()]).batch(2)
    with pytest.raises(tf.errors.OpError, match=words):
        next(iter(data.map(lambda batch: parse_batch(batch, size=16, channels=1))))


def test_records_with_any_bytes_changed_raise_or_parse() -> None:
    """In one process, which `tf.io.parse_example` may end."""
    payload, *_ = example(16)
    good = encode(payload, FACTS, label=0, group="g")
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        data = bytearray(good)
        for place in draw.integers(0, len(data), 3):
            data[place] = draw.integers(256)
        try:
            parse_batch(tf.constant([good, bytes(data[: draw.integers(1, len(data) + 1)])]), size=16, channels=1)
        except (DataError, tf.errors.OpError):  # eagerly, and in `tf.data`
            refused += 1
    assert refused > 100


def test_files_are_those_of_tensorflow(tmp_path: Path) -> None:
    """TensorFlow reads our messages, and its own writer makes the same file."""
    made = [example(16, seed=seed)[0] for seed in range(3)]
    records = [encode(payload, FACTS, label=1, group="g") for payload in made]
    for record in records:
        theirs = tf.train.Example.FromString(record)
        assert theirs.features.feature["spacing"].float_list.value[:] == [0.5, 0.75]
        assert theirs.SerializeToString(deterministic=True) == record
    shard = write_shard(tmp_path, "train/glioma.tfrecord", "glioma", records)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in records:
            writer.write(record)
    assert (tmp_path / shard.path).read_bytes() == (tmp_path / "theirs").read_bytes()
    found = [r.image.tobytes() for r in read_shard(tmp_path / shard.path, size=16, channels=1)]
    assert found == [payload.image for payload in made]


@pytest.mark.parametrize("place", ["length", "length checksum", "data", "checksum"])
def test_every_changed_byte_is_found(place: str, tmp_path: Path) -> None:
    records = [encode(example(16, seed=seed)[0], FACTS, label=1, group="g") for seed in range(2)]
    whole = bytearray(b"".join(map(framed, records)))
    second = len(framed(records[0]))
    whole[second + {"length": 3, "length checksum": 9, "data": 200, "checksum": len(whole) - second - 1}[place]] ^= 1
    file = tmp_path / "a.tfrecord"
    file.write_bytes(whole)
    reading = read_shard(file, size=16, channels=1)
    next(reading)
    with pytest.raises(DataError, match="a damaged record after 1 good ones"):
        next(reading)


@given(st.integers(1, 2000))
def test_a_file_that_was_cut_off_ends_in_the_middle_of_a_record(kept: int) -> None:
    whole = framed(encode(example(16)[0], FACTS, label=1, group="g"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.tfrecord"
        file.write_bytes(whole + whole[: min(kept, len(whole) - 1)])
        reading = read_shard(file, size=16, channels=1)
        next(reading)
        with pytest.raises(DataError, match="middle of a record after 1 good ones"):
            next(reading)
