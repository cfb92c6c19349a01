"""A DICOM segmentation object of a series, by `highdicom` where it is installed (`pip install 'kerasseg[dicom]'`)."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.sources.base import Location, SourceOptions
from kerasseg_tfrecords.sources.sniff import file_limit
from kerasseg_tfrecords.sources.tree import read_bytes

__all__ = ["has_highdicom", "segmentation"]


def has_highdicom() -> bool:
    """Whether segmentation objects can be written."""
    return importlib.util.find_spec("highdicom") is not None


def segmentation(
    files: Sequence[Location], masks: Sequence[NDArray[np.bool_]], options: SourceOptions
) -> tuple[bytes | None, str]:
    """The masks of a series as one binary segmentation that refers to its slices.

    Args:
        files: The slices.
        masks: (rows, columns) each.
        options: For reading them.

    Returns:
        The file, and "". Without one, why: no tumour (there is nothing to refer to), or headers that lack what the standard
        demands.
    """
    if not any(mask.any() for mask in masks):
        return None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on values that anonymisers leave behind
            return _write(files, masks, options), ""
    except Exception as error:  # it checks hundreds of tags, and raises what its checks raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return None, f"no DICOM SEG, for the series' headers do not allow one ({type(error).__name__}: {reason[:120]})"


def _write(files: Sequence[Location], masks: Sequence[NDArray[np.bool_]], options: SourceOptions) -> bytes:
    # Not above: it takes seconds to import.
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [
        pydicom.dcmread(io.BytesIO(read_bytes(place, limit=file_limit(options))), stop_before_pixels=True)
        for place in files
    ]
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="tumour",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="kerasseg", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    made: Any = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.stack(masks).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="kerasseg",
        manufacturer_model_name="kerasseg",
        software_versions=__version__,
        device_serial_number="0",
        series_description="Tumour mask, made by a network: not for clinical use",
    )
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
