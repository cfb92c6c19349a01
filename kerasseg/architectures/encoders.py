"""U-Nets with an encoder from `keras.applications`, optionally with ImageNet weights.

The encoder keeps Keras' layer names, so its weights can be compared layer by layer; the decoder is that of the plain U-Net.
Only Keras layers are used: ConvNeXt's `LayerScale` is folded into the layer before it.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import applications, layers

from kerasseg.architectures.unet import BlockBuilder, check_output, check_shape, is_whole
from kerasseg.catalogue import offline_choices
from kerasseg_tfrecords.errors import CheckpointError, UsageError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BYTE_MEAN = (123.68, 116.779, 103.939)
_SCALINGS = {
    "caffe": ([m / 255 for m in _BYTE_MEAN], [(1 / 255) ** 2] * 3),
    "torch": (list(_MEAN), [s**2 for s in _STD]),
    "tf": ([0.5] * 3, [0.25] * 3),
}
_TYPICAL = 224  # pixels; `keras.applications` warns about other sizes
SCALING_LAYER = "encoder_scaling"  # maps intensities of 0 to 1 to the range of the encoder's training images


@dataclass(frozen=True, slots=True)
class _Application:
    """A network of `keras.applications`.

    Attributes:
        make: Function that builds it.
        scaling: Scaling of its training images: `"caffe"` (BGR, 0..255 minus the mean), `"torch"` (0..1, then mean and
            standard deviation) or `"tf"` (-1..1).
        halvings: How often it halves the resolution.
        scales_itself: Whether it has scaling layers of its own, which are left out here.
    """

    make: Callable[..., keras.Model]
    scaling: Literal["caffe", "torch", "tf"]
    halvings: int = 5
    scales_itself: bool = False


ENCODERS = {
    "vgg16": _Application(applications.VGG16, "caffe", halvings=4),
    "vgg19": _Application(applications.VGG19, "caffe", halvings=4),
    "resnet50": _Application(applications.ResNet50, "caffe"),
    "resnet101": _Application(applications.ResNet101, "caffe"),
    "efficientnetv2b0": _Application(applications.EfficientNetV2B0, "torch", scales_itself=True),
    "efficientnetv2b3": _Application(applications.EfficientNetV2B3, "torch", scales_itself=True),
    "mobilenetv2": _Application(applications.MobileNetV2, "tf"),
    "mobilenetv3small": _Application(applications.MobileNetV3Small, "tf", scales_itself=True),
    "mobilenetv3large": _Application(applications.MobileNetV3Large, "tf", scales_itself=True),
    "convnexttiny": _Application(applications.ConvNeXtTiny, "torch", scales_itself=True),
    "densenet121": _Application(applications.DenseNet121, "torch"),
}


@dataclass(frozen=True, slots=True)
class EncoderConvention:
    """The images that an encoder's weights were trained on.

    Attributes:
        rgb: Whether the first convolution expects RGB although the application itself expects BGR.
        mean: Subtracted mean of red, green and blue (0..1), if it is not the application's.
    """

    rgb: bool = False
    mean: tuple[float, float, float] | None = None


def encoder_named(name: str) -> str:
    """Return the key in `ENCODERS` for a name in any usual spelling.

    Example:
        >>> encoder_named("EfficientNetV2-B0"), encoder_named("mobilenet_v3")
        ('efficientnetv2b0', 'mobilenetv3large')
    """
    key = re.sub("[^a-z0-9]", "", name.lower()) if isinstance(name, str) else ""
    key = {"mobilenetv3": "mobilenetv3large", "convnext": "convnexttiny"}.get(key, key)
    if key not in ENCODERS:
        raise UsageError(f"unknown encoder {name!r}", expected=", ".join(ENCODERS))
    return key


def encoder_unet(
    encoder: str,
    load: Literal["imagenet"] | Callable[[keras.Model], EncoderConvention] | None,
    input_shape: Sequence[int | None],
    classes: int,
    decoder_filters: int | Sequence[int],
    builder: BlockBuilder,
    name: str,
) -> keras.Model:
    """Build a U-Net with an encoder of `keras.applications`; `kerasseg.unet` describes the arguments.

    Args:
        encoder: A key of `ENCODERS`.
        load: `"imagenet"` for the weights published by Keras, None for random weights, or a function that loads weights
            into the given network and returns their convention.
        input_shape: Height, width and channels of one image.
        classes: Number of output channels.
        decoder_filters: Filters of `decoder_1`, doubled at each level down, or one number for each decoder block.
        builder: Builds the decoder's blocks.
        name: Name of the model.
    """
    application = ENCODERS[encoder]
    shape = check_shape(input_shape, application.halvings, otherwise="another encoder")
    if shape[2] not in (1, 3):
        raise UsageError(
            "an ImageNet encoder takes grey or RGB images", found=f"{shape[2]} channels", expected="1 or 3"
        )
    check_output(classes, name)
    with _channels_last():
        base = _application(encoder, shape[2], imagenet=load == "imagenet")
        convention = load(base) if callable(load) else EncoderConvention()
        image, taps = _copied(base, shape, builder, application, convention, pretrained=load is not None)
    *skips, x = [taps[scale] for scale in sorted(taps)]
    scales = sorted(taps)[:-1]
    widths = _checked_filters(decoder_filters, len(skips))
    x = builder.dropped(x, "bottleneck")
    for level in range(len(skips), 0, -1):
        x = builder.up(x, f"decoder_{level}", widths[level - 1], skips[level - 1])
    # Above the finest feature map of the encoder there is no skip connection.
    scale = scales[0] // 2
    while scale:
        width = max(8, widths[0] * scale // scales[0])
        x = builder.up(x, f"decoder_1_scale_{scale}", width)
        scale //= 2
    return keras.Model(image, builder.head(x, classes), name=name)


def _application(encoder: str, channels: int, *, imagenet: bool) -> keras.Model:
    """Build the network without its classifier, for images of 0 to 1 with 1 or 3 channels."""
    application = ENCODERS[encoder]
    x = keras.Input((_TYPICAL, _TYPICAL, channels), name="image", dtype="float32")
    if channels == 1:
        x = layers.Concatenate(axis=-1, name="grey_to_rgb")([x, x, x])
    mean, variance = _SCALINGS[application.scaling]
    # In float32 under mixed precision too, because bfloat16 has only 8 significant bits.
    x = layers.Normalization(axis=-1, mean=mean, variance=variance, dtype="float32", name=SCALING_LAYER)(x)
    options = {"include_preprocessing": False} if application.scales_itself else {}
    if not imagenet:
        return application.make(include_top=False, weights=None, input_tensor=x, **options)
    try:
        # Keras reports downloads on standard output, which may carry JSON.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return application.make(include_top=False, weights="imagenet", input_tensor=x, **options)
    except Exception as error:  # Keras raises a bare Exception for failed downloads and a ValueError for a wrong hash
        raise CheckpointError(
            f"the ImageNet weights of {encoder} cannot be downloaded",
            found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            remedy="Connect to the internet once (Keras caches the file in ~/.keras/models), or give a file of weights. "
            + offline_choices(),
        ) from error


def _copied(
    base: keras.Model,
    shape: tuple[int | None, int | None, int],
    builder: BlockBuilder,
    application: _Application,
    convention: EncoderConvention,
    *,
    pretrained: bool,
) -> tuple[Any, dict[int, Any]]:
    """Rebuild the network for images of `shape`; return its input and the last feature map at each scale."""
    _rename(base)
    scales = _last_at_scale(base, application.halvings)
    trunk = keras.Model(base.inputs[0], list(scales.values()))

    def anew(operation: Any) -> Any:
        if type(operation).__name__ == "LayerScale":
            return layers.Identity(name=operation.name)
        if isinstance(operation, keras.Sequential):  # its configuration contains the input size
            start = keras.Input((None, None, operation.input_shape[-1]), name=f"{operation.name}_input")
            return keras.Sequential([start, *map(anew, operation.layers)], name=operation.name)
        config = operation.get_config()
        if operation.name == SCALING_LAYER and convention.mean:
            config["mean"] = list(convention.mean)
        for key, value in config.items():
            if key.endswith("_initializer") and isinstance(value, dict) and "seed" in value.get("config", {}):
                value["config"]["seed"] = builder.seed_of(f"{operation.name}/{key}")
        return type(operation).from_config(config)

    image = keras.Input(shape, name="image", dtype="float32")
    copy = keras.models.clone_model(trunk, input_tensors=image, clone_function=anew)
    if pretrained:
        _carry_weights(trunk, copy, flip=application.scaling == "caffe" and not convention.rgb)
    outputs = copy.outputs
    return copy.inputs[0], dict(zip(scales, outputs, strict=True))


def _rename(model: keras.Model) -> None:
    """Replace names that depend on what the process has built before."""
    counts: dict[str, int] = {}
    for operation in model.operations:
        numbered = re.fullmatch(r"(activation|add|layer_normalization|multiply|re_lu)(_\d+)?", operation.name)
        if numbered:
            counts[numbered[1]] = counts.get(numbered[1], 0) + 1
            operation.name = f"encoder_{numbered[1]}_{counts[numbered[1]]}"


def _last_at_scale(model: keras.Model, halvings: int) -> dict[int, Any]:
    """Return the last feature map at each scale, finest first; a pixel of scale s covers s x s image pixels."""
    found: dict[int, Any] = {}
    for operation in model.operations:
        shape = operation.output.shape
        # The image and its scaling are not feature maps of the encoder.
        if len(shape) == 4 and operation.name not in ("image", "grey_to_rgb", SCALING_LAYER):
            for scale in (2**level for level in range(halvings + 1)):
                if shape[1:3] == (_TYPICAL // scale, _TYPICAL // scale):
                    found[scale] = operation.output
    return dict(sorted(found.items()))


def _carry_weights(old: keras.Model, new: keras.Model, *, flip: bool) -> None:
    """Copy weights layer by layer between networks with the same layer names."""
    values = {layer.name: layer.get_weights() for layer in old.layers if layer.weights}
    for name in [name for name in values if name.endswith("_layer_scale")]:
        (gamma,) = values.pop(name)
        kernel, bias = values[f"{name.removesuffix('_layer_scale')}_pointwise_conv_2"]
        values[f"{name.removesuffix('_layer_scale')}_pointwise_conv_2"] = [kernel * gamma, bias * gamma]
    if flip:
        first = next(layer for layer in old.layers if isinstance(layer, layers.Conv2D))
        values[first.name][0] = np.ascontiguousarray(values[first.name][0][:, :, ::-1])
    for name, weights in values.items():
        new.get_layer(name).set_weights(weights)


def _checked_filters(filters: int | Sequence[int], blocks: int) -> tuple[int, ...]:
    """Return the filters of `decoder_1` to the deepest decoder block."""
    widths = tuple(filters * 2**level for level in range(blocks)) if is_whole(filters) else filters
    if not isinstance(widths, Sequence) or len(widths) != blocks or not all(is_whole(w) and w >= 1 for w in widths):
        raise UsageError(
            "decoder_filters do not match the encoder",
            found=filters,
            expected=f"one integer, or {blocks}: from decoder_1 to decoder_{blocks}",
        )
    return tuple(widths)


@contextlib.contextmanager
def _channels_last() -> Iterator[None]:
    """Build with channels last, whatever `~/.keras/keras.json` says, which `keras.applications` follow."""
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)
