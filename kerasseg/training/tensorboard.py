"""TensorBoard events of a run: scores of each epoch, and validation slices with their masks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from kerasseg.data.rng import permutation
from kerasseg.runs.history import EpochRow
from kerasseg.training.events import Ended, Evaluated, Event, Message
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.files import sync_folder

MOST = 6
"""Maximum number of slices to show; each is predicted and stored in every epoch."""

_PER_CLASS = 2

# Okabe and Ito's palette, which colour-blind readers can tell apart, also on grey.
MASK_COLOUR = (0, 158, 115)
"""Bluish green: ground truth."""

PREDICTION_COLOUR = (230, 159, 0)
"""Orange: the predicted mask."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A slice to show.

    Attributes:
        name: Name for display, such as "glioma/data/17.mat".
        image: (height, width, channels) float32 in [0, 1], as the network takes it.
        mask: (height, width) bool.
    """

    name: str
    image: NDArray[np.float32]
    mask: NDArray[np.bool_]


def choose(labels: ArrayLike, tumour: ArrayLike, seed: int, most: int = MOST) -> list[int]:
    """Choose slices to show: at most two per class, slices with a tumour first, in random order.

    Args:
        labels: (slices,) class of each slice, integers.
        tumour: (slices,) whether the mask of each slice has any pixel.
        seed: Integer >= 0.
        most: Maximum number of slices.

    Example:
        >>> chosen = choose([0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0, 1], seed=1)
        >>> chosen[0] in (0, 2), chosen[1] in (3, 4, 6), len(chosen)
        (True, True, 4)
    """
    classes, has_tumour = np.asarray(labels), np.asarray(tumour, bool)
    hands = []
    for label in np.unique(classes).tolist():
        members = np.flatnonzero(classes == label)
        mixed = members[permutation(seed, 0, f"examples: class {label}", len(members))]
        with_tumour = mixed[has_tumour[mixed]]
        hands.append(np.concatenate([with_tumour, mixed[~has_tumour[mixed]]])[:_PER_CLASS].tolist())
    return [hand[turn] for turn in range(_PER_CLASS) for hand in hands if turn < len(hand)][:most]


def draw_outlines(
    image: NDArray[np.float32], outlines: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]]
) -> NDArray[np.uint8]:
    """Draw a slice with the outlines of masks, later ones on top.

    Outlines are one pixel wide and lie inside the mask, so that a single pixel is visible, too.

    Args:
        image: (height, width, 1 or 3) in [0, 1].
        outlines: (mask (height, width), colour as red, green, blue from 0 to 255).

    Returns:
        (height, width, 3) uint8, red-green-blue.

    Example:
        >>> mask = np.zeros((8, 8), bool); mask[2:6, 2:6] = True
        >>> picture = draw_outlines(np.zeros((8, 8, 1), "float32"), [(mask, (0, 255, 0))])
        >>> int((picture[..., 1] == 255).sum()), picture[3, 3].tolist()
        (12, [0, 0, 0])
    """
    grey = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    picture = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey.copy()
    for mask, colour in outlines:
        if mask.shape != picture.shape[:2]:
            raise UsageError("image and mask differ in size", found=mask.shape, expected=picture.shape[:2])
        found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, found, -1, colour, 1)
    return picture


# TensorBoard's files consist of Summary messages. `tf.summary` would write the same, but needs the package tensorboard,
# which TensorFlow does not install.
_Event, _Summary = tf.compat.v1.Event, tf.compat.v1.Summary
_START = tf.compat.v1.SessionLog.START

_VERSION = "brain.Event:2"


class EventWriter:
    """Observer that writes event files for `tensorboard --logdir`.

    The step is the row of `history.csv`, from 0 for the untouched network. Each process writes its own file. A resumed run
    first removes events of epochs that were lost, so that no step appears twice. If the folder cannot be written to, or
    the disk is full, writing stops and training continues.

    Args:
        folder: Folder for the files; created if missing.
        examples: Slices to show.
        predict: Returns probabilities (n, height, width, 1) for images (n, height, width, channels).
        on_message: Called when writing stops.

    Example:
        >>> import tempfile
        >>> from kerasseg.training.state import SliceTable
        >>> row = EpochRow("conservative", 0, 1e-4, *[math.nan] * 2, *[0.5] * 7, {"glioma": 0.5}, 1.0, math.nan, 100.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     listen = EventWriter(Path(folder))
        ...     listen(Evaluated(row, SliceTable(*[np.zeros(1)] * 9), (row,)))
        ...     [path.name[:19] for path in Path(folder).iterdir()]
        ['events.out.tfevents']
    """

    def __init__(
        self,
        folder: Path,
        examples: Sequence[Example] = (),
        predict: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
        on_message: Callable[[Message], None] | None = None,
    ) -> None:
        self._folder, self._examples, self._predict = folder, tuple(examples), predict
        self._tell = on_message or (lambda _: None)
        self._writer: Any = None
        self._broken = False

    def __call__(self, event: Event) -> None:
        """Write the scores of an epoch; other events are ignored."""
        if self._broken:
            return
        try:
            match event:
                case Evaluated(row=row, history=history):
                    self._write(row, len(history) - 1)
                case Ended():
                    self._close()
                case _:
                    return
        except (OSError, tf.errors.OpError) as error:
            self._broken = True
            text = f"TensorBoard files cannot be written to {self._folder} ({error}). Training continues."
            self._tell(Message("warning", "no-events", text))

    def _write(self, row: EpochRow, step: int) -> None:
        if self._writer is None:
            self._open(step)
        values = [_Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        values += [_picture(example.name, drawn) for example, drawn in self._drawn()]
        self._add(step, summary=_Summary(value=values))
        self._writer.flush()

    def _drawn(self) -> Iterator[tuple[Example, NDArray[np.uint8]]]:
        if self._predict is None:
            return
        for example in self._examples:
            # One by one, since the device may not have memory for a whole batch.
            predicted = self._predict(example.image[None])[0, :, :, 0] >= 0.5
            outlines = [(example.mask, MASK_COLOUR), (predicted, PREDICTION_COLOUR)]
            yield example, draw_outlines(example.image, outlines)

    # --- files -----------------------------------------------------------------------------------------------------------

    def _open(self, step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".tmp-*"):
            left.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("events.out.tfevents.*")):
            _cut(path, step)
        # TensorBoard reads the files of a folder in the order of their names. Runs are shared, so without the host's name.
        number = time.time_ns() // 1_000_000
        name = f"events.out.tfevents.{number:015d}.kerasseg.{os.getpid()}"
        self._writer = tf.io.TFRecordWriter(str(self._folder / name))
        self._add(0, file_version=_VERSION)
        # TensorBoard may have read the removed events already; this makes it forget the steps from here on.
        self._add(step, session_log=tf.compat.v1.SessionLog(status=_START))

    def _add(self, step: int, **content: Any) -> None:
        self._writer.write(_Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(row: EpochRow) -> dict[str, float]:
    """Return tag -> value for the scores of an epoch, without NaN.

    >>> row = EpochRow("conservative", 0, 1e-4, *[math.nan] * 2, *[0.5] * 7, {"glioma": 0.25}, 1.0, math.nan, 100.0)
    >>> scalars(row)["dice_by_class/glioma"], "loss/train" in scalars(row)
    (0.25, False)
    """
    values = {
        "loss/train": row.loss,
        "loss/validation": row.val_loss,
        "dice/train": row.dice,
        "dice/validation": row.val_dice,
        "dice/validation_tumour_slices": row.val_dice_tumour,
        "soft_dice/validation": row.val_soft_dice,
        "iou/validation": row.val_iou,
        "precision/validation": row.val_precision,
        "recall/validation": row.val_recall,
        **_by_class(row.classes),
        "learning_rate": row.learning_rate,
        "speed/slices_per_second": row.slices_per_second,
        "speed/memory_mb": row.memory_mb,
    }
    return {tag: value for tag, value in values.items() if math.isfinite(value)}


def _by_class(scores: Mapping[str, float]) -> dict[str, float]:
    return {f"dice_by_class/{name}": score for name, score in scores.items()}


def _picture(name: str, drawn: NDArray[np.uint8]) -> Any:
    done, png = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    if not done:
        msg = f"{name} cannot be written as PNG"
        raise OSError(msg)
    height, width = drawn.shape[:2]
    image = _Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.tobytes())
    return _Summary.Value(tag=f"validation/{name}", image=image)


def _cut(path: Path, step: int) -> None:
    """Remove the events of a step and later ones from a file, and an incomplete last record."""
    kept, whole = [], True
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = _Event.FromString(record)
            if event.step < step or event.HasField("file_version"):
                kept.append(record)
            else:
                whole = False
    except tf.errors.DataLossError:
        whole = False
    if whole:
        return
    # Without "tfevents" in its name, so that TensorBoard does not read it.
    temporary = path.with_name(f".tmp-{os.getpid()}")
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in kept:
            writer.write(record)
    temporary.replace(path)
    sync_folder(path.parent)
