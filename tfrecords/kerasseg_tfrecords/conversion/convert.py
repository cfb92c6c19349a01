"""Convert one item of a source to the content of its records. Runs in worker processes, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from kerasseg_tfrecords.checks.raw_data import check_slice
from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.intensity import IntensityRule, fit_image, fit_mask, intensity_window
from kerasseg_tfrecords.isolation import out_of_memory, working_on
from kerasseg_tfrecords.records.schema import Payload, SliceFacts, pack_mask, pack_native_mask
from kerasseg_tfrecords.slices import Reading, Slice
from kerasseg_tfrecords.sources import read_item
from kerasseg_tfrecords.sources.base import Item, LeftOut, NotASlice, SourceOptions
from kerasseg_tfrecords.splitting.fingerprints import Fingerprint, fingerprint


@dataclass(frozen=True, slots=True)
class Conversion:
    """Options of the conversion."""

    size: int
    intensity: IntensityRule
    source: SourceOptions


@dataclass(frozen=True, slots=True)
class Converted:
    """One slice, ready to be written once its split is known."""

    facts: SliceFacts
    payload: Payload
    fingerprint: Fingerprint


def convert_item(item: Item, conversion: Conversion, prefix: str) -> Iterator[Converted | Problem | LeftOut]:
    """Read one item and yield its slices one by one, so that the records of a volume are not in memory twice.

    An item without slices yields its problems, or the reason why it is not a slice. `prefix` is the name of the input,
    which precedes ids and file names.
    """
    name = _text(f"{prefix}/{item.name}")
    try:
        reading = read_item(item, conversion.source)
    except NotASlice as error:
        yield LeftOut(name, error.what)
        return
    except DataError as error:
        yield Problem.of(error, name)
        return
    for piece in reading.slices:
        working_on(item.files[0].name)
        try:
            found = check_slice(piece)
            errors = [problem for problem in found if problem.level == "error"]
            for problem in errors:
                yield replace(problem, name=_text(f"{prefix}/{problem.name}"))
            if not errors:
                noted = replace(piece, notes=(*piece.notes, *(problem.message for problem in found)))
                yield convert_slice(noted, reading, conversion, prefix)
        except MemoryError:
            yield Problem.of(out_of_memory(), name)


def convert_slice(piece: Slice, reading: Reading, conversion: Conversion, prefix: str) -> Converted:
    """Convert one slice; a pure function of its arguments."""
    scope = piece.image if reading.scope is None else reading.scope
    image = fit_image(piece.image, intensity_window(scope, conversion.intensity), conversion.size, piece.spacing)
    native = np.zeros(piece.image.shape[:2], bool) if piece.mask is None else piece.mask
    height, width = native.shape
    return Converted(
        facts=SliceFacts(
            slice_id=_text(f"{prefix}/{piece.slice_id}"),
            source=_text(f"{prefix}/{piece.source}"),
            sha256=reading.sha256,
            label=piece.label,
            patient=_text(piece.patient),
            volume=_text(f"{prefix}/{piece.volume}") if piece.volume else "",
            slice_index=piece.slice_index,
            height=height,
            width=width,
            channels=image.shape[2],
            spacing=piece.spacing,
            tumour_pixels=int(np.count_nonzero(native)),
            notes=piece.notes,
        ),
        payload=Payload(
            image.tobytes(), pack_mask(fit_mask(native, conversion.size, piece.spacing)), pack_native_mask(native)
        ),
        fingerprint=fingerprint(image),
    )


def _text(name: str) -> str:
    """Escape bytes of a file name that are not UTF-8, which records, CSV and JSON do not allow."""
    return name.encode("utf-8", "backslashreplace").decode()
