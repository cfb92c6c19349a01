"""Read Jun Cheng's brain tumour data set (figshare 1512427): one MATLAB file per slice, with a struct `cjdata`.

| field        | in MATLAB              | in HDF5 (MATLAB 7.3)                                             |
| ------------ | ---------------------- | ---------------------------------------------------------------- |
| `image`      | 512x512 int16          | transposed; maxima 538 to 12,728                                 |
| `tumorMask`  | 512x512 logical        | transposed; uint8                                                |
| `label`      | 1, 2 or 3              | float64 (1, 1)                                                   |
| `PID`        | text                   | uint16 codes, (length, 1)                                        |
| `tumorBorder`| x, y, x, y, ...        | not read, since the mask has the same information                |

Source: J. Cheng et al., "Enhanced performance of brain tumor classification via tumor region augmentation and
partition", PLoS ONE 10(10), 2015.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.classes import class_name, unknown_class
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats import hdf5, matlab5
from kerasseg_tfrecords.slices import Location, Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, NotASlice, SourceOptions
from kerasseg_tfrecords.sources.roles import patient_of
from kerasseg_tfrecords.sources.tree import IMAGE_SUFFIXES, Tree, read_bytes, suffix_of
from kerasseg_tfrecords.text import count

_HEAD = 4096
_PROBE = 64 * 2**20  # largest file that is opened for format detection


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one file; arrays in MATLAB's orientation (upright)."""

    image: NDArray[Any]
    mask: NDArray[Any] | None
    label: str | float | None
    patient: str


class FigshareSource:
    """Reader of the figshare data set: folders of .mat files, its zip, and the zips in it."""

    name = "figshare"

    def recognises(self, tree: Tree) -> float:
        """Return 1 if a sample of .mat files has `cjdata` (0.5 among more images), 0.3 if not, 0 without .mat files."""
        files = tree.with_suffix(".mat")
        if not files:
            return 0.0
        # Spread over the list, since files that are damaged or not slices (cvind.mat) may be anywhere.
        sample = {files[round(place * (len(files) - 1) / 15)] for place in range(16)}
        if not any(_holds_cjdata(location) for location in sorted(sample)):
            return 0.3
        images = sum(number for suffix, number in tree.suffixes().items() if suffix in IMAGE_SUFFIXES)
        return 1.0 if len(files) >= images else 0.5

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """Return one item for each .mat file; reading finds those that are not slices (`NotASlice`)."""
        del options
        files = tree.with_suffix(".mat")
        stems = [_stem(location.name) for location in files]
        shared = {stem for stem, number in Counter(stems).items() if number > 1}
        paths = Counter(
            location.name[: -len(".mat")] for location, stem in zip(files, stems, strict=True) if stem in shared
        )
        items: list[Item] = []
        for location, stem in zip(files, stems, strict=True):
            if stem in shared:
                path = location.name[: -len(".mat")]
                stem = path if paths[path] == 1 else location.name
            items.append(Item(self.name, location.name, (location,), slice_id=stem))
        chosen = set(files)
        left_out = [LeftOut(loc.name, _other_file(loc.name)) for loc in tree.locations if loc not in chosen]
        notes: tuple[str, ...] = ()
        if shared:
            names = count(len(shared), "file name")
            notes = (f"{names} in more than one folder: these slices are named by folder and file",)
        return Listing(tuple(items), tuple(left_out), notes=notes)

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Read one .mat file; image and mask are upright and row-major.

        Raises:
            NotASlice: The file holds vectors and texts only, as `cvind.mat` does.
            DataError: The file is damaged, or is not a slice with a known class and a mask of the same size.
        """
        location = item.files[0]
        digest, fields = _read_file(location, item.name, options)
        slice_ = Slice(
            image=fields.image,
            mask=None if fields.mask is None else _binary(fields.mask, fields.image.shape, item.name),
            slice_id=item.slice_id or _stem(item.name),
            source=location.name,
            label=item.label or _class(fields.label, item.name, options),
            patient=item.patient or patient_of(item.name, options) or fields.patient,
        )
        return Reading((slice_,), sha256=digest)


SOURCE = FigshareSource()


def _stem(name: str) -> str:
    base = re.split(r"[/!]", name)[-1]
    return base[: -len(".mat")] if base.lower().endswith(".mat") else base


def _other_file(name: str) -> str:
    if suffix_of(name) in {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz"}:
        return "an archive; unpack it if it holds slices (only zip archives are read in place)"
    return "not a .mat file"


def _holds_cjdata(location: Location) -> bool:
    try:
        data = read_bytes(location, limit=_PROBE)
        if hdf5.is_hdf5(data[:_HEAD]):
            with hdf5.open_hdf5(data, location.name) as root:
                return hdf5.open_child(root, "cjdata", location.name) is not None
        if matlab5.is_matlab5(data):
            return "cjdata" in matlab5.read_variables(data, location.name, limit=_PROBE)
    except (DataError, MemoryError):
        return False
    return False


def _byte_limit(options: SourceOptions) -> int:
    """Return the largest file size in bytes: twice the size of the largest image as float64."""
    return 16 * options.max_pixels + 2**20


def _read_file(location: Location, name: str, options: SourceOptions) -> tuple[str, _Fields]:
    data = read_bytes(location, limit=_byte_limit(options))
    digest = hashlib.sha256(data).hexdigest()
    if hdf5.is_hdf5(data[:_HEAD]):
        with hdf5.open_hdf5(data, name) as root:
            return digest, _read_hdf5(root, name, options)
    if matlab5.is_matlab5(data):
        return digest, _read_matlab5(data, name, options)
    raise _not_matlab(data, name)


def _not_matlab(data: bytes, name: str) -> DataError:
    if not data:
        return DataError("the file is empty", path=name, expected="a MATLAB file with cjdata", kind="empty")
    if data.startswith(b"version https://git-lfs"):
        remedy = "Run git lfs pull."
        return DataError("a Git LFS pointer instead of the file itself", path=name, remedy=remedy)
    if data.startswith(b"MATLAB"):
        remedy = "Download or copy it again."
        return DataError("the MATLAB file is cut off or damaged", path=name, found=f"{len(data)} bytes", remedy=remedy)
    found = f"a file that begins with {data[:16]!r}"
    return DataError("not a MATLAB file", path=name, found=found, expected="MATLAB 7.3 or MATLAB 5, with cjdata")


def _read_hdf5(root: Any, name: str, options: SourceOptions) -> _Fields:
    struct = hdf5.open_child(root, "cjdata", name)
    if struct is None:
        raise _without_cjdata({key: _hdf5_shape(root, key, name) for key in hdf5.members(root)}, name)
    if not hdf5.is_group(struct):
        raise DataError("cjdata is not a struct", path=name, found="an array", kind="no-cjdata")
    image = hdf5.open_child(struct, "image", name)
    if image is None:
        raise _missing("image", hdf5.members(struct), name)
    mask = hdf5.open_child(struct, "tumorMask", name) if options.masks else None
    label = hdf5.open_child(struct, "label", name)
    patient = hdf5.open_child(struct, "PID", name)
    most = options.max_pixels
    if mask is None and options.masks:
        raise _missing("tumorMask", hdf5.members(struct), name)
    return _Fields(
        image=_image(hdf5.read_numbers(image, "image", name, max_values=most, transpose=True), name),
        mask=None if mask is None else hdf5.read_numbers(mask, "tumorMask", name, max_values=most, transpose=True),
        label=None if label is None else _label_text(hdf5.read_text(label, "label", name)),
        patient="" if patient is None else hdf5.read_text(patient, "PID", name),
    )


def _read_matlab5(data: bytes, name: str, options: SourceOptions) -> _Fields:
    variables = matlab5.read_variables(data, name, limit=_byte_limit(options))
    struct = variables.get("cjdata")
    if struct is None:
        plain = {
            key: getattr(getattr(value, "dtype", None), "kind", "O") in "biufU" for key, value in variables.items()
        }
        raise _without_cjdata({key: variables[key].shape if plain[key] else None for key in variables}, name)
    if not isinstance(struct, np.ndarray) or struct.dtype.names is None or struct.size != 1:
        raise DataError("cjdata is not a struct", path=name, found="an array", kind="no-cjdata")
    fields = {key: struct.reshape(-1)[0][key] for key in struct.dtype.names}
    for key in ("image", "tumorMask")[: 2 if options.masks else 1]:
        if key not in fields:
            raise _missing(key, tuple(fields), name)
    return _Fields(
        image=_image(_numbers(fields["image"], "image", name, options), name),
        mask=_numbers(fields["tumorMask"], "tumorMask", name, options) if options.masks else None,
        label=_label_text(_short_text(fields["label"], "label", name)) if "label" in fields else None,
        patient=_short_text(fields["PID"], "PID", name) if "PID" in fields else "",
    )


def _numbers(value: Any, what: str, name: str, options: SourceOptions) -> NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        found = "a text, cell, struct, sparse or complex array"
        raise DataError(f"{what} is not numeric", path=name, found=found, expected="a full numeric array")
    if value.size > options.max_pixels:
        found, expected = f"{value.size} pixels", f"at most {options.max_pixels}"
        raise DataError(f"{what} is too large", path=name, found=found, expected=expected, kind="too-large")
    return np.ascontiguousarray(value, value.dtype.newbyteorder("="))


def _short_text(value: Any, what: str, name: str) -> str:
    values = np.asarray(value)
    if values.size == 0:
        return ""
    if values.dtype.kind == "U" and values.size == 1 and values.dtype.itemsize <= 4096:
        return str(values.reshape(-1)[0]).replace("\0", "").strip()
    if values.dtype.kind not in "biuf" or values.size != 1:
        raise DataError(f"{what} is not one text or number", path=name, found=f"shape {values.shape}")
    return hdf5.number_text(values.reshape(-1)[0])


def _label_text(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _hdf5_shape(root: Any, key: str, name: str) -> tuple[int, ...] | None:
    opened = hdf5.open_child(root, key, name)
    return None if opened is None or hdf5.is_group(opened) else (opened.shape or ())


def _without_cjdata(shapes: dict[str, tuple[int, ...] | None], name: str) -> DataError:
    """Return `NotASlice` if all variables are vectors, numbers or texts (`cvind.mat`), else `DataError`.

    Args:
        shapes: Shape of each variable; None for a struct or another type that could hold an image.
        name: File name for messages.
    """
    listed = ", ".join(
        f"{key} ({'struct' if shape is None else ' x '.join(map(str, shape)) or 'one value'})"
        for key, shape in list(shapes.items())[:6]
    )
    if shapes and all(shape is not None and sum(length > 1 for length in shape) <= 1 for shape in shapes.values()):
        return NotASlice(f"not a slice: a MATLAB file with only {listed}", path=name, kind="not-a-slice")
    found = listed or "no variables"
    expected = "a struct cjdata with image, tumorMask, label and PID"
    return DataError("the file has no cjdata", path=name, found=found, expected=expected, kind="no-cjdata")


def _missing(field: str, present: tuple[str, ...], name: str) -> DataError:
    found = ", ".join(sorted(present)) or "no fields"
    kind = "missing-mask" if field == "tumorMask" else "no-cjdata"
    return DataError(f"cjdata has no {field}", path=name, found=found, kind=kind)


def _image(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Check that an array is an image: two-dimensional, not empty, finite."""
    if array.ndim != 2 or array.size == 0:
        found = f"an array of shape {array.shape}"
        raise DataError("not an image", path=name, found=found, expected="height x width", kind="empty-image")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        found = count(int(np.count_nonzero(~np.isfinite(array))), "pixel")
        what, remedy = "the image has NaN or infinite values", "Correct the file."
        raise DataError(what, path=name, found=found, remedy=remedy, kind="not-finite")
    return array


def _binary(mask: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    if mask.shape != shape:
        found, expected = " x ".join(map(str, mask.shape)), " x ".join(map(str, shape))
        raise DataError(
            "mask and image differ in size", path=name, found=found, expected=expected, kind="size-mismatch"
        )
    if mask.dtype == np.uint8 and mask.max() <= 1:
        return mask.view(np.bool_)
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise DataError("the mask has NaN or infinite values", path=name, kind="not-finite")
    return np.asarray(mask > 0)


def _class(label: str | float | None, name: str, options: SourceOptions) -> str:
    found = None if label is None or label == "" else class_name(label, options.classes)
    if found is None and options.masks:
        if label is None or label == "":
            raise DataError("cjdata has no label", path=name, kind="unknown-label")
        raise DataError(unknown_class(label, options.classes), path=name, kind="unknown-label")
    return found or ""
