"""The U-Net that kerasseg builds when it is not given one: `unet`.

Ronneberger, Fischer, Brox: *U-Net: Convolutional Networks for Biomedical Image Segmentation*, MICCAI 2015
(arXiv 1505.04597), with "same" padding, so that the mask has the size of the image, and with a normalisation.
Written with `keras` alone: it builds on every backend, and consists of Keras' own layers, so that
`keras.saving.load_model` opens the saved file where kerasseg is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from zlib import crc32

import keras
from keras import layers

from kerasseg_tfrecords.errors import UsageError

__all__ = ["Normalization", "Upsampling", "unet"]

Normalization = Literal["batch", "group", "instance", "none"]
Upsampling = Literal["transposed", "bilinear"]

_CHANNELS_PER_GROUP = 16  # Wu & He 2018, table 3: as good as 32 groups, and defined for few filters as well


def unet(
    input_shape: Sequence[int | None] = (256, 256, 3),
    classes: int = 1,
    depth: int = 4,
    filters: int | Sequence[int] = 64,
    normalization: Normalization = "batch",
    upsampling: Upsampling = "transposed",
    dropout: float = 0.0,
    activation: str = "relu",
    bias: bool | None = None,
    seed: int | None = None,
    name: str = "unet",
) -> keras.Model:
    """Build a U-Net whose layer names carry their block.

    Each block is twice (3x3 convolution, normalisation, activation). The blocks, top to bottom and up again, are
    `encoder_1` (full resolution) to `encoder_n`, `bottleneck`, `decoder_n` to `decoder_1` and `head`; `decoder_k` stands
    at the scale of `encoder_k` and receives its skip. Layers are called `encoder_1_conv_1`, `encoder_1_norm_1`,
    `encoder_1_act_1`, `encoder_1_pool`, `bottleneck_conv_1`, `decoder_4_up`, `decoder_4_concat`, ..., `head`. The names
    do not depend on what was built before in the process.

    With the defaults it has 31,049,409 parameters; training moves 31,037,633 of them, the others are BatchNorm statistics.

    Args:
        input_shape: Height, width and channels of one image; height and width are multiples of `2 ** depth`, or None for
            any such size.
        classes: 1 for a probability of the foreground (sigmoid); more for a softmax over that many classes, of which
            class 0 is the background by kerasseg's convention.
        depth: How often the resolution is halved, at least 1: the number of encoder blocks.
        filters: Filters of `encoder_1`, doubled at each level down; or `depth + 1` numbers, the last for the bottleneck.
        normalization: `"batch"`, `"group"` (16 channels a group where that divides), `"instance"`
            (`GroupNormalization(groups=-1)`) or `"none"`.
        upsampling: `"transposed"`: a learnt 2x2 transposed convolution. `"bilinear"`: interpolation and a 1x1
            convolution, which leaves no checkerboard (Odena et al. 2016).
        dropout: Fraction of values dropped at the end of the contracting path (last encoder block and bottleneck, as in
            the paper), 0 up to but without 1. At 0 there are no dropout layers.
        activation: Name of a Keras activation for the blocks, for instance `"relu"`, `"leaky_relu"` or `"silu"`.
        bias: Whether the 3x3 convolutions have a bias. None: only where the normalisation would not cancel it, that is for
            `"group"` and `"none"`.
        seed: Makes initial weights and dropout repeatable: each layer draws from (seed, its name). None: Keras' global
            seed (`keras.utils.set_random_seed`).
        name: Name of the model.

    Returns:
        A functional model from float32 images (batch, height, width, channels) to float32 probabilities (batch, height,
        width, classes) in 0..1. The head computes in float32 under a mixed-precision policy too, since a bfloat16 sigmoid
        has 8 bits and a threshold on it no more.

    Raises:
        UsageError: An argument that cannot be meant, for instance a size that cannot be halved `depth` times.

    Example:
        >>> model = unet((64, 64, 3), filters=8, depth=2)
        >>> model.output_shape
        (None, 64, 64, 1)
        >>> [layer.name for layer in model.layers if layer.name.startswith("decoder_1")][:3]
        ['decoder_1_up', 'decoder_1_concat', 'decoder_1_conv_1']
    """
    shape = _checked_shape(input_shape, depth)
    widths = _checked_filters(filters, depth)
    _check_rest(classes, normalization, upsampling, dropout, activation)
    _check_settings(bias, seed, name)
    plan = _Plan(
        normalization=normalization,
        upsampling=upsampling,
        dropout=dropout,
        activation=activation,
        bias=normalization in ("group", "none") if bias is None else bias,
        seed=seed,
    )

    # The order of axes is stated in every layer: a checkpoint must not depend on somebody's ~/.keras/keras.json.
    image = keras.Input(shape, name="image", dtype="float32")
    x, skips = image, []
    for level in range(1, depth + 1):
        x = plan.block(x, f"encoder_{level}", widths[level - 1], drop=level == depth)
        skips.append(x)
        x = layers.MaxPooling2D(2, data_format="channels_last", name=f"encoder_{level}_pool")(x)
    x = plan.block(x, "bottleneck", widths[depth], drop=True)
    for level in range(depth, 0, -1):
        x = plan.up(x, f"decoder_{level}", widths[level - 1])
        x = layers.Concatenate(axis=-1, name=f"decoder_{level}_concat")([x, skips[level - 1]])
        x = plan.block(x, f"decoder_{level}", widths[level - 1])
    head = layers.Conv2D(
        classes,
        1,
        activation="sigmoid" if classes == 1 else "softmax",
        data_format="channels_last",
        # The activation in front is linear here: Glorot keeps the first logits near 0.
        kernel_initializer=keras.initializers.GlorotUniform(seed=plan.seed_of("head")),
        dtype="float32",
        name="head",
    )
    return keras.Model(image, head(x), name=name)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all blocks of one network have in common."""

    normalization: Normalization
    upsampling: Upsampling
    dropout: float
    activation: str
    bias: bool
    seed: int | None

    def seed_of(self, layer: str) -> int | None:
        """Its own seed for each layer: one seed for all would start layers of one shape from the same weights."""
        return None if self.seed is None else crc32(f"{self.seed}/{layer}".encode()) & 0x7FFFFFFF

    def convolution(self, name: str, filters: int, size: int, *, bias: bool) -> Any:
        return layers.Conv2D(
            filters,
            size,
            padding="same",
            data_format="channels_last",
            use_bias=bias,
            kernel_initializer=keras.initializers.HeNormal(seed=self.seed_of(name)),
            name=name,
        )

    def block(self, x: Any, block: str, filters: int, *, drop: bool = False) -> Any:
        for i in (1, 2):
            x = self.convolution(f"{block}_conv_{i}", filters, 3, bias=self.bias)(x)
            x = self.normalized(x, f"{block}_norm_{i}", filters)
            x = layers.Activation(self.activation, name=f"{block}_act_{i}")(x)
        if drop and self.dropout:
            name = f"{block}_drop"
            x = layers.Dropout(self.dropout, seed=self.seed_of(name), name=name)(x)
        return x

    def normalized(self, x: Any, name: str, filters: int) -> Any:
        if self.normalization == "batch":
            return layers.BatchNormalization(axis=-1, name=name)(x)
        if self.normalization == "group":
            groups = math.gcd(filters, max(1, filters // _CHANNELS_PER_GROUP))
            return layers.GroupNormalization(groups=groups, axis=-1, name=name)(x)
        if self.normalization == "instance":
            return layers.GroupNormalization(groups=-1, axis=-1, name=name)(x)
        return x

    def up(self, x: Any, block: str, filters: int) -> Any:
        name = f"{block}_up"
        if self.upsampling == "transposed":
            return layers.Conv2DTranspose(
                filters,
                2,
                strides=2,
                padding="same",
                data_format="channels_last",
                kernel_initializer=keras.initializers.HeNormal(seed=self.seed_of(name)),
                name=name,
            )(x)
        x = layers.UpSampling2D(2, interpolation="bilinear", data_format="channels_last", name=name)(x)
        return self.convolution(f"{name}_conv", filters, 1, bias=True)(x)


def _checked_shape(input_shape: Sequence[int | None], depth: int) -> tuple[int | None, int | None, int]:
    if not _whole(depth) or not 1 <= depth <= 10:
        raise UsageError("depth is no number of encoder blocks", found=depth, expected="1 to 10")
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if len(shape) != 3 or not all(size is None or _whole(size) for size in shape) or shape[2] is None:
        raise UsageError("input_shape is no shape of an image", found=shape, expected="(height, width, channels)")
    step = 2**depth
    for what, size in zip(("height", "width"), shape[:2], strict=True):
        if size is not None and (size < step or size % step):
            near = [s for s in (size // step * step, (size // step + 1) * step) if s > 0]
            raise UsageError(
                f"an image {what} of {size} cannot be halved {depth} times",
                expected=f"a multiple of {step}",
                remedy=f"Take {' or '.join(map(str, near))}, or a smaller depth.",
            )
    if shape[2] < 1:
        raise UsageError("an image without channels", found=shape[2], expected="1 or more channels")
    return shape[0], shape[1], shape[2]


def _checked_filters(filters: int | Sequence[int], depth: int) -> tuple[int, ...]:
    if _whole(filters):
        widths = tuple(filters * 2**level for level in range(depth + 1))
    else:
        widths = tuple(filters) if isinstance(filters, Sequence) else ()
        if len(widths) != depth + 1:
            raise UsageError(
                "filters do not fit the depth",
                found=filters,
                expected=f"one number, or {depth + 1}: {depth} encoder blocks and the bottleneck",
            )
    if not all(_whole(width) and width >= 1 for width in widths):
        raise UsageError("filters are whole numbers of 1 or more", found=filters)
    return widths


def _check_rest(classes: int, normalization: str, upsampling: str, dropout: float, activation: str) -> None:
    if not _whole(classes) or classes < 1:
        raise UsageError("classes is no number of classes", found=classes, expected="1 or more")
    for what, value, kind in (
        ("normalization", normalization, Normalization),
        ("upsampling", upsampling, Upsampling),
    ):
        if value not in get_args(kind):
            raise UsageError(f"unknown {what} {value!r}", expected=" or ".join(get_args(kind)))
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UsageError("dropout is no fraction", found=dropout, expected="0 up to but without 1")
    try:
        known = isinstance(activation, str) and callable(keras.activations.get(activation))
    except ValueError:
        known = False
    if not known:
        raise UsageError(
            f"unknown activation {activation!r}", expected="the name of a Keras activation, for instance 'relu'"
        )


def _check_settings(bias: bool | None, seed: int | None, name: str) -> None:
    if bias is not None and not isinstance(bias, bool):
        raise UsageError("bias is no yes or no", found=bias, expected="True, False or None")
    if seed is not None and not _whole(seed):
        raise UsageError("seed is no whole number", found=seed, expected="a whole number or None")
    if not isinstance(name, str) or not name or "/" in name:
        raise UsageError("name is no name of a model", found=name or "nothing", expected="a text without /")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
