"""Pictures of a few slices as the network of a run sees them, without a pass over the split."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from kerasseg.evaluation.pictures import SlicePicture
from kerasseg.postprocessing import apply_rule
from kerasseg.rule import MaskRule
from kerasseg.split_batches import EvaluationBatches
from kerasseg_tfrecords.manifest import load_manifest
from kerasseg_tfrecords.split import SPLITS

__all__ = ["NetworkPictures"]


class NetworkPictures:
    """The `Pictures` of one network; each is predicted when it is asked for.

    Args:
        model: The network.
        rule: From its probabilities to masks.
        shards: The shard directory.
        split: `train`, `val`, `test`, or `all`.

    Raises:
        DataError: Shards that are missing or damaged.
    """

    def __init__(self, model: keras.Model, rule: MaskRule, shards: Path | str, split: str) -> None:
        self._model, self._rule = model, rule
        manifest = load_manifest(shards)
        channels = int(model.inputs[0].shape[-1])
        names = [name for name in SPLITS if manifest.slices_in(name)] if split == "all" else [split]
        self._data = [
            EvaluationBatches(shards, name, batch_size=1, channels=channels, cache="none", check=False)
            for name in names
        ]
        self._places: dict[str, tuple[EvaluationBatches, int]] = {}

    def picture(self, slice_id: str) -> SlicePicture:
        """The picture of a slice.

        Raises:
            KeyError: No such slice.
        """
        if not self._places:
            self._places = {
                data.records.record(number).slice_id: (data, number)
                for data in self._data
                for number in range(len(data.slices))
            }
        data, number = self._places[slice_id]
        record = data.records.record(number)
        found = self._model.predict_on_batch(data.batch(number).image)
        probability = np.asarray(keras.ops.convert_to_numpy(found), np.float32)[0, ..., 0]
        name = data.manifest.classes[record.label]
        return SlicePicture(record.image, record.mask, apply_rule(probability, self._rule, name))
