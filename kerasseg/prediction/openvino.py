"""OpenVINO as the engine of a network on processors, used only where its masks agree with those of Keras."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg_tfrecords.errors import UsageError, one_line
from kerasseg_tfrecords.files import temporary_space

LEAST_DICE = 0.999
"""Smallest mean Dice of both engines' masks over the first slices, to use OpenVINO for the others."""

_CHECKED = 16
"""Slices with a mask that both engines predict; empty masks agree whatever the engines compute."""


class OpenVINONetwork:
    """A network that OpenVINO computes once it has agreed with Keras on the first slices with a mask.

    Only in float32, where both differ by rounding alone, so that what the first slices show holds for all: a conversion is
    right or wrong. In bfloat16, masks that agreed on the first slices differed on later ones.

    Args:
        native: Network for prediction in float32, see `kerasseg.models.folding`.
        rule: Rule from probabilities to the masks that are compared.
        name: Name of the network, for the note.
        engines: Gets the name of the engine that computed what `predict_on_batch` returns.

    Attributes:
        note: Remark for users if only Keras has computed the network so far; "" otherwise.

    Raises:
        UsageError: OpenVINO is not installed.
    """

    def __init__(self, native: Any, rule: MaskRule, name: str, engines: set[str]) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise UsageError(
                "engine openvino needs the package openvino",
                found="not installed",
                remedy='Install the extra: pip install "kerasseg[openvino]"',
            )
        self.note = ""
        self._native, self._rule, self._name, self._engines = native, rule, name, engines
        self._refused = False
        self._dice: list[float] = []
        try:
            self._request = _compiled(native)
        except Exception as error:  # RuntimeError, ValueError and others
            self._refuse(f"OpenVINO cannot convert it ({one_line(str(error))[:200]})")

    def predict_on_batch(self, images: NDArray[np.float32]) -> Any:
        """Predict (batch, height, width, 1) probabilities of (batch, height, width, channels) images."""
        if len(self._dice) >= _CHECKED and not self._refused:
            self._engines.add("openvino")
            return self._openvino(images)
        self._engines.add("native")
        values = self._native.predict_on_batch(images)
        if self._refused:
            return values
        try:
            others = self._openvino(images)
        except Exception as error:  # RuntimeError and others
            self._refuse(f"OpenVINO cannot compute it ({one_line(str(error))[:200]})")
            return values
        for one, other in zip(np.asarray(values), others, strict=True):
            first, second = (apply_rule(plane[..., 0], self._rule) for plane in (one, other))
            # A mean over slices, since a pooled Dice hides small tumours behind large ones.
            if either := np.count_nonzero(first) + np.count_nonzero(second):
                self._dice.append(2 * np.count_nonzero(first & second) / either)
        if len(self._dice) < _CHECKED:
            self._explain(f"comparing them needs {_CHECKED} slices with a mask, and there were {len(self._dice)}")
        elif (dice := float(np.mean(self._dice))) >= LEAST_DICE:
            self.note = ""
        else:
            self._refuse(
                f"on the first slices, the mean Dice of OpenVINO's masks and Keras' is {dice:.4f}, below {LEAST_DICE}"
            )
        return values

    def _openvino(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array(self._request.infer([images])[0])

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._explain(reason)

    def _explain(self, reason: str) -> None:
        self.note = f"{self._name}: Keras is used instead of OpenVINO, because {reason}"


def _compiled(native: Any) -> Any:
    openvino = importlib.import_module("openvino")
    with temporary_space(), tempfile.TemporaryDirectory(prefix="kerasseg-") as folder:
        native.export(folder, verbose=False)
        core = openvino.Core()
        # `convert_model` would report its use to OpenVINO's makers; `read_model` does not.
        network = core.read_model(Path(folder))
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        return core.compile_model(network, "CPU", options).create_infer_request()
