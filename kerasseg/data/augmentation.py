"""Augmentation that keeps anatomy plausible: horizontal flip, zoom, contrast, brightness.

Parameters are drawn by `SafeAugmentation.parameters` and applied by `apply` or `apply_numpy`, in these steps:

1. Geometry, for image and mask: flip, then resize by the factor (bilinear), and crop or zero-pad about the centre. A row of
   n pixels becomes round(n * zoom) pixels; pixel x of them is read at (x + 0.5) / zoom - 0.5, with edge values repeated.
   Pixel round(n * (zoom - 1) / 2) becomes the first of the result, so that the centre moves by less than half a pixel. A
   factor that does not change the size does nothing. The mask is cut at 0.5.
2. Contrast: value -> mean + contrast * (value - mean), with the mean over the slice's pixels and channels after step 1.
3. Brightness: value -> value + brightness, then clipped to [0, 1].
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from kerasseg.data.augmentation_opencv import FastAugmenter
from kerasseg.data.rng import uniforms
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.validation import did_you_mean

COLUMNS = ("flip", "brightness", "contrast", "zoom")
"""Columns of a parameter table."""

_ANATOMY = "it creates heads that no scanner produces"
_SIGNAL = "the grey values of a sequence carry the diagnosis"
REFUSED: dict[str, str] = {
    "rotation": "heads lie in the scanner one way up, so rotated ones do not occur, and rotating smears tumour borders",
    "vertical_flip": "it puts the face at the back of the head: front and back of a brain are not interchangeable, and "
    "the position of a tumour indicates its kind (pituitary tumours sit in one place)",
    "elastic": "it bends ventricles and midline as a growing tumour does, so the network learns a mass effect without mass",
    "shear": f"{_ANATOMY}, and slants tumour borders",
    "perspective": f"{_ANATOMY}: slices are parallel projections",
    "color_jitter": "MRI has no colours: hue and saturation of a grey slice are noise that no sequence produces",
    "invert": f"{_SIGNAL}: inverting them turns bright fluid dark",
    "gamma": f"{_SIGNAL}: a curve can turn a T1-like contrast into another; contrast +-10 % is safe",
    "equalize": f"{_SIGNAL}: equalising them lifts noise to the brightness of tumours",
    "noise": "it hides small tumours that the mask still marks",
    "blur": "it blurs the border that the mask marks sharply",
    "cutout": "it can erase the tumour while the mask keeps it",
    "mixup": "it mixes the tumours and brains of two patients, and the mask fits neither",
    "crop": "it can cut the tumour off and moves anatomy out of place; zoom is safe",
    "translation": "large shifts cut the head off; zoom about the centre is safe",
}
"""Name of an augmentation -> why it is refused."""

_SYNONYMS = {
    "rotate": "rotation",
    "rot90": "rotation",
    "affine": "rotation",
    "flip_vertical": "vertical_flip",
    "flip_up_down": "vertical_flip",
    "flipud": "vertical_flip",
    "elastic_deformation": "elastic",
    "elastic_transform": "elastic",
    "grid_distortion": "elastic",
    "colour_jitter": "color_jitter",
    "hue": "color_jitter",
    "saturation": "color_jitter",
    "solarize": "invert",
    "posterize": "equalize",
    "clahe": "equalize",
    "gaussian_noise": "noise",
    "gaussian_blur": "blur",
    "erasing": "cutout",
    "coarse_dropout": "cutout",
    "cutmix": "mixup",
    "mosaic": "mixup",
    "translate": "translation",
    "shift": "translation",
}


def refuse(name: str) -> NoReturn:
    """Refuse an augmentation by name, with the reason.

    Example:
        >>> try: refuse("RandomRotation")
        ... except UsageError as error: print(str(error)[:51])
        augmentation 'RandomRotation' is refused: heads lie
    """
    reason = REFUSED.get(_plain(name))
    remedy = f"Safe ones are {', '.join(COLUMNS)}."
    if reason is None:
        near = did_you_mean(_plain(name), COLUMNS)
        what = f"augmentation {name!r} is not one of the safe ones"
        raise UsageError(what, remedy=f"{near} {remedy}" if near else remedy)
    raise UsageError(f"augmentation {name!r} is refused: {reason}", remedy=remedy)


def _plain(name: str) -> str:
    """Normalise a name: RandomVerticalFlip, vertical-flip -> vertical_flip."""
    letters = "".join(c for c in name.lower() if c.isalnum()).removeprefix("random")
    known = {key.replace("_", ""): key for key in (*REFUSED, *_SYNONYMS)}
    word = known.get(letters, letters)
    return _SYNONYMS.get(word, word)


@keras.saving.register_keras_serializable(package="kerasseg")
class SafeAugmentation:
    """Draw and apply safe augmentations; every random choice is a function of (seed, epoch, slice).

    It has no state and is not a layer: a layer draws anew at each call, so that order, batch size, replicas and resuming
    would change the result. Instead `parameters` draws one table per epoch, which is applied to whole batches: by `apply`
    (keras.ops, the reference, on any backend and device, inside `tf.data` with the TensorFlow backend) or by `apply_numpy`
    (OpenCV, several times as fast on a CPU). The two differ by rounding, less than 5e-5.

    Args:
        flip: Probability of a horizontal flip, 0 to 1.
        brightness: Largest shift of brightness, as a share of the range [0, 1]; 0 to below 1.
        contrast: Largest change of contrast: factors from 1 - contrast to 1 + contrast; 0 to below 1.
        zoom: Largest change of size: factors from 1 - zoom to 1 + zoom; 0 to 0.5.
        **others: Any other augmentation is refused by name (see `REFUSED`).

    0 turns an augmentation off without changing what the others draw.

    Raises:
        UsageError: A value is out of range, or another augmentation is requested.

    Example:
        >>> augmentation = SafeAugmentation(zoom=0)
        >>> table = augmentation.parameters(seed=1, epoch=0, indices=[5, 7])
        >>> images, masks = np.full((2, 8, 8, 1), 0.5, "float32"), np.zeros((2, 8, 8, 1), "float32")
        >>> augmented, same = augmentation.apply_numpy(images, masks, table)
        >>> augmented.shape, bool(np.allclose(augmented[:, 0, 0, 0], 0.5 + table[:, 1]))
        ((2, 8, 8, 1), True)

        In `tf.data`, for one epoch: `Dataset.from_tensor_slices((images, masks, table)).batch(8)
        .map(augmentation.apply)`; for `fit` over several epochs, see `kerasseg.SliceBatches`.
    """

    def __init__(
        self, flip: float = 0.5, brightness: float = 0.1, contrast: float = 0.1, zoom: float = 0.05, **others: Any
    ) -> None:
        for name in others:
            refuse(name)
        self.flip = _amount("flip", flip, 1.0)
        self.brightness = _amount("brightness", brightness, 0.99)
        self.contrast = _amount("contrast", contrast, 0.99)
        self.zoom = _amount("zoom", zoom, 0.5)
        self._fast = FastAugmenter()

    def parameters(self, seed: int, epoch: int, indices: ArrayLike) -> NDArray[np.float32]:
        """Draw the parameters of slices for one epoch.

        Args:
            seed: Integer >= 0.
            epoch: Integer >= 0.
            indices: (n,) numbers of the slices within the training split, >= 0, in any order.

        Returns:
            (n, 4) float32, `COLUMNS`: flip (0 or 1), brightness (added), contrast (factor), zoom (factor). A row depends
            only on seed, epoch and slice number.

        Raises:
            UsageError: An index is negative or not an integer.
        """
        rows = np.asarray(indices)
        if rows.size == 0:
            return np.empty((0, len(COLUMNS)), np.float32)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0:
            raise UsageError("invalid slice numbers", found=f"{rows.dtype} {rows.shape}", expected="(n,), >= 0")
        drawn = uniforms(seed, epoch, "augmentation", int(rows.max()) + 1, len(COLUMNS))[rows]
        around = 2.0 * drawn - 1.0
        table = np.stack(
            [
                drawn[:, 0] < self.flip,
                self.brightness * around[:, 1],
                1.0 + self.contrast * around[:, 2],
                1.0 + self.zoom * around[:, 3],
            ],
            axis=1,
        )
        return table.astype(np.float32)

    def __call__(self, images: Any, masks: Any, table: Any) -> tuple[Any, Any]:
        """Same as `apply`."""
        return self.apply(images, masks, table)

    def apply(self, images: Any, masks: Any, table: Any) -> tuple[Any, Any]:
        """Apply a table to a batch with keras.ops; the reference.

        Args:
            images: (batch, height, width, channels), float in [0, 1], or integers from 0 to 255.
            masks: (batch, height, width, 1), 0 and 1.
            table: (batch, 4) from `parameters`.

        Returns:
            Images float32 in [0, 1] and masks float32 of 0 and 1, same shapes.

        Raises:
            ValueError: The shapes differ from these.
        """
        images, masks = ops.convert_to_tensor(images), ops.convert_to_tensor(masks)
        table = ops.cast(ops.convert_to_tensor(table), "float32")
        _check_shapes(images.shape, masks.shape, table.shape)
        whole_numbers = not keras.backend.is_float_dtype(keras.backend.standardize_dtype(images.dtype))
        images = ops.cast(images, "float32") / (255.0 if whole_numbers else 1.0)
        masks = ops.cast(masks, "float32")

        flip, brightness, contrast, zoom = (table[:, i] for i in range(len(COLUMNS)))
        lengths = [ops.cast(ops.shape(images)[axis], "float32") for axis in (1, 2)]
        same = ops.logical_and(*(ops.round(length * zoom) == length for length in lengths))
        zoom = ops.where(same, 1.0, zoom)
        scale = 1.0 / zoom
        # Row and column of the resized image that become the first of the result.
        top, left = (ops.round(length * (zoom - 1.0) / 2.0) for length in lengths)
        start_y, start_x = ((first + 0.5) * scale - 0.5 for first in (top, left))
        mirrored = flip > 0.5
        scale_x = ops.where(mirrored, -scale, scale)
        start_x = ops.where(mirrored, lengths[1] - 1.0 - start_x, start_x)
        zero = ops.zeros_like(zoom)
        transform = ops.stack([scale_x, zero, start_x, zero, scale, start_y, zero, zero], axis=1)
        inside_y, inside_x = (_inside(length, first, zoom) for length, first in zip(lengths, (top, left), strict=True))
        inside = inside_y[:, :, None, None] * inside_x[:, None, :, None]

        def move(values: Any) -> Any:
            moved = ops.image.affine_transform(
                values, transform, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
            )
            return moved * inside

        images, masks = move(images), ops.cast(move(masks) > 0.5, "float32")
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        images = mean + contrast[:, None, None, None] * (images - mean) + brightness[:, None, None, None]
        return ops.clip(images, 0.0, 1.0), masks

    def apply_numpy(
        self, images: NDArray[Any], masks: NDArray[Any], table: ArrayLike, channels: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Apply a table to a batch with OpenCV; the fastest way on a CPU.

        Equal to `apply` within 5e-5 in the image; mask pixels within that distance of a tie may differ. OpenCV releases
        the GIL, so several threads can make batches; its own threads are turned off meanwhile (`cv2.setNumThreads`).
        Results are aligned, so that `tf.numpy_function` and `jax.numpy.asarray` take them without a copy, and their memory
        is reused once it is released.

        Args:
            images: (batch, height, width, channels), uint8 0 to 255 or float in [0, 1], 1 or 3 channels.
            masks: (batch, height, width, 1), 0 and 1, any type.
            table: (batch, 4) from `parameters`.
            channels: Channels of the result: 3 repeats grey, as the last step. None keeps them.

        Returns:
            Images float32 in [0, 1], masks float32 of 0 and 1.

        Raises:
            ValueError: The shapes differ from these.
        """
        rows = np.asarray(table, np.float64)
        _check_shapes(images.shape, masks.shape, rows.shape)
        given = images.shape[3]
        channels = given if channels is None else channels
        if given not in (1, 3) or channels not in (given, 3):
            msg = f"images have 1 or 3 channels, and only grey can be repeated. Received: {given} to give {channels}"
            raise ValueError(msg)
        return self._fast(images, masks, rows, channels)

    def get_config(self) -> dict[str, float]:
        """Return all arguments, for `from_config`."""
        return {"flip": self.flip, "brightness": self.brightness, "contrast": self.contrast, "zoom": self.zoom}

    @classmethod
    def from_config(cls, config: dict[str, float]) -> SafeAugmentation:
        """Create an augmentation from `get_config`."""
        return cls(**config)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as arguments, for worker processes."""
        return type(self).from_config, (self.get_config(),)

    def __repr__(self) -> str:
        """Python expression that creates the augmentation."""
        return f"SafeAugmentation({', '.join(f'{k}={v:g}' for k, v in self.get_config().items())})"

    def __eq__(self, other: object) -> bool:
        """Equal if all amounts are."""
        return isinstance(other, SafeAugmentation) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        """Hash consistent with `==`."""
        return hash(tuple(self.get_config().values()))


def _inside(length: Any, first: Any, zoom: Any) -> Any:
    """Return (n, length), 1 inside the resized image, whose pixel `first` (n,) is the first of the result."""
    places = ops.arange(length, dtype="float32")[None] + first[:, None]
    return ops.cast(ops.logical_and(places >= 0.0, places < ops.round(length * zoom)[:, None]), "float32")


def _amount(name: str, value: float, most: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and 0 <= value <= most)
    ):
        raise UsageError(f"amount of {name} cannot be used", found=repr(value), expected=f"a number from 0 to {most:g}")
    return float(value)


def _check_shapes(images: Any, masks: Any, table: Any) -> None:
    images, masks, table = tuple(images), tuple(masks), tuple(table)
    fits = len(images) == 4 and len(masks) == 4 and len(table) == 2 and masks[3] in (1, None) and table[1] in (4, None)
    if fits:
        pairs = ((images[0], masks[0]), (images[0], table[0]), (images[1], masks[1]), (images[2], masks[2]))
        fits = all(a is None or b is None or a == b for a, b in pairs)
    if not fits:
        msg = (
            "expected images (batch, height, width, channels), masks (batch, height, width, 1), table (batch, 4). "
            f"Received: images {images}, masks {masks}, table {table}"
        )
        raise ValueError(msg)
