"""Read DICOM series from a scanner, without masks, for prediction: MR files in any folders, with any names.

For training, PNG masks with the same stems are put beside the DICOM files, and the `pairs` source reads both.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

from kerasseg_tfrecords.errors import DataError, Problem
from kerasseg_tfrecords.formats.dicom import DicomHeader, one_frame, read_dicom, read_dicom_frames
from kerasseg_tfrecords.formats.sniff import DICOM_SUFFIXES, VOLUME_SUFFIXES, is_dicom
from kerasseg_tfrecords.isolation import isolated, out_of_memory
from kerasseg_tfrecords.slices import Location, Reading, Slice
from kerasseg_tfrecords.sources.base import Item, LeftOut, Listing, SourceOptions, file_limit
from kerasseg_tfrecords.sources.roles import patient_of, stem_of
from kerasseg_tfrecords.sources.tree import Tree, has_suffix, head, natural_key, read_bytes
from kerasseg_tfrecords.text import count

_OTHER = (".mat", *VOLUME_SUFFIXES, ".png", ".jpg", ".jpeg", ".tif", ".tiff")


class DicomSource:
    """Reader of MR files; a series is a volume, and each frame of an enhanced file is a slice."""

    name = "dicom"

    def recognises(self, tree: Tree) -> float:
        """Return the share of DICOM files among possible data files, at most 0.9; 0.1 if only the names suggest DICOM."""
        named = tree.with_suffix(*DICOM_SUFFIXES)
        bare = tuple(loc for loc in tree.locations if not has_suffix(loc.name))
        others = len(tree.with_suffix(*_OTHER))
        for files in (named, bare):
            # A sample is enough here: the listing checks all files.
            if files and any(is_dicom(head(location)) for location in files[:: max(1, len(files) // 8)]):
                return 0.9 * len(files) / (len(files) + others)
        return 0.1 if named and not others else 0.0

    def find_items(self, tree: Tree, options: SourceOptions) -> Listing:
        """Read all headers and return one item for each frame."""
        headers: dict[tuple[Location, int], DicomHeader] = {}
        problems: list[Problem] = []
        left_out: list[LeftOut] = []
        for location in tree.locations:
            named = location.name.lower().endswith(DICOM_SUFFIXES)
            if not named and (has_suffix(location.name) or not is_dicom(head(location))):
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
                except MemoryError:
                    problems.append(Problem.of(out_of_memory(), location.name))
        if options.masks and headers:
            message = (
                f"{count(len(headers), 'DICOM slice')} without masks. Add PNG masks with the same stems (1.dcm and "
                "1_mask.png, or folders images/ and masks/)"
            )
            problems.insert(0, Problem(".", "no-masks", message))
            headers = {}
        items = sorted(_items(headers, options), key=lambda item: natural_key(item.name))
        return Listing(tuple(items), tuple(left_out), tuple(problems))

    def read(self, item: Item, options: SourceOptions) -> Reading:
        """Read one frame; its mask is None."""
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


@isolated
def read_header(item: Item, options: SourceOptions) -> DicomHeader:
    data = read_bytes(item.files[0], limit=file_limit(options))
    return one_frame(read_dicom_frames(data, item.name, options.max_pixels), item.name, item.page)


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
    """Return a sort key: position along the normal (rounded, since scanners write it inexactly), number, name."""
    place = header.position
    number = header.instance if header.instance is not None else 0
    return place is None, round(place, 3) if place is not None else 0.0, number, natural_key(location.name)
