"""TensorBoard's files, read back: figures against `history.csv`, pictures, a resumed run, a full disk."""

from __future__ import annotations

import errno
import math
import socket
from collections import defaultdict

import cv2
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from factories import write_figshare
from kerasseg.runs.history import EpochRow, read_history
from kerasseg.training.events import Ended, Evaluated, Step
from kerasseg.training.tensorboard import MASK_COLOUR, PREDICTION_COLOUR, EventWriter, Example, choose, draw_outlines
from kerasseg_tfrecords import prepare, read_records
from kerasseg_tfrecords.records.manifest import PrepareOptions

MASK = np.zeros((16, 16), bool)
MASK[4:9, 3:10] = True
IMAGE = np.full((16, 16, 1), 0.5, "float32")


def row(epoch, dice=0.5, **changes):
    values = {name: 0.25 for name in EpochRow.__dataclass_fields__ if name.startswith("val_")}
    values |= {"phase": "conservative", "epoch": epoch, "learning_rate": 1e-4, "loss": math.nan, "dice": dice}
    return EpochRow(
        **{**values, "classes": {"glioma": 0.1}, "seconds": 1, "slices_per_second": 2, "memory_mb": 3, **changes}
    )


def tell(writer, *epochs):
    for epoch in epochs:
        writer(Evaluated(row(epoch, epoch / 100), None, tuple(row(e) for e in range(epoch + 1))))


def read(folder):
    """tag -> step -> values in the order of the files, as TensorBoard reads them but forgetting nothing."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.iterdir()):
        for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            event = tf.compat.v1.Event.FromString(record)
            assert (event.file_version == "brain.Event:2") == (number == 0)
            for value in event.summary.value:
                found[value.tag][event.step].append(value.image if value.HasField("image") else value.simple_value)
    return found


@pytest.mark.rest
@pytest.mark.slow
def test_figures_are_those_of_the_history_and_pictures_show_mask_and_prediction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = write_figshare(tmp_path / "raw", patients=15, slices_each=1, size=24)
    shards = tmp_path / "shards"
    prepare(raw, shards, PrepareOptions(size=16, split="60/20/20"), jobs=1)
    model = kerasseg.unet((16, 16, 3), filters=2, depth=1, seed=3)
    # Neither weights nor BatchNorm move, so that epoch 1 puts out what the network in hand does.
    still = {"learning_rate": 1e-12, "batchnorm_momentum": 0.9999999}
    done = kerasseg.fine_tune(
        model, shards, out="run", epochs=1, batch_size=3, precision="float32", devices=["CPU:0"], **still
    )
    run = done.run
    found = read(run.events_folder)
    rows = read_history(run.history_file)
    assert len(rows) == 2
    columns = {
        "loss/train": "loss",
        "loss/validation": "val_loss",
        "dice/train": "dice",
        "dice/validation": "val_dice",
        "dice/validation_tumour_slices": "val_dice_tumour",
        "soft_dice/validation": "val_soft_dice",
        "iou/validation": "val_iou",
        "precision/validation": "val_precision",
        "recall/validation": "val_recall",
        "learning_rate": "learning_rate",
        "speed/slices_per_second": "slices_per_second",
        "speed/memory_mb": "memory_mb",
    }
    pictures = {tag: steps for tag, steps in found.items() if tag.startswith("validation/")}
    by_class = {f"dice_by_class/{name}" for name in ("meningioma", "glioma", "pituitary")}
    assert set(found) - set(pictures) == set(columns) | by_class
    for tag in set(found) - set(pictures):
        for line in rows:
            value = line.classes[tag.split("/")[1]] if tag in by_class else getattr(line, columns[tag])
            expected = [] if math.isnan(value) else [pytest.approx(value, rel=1e-6)]
            assert found[tag].get(line.epoch, []) == expected, tag

    records = {f"validation/{done_class(shards, r)}/{r.slice_id}": r for r in read_records(shards, ["val"])}
    assert set(pictures) == set(records)  # three classes with one slice each
    for tag, steps in pictures.items():
        assert sorted(steps) == [0, 1]
        stored = steps[1][0]
        assert (stored.height, stored.width) == (16, 16)
        picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(stored.encoded_image_string, np.uint8), 1), cv2.COLOR_BGR2RGB)
        image = np.repeat(records[tag].image, 3, axis=-1)
        # At a rate of nothing the network of each epoch is the one that came back.
        predicted = model.predict(image[None] / np.float32(255), verbose=0)[0, ..., 0] >= 0.5
        expected = image.copy()
        for mask, colour in ((records[tag].mask > 0, MASK_COLOUR), (predicted, PREDICTION_COLOUR)):
            expected[border(mask)] = colour
        np.testing.assert_array_equal(picture, expected)


def done_class(shards, record):
    return kerasseg.EvaluationData(shards).manifest.classes[record.label]


def border(mask):
    """Pixels of the mask with a neighbour, above, below, left or right, outside of it; the edge of the image counts."""
    padded = np.pad(mask.reshape(mask.shape[:2]), 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return padded[1:-1, 1:-1] & ~inner


def test_outlines_are_the_masks_borders():
    hole = MASK.copy()
    hole[6, 6] = False
    dot = np.zeros_like(MASK)
    dot[0, 15] = True
    picture = draw_outlines(IMAGE, [(MASK, MASK_COLOUR), (dot, PREDICTION_COLOUR)])
    expected = np.full((16, 16, 3), 128, np.uint8)
    expected[border(MASK)] = MASK_COLOUR
    expected[0, 15] = PREDICTION_COLOUR
    np.testing.assert_array_equal(picture, expected)


def test_the_choice_is_fair_and_the_seeds():
    labels, tumour = np.repeat([0, 1, 2], [10, 3, 1]), np.ones(14, bool)
    tumour[:8] = False
    chosen = choose(labels, tumour, seed=5)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1]
    assert tumour[chosen].all()
    assert choose(labels, tumour, seed=5) == chosen
    assert len({tuple(choose(labels, tumour, seed)) for seed in range(20)}) > 1
    assert len(choose(np.arange(9), np.zeros(9), seed=1)) == 6


def test_going_on_leaves_no_step_twice(tmp_path):
    """The first process is killed while it writes the line of epoch 3, whose state it had not saved; nor epoch 2's."""
    first = EventWriter(tmp_path)
    tell(first, 0, 1, 2, 3)
    (path,) = tmp_path.iterdir()
    assert socket.gethostname() not in path.name, "a run may be shared"
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / ".tmp-1").write_bytes(b"left by a kill")
    second = EventWriter(tmp_path)
    tell(second, 2, 3)
    third = EventWriter(tmp_path)
    tell(third, 4)
    third(Ended("finished", "", (), row(0), row(0), None, {}, 1.0))
    assert len(list(tmp_path.iterdir())) == 3
    steps = read(tmp_path)["dice/train"]
    assert dict(sorted(steps.items())) == {step: [pytest.approx(step / 100)] for step in range(5)}
    # What tells a TensorBoard that is open to forget what it has read.
    starts = [
        event.step
        for path in sorted(tmp_path.iterdir())
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        if (event := tf.compat.v1.Event.FromString(record)).session_log.status == tf.compat.v1.SessionLog.START
    ]
    assert starts == [0, 2, 4]


@pytest.mark.parametrize("kind", ["disk", "folder", "memory"])
def test_what_cannot_be_written_ends_the_writing_not_the_training(tmp_path, monkeypatch, kind):
    said, folder, predict = [], tmp_path / "events", None
    if kind == "folder":
        folder.write_text("a file stands in the way")
    elif kind == "disk":

        class Full:
            def write(self, record):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tf.io, "TFRecordWriter", lambda _: Full())
    else:

        def predict(images):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    writer = EventWriter(folder, [Example("glioma/1", IMAGE, MASK)], predict, said.append)
    tell(writer, 0, 1)
    writer(Step("train", 1, 1, 1, 0.1, 0.1, 1e-4, 8))
    assert [message.kind for message in said] == ["no-events"]
    assert said[0].level == "warning"
    assert "Training continues" in said[0].text
