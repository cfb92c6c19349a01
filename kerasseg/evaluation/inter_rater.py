"""Agreement of two annotators, the ceiling for any network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.figures import USUAL, Resampling, clusters
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.predictions import Case, Predictions, Resolution
from kerasseg.evaluation.schema import Mean, SecondReader
from kerasseg.evaluation.scoring import mask_dice
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.formats.images import decode_picture, upright
from kerasseg_tfrecords.intensity import fit_mask
from kerasseg_tfrecords.isolation import call
from kerasseg_tfrecords.records.manifest import MANIFEST
from kerasseg_tfrecords.sources.base import SourceOptions
from kerasseg_tfrecords.sources.masks import mask_of_picture
from kerasseg_tfrecords.storage import local_copy

_PICTURES = (".png", ".tif", ".tiff")

SecondMasks = Callable[[str], "tuple[NDArray[np.bool_], str] | None"]
"""slice_id -> (mask at native size, its place); None if there is no such mask."""


def open_second(source: Path | str) -> SecondMasks:
    """Open a second set of masks.

    Args:
        source: A folder of PNG or TIFF masks, named like the slices: `figshare-mat/26` is found as
            `figshare-mat/26.png`, `26.png`, or `anywhere/26.tif`. Or a shard directory with slices of the same ids.
    """
    folder = local_copy(source)
    if not folder.is_dir():
        raise UsageError("--reference-2 is not a folder", path=folder, expected="masks, or a shard directory")
    return _shards(folder) if (folder / MANIFEST).is_file() else _pictures(folder)


def compare_readers(
    predictions: Predictions,
    rows: Sequence[SliceRow],
    rule: MaskRule,
    second: SecondMasks,
    *,
    source: str,
    resolution: Resolution = "native",
    resampling: Resampling = USUAL,
) -> SecondReader:
    """Measure the agreement of two annotators, and of the network with each, over the slices that both annotated."""
    agreement, beside = (np.full(len(rows), np.nan) for _ in range(2))
    for number in range(len(predictions)):
        case = predictions.case(number, resolution)
        found = second(case.slice_id)
        if found is None:
            continue
        other = _fitted(found, predictions.case(number), case)
        agreement[number] = mask_dice(other, case.mask)
        mask = apply_rule(predictions.probability(number, resolution), rule, predictions.classes[case.label])
        beside[number] = mask_dice(mask, other)
    there = ~np.isnan(agreement)
    if not there.any():
        raise DataError(
            "no slice has a second mask here",
            path=source,
            expected=f"masks named like the slices, such as {rows[0].slice_id.rsplit('/', 1)[-1]}.png",
        )
    people = clusters(rows)
    first = np.array([row.dice for row in rows])
    chosen = {
        name: own
        for name in predictions.classes
        if (own := there & np.array([row.label == name for row in rows])).any()
    }

    def mean(values: NDArray[np.float64], own: NDArray[np.bool_] = there) -> Mean:
        return resampling.of(values[own], people[own], 1.0)

    def difference(own: NDArray[np.bool_] = there) -> Mean:
        return resampling.paired(agreement[own], first[own], people[own])

    return SecondReader(
        source=source,
        slices=int(there.sum()),
        without=int((~there).sum()),
        agreement=mean(agreement),
        agreement_classes={name: mean(agreement, own) for name, own in chosen.items()},
        network=mean(first),
        network_classes={name: mean(first, own) for name, own in chosen.items()},
        network_second=mean(beside),
        network_second_classes={name: mean(beside, own) for name, own in chosen.items()},
        difference=difference(),
        difference_classes={name: difference(own) for name, own in chosen.items()},
    )


def _fitted(found: tuple[NDArray[np.bool_], str], own: Case, fitted: Case) -> NDArray[np.bool_]:
    mask, where = found
    native, wanted = own.mask.shape, fitted.mask.shape
    if mask.shape == wanted:
        return mask
    if mask.shape != native:
        raise DataError(
            "a second mask differs in size from its slice",
            path=where,
            found=f"{mask.shape[0]} x {mask.shape[1]}",
            expected=f"{native[0]} x {native[1]}",
        )
    # Shards of earlier versions kept the pixels' shape; then the fitted pixels are not square either.
    square = np.isclose(*fitted.spacing, rtol=1e-4)
    return fit_mask(mask, wanted[0], own.spacing if square else (0.0, 0.0))


def _shards(folder: Path) -> SecondMasks:
    from kerasseg_tfrecords.records.shards import read_records

    # One bit per pixel: ten thousand slices of 512 x 512 take 330 MB.
    kept = {r.slice_id: (np.packbits(r.mask_native), r.mask_native.shape) for r in read_records(folder)}

    def find(slice_id: str) -> tuple[NDArray[np.bool_], str] | None:
        if slice_id not in kept:
            return None
        bits, (height, width) = kept[slice_id]
        return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool), f"{folder}: {slice_id}"

    return find


def _pictures(folder: Path) -> SecondMasks:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())
    if not files:
        raise DataError("the folder contains no masks", path=folder, expected="PNG or TIFF files, or a shard directory")
    by_path = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)
    most = SourceOptions().max_pixels

    def find(slice_id: str) -> tuple[NDArray[np.bool_], str] | None:
        # A slice id is the input's name and the reader's id, which may end in the suffix of its file.
        inner = slice_id.split("/", 1)[-1]
        for name in (slice_id, inner, str(Path(inner).with_suffix(""))):
            if name in by_path:
                return _read(by_path[name], most)
        named = by_stem.get(Path(inner).name) or by_stem.get(Path(inner).stem) or []
        if len(named) > 1:
            raise DataError(
                f"two masks match slice {slice_id}",
                path=named[0],
                found=str(named[1]),
                remedy="Give each the path of its slice below the folder.",
            )
        return _read(named[0], most) if named else None

    return find


def _read(file: Path, most: int) -> tuple[NDArray[np.bool_], str]:
    try:
        data = read_file(file)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=file) from error
    picture = call(decode_picture, data, str(file), most)
    mask, _ = mask_of_picture(picture, str(file))
    return upright(mask, picture.orientation), str(file)
