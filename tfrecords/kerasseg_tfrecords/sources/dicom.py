"""DICOM series as they come from the scanner: MR files of one frame or several, in any folders and under any names.

They carry no tumour masks. For training, PNG masks with equal stems lie beside them and the `pairs` source reads both; this
source gives the images alone, for prediction.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.formats.dicom import DicomHeader, read_dicom, read_dicom_frames
from kerasseg_tfrecords.formats.location import Location
from kerasseg_tfrecords.formats.sniff import DICOM_SUFFIXES, VOLUME_SUFFIXES, is_dicom
from kerasseg_tfrecords.slices import Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, SourceOptions, file_limit
from kerasseg_tfrecords.sources.roles import patient_of, stem_of
from kerasseg_tfrecords.sources.tree import Tree, head, natural_key, read_bytes

__all__ = ["SOURCE", "DicomSource"]

_OTHER = (".mat", *VOLUME_SUFFIXES, ".png", ".jpg", ".jpeg", ".tif", ".tiff")


class DicomSource:
    """Reads MR files; a series is a volume, and each frame of an enhanced file a slice."""

    name = "dicom"

    def recognises(self, tree: Tree) -> float:
        """The share of DICOM files among all that could be data, at most 0.9; 0.1 where only the names say so."""
        named = tree.with_suffix(*DICOM_SUFFIXES)
        bare = tuple(loc for loc in tree.locations if _has_no_suffix(loc))
        others = len(tree.with_suffix(*_OTHER))
        for files in (named, bare):
            # A few files tell: all of them are looked at while listing.
            if files and any(is_dicom(head(location)) for location in files[:: max(1, len(files) // 8)]):
                return 0.9 * len(files) / (len(files) + others)
        return 0.1 if named and not others else 0.0

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """One item for each frame, in the order of their places in the series; the headers are read."""
        headers: dict[tuple[Location, int], DicomHeader] = {}
        problems: list[Problem] = []
        left_out: list[LeftOut] = []
        for location in tree.locations:
            named = location.name.lower().endswith(DICOM_SUFFIXES)
            if not named and not (_has_no_suffix(location) and is_dicom(head(location))):
                left_out.append(LeftOut(location.name, "not a DICOM file"))
            elif stem_of(location.name).upper() == "DICOMDIR":
                left_out.append(LeftOut(location.name, "the table of contents of a DICOM folder"))
            else:
                try:
                    data = read_bytes(location, limit=file_limit(options))
                    frames = read_dicom_frames(data, location.name, options.max_pixels)
                    for frame, header in enumerate(frames):
                        headers[location, frame if len(frames) > 1 else -1] = header
                except DataError as error:
                    problems.append(Problem.of(error, location.name))
        if options.masks and headers:
            message = (
                f"{len(headers)} DICOM slices and no masks. Put PNG masks with equal stems beside them (1.dcm and "
                "1_mask.png, or folders images/ and masks/): both are then read together"
            )
            problems.insert(0, Problem(".", "no-masks", message))
            headers = {}
        items = sorted(_items(headers, options), key=lambda item: natural_key(item.name))
        return Listing(tuple(items), tuple(left_out), tuple(problems))

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Reads one file. `Slice.mask` is None.

        Raises:
            DataError: The file is no single-frame MR image, or damaged.
        """
        data = read_bytes(item.files[0], limit=file_limit(options))
        dicom = read_dicom(data, item.name, options.max_pixels, item.page)
        slice_ = Slice(
            image=dicom.pixels,
            mask=None,
            slice_id=item.slice_id or item.name,
            source=item.name,
            label=item.label,
            patient=item.patient,
            volume=item.volume,
            slice_index=item.slice_index,
            spacing=dicom.header.spacing,
            notes=dicom.notes,
        )
        return Reading((slice_,), sha256=hashlib.sha256(data).hexdigest())


SOURCE = DicomSource()


def _has_no_suffix(location: Location) -> bool:
    # Scanners number files (`IM0001`, `1.2.840.113619...`): a suffix is something with letters.
    suffix = location.name.replace("!", "/").rsplit("/", 1)[-1].rpartition(".")[2]
    return "." not in location.name.rsplit("/", 1)[-1] or suffix.isdigit()


def _items(headers: dict[tuple[Location, int], DicomHeader], options: SourceOptions) -> list[Item]:
    series: defaultdict[str, list[tuple[Location, int]]] = defaultdict(list)
    for place, header in headers.items():
        series[header.series].append(place)
    stems = Counter(stem_of(location.name) for location in {location for location, _ in headers})
    items = []
    for uid, places in series.items():
        ordered = sorted(places, key=lambda place: (*_place(headers[place], place[0]), place[1]))
        for index, (location, frame) in enumerate(ordered):
            stem = stem_of(location.name)
            end = f"#{frame}" if frame >= 0 else ""
            items.append(
                Item(
                    "dicom",
                    location.name + end,
                    (location,),
                    patient=patient_of(location.name, options) or headers[location, frame].patient,
                    volume=uid,
                    slice_index=index if uid else -1,
                    slice_id=(stem if stems[stem] == 1 else location.name) + end,
                    page=frame,
                )
            )
    return items


def _place(header: DicomHeader, location: Location) -> tuple[bool, float, int, tuple[tuple[int, int, str], ...]]:
    """Along the normal, then by number, then by name. Rounded, for scanners write the same place in different digits."""
    place = header.position
    number = header.instance if header.instance is not None else 0
    return place is None, round(place, 3) if place is not None else 0.0, number, natural_key(location.name)
