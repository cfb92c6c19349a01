"""Encoder-decoder networks of many kinds, each built together with the block that every layer belongs to.

Layers get meaningless names; what belongs where is written down by the builder as it lays each layer, so that a test
compares with the construction and not with a second reading of the graph.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

import keras
from keras import layers, ops


@dataclass
class Plan:
    """Hands out names and remembers the block of each."""

    seed: int = 0
    truth: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def name(self, block: str) -> str:
        # Misleading on purpose: names of other blocks must not count.
        word = self._random.choice(["conv2d", "encoder_1", "decoder_9", "head", "bottleneck", "up", "x"])
        name = f"{word}_{self._random.getrandbits(48):x}"
        self.truth[name] = block
        return name

    def conv(self, block: str, x, filters: int, kernel: int = 3, **options):
        options = {"padding": "same", "activation": "relu"} | options
        return layers.Conv2D(filters, kernel, name=self.name(block), **options)(x)

    def norm(self, block: str, x):
        return layers.BatchNormalization(name=self.name(block))(x)

    def convs(self, block: str, x, filters: int, count: int = 2, **options):
        for _ in range(count):
            x = self.conv(block, x, filters, **options)
        return x

    def pool(self, block: str, x, size: int = 2, **options):
        return layers.MaxPooling2D(size, name=self.name(block), **options)(x)

    def up(self, block: str, x, filters: int, kind: str = "transpose", size: int = 2):
        """Double the resolution; everything that does belongs to the block it leads into."""
        if kind == "transpose":
            return layers.Conv2DTranspose(filters, size, strides=size, padding="same", name=self.name(block))(x)
        if kind == "shuffle":
            return ops.depth_to_space(self.conv(block + "?", x, filters * size * size), size)
        if kind == "resizing":
            height, width = x.shape[1] * size, x.shape[2] * size
            x = layers.Resizing(height, width, name=self.name(block))(x)
        elif kind == "image_resize":
            x = ops.image.resize(x, (x.shape[1] * size, x.shape[2] * size))
        else:
            x = layers.UpSampling2D(size, interpolation=kind, name=self.name(block))(x)
        return self.conv(block, x, filters, 2)

    def concat(self, block: str, *tensors):
        return layers.Concatenate(name=self.name(block))(list(tensors))

    def head(self, x, classes: int = 1):
        return self.conv("head", x, classes, 1, activation="sigmoid" if classes == 1 else "softmax")


Built = tuple[keras.Model, dict[str, str]]


def unet(depth: int = 3, *, size: int | None = 32, up: str = "transpose", seed: int = 0) -> Built:
    """The plain U-Net."""
    p = Plan(seed)
    inputs = x = keras.Input((size, size, 3))
    skips = []
    for k in range(1, depth + 1):
        x = p.convs(f"encoder_{k}", x, 2 + k)
        skips.append(x)
        x = p.pool(f"encoder_{k}", x)
    x = p.convs("bottleneck", x, 8)
    for k in range(depth, 0, -1):
        x = p.up(f"decoder_{k}", x, 2 + k, up)
        x = p.concat(f"decoder_{k}", x, skips.pop())
        x = p.convs(f"decoder_{k}", x, 2 + k)
    return keras.Model(inputs, p.head(x)), p.truth


def shuffled(depth: int = 2, *, by_hand: bool = False, size: int | None = 32) -> Built:
    """Upsampling by a convolution and depth-to-space: as one operation, or by reshaping and transposing."""
    p = Plan()
    inputs = x = keras.Input((size, size, 3))
    skips = []
    for k in range(1, depth + 1):
        x = p.convs(f"encoder_{k}", x, 4)
        skips.append(x)
        x = p.pool(f"encoder_{k}", x)
    x = p.convs("bottleneck", x, 8)
    for k in range(depth, 0, -1):
        # The convolution before the rearrangement still stands at the coarser scale.
        x = p.conv(f"decoder_{k + 1}" if k < depth else "bottleneck", x, 16)
        if by_hand:
            height, width = x.shape[1:3]
            x = ops.reshape(x, (-1, height, width, 2, 2, 4))
            x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
            x = ops.reshape(x, (-1, 2 * height, 2 * width, 4))
        else:
            x = ops.depth_to_space(x, 2)
        x = ops.concatenate([x, skips.pop()], axis=-1)
        x = p.convs(f"decoder_{k}", x, 4)
    return keras.Model(inputs, p.head(x)), p.truth


def residual(depth: int = 3) -> Built:
    """Residual U-Net: strided convolutions go down, 1x1 shortcuts beside them; the skip leaves after the sum."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))

    def block(name: str, x, filters: int, strides: int = 1):
        shortcut = p.norm(name, p.conv(name, x, filters, 1, strides=strides, activation=None))
        x = layers.ReLU()(p.norm(name, x))
        x = p.conv(name, x, filters, strides=strides)
        x = p.conv(name, x, filters)
        return layers.Add()([x, shortcut])

    # The first norm of a block stands before its stride, at the scale above.
    def down(name: str, above: str, x, filters: int):
        shortcut = p.norm(name, p.conv(name, x, filters, 1, strides=2, activation=None))
        x = layers.ReLU()(p.norm(above, x))
        x = p.conv(name, x, filters, strides=2)
        x = p.conv(name, x, filters)
        return layers.Add()([x, shortcut])

    x = block("encoder_1", inputs, 4)
    skips = [x]
    for k in range(2, depth + 1):
        x = down(f"encoder_{k}", f"encoder_{k - 1}", x, 2 + k)
        skips.append(x)
    x = down("bottleneck", f"encoder_{depth}", x, 8)
    for k in range(depth, 0, -1):
        x = p.up(f"decoder_{k}", x, 4, "nearest")
        x = p.concat(f"decoder_{k}", x, skips.pop())
        x = block(f"decoder_{k}", x, 2 + k)
    return keras.Model(inputs, p.head(x)), p.truth


def attention(depth: int = 3, *, size: int | None = 32) -> Built:
    """Attention U-Net (Oktay et al. 2018): gates on the skips that go down to the gating signal and up again."""
    p = Plan()
    inputs = x = keras.Input((size, size, 1))
    skips = []
    for k in range(1, depth + 1):
        x = p.convs(f"encoder_{k}", x, 2 + k)
        skips.append(x)
        x = p.pool(f"encoder_{k}", x)
    x = p.convs("bottleneck", x, 8)
    for k in range(depth, 0, -1):
        name, skip = f"decoder_{k}", skips.pop()
        signal = layers.ReLU()(p.norm(name, p.conv(name, x, 4, 1)))
        theta = p.conv(name, skip, 4, 2, strides=2, activation=None)
        phi = p.conv(name, signal, 4, 1, activation=None)
        psi = layers.Activation("relu")(layers.Add()([theta, phi]))
        psi = layers.Activation("sigmoid")(p.conv(name, psi, 1, 1, activation=None))
        psi = layers.UpSampling2D(2)(psi)
        psi = ops.repeat(psi, skip.shape[-1], axis=-1)
        gated = p.norm(name, p.conv(name, layers.Multiply()([psi, skip]), 4, 1))
        x = p.concat(name, p.up(name, x, 4), gated)
        x = p.convs(name, x, 2 + k)
    return keras.Model(inputs, p.head(x)), p.truth


def plus_plus(depth: int = 3, *, supervised: bool = False) -> Built:
    """U-Net++ (Zhou et al. 2018): every node X[i, j] with j > 0 is decoder at scale i."""
    p = Plan()
    inputs = x = keras.Input((32, 32, 1))
    nodes = {}
    for i in range(depth + 1):
        name = f"encoder_{i + 1}" if i < depth else "bottleneck"
        x = p.pool(f"encoder_{i}", x) if i else x
        nodes[i, 0] = x = p.convs(name, x, 2 + i)
    for j in range(1, depth + 1):
        for i in range(depth + 1 - j):
            name = f"decoder_{i + 1}"
            joined = p.concat(name, *(nodes[i, n] for n in range(j)), p.up(name, nodes[i + 1, j - 1], 3))
            nodes[i, j] = p.convs(name, joined, 2 + i)
    if supervised:
        return keras.Model(inputs, [p.head(nodes[0, j]) for j in range(1, depth + 1)]), p.truth
    return keras.Model(inputs, p.head(nodes[0, depth])), p.truth


def full_scale() -> Built:
    """UNet 3+ (Huang et al. 2020): every decoder takes all finer encoders, pooled, and all coarser maps, resized."""
    p = Plan()
    inputs = x = keras.Input((32, 32, 1))
    maps = {}
    for k in range(1, 5):
        name = f"encoder_{k}" if k < 4 else "bottleneck"
        x = p.pool(f"encoder_{k - 1}", x) if k > 1 else x
        maps[k] = x = p.convs(name, x, 2 + k)
    decoded = {4: maps[4]}
    for k in (3, 2, 1):
        name = f"decoder_{k}"
        parts = [p.conv(name, p.pool(name, maps[j], 2 ** (k - j)), 4) for j in range(1, k)]
        parts.append(p.conv(name, maps[k], 4))
        parts += [
            p.conv(name, layers.UpSampling2D(2 ** (j - k), interpolation="bilinear")(decoded[j]), 4)
            for j in range(k + 1, 5)
        ]
        decoded[k] = p.norm(name, p.conv(name, p.concat(name, *parts), 8))
    return keras.Model(inputs, p.head(decoded[1])), p.truth


def squeezed(depth: int = 2, *, size: int | None = 32) -> Built:
    """Squeeze-and-excitation by dense layers in every block, CBAM's spatial gate in the encoder."""
    p = Plan()
    inputs = x = keras.Input((size, size, 3))

    def excite(name: str, x):
        gate = layers.GlobalAveragePooling2D(name=p.name(name))(x)
        gate = layers.Dense(4, activation="relu", name=p.name(name))(gate)
        gate = layers.Dense(x.shape[-1], activation="sigmoid", name=p.name(name))(gate)
        return layers.Multiply()([x, layers.Reshape((1, 1, x.shape[-1]))(gate)])

    def spatial(name: str, x):
        both = ops.concatenate([ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)], axis=-1)
        return x * p.conv(name, both, 1, 7, activation="sigmoid")

    skips = []
    for k in range(1, depth + 1):
        x = spatial(f"encoder_{k}", excite(f"encoder_{k}", p.convs(f"encoder_{k}", x, 4)))
        skips.append(x)
        x = layers.AveragePooling2D(2, name=p.name(f"encoder_{k}"))(x)
    x = excite("bottleneck", p.convs("bottleneck", x, 8))
    for k in range(depth, 0, -1):
        name = f"decoder_{k}"
        x = p.concat(name, p.up(name, x, 4, "bilinear"), skips.pop())
        x = excite(name, p.convs(name, x, 4))
    return keras.Model(inputs, p.head(x)), p.truth


def aspp(pooling: str = "mean") -> Built:
    """DeepLab's atrous pyramid with image pooling at the bottom, and a decoder with one projected skip."""
    p = Plan()
    inputs = x = keras.Input((64, 64, 3))
    skips = []
    for k in (1, 2, 3):
        x = p.convs(f"encoder_{k}", x, 4)
        skips.append(x)
        x = p.pool(f"encoder_{k}", x)
    x = p.convs("bottleneck", x, 8)
    if pooling == "mean":
        image = ops.mean(x, axis=(1, 2), keepdims=True)
    else:
        image = layers.AveragePooling2D(8, name=p.name("bottleneck"))(x)
    image = layers.UpSampling2D(8, interpolation="bilinear")(p.conv("bottleneck", image, 4, 1))
    arms = [p.conv("bottleneck", x, 4, 3, dilation_rate=rate) for rate in (1, 2, 3)]
    x = p.conv("bottleneck", p.concat("bottleneck", image, *arms), 8, 1)
    x = layers.UpSampling2D(4, interpolation="bilinear", name=p.name("decoder_2"))(x)
    x = p.concat("decoder_2", x, p.conv("decoder_2", skips[1], 4, 1))
    x = p.convs("decoder_2", x, 4)
    x = layers.UpSampling2D(2, interpolation="bilinear", name=p.name("decoder_1"))(x)
    x = p.convs("decoder_1", x, 4, 1)
    return keras.Model(inputs, p.head(x, 3)), p.truth


def pyramid(pooling: str = "average") -> Built:
    """PSPNet's pyramid of poolings at the bottom of a U-Net: its branches are deeper, but no levels."""
    p = Plan()
    inputs = x = keras.Input((48, 48, 3))
    skips = []
    for k in (1, 2):
        x = p.convs(f"encoder_{k}", x, 4)
        skips.append(x)
        x = p.pool(f"encoder_{k}", x)
    x = p.convs("bottleneck", x, 8)
    arms = []
    for bins in (1, 2, 3, 6):
        if pooling == "adaptive":
            arm = layers.AdaptiveAveragePooling2D(bins, name=p.name("bottleneck"))(x)
        else:
            arm = layers.AveragePooling2D(12 // bins, name=p.name("bottleneck"))(x)
        arm = p.norm("bottleneck", p.conv("bottleneck", arm, 2, 1))
        arms.append(layers.Resizing(12, 12, name=p.name("bottleneck"))(arm))
    x = p.conv("bottleneck", p.concat("bottleneck", x, *arms), 8)
    for k in (2, 1):
        x = p.concat(f"decoder_{k}", p.up(f"decoder_{k}", x, 4), skips.pop())
        x = p.convs(f"decoder_{k}", x, 4)
    return keras.Model(inputs, p.head(x)), p.truth


def valid(depth: int = 2) -> Built:
    """The original U-Net's unpadded convolutions with cropped skips: no size halves exactly."""
    p = Plan()
    # So small that cropping looks like a stride: 16 to 8 pixels at level 2, 40 to 8 at level 1.
    inputs = x = keras.Input((44, 44, 1))
    skips = []
    for k in range(1, depth + 1):
        x = p.convs(f"encoder_{k}", x, 4, padding="valid")
        skips.append(x)
        x = p.pool(f"encoder_{k}", x)
    x = p.convs("bottleneck", x, 8, padding="valid")
    for k in range(depth, 0, -1):
        name, skip = f"decoder_{k}", skips.pop()
        x = p.up(name, x, 4)
        margin = (skip.shape[1] - x.shape[1]) // 2
        skip = skip[:, margin:-margin, margin:-margin] if k == 1 else layers.Cropping2D(margin)(skip)
        x = p.convs(name, p.concat(name, x, skip), 4, padding="valid")
    return keras.Model(inputs, p.head(x)), p.truth


def channels_first() -> Built:
    """Channels before height and width."""
    p = Plan()
    first = {"data_format": "channels_first"}
    inputs = x = keras.Input((3, 32, 32))
    skips = []
    for k in (1, 2):
        x = p.convs(f"encoder_{k}", x, 4 * k, **first)
        skips.append(x)
        x = p.pool(f"encoder_{k}", x, **first)
    x = p.convs("bottleneck", x, 16, **first)
    for k in (2, 1):
        name = f"decoder_{k}"
        x = layers.UpSampling2D(2, name=p.name(name), **first)(x)
        x = layers.Concatenate(axis=1)([x, skips.pop()])
        x = p.convs(name, x, 4 * k, **first)
    x = p.conv("head", x, 1, 1, activation="sigmoid", **first)
    return keras.Model(inputs, x), p.truth


def nested() -> Built:
    """An encoder model with several outputs and a decoder model, within a model; sequential models within those."""
    p = Plan()

    def double(block: str, channels: int, filters: int) -> keras.Sequential:
        return keras.Sequential(
            [
                keras.Input((None, None, channels)),
                layers.Conv2D(filters, 3, padding="same", name=p.name(block)),
                layers.BatchNormalization(name=p.name(block)),
                layers.ReLU(),
                layers.Conv2D(filters, 3, padding="same", name=p.name(block)),
            ],
            name=p.name("any") + "_model",
        )

    image = keras.Input((32, 32, 3))
    one = double("encoder_1", 3, 4)(image)
    two = double("encoder_2", 4, 6)(layers.MaxPooling2D()(one))
    bottom = double("bottleneck", 6, 8)(layers.MaxPooling2D()(two))
    encoder = keras.Model(image, [one, two, bottom], name="head_of_nothing")

    a, b, c = keras.Input((32, 32, 4)), keras.Input((16, 16, 6)), keras.Input((8, 8, 8))
    x = double("decoder_2", 12, 6)(ops.concatenate([p.up("decoder_2", c, 6), b], axis=-1))
    x = double("decoder_1", 8, 4)(ops.concatenate([p.up("decoder_1", x, 4), a], axis=-1))
    decoder = keras.Model([a, b, c], x, name="encoder")

    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    outputs = p.head(decoder(encoder(x)))
    truth = {name: block for name, block in p.truth.items() if block != "any"}
    return keras.Model(inputs, outputs), truth


def sequential_autoencoder() -> Built:
    """Convolutions down and transposed convolutions up, in a row, without skips."""
    p = Plan()
    same = {"padding": "same", "activation": "relu"}
    stack = [
        keras.Input((32, 32, 3)),
        layers.Conv2D(4, 3, name=p.name("encoder_1"), **same),
        layers.Conv2D(8, 3, strides=2, name=p.name("encoder_2"), **same),
        layers.Conv2D(16, 3, strides=2, name=p.name("bottleneck"), **same),
        layers.Conv2DTranspose(8, 3, strides=2, name=p.name("decoder_2"), **same),
        layers.Conv2DTranspose(4, 3, strides=2, name=p.name("decoder_1"), **same),
        layers.Conv2D(3, 3, name=p.name("head"), padding="same"),
    ]
    return keras.Sequential(stack), p.truth


def transformer_bottom() -> Built:
    """Self-attention over the pixels of the bottleneck, by Keras' layer and by hand with heads as an axis."""
    p = Plan()
    inputs = x = keras.Input((32, 32, 1))
    one = p.convs("encoder_1", x, 4)
    two = p.convs("encoder_2", p.pool("encoder_1", one), 6)
    x = p.convs("bottleneck", p.pool("encoder_2", two), 8)
    tokens = ops.reshape(x, (-1, 64, 8))
    tokens = layers.LayerNormalization(name=p.name("bottleneck"))(tokens)
    tokens = tokens + layers.MultiHeadAttention(2, 4, name=p.name("bottleneck"))(tokens, tokens)
    query = layers.Dense(8, name=p.name("bottleneck"))(tokens)
    query = ops.transpose(ops.reshape(query, (-1, 64, 2, 4)), (0, 2, 1, 3))
    weights = ops.softmax(ops.matmul(query, ops.transpose(query, (0, 1, 3, 2))))
    mixed = ops.transpose(ops.matmul(weights, query), (0, 2, 1, 3))
    tokens = tokens + layers.Dense(8, name=p.name("bottleneck"))(ops.reshape(mixed, (-1, 64, 8)))
    x = layers.Reshape((8, 8, 8))(tokens)
    x = p.convs("decoder_2", p.concat("decoder_2", p.up("decoder_2", x, 6), two), 6)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def many_outputs() -> Built:
    """A mask, deep supervision at a coarser scale and a tumour class from the bottleneck."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))
    one = p.convs("encoder_1", inputs, 4)
    two = p.convs("encoder_2", p.pool("encoder_1", one), 6)
    bottom = p.convs("bottleneck", p.pool("encoder_2", two), 8)
    kind = layers.GlobalAveragePooling2D(name=p.name("head"))(bottom)
    kind = layers.Dense(8, activation="relu", name=p.name("head"))(kind)
    kind = layers.Dense(4, activation="softmax", name=p.name("head"))(kind)
    x = p.convs("decoder_2", p.concat("decoder_2", p.up("decoder_2", bottom, 6), two), 6)
    coarse = layers.UpSampling2D(2)(p.head(x))
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    return keras.Model(inputs, {"mask": p.head(x), "coarse": coarse, "kind": kind}), p.truth


def skip_paths() -> Built:
    """Convolutions on the skips (MultiResUNet), and skips that are added (LinkNet)."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))
    one = p.convs("encoder_1", inputs, 4)
    two = p.convs("encoder_2", p.pool("encoder_1", one), 4)
    x = p.convs("bottleneck", p.pool("encoder_2", two), 4)
    x = layers.Add()([p.up("decoder_2", x, 4), p.convs("decoder_2", two, 4, 1)])
    x = p.convs("decoder_2", x, 4)
    path = layers.Add()([p.conv("decoder_1", one, 4), p.conv("decoder_1", one, 4, 1)])
    x = p.convs("decoder_1", layers.Add()([p.up("decoder_1", x, 4), path]), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def last_step_up() -> Built:
    """TensorFlow's tutorial: the stem halves, and the head is the transposed convolution back to full size."""
    p = Plan()
    inputs = keras.Input((32, 32, 3))
    one = p.conv("encoder_1", inputs, 4, strides=2)
    two = p.conv("encoder_2", one, 6, strides=2)
    x = p.conv("bottleneck", two, 8, strides=2)
    x = p.concat("decoder_2", p.up("decoder_2", x, 6), two)
    x = p.concat("decoder_1", p.up("decoder_1", x, 4), one)
    x = layers.Conv2DTranspose(2, 3, strides=2, padding="same", name=p.name("head"))(x)
    return keras.Model(inputs, x), p.truth


def turned_in_full() -> Built:
    """Softmax after the head, taken as 1 - background; a 3x3 convolution to few channels before it is no head."""
    p = Plan()
    inputs = x = keras.Input((32, 32, 1))
    x = p.norm("encoder_1", x)
    x = ops.concatenate([x, x, x], axis=-1)
    one = p.convs("encoder_1", x, 4)
    x = layers.Dropout(0.5, name=p.name("bottleneck"))(p.convs("bottleneck", p.pool("encoder_1", one), 8))
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4, "image_resize"), one), 4)
    x = p.conv("decoder_1", x, 2)
    x = p.conv("head", x, 4, 1, activation=None)
    x = layers.Softmax(name=p.name("head"))(p.norm("head", x))
    return keras.Model(inputs, 1.0 - x[..., 0:1]), p.truth


def shared() -> Built:
    """Recurrent convolutions: the same layers are used twice at their scale."""
    p = Plan()
    inputs = keras.Input((32, 32, 4))

    def recurrent(block: str, x):
        layer = layers.Conv2D(4, 3, padding="same", name=p.name(block))
        return layer(x + layer(x))

    one = recurrent("encoder_1", inputs)
    x = recurrent("bottleneck", p.pool("encoder_1", one))
    x = recurrent("decoder_1", layers.Add()([p.up("decoder_1", x, 4), one]))
    return keras.Model(inputs, p.head(x)), p.truth


def dense_connections() -> Built:
    """Tiramisu (Jegou et al. 2017): concatenations within blocks, 1x1 transitions down."""
    p = Plan()
    inputs = x = keras.Input((32, 32, 3))

    def dense(block: str, x):
        for _ in range(2):
            x = p.concat(block, x, p.conv(block, p.norm(block, x), 3))
        return x

    skips = []
    for k in (1, 2):
        x = dense(f"encoder_{k}", x)
        skips.append(x)
        x = p.conv(f"encoder_{k}", x, 6, 1)
        x = p.pool(f"encoder_{k}", x)
    x = dense("bottleneck", x)
    for k in (2, 1):
        x = dense(f"decoder_{k}", p.concat(f"decoder_{k}", p.up(f"decoder_{k}", x, 4), skips.pop()))
    return keras.Model(inputs, p.head(x)), p.truth


def focus_stem(size: int | None = 32) -> Built:
    """Space-to-depth by strided slices in front, and its inverse before the head: no level at full resolution."""
    p = Plan()
    inputs = keras.Input((size, size, 1))
    parts = [inputs[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    one = p.convs("encoder_1", ops.concatenate(parts, axis=-1), 4)
    two = p.convs("encoder_2", ops.space_to_depth(one, 2), 4)
    x = p.convs("bottleneck", p.pool("encoder_2", two, 2 if size is None else 3, padding="same"), 4)
    x = p.up("decoder_2", x, 4) if size is None else p.up("decoder_2", x, 4, "nearest", size=3)[:, :8, :8]
    x = p.convs("decoder_2", p.concat("decoder_2", x, two), 4)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    x = p.convs("decoder_1", ops.depth_to_space(x, 2), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def enlarged_first() -> Built:
    """The input is enlarged before the first convolution: that is no decoder yet."""
    p = Plan()
    inputs = keras.Input((16, 16, 1))
    one = p.convs("encoder_1", layers.UpSampling2D(2, name=p.name("encoder_1"))(inputs), 4)
    two = p.convs("encoder_2", p.pool("encoder_1", one), 4)
    x = p.convs("bottleneck", p.pool("encoder_2", two), 4)
    x = p.convs("decoder_2", p.concat("decoder_2", p.up("decoder_2", x, 4), two), 4)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def adapted() -> Built:
    """One channel made three by a 1x1 convolution before a stem that halves: the adapter is no level."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))
    x = p.conv("encoder_1", p.norm("encoder_1", inputs), 3, 1)
    one = p.conv("encoder_1", layers.ZeroPadding2D(1)(x), 4, strides=2, padding="valid")
    x = p.conv("bottleneck", one, 8, strides=2)
    x = p.concat("decoder_1", p.up("decoder_1", x, 4), one)
    x = p.convs("decoder_1", p.up("decoder_1", x, 4, "bilinear"), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def transposed_axes(size: int | None = 32) -> Built:
    """Channels first outside, channels last inside, as translators write it."""
    p = Plan()
    inputs = keras.Input((3, size, size))
    one = p.convs("encoder_1", layers.Permute((2, 3, 1))(inputs), 4)
    x = p.convs("bottleneck", p.pool("encoder_1", one), 8)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    return keras.Model(inputs, ops.transpose(p.head(x, 3), (0, 3, 1, 2))), p.truth


def jumping() -> Built:
    """The encoder pools by four, the decoder doubles twice: the step between goes with the next finer block."""
    p = Plan()
    inputs = keras.Input((64, 64, 1))
    one = p.conv("encoder_1", inputs, 4, 4, strides=4)
    two = p.convs("encoder_2", p.pool("encoder_1", one, 4), 4)
    x = p.convs("bottleneck", p.pool("encoder_2", two), 8)
    x = p.convs("decoder_2", p.concat("decoder_2", p.up("decoder_2", x, 4), two), 4)
    x = p.convs("decoder_1", p.up("decoder_1", x, 4), 4)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    x = p.convs("decoder_1", p.up("decoder_1", p.up("decoder_1", x, 4), 4), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def masked_image() -> Built:
    """The mask is multiplied onto the image: the network is no gate."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))
    one = p.convs("encoder_1", inputs, 4)
    x = p.convs("bottleneck", p.pool("encoder_1", one), 8)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    return keras.Model(inputs, layers.Multiply()([inputs, p.head(x)])), p.truth


def list_of_pixels() -> Built:
    """SegNet's output: pixels in a row, softmax over the classes; and two class maps side by side."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))
    one = p.convs("encoder_1", inputs, 4)
    x = p.convs("bottleneck", p.pool("encoder_1", one), 8)
    x = p.convs("decoder_1", p.concat("decoder_1", p.up("decoder_1", x, 4), one), 4)
    x = ops.concatenate([p.conv("head", x, 1, 1, activation=None), p.conv("head", x, 2, 1)], axis=-1)
    return keras.Model(inputs, layers.Softmax()(layers.Reshape((32 * 32, 3))(x))), p.truth


def coarse_classes() -> Built:
    """FCN-32s: classes at the deepest level, enlarged at once: there is no decoder, and the classes are the head."""
    p = Plan()
    inputs = keras.Input((32, 32, 1))
    x = p.convs("encoder_1", inputs, 4)
    x = p.convs("encoder_2", p.pool("encoder_1", x), 4)
    x = p.convs("bottleneck", p.pool("encoder_2", x), 4)
    return keras.Model(inputs, layers.UpSampling2D(4)(p.head(x, 3))), p.truth


# ---- encoders of keras.applications ------------------------------------------------------------------------------------


def on_application(which: str, *, nest: bool = False, size: int = 64) -> Built:
    """A U-Net on an encoder of keras.applications, flat or with the encoder as a nested model."""
    make, taps = {
        "VGG16": (
            keras.applications.VGG16,
            ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"],
        ),
        "ResNet50": (
            keras.applications.ResNet50,
            ["conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"],
        ),
        "MobileNetV2": (
            keras.applications.MobileNetV2,
            [f"block_{n}_expand_relu" for n in (1, 3, 6, 13)] + ["block_16_project"],
        ),
        "EfficientNetB0": (
            keras.applications.EfficientNetB0,
            [f"block{n}_expand_activation" for n in ("2a", "3a", "4a", "6a")] + ["top_activation"],
        ),
    }[which]
    p = Plan()
    base = make(include_top=False, weights=None, input_shape=(size, size, 3))
    taken = [base.get_layer(name).output for name in taps]
    if nest:
        inputs = keras.Input((size, size, 3))
        *skips, x = keras.Model(base.input, taken, name="backbone")(inputs)
    else:
        inputs = base.input
        *skips, x = taken
    for k in range(len(skips), 0, -1):
        name = f"decoder_{k}"
        x = p.convs(name, p.concat(name, p.up(name, x, 4, "nearest"), skips[k - 1]), 4)
    if which != "VGG16":
        # The stem halves at once: the last decoder level has no counterpart and goes with the one before it.
        x = p.convs("decoder_1", p.up("decoder_1", x, 4), 4)
    return keras.Model(inputs, p.head(x)), p.truth


def on_pretrained(encoder: str = "mobilenetv3small", size: int = 32) -> Built:
    """kerasseg's own U-Net on an encoder, with fresh weights; the truth lists its decoder and head."""
    import kerasseg

    model = kerasseg.unet((size, size, 1), encoder=encoder, encoder_weights=None, decoder_filters=2, seed=1)
    blocks = [(layer.name, re.match(r"decoder_\d+|head$", layer.name)) for layer in model.layers]
    return model, {name: found[0] for name, found in blocks if found}
