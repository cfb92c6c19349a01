"""The plain U-Net, and the blocks that all kerasseg networks are built from.

Ronneberger, Fischer, Brox: *U-Net: Convolutional Networks for Biomedical Image Segmentation*, MICCAI 2015
(arXiv 1505.04597), with "same" padding, so that the mask has the size of the image, and with normalization. Only Keras
layers are used, so the network works on every backend and loads without kerasseg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args
from zlib import crc32

import keras
from keras import layers

from kerasseg_tfrecords.errors import UsageError

Normalization = Literal["batch", "group", "instance", "none"]
Upsampling = Literal["transposed", "bilinear"]

_CHANNELS_PER_GROUP = 16  # Wu & He 2018, table 3: as good as 32 groups, and also possible with few filters


def plain_unet(
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
    """Build a U-Net of plain convolutions; `kerasseg.unet` describes the arguments."""
    if not is_whole(depth) or not 1 <= depth <= 10:
        raise UsageError("depth is not a number of encoder blocks", found=depth, expected="1 to 10")
    shape = check_shape(input_shape, depth, otherwise="a smaller depth")
    widths = _checked_filters(filters, depth)
    builder = BlockBuilder(
        normalization=normalization,
        upsampling=upsampling,
        dropout=dropout,
        activation=activation,
        bias=normalization in ("group", "none") if bias is None else bias,
        seed=seed,
    )
    check_output(classes, name)

    # Every layer sets its data format, so that a checkpoint does not depend on the user's ~/.keras/keras.json.
    image = keras.Input(shape, name="image", dtype="float32")
    x, skips = image, []
    for level in range(1, depth + 1):
        x = builder.block(x, f"encoder_{level}", widths[level - 1], drop=level == depth)
        skips.append(x)
        x = layers.MaxPooling2D(2, data_format="channels_last", name=f"encoder_{level}_pool")(x)
    x = builder.block(x, "bottleneck", widths[depth], drop=True)
    for level in range(depth, 0, -1):
        x = builder.up(x, f"decoder_{level}", widths[level - 1], skips[level - 1])
    return keras.Model(image, builder.head(x, classes), name=name)


@dataclass(frozen=True, slots=True)
class BlockBuilder:
    """Builder for the blocks of one network; the attributes are arguments of `kerasseg.unet`."""

    normalization: Normalization
    upsampling: Upsampling
    dropout: float
    activation: str
    bias: bool
    seed: int | None

    def __post_init__(self) -> None:
        for what, value, kind in (
            ("normalization", self.normalization, Normalization),
            ("upsampling", self.upsampling, Upsampling),
        ):
            if value not in get_args(kind):
                raise UsageError(f"unknown {what} {value!r}", expected=" or ".join(get_args(kind)))
        dropout = self.dropout
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise UsageError("dropout is not a fraction", found=dropout, expected="at least 0 and below 1")
        try:
            known = isinstance(self.activation, str) and callable(keras.activations.get(self.activation))
        except ValueError:
            known = False
        if not known:
            raise UsageError(
                f"unknown activation {self.activation!r}", expected="the name of a Keras activation, such as 'relu'"
            )
        if not isinstance(self.bias, bool):
            raise UsageError("bias is not a truth value", found=self.bias, expected="True, False or None")
        if self.seed is not None and not is_whole(self.seed):
            raise UsageError("seed is not an integer", found=self.seed, expected="an integer or None")

    def seed_of(self, layer: str) -> int | None:
        """Return a seed for a layer; with a common seed, layers of the same shape would start with equal weights."""
        return None if self.seed is None else crc32(f"{self.seed}/{layer}".encode()) & 0x7FFFFFFF

    def block(self, x: Any, block: str, filters: int, *, drop: bool = False) -> Any:
        """Apply a 3x3 convolution, normalization and activation twice, then dropout if `drop`."""
        for i in (1, 2):
            x = self._convolution(f"{block}_conv_{i}", filters, 3, bias=self.bias)(x)
            x = self._normalized(x, f"{block}_norm_{i}", filters)
            x = layers.Activation(self.activation, name=f"{block}_act_{i}")(x)
        return self.dropped(x, block) if drop else x

    def dropped(self, x: Any, block: str) -> Any:
        """Apply dropout at the end of a block, if the network has any."""
        name = f"{block}_drop"
        return layers.Dropout(self.dropout, seed=self.seed_of(name), name=name)(x) if self.dropout else x

    def up(self, x: Any, block: str, filters: int, skip: Any = None) -> Any:
        """Apply a decoder block: double the resolution, concatenate the skip connection if any, convolve."""
        name = f"{block}_up"
        if self.upsampling == "transposed":
            x = layers.Conv2DTranspose(
                filters,
                2,
                strides=2,
                padding="same",
                data_format="channels_last",
                kernel_initializer=keras.initializers.HeNormal(seed=self.seed_of(name)),
                name=name,
            )(x)
        else:
            x = layers.UpSampling2D(2, interpolation="bilinear", data_format="channels_last", name=name)(x)
            x = self._convolution(f"{name}_conv", filters, 1, bias=True)(x)
        if skip is not None:
            x = layers.Concatenate(axis=-1, name=f"{block}_concat")([x, skip])
        return self.block(x, block, filters)

    def head(self, x: Any, classes: int) -> Any:
        """Return probabilities: a sigmoid for one class, a softmax for several."""
        return layers.Conv2D(
            classes,
            1,
            activation="sigmoid" if classes == 1 else "softmax",
            data_format="channels_last",
            # No ReLU follows, so Glorot keeps the first logits near 0.
            kernel_initializer=keras.initializers.GlorotUniform(seed=self.seed_of("head")),
            dtype="float32",
            name="head",
        )(x)

    def _convolution(self, name: str, filters: int, size: int, *, bias: bool) -> Any:
        return layers.Conv2D(
            filters,
            size,
            padding="same",
            data_format="channels_last",
            use_bias=bias,
            kernel_initializer=keras.initializers.HeNormal(seed=self.seed_of(name)),
            name=name,
        )

    def _normalized(self, x: Any, name: str, filters: int) -> Any:
        if self.normalization == "batch":
            return layers.BatchNormalization(axis=-1, name=name)(x)
        if self.normalization == "none":
            return x
        groups = -1
        if self.normalization == "group":
            groups = math.gcd(filters, max(1, filters // _CHANNELS_PER_GROUP))
        return layers.GroupNormalization(groups=groups, axis=-1, name=name)(x)


def check_shape(
    input_shape: Sequence[int | None], halvings: int, *, otherwise: str
) -> tuple[int | None, int | None, int]:
    """Check the shape of images, whose height and width must be divisible by 2 `halvings` times.

    Args:
        input_shape: Height, width and channels as given by the user.
        halvings: How often the network halves the resolution.
        otherwise: What the user can change instead of the size, for the message.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if len(shape) != 3 or not all(size is None or is_whole(size) for size in shape) or shape[2] is None:
        raise UsageError("input_shape is not the shape of an image", found=shape, expected="(height, width, channels)")
    step = 2**halvings
    for what, size in zip(("height", "width"), shape[:2], strict=True):
        if size is not None and (size < step or size % step):
            near = [s for s in (size // step * step, (size // step + 1) * step) if s > 0]
            raise UsageError(
                f"an image {what} of {size} cannot be halved {halvings} times",
                expected=f"a multiple of {step}",
                remedy=f"Take {' or '.join(map(str, near))}, or {otherwise}.",
            )
    if shape[2] < 1:
        raise UsageError("the image has no channels", found=shape[2], expected="1 or more channels")
    return shape[0], shape[1], shape[2]


def check_output(classes: int, name: str) -> None:
    """Refuse an invalid number of classes or model name."""
    if not is_whole(classes) or classes < 1:
        raise UsageError("classes is not a number of classes", found=classes, expected="1 or more")
    if not isinstance(name, str) or not name or "/" in name:
        raise UsageError("name is not a valid model name", found=name or "nothing", expected="a text without /")


def is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_filters(filters: int | Sequence[int], depth: int) -> tuple[int, ...]:
    if is_whole(filters):
        widths = tuple(filters * 2**level for level in range(depth + 1))
    else:
        widths = tuple(filters) if isinstance(filters, Sequence) else ()
        if len(widths) != depth + 1:
            raise UsageError(
                "filters do not match the depth",
                found=filters,
                expected=f"one number, or {depth + 1}: {depth} encoder blocks and the bottleneck",
            )
    if not all(is_whole(width) and width >= 1 for width in widths):
        raise UsageError("filters are not integers of 1 or more", found=filters)
    return widths
