"""What is predicted has a name of its own, and what cannot be a head is remarked."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from kerasseg.prediction.inputs import open_unit, plan_units
from kerasseg_tfrecords.slices import Location
from kerasseg_tfrecords.sources.base import Item, SourceOptions
from kerasseg_tfrecords.sources.unlabelled import ImageInput, list_images

OPTIONS = SourceOptions(masks=False)


def write(path: Path, series: str, number: int, body_part: str) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    file.Modality, file.SeriesInstanceUID, file.InstanceNumber = "MR", series, number
    file.BodyPartExamined = body_part
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = np.arange(64, dtype=np.uint16).tobytes()
    file["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, file, enforce_file_format=True)


def test_series_whose_uids_end_alike_have_different_names(tmp_path: Path) -> None:
    for series in ("1.3.12.2.1107.5.2.19.45152.30001.0.0.0", "1.3.12.2.1107.5.2.19.45152.30002.0.0.0"):
        for number in (1, 2):
            write(tmp_path / f"{series[-11:-6]}-{number}.dcm", series, number, "HEAD")
    units = plan_units(list_images([tmp_path], OPTIONS))
    assert [unit.stem.rpartition("-")[2] for unit in units] == ["30001.0.0.0", "30002.0.0.0"]


def test_a_series_of_another_part_of_the_body_is_remarked(tmp_path: Path) -> None:
    for part, remarked in (("KNEE", True), ("BRAIN", False), ("", False)):
        write(tmp_path / (part or "none") / "1.dcm", generate_uid(), 1, part)
        (unit,) = plan_units(list_images([tmp_path / (part or "none")], OPTIONS))
        notes = open_unit(unit, "minmax", OPTIONS, None).notes
        assert any("shows KNEE, not a head" in note for note in notes) == remarked


def test_frames_of_one_file_are_named_after_it() -> None:
    file = Location(Path("e.dcm"), (), "e.dcm")
    items = tuple(Item("dicom", f"e.dcm#{n}", (file,), volume="1.2.3", slice_index=n, page=n) for n in range(3))
    (unit,) = plan_units([ImageInput("in", Path("in"), items, (), (), ())])
    assert unit.stem == "e"


def test_pages_of_a_picture_have_a_mask_each(tmp_path: Path) -> None:
    assert cv2.imwritemulti(str(tmp_path / "s.tif"), [np.full((8, 8), n, np.uint8) for n in range(3)])
    (unit,) = plan_units(list_images([tmp_path], OPTIONS))
    opened = open_unit(unit, "minmax", OPTIONS, None)
    assert (opened.count, [int(one.image[0, 0]) for one in opened.slices]) == (3, [0, 1, 2])
    assert len({opened.layout.name(place, "mask") for place in range(3)}) == 3
