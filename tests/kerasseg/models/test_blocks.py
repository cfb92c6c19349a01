"""Blocks are where the construction put them, whatever the layers are called."""

from __future__ import annotations

import re

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import architectures as build
from kerasseg.models.blocks import Blocks, find_blocks
from kerasseg_tfrecords.errors import CheckpointError, UsageError


def assignment(blocks: Blocks) -> dict[str, str]:
    return {layer.name: block.name for block in blocks for layer in block.layers}


def weighted_leaves(model: keras.Model) -> list[keras.Layer]:
    found = [x for x in model._flatten_layers(include_self=False) if not isinstance(x, keras.Model)]
    return [x for x in found if x.weights]


def check(model: keras.Model, truth: dict[str, str]) -> Blocks:
    blocks = find_blocks(model)
    found = assignment(blocks)
    assert {name: found[name] for name in truth} == truth
    # Every weight is in exactly one block.
    held = [id(w) for block in blocks for layer in block.layers for w in layer.weights]
    assert sorted(held) == sorted(id(w) for w in model.weights)
    assert sum(block.parameters for block in blocks) == model.count_params()
    return blocks


def names(n: int) -> tuple[str, ...]:
    encoder = [f"encoder_{k}" for k in range(1, n + 1)]
    return (*encoder, "bottleneck", *(f"decoder_{k}" for k in range(n, 0, -1)), "head")


def lateral(blocks: Blocks) -> set[tuple[str, str]]:
    return {(skip.source, skip.target) for skip in blocks.skips}


def straight(n: int) -> set[tuple[str, str]]:
    return {(f"encoder_{k}", f"decoder_{k}") for k in range(1, n + 1)}


KINDS = {
    "unet": (build.unet, 3),
    "open size": (lambda: build.unet(size=None), 3),
    "nearest": (lambda: build.unet(up="nearest"), 3),
    "bilinear": (lambda: build.unet(up="bilinear"), 3),
    "bilinear, open size": (lambda: build.unet(up="bilinear", size=None), 3),
    "resizing": (lambda: build.unet(up="resizing"), 3),
    "ops.image.resize": (lambda: build.unet(up="image_resize"), 3),
    "bottleneck of one pixel": (lambda: build.unet(depth=3, size=8), 3),
    "depth to space": (build.shuffled, 2),
    "depth to space by hand": (lambda: build.shuffled(by_hand=True), 2),
    "residual": (build.residual, 3),
    "attention": (build.attention, 3),
    "attention, open size": (lambda: build.attention(size=None), 3),
    "U-Net++": (build.plus_plus, 3),
    "U-Net++, supervised": (lambda: build.plus_plus(supervised=True), 3),
    "UNet 3+": (build.full_scale, 3),
    "squeeze and excitation": (build.squeezed, 2),
    "squeeze and excitation, open size": (lambda: build.squeezed(size=None), 2),
    "ASPP": (build.aspp, 3),
    "pyramid": (build.pyramid, 2),
    "adaptive pyramid": (lambda: build.pyramid("adaptive"), 2),
    "unpadded": (build.valid, 2),
    "channels first": (build.channels_first, 2),
    "nested": (build.nested, 2),
    "autoencoder": (build.sequential_autoencoder, 2),
    "transformer": (build.transformer_bottom, 2),
    "many outputs": (build.many_outputs, 2),
    "skip paths": (build.skip_paths, 2),
    "last step up": (build.last_step_up, 2),
    "multi-class": (build.turned_in_full, 1),
    "recurrent": (build.shared, 1),
    "dense": (build.dense_connections, 2),
    "focus": (build.focus_stem, 2),
    "focus, open size": (lambda: build.focus_stem(None), 2),
    "depth to space, open size": (lambda: build.shuffled(size=None), 2),
    "ASPP by window": (lambda: build.aspp("window"), 3),
    "enlarged first": (build.enlarged_first, 2),
    "adapter": (build.adapted, 1),
    "transposed axes": (build.transposed_axes, 1),
    "transposed axes, open size": (lambda: build.transposed_axes(None), 1),
    "jumping": (build.jumping, 2),
    "masked image": (build.masked_image, 1),
    "list of pixels": (build.list_of_pixels, 1),
    "coarse classes": (build.coarse_classes, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_where_it_was_laid(kind: str) -> None:
    make, levels = KINDS[kind]
    blocks = check(*make())
    missing = {"ASPP": {"decoder_3"}, "ASPP by window": {"decoder_3"}, "coarse classes": {"decoder_1", "decoder_2"}}
    assert blocks.names == tuple(n for n in names(levels) if n not in missing.get(kind, ()))
    if kind in {"autoencoder", "coarse classes"}:
        assert blocks.skips == ()
    elif kind.startswith("ASPP"):
        assert lateral(blocks) == {("encoder_2", "decoder_2")}
    elif kind == "UNet 3+":
        assert lateral(blocks) == {(f"encoder_{j}", f"decoder_{k}") for k in (1, 2, 3) for j in range(1, k + 1)}
    else:
        assert lateral(blocks) == straight(levels)


# ---- encoders of keras.applications: their own stage names are the truth ----------------------------------------------


def vgg16(name: str) -> str | None:
    stage = int(name[5])
    return f"encoder_{stage}" if stage < 5 else "bottleneck"


def resnet50(name: str) -> str:
    stage = int(re.match(r"conv(\d)_", name)[1])
    return f"encoder_{stage}" if stage < 5 else "bottleneck"


def mobilenet_v2(name: str) -> str:
    """The stride stands at the depthwise convolution; the expansion before it is still at the finer scale."""
    if not name.startswith("block_"):
        return "encoder_1"  # Conv1, bn_Conv1, expanded_conv
    number = int(name.split("_")[1])
    stage = 1 + sum(number > first or (number == first and "expand" not in name) for first in (1, 3, 6, 13))
    return f"encoder_{stage}" if stage < 5 else "bottleneck"


def efficientnet_b0(name: str) -> str:
    if name.startswith("top_"):
        return "bottleneck"
    if not name.startswith("block"):
        return "encoder_1"  # normalisation of the input, stem
    block = name[5:7]
    expand = "_expand_" in name and "_se_" not in name
    stage = 1 + sum(block > first or (block == first and not expand) for first in ("2a", "3a", "4a", "6a"))
    return f"encoder_{stage}" if stage < 5 else "bottleneck"


APPLICATIONS = {"VGG16": vgg16, "ResNet50": resnet50, "MobileNetV2": mobilenet_v2, "EfficientNetB0": efficientnet_b0}


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("nest", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("which", APPLICATIONS)
def test_encoders_of_keras_applications(which: str, nest: bool) -> None:
    model, truth = build.on_application(which, nest=nest)
    base = getattr(keras.applications, which)(include_top=False, weights=None, input_shape=(64, 64, 3))
    ours = {layer.name for layer in weighted_leaves(model)}
    encoder = {x.name: APPLICATIONS[which](x.name) for x in base.layers if x.weights and x.name in ours}
    assert len(encoder) >= 13
    blocks = check(model, truth | encoder)
    assert blocks.names == names(4)
    scales = [1, 2, 4, 8, 16, 8, 4, 2, 1] if which == "VGG16" else [2, 4, 8, 16, 32, 16, 8, 4, 2]
    assert [block.scale for block in blocks][:-1] == scales
    assert blocks.head.scale == 1
    assert lateral(blocks) == straight(4)
    if nest:
        name = next(iter(encoder))
        assert blocks.of(f"backbone/{name}").name == blocks.of(name).name == encoder[name]


# ---- real files --------------------------------------------------------------------------------------------------------


def conv_norm(block: str, *numbers: int) -> dict[str, str]:
    return {f"{kind}_{n}" if n else kind: block for n in numbers for kind in ("conv2d", "batch_normalization")}


LGG = {
    **conv_norm("encoder_1", 0, 1),
    **conv_norm("encoder_2", 2, 3),
    **conv_norm("encoder_3", 4, 5),
    **conv_norm("encoder_4", 6, 7),
    **conv_norm("bottleneck", 8, 9),
    **conv_norm("decoder_4", 10, 11),
    **conv_norm("decoder_3", 12, 13),
    **conv_norm("decoder_2", 14, 15),
    **conv_norm("decoder_1", 16, 17),
    "conv2d_transpose": "decoder_4",
    "conv2d_transpose_1": "decoder_3",
    "conv2d_transpose_2": "decoder_2",
    "conv2d_transpose_3": "decoder_1",
    "conv2d_18": "head",
}
REAL = {
    "unet-lgg.keras": (4, LGG),
    "unet-lgg.h5": (4, LGG),
    # Its deepest level has no weights: it turns round right after pooling.
    "braintumour-128-keras3.h5": (
        1,
        {
            "conv2d": "encoder_1",
            "conv2d_1": "encoder_1",
            "conv2d_transpose": "decoder_1",
            "conv2d_2": "decoder_1",
            "conv2d_3": "decoder_1",
            "conv2d_4": "head",
        },
    ),
    "afm-keras3.keras": (
        1,
        {
            "conv2d": "encoder_1",
            "conv2d_1": "encoder_1",
            "conv2d_2": "bottleneck",
            "conv2d_3": "bottleneck",
            "up_sampling2d": "decoder_1",
            "conv2d_4": "decoder_1",
            "conv2d_5": "decoder_1",
            "conv2d_6": "head",
        },
    ),
    "unet-bn-transpose-keras2.3.h5": (
        2,
        {
            "conv2d_1": "encoder_1",
            "conv2d_2": "encoder_1",
            "conv2d_3": "encoder_2",
            "batch_normalization_4": "encoder_2",
            "conv2d_5": "bottleneck",
            "conv2d_6": "bottleneck",
            "conv2d_transpose_1": "decoder_2",
            "conv2d_8": "decoder_2",
            "conv2d_transpose_2": "decoder_1",
            "conv2d_10": "decoder_1",
            "conv2d_11": "head",
        },
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_files_that_others_published(real, name: str) -> None:
    levels, truth = REAL[name]
    blocks = check(keras.saving.load_model(real / "checkpoints" / name, compile=False), truth)
    assert blocks.names == names(levels)
    assert lateral(blocks) == straight(levels)
    assert [block.scale for block in blocks.encoder] == [2**k for k in range(levels)]


# ---- any U-Net ---------------------------------------------------------------------------------------------------------


def random_unet(draw):
    """A U-Net by the choices that `draw` makes, and its truth."""
    p = build.Plan(draw(st.integers(0, 2**32)))
    depth = draw(st.integers(1, 5))
    norm = draw(st.sampled_from([None, layers.BatchNormalization, layers.LayerNormalization]))
    pooling = draw(st.sampled_from(["max", "average", "strided"]))
    up = draw(st.sampled_from(["transpose", "nearest", "bilinear", "resizing", "image_resize"]))
    size = 2**depth * draw(st.integers(1, 3))
    skips_added = draw(st.booleans())
    filters = 4 if skips_added else None
    inputs = x = keras.Input((size, size, draw(st.integers(1, 3))))
    if draw(st.booleans()):
        x = layers.Rescaling(1 / 255)(x)

    def convs(block: str, x):
        for _ in range(draw(st.integers(1, 3))):
            x = p.conv(block, x, filters or draw(st.integers(1, 5)), draw(st.sampled_from([3, 5])), activation=None)
            if norm is not None:
                x = norm(name=p.name(block))(x)
            x = layers.Activation(draw(st.sampled_from(["relu", "sigmoid", "silu"])), name=p.name(block))(x)
        return layers.Dropout(0.1, name=p.name(block))(x) if draw(st.booleans()) else x

    maps = []
    for k in range(1, depth + 1):
        x = convs(f"encoder_{k}", x)
        maps.append(x)
        below = f"encoder_{k + 1}" if k < depth else "bottleneck"
        if pooling == "strided":
            x = p.conv(below, x, 4, 3, strides=2)
        else:
            kind = layers.MaxPooling2D if pooling == "max" else layers.AveragePooling2D
            x = kind(2, name=p.name(f"encoder_{k}"))(x)
    x = convs("bottleneck", x)
    for k in range(depth, 0, -1):
        skip = maps.pop()
        x = p.up(f"decoder_{k}", x, skip.shape[-1], up)
        if skips_added:
            x = layers.Add(name=p.name(f"decoder_{k}"))([skip, x])
        else:
            pair = [x, skip] if draw(st.booleans()) else [skip, x]
            x = ops.concatenate(pair, axis=-1) if draw(st.booleans()) else p.concat(f"decoder_{k}", *pair)
        x = convs(f"decoder_{k}", x)
    return keras.Model(inputs, p.head(x, draw(st.integers(1, 4)))), p.truth, depth


@pytest.mark.rest
@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_random_unets_are_read_as_they_were_built(data) -> None:
    # Built here and not in a strategy: Keras draws its seeds from `random`.
    model, truth, depth = random_unet(data.draw)
    blocks = check(model, truth)
    assert blocks.names == names(depth)
    assert [block.scale for block in blocks] == [2**k for k in (*range(depth + 1), *reversed(range(depth)), 0)]
    assert lateral(blocks) == straight(depth)


# ---- what is no encoder-decoder ------------------------------------------------------------------------------------------


def classifier() -> keras.Model:
    return keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35)


def plain_stack() -> keras.Model:
    same = {"padding": "same"}
    return keras.Sequential([keras.Input((32, 32, 1)), layers.Conv2D(4, 3, **same), layers.Conv2D(1, 1)])


def encoder_alone() -> keras.Model:
    return keras.Sequential(
        [keras.Input((32, 32, 1)), layers.Conv2D(4, 3, strides=2), layers.Conv2D(4, 3, strides=2), layers.Conv2D(1, 1)]
    )


def volumes() -> keras.Model:
    inputs = keras.Input((16, 16, 16, 1))
    x = layers.MaxPooling3D(2)(layers.Conv3D(2, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Conv3D(1, 1)(layers.UpSampling3D(2)(x)))


def two_inputs() -> keras.Model:
    inputs = [keras.Input((32, 32, 1)), keras.Input((32, 32, 1))]
    return keras.Model(inputs, layers.Conv2D(1, 1)(layers.Concatenate()(inputs)))


def stacked() -> keras.Model:
    inputs = keras.Input((32, 32, 1))
    first, second = build.unet(2)[0], build.unet(2, seed=1)[0]
    return keras.Model(inputs, second(ops.concatenate([first(ops.concatenate([inputs] * 3))] * 3)))


def sequence() -> keras.Model:
    return keras.Sequential([keras.Input((32, 4)), layers.Conv1D(4, 3)])


def vectors() -> keras.Model:
    return keras.Sequential([keras.Input((32,)), layers.Dense(4)])


def no_level_above() -> keras.Model:
    inputs = keras.Input((32, 32, 1))
    return keras.Model(inputs, layers.Conv2DTranspose(1, 2, strides=2)(layers.Conv2D(4, 3, strides=2)(inputs)))


def subclassed() -> keras.Model:
    class Opaque(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(1, 1)

        def call(self, x):
            return self.conv(x)

    model = Opaque()
    model(keras.ops.zeros((1, 8, 8, 1)))
    return model


def super_resolution() -> keras.Model:
    inputs = keras.Input((16, 16, 1))
    x = layers.UpSampling2D(2)(layers.Conv2D(4, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same")(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (classifier, ["classifier", "(None, 1000)"]),
        (plain_stack, ["plain stack", "same resolution"]),
        (encoder_alone, ["only an encoder", "1/4"]),
        (volumes, ["3-D", "(None, 16, 16, 16, 1)"]),
        (two_inputs, ["2 inputs"]),
        (stacked, ["several encoder-decoders"]),
        (sequence, ["sequences"]),
        (vectors, ["vectors"]),
        (no_level_above, ["no encoder", "single level"]),
        (subclassed, ["Opaque", "subclass"]),
        (super_resolution, ["never goes down"]),
    ],
)
def test_what_is_no_encoder_decoder_is_told_what_it_is(make, words) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_blocks(make())
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_an_unbuilt_model_is_told_so() -> None:
    with pytest.raises(CheckpointError, match="never built"):
        find_blocks(keras.Sequential([layers.Conv2D(1, 1)]))


# ---- looking things up ---------------------------------------------------------------------------------------------------


def test_blocks_are_found_by_name_and_by_layer() -> None:
    model, truth = build.unet(2)
    blocks = find_blocks(model)
    assert blocks["decoder_2"].name == "decoder_2"
    assert "encoder_3" not in blocks
    assert all(blocks.of(name).name == block for name, block in truth.items())
    assert len(blocks) == len(list(blocks)) == 6
    assert [block.filters for block in blocks] == [3, 4, 8, 4, 3, 1]
    assert [(s.source, s.filters) for s in blocks.skips] == [("encoder_1", 3), ("encoder_2", 4)]
    with pytest.raises(UsageError, match="encoder_1 encoder_2 bottleneck decoder_2 decoder_1 head"):
        blocks["encoder_9"]
    with pytest.raises(UsageError, match="conv2d_99"):
        blocks.of("conv2d_99")


def test_a_name_that_nested_models_repeat_needs_its_path() -> None:
    def part(channels: int, name: str) -> keras.Model:
        x = keras.Input((None, None, channels))
        return keras.Model(x, layers.Conv2D(4, 3, padding="same", name="conv")(x), name=name)

    inputs = keras.Input((16, 16, 1))
    one = part(1, "left")(inputs)
    x = layers.UpSampling2D()(part(4, "middle")(layers.MaxPooling2D(2)(one)))
    x = part(8, "right")(layers.Concatenate()([x, one]))
    blocks = find_blocks(keras.Model(inputs, layers.Conv2D(1, 1, name="last")(x)))
    with pytest.raises(UsageError, match="encoder_1 bottleneck decoder_1"):
        blocks.of("conv")
    assert [blocks.of(f"{m}/conv").name for m in ("left", "middle", "right")] == [
        "encoder_1",
        "bottleneck",
        "decoder_1",
    ]


def test_the_model_is_left_as_it_was() -> None:
    model, _ = build.attention(2, size=None)
    before = [(x.name, x.trainable, len(x._inbound_nodes)) for x in model.layers]
    find_blocks(model)
    assert [(x.name, x.trainable, len(x._inbound_nodes)) for x in model.layers] == before
    assert not keras.backend.is_int_dtype(model(keras.ops.zeros((1, 32, 32, 1))).dtype)
