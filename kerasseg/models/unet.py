"""The U-Nets that kerasseg builds: `unet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras

from kerasseg.architectures.encoders import EncoderConvention, encoder_named, encoder_unet
from kerasseg.architectures.unet import BlockBuilder, Normalization, Upsampling, plain_unet
from kerasseg.checkpoints.encoder_weights import load_encoder_weights
from kerasseg.models.layers import mark_fresh
from kerasseg_tfrecords.errors import UsageError

_DEPTH, _FILTERS, _DECODER_FILTERS = 4, 64, 32


def unet(
    input_shape: Sequence[int | None] = (256, 256, 3),
    classes: int = 1,
    depth: int = _DEPTH,
    filters: int | Sequence[int] = _FILTERS,
    normalization: Normalization = "batch",
    upsampling: Upsampling = "transposed",
    dropout: float = 0.0,
    activation: str = "relu",
    bias: bool | None = None,
    seed: int | None = None,
    name: str = "unet",
    *,
    encoder: str | None = None,
    encoder_weights: str | Path | keras.Model | None = "imagenet",
    decoder_filters: int | Sequence[int] | None = None,
) -> keras.Model:
    """Build a U-Net, plain or on a pretrained encoder.

    The plain U-Net consists of blocks of two 3x3 convolutions, each with normalization and activation: `encoder_1` (full
    resolution) to `encoder_n`, `bottleneck`, `decoder_n` to `decoder_1`, and `head`. `decoder_k` has the scale of
    `encoder_k` and receives its skip connection. Layers are named after their block (`encoder_1_conv_1`, `decoder_4_up`,
    `head`). With the defaults the network has 31,049,409 parameters.

    With `encoder`, the contracting path is a network of `keras.applications` without its classifier, with its own layer
    names. Images of 0 to 1 are scaled inside the network as the encoder expects, and grey images are repeated to three
    channels. Most encoders halve the resolution in their first layer, so `encoder_1` has half the resolution and the last
    decoder step has no skip connection.

    Args:
        input_shape: Height, width and channels of one image. Height and width must be multiples of `2 ** depth`, or None
            for any such size. With `encoder`: multiples of 32 (16 for VGG), and 1 or 3 channels.
        classes: 1 for the probability of the foreground (sigmoid); more for a softmax with class 0 as background.
        depth: How often the plain U-Net halves the resolution, 1 to 10.
        filters: Filters of the plain U-Net's `encoder_1`, doubled at each level down; or `depth + 1` integers, the last for
            the bottleneck.
        normalization: `"batch"`, `"group"` (16 channels per group if possible), `"instance"` or `"none"`. With `encoder`,
            that of the decoder.
        upsampling: `"transposed"` is a learnt 2x2 transposed convolution; `"bilinear"` is interpolation and a 1x1
            convolution, which avoids checkerboard patterns (Odena et al. 2016).
        dropout: Fraction of values dropped at the end of the contracting path, at least 0 and below 1.
        activation: Name of a Keras activation for the blocks. With `encoder`, for those of the decoder.
        bias: Whether the 3x3 convolutions have a bias. None: only with `"group"` and `"none"`, because the other
            normalizations cancel it.
        seed: Random seed of initial weights and dropout. None uses Keras' global seed (`keras.utils.set_random_seed`).
        name: Name of the model.
        encoder: `"vgg16"`, `"vgg19"`, `"resnet50"`, `"resnet101"`, `"efficientnetv2b0"`, `"efficientnetv2b3"`,
            `"mobilenetv2"`, `"mobilenetv3small"`, `"mobilenetv3large"`, `"convnexttiny"` or `"densenet121"`. None for the
            plain U-Net.
        encoder_weights: `"imagenet"` for the weights published by Keras, which are downloaded once, verified and cached in
            `~/.keras/models`. Or a file of weights of this application (`.h5`, `.weights.h5`, `.keras`) or its
            address (`https://...`, `hf://...`), a `keras.Model` that contains its layers, or None for random weights.
        decoder_filters: Filters of `decoder_1` with an encoder (default 32), doubled at each level down; or one integer for
            each decoder block, `decoder_1` first.

    Returns:
        A functional model from float32 images (batch, height, width, channels) to float32 probabilities (batch, height,
        width, classes). The head computes in float32 even with mixed precision.

    Raises:
        UsageError: An argument is invalid, such as a size that cannot be halved often enough.
        CheckpointError: The encoder's weights cannot be downloaded or read, or belong to another network.

    Example:
        >>> model = unet((64, 64, 3), filters=8, depth=2)
        >>> model.output_shape
        (None, 64, 64, 1)
        >>> model = unet((64, 64, 1), encoder="vgg16", encoder_weights=None, decoder_filters=8)
        >>> [layer.name for layer in model.layers][1:5]
        ['grey_to_rgb', 'encoder_scaling', 'block1_conv1', 'block1_conv2']
    """
    if encoder is None:
        if encoder_weights not in (None, "imagenet") or decoder_filters is not None:
            raise UsageError(
                "encoder_weights and decoder_filters need an encoder", remedy='Give one, for instance encoder="vgg16".'
            )
        return plain_unet(
            input_shape, classes, depth, filters, normalization, upsampling, dropout, activation, bias, seed, name
        )
    if depth != _DEPTH or filters != _FILTERS:
        raise UsageError(
            "depth and filters belong to the plain U-Net", remedy="With an encoder, give decoder_filters instead."
        )
    application = encoder_named(encoder)
    builder = BlockBuilder(
        normalization=normalization,
        upsampling=upsampling,
        dropout=dropout,
        activation=activation,
        bias=normalization in ("group", "none") if bias is None else bias,
        seed=seed,
    )

    def load(base: keras.Model) -> EncoderConvention:
        return load_encoder_weights(base, encoder_weights, application)

    model = encoder_unet(
        application,
        encoder_weights if encoder_weights is None or encoder_weights == "imagenet" else load,  # type: ignore[arg-type]
        input_shape,
        classes,
        _DECODER_FILTERS if decoder_filters is None else decoder_filters,
        builder,
        name,
    )
    mark_fresh(model, None if encoder_weights is None else "decoder")
    return model
