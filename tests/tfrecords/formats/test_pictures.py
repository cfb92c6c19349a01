"""Pictures are decoded as they are stored, damaged and oversized ones are refused, and nothing is printed."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats import codecs
from kerasseg_tfrecords.formats.image_headers import inspect
from kerasseg_tfrecords.formats.images import Picture, decode_pages, decode_picture, to_slice
from kerasseg_tfrecords.isolation import call, working_on

PIXELS = 1_000_000
GREY = (np.add.outer(np.arange(24) * 3, np.arange(32) * 4) % 251).astype(np.uint8)
COLOUR = np.dstack([GREY, GREY.T.copy().reshape(GREY.shape), 255 - GREY])


def encode(suffix: str, pixels: NDArray[Any], *options: int) -> bytes:
    return bytes(cv2.imencode(suffix, pixels, list(options))[1])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decoded(data: bytes) -> Picture:
    return decode_picture(data, "a", PIXELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_lossless_pictures_keep_their_values(suffix: str, dtype: type) -> None:
    grey = GREY.astype(dtype) * (257 if dtype is np.uint16 else 1)
    colour = COLOUR.astype(dtype)
    assert decoded(encode(suffix, grey)).pixels.dtype == dtype
    np.testing.assert_array_equal(decoded(encode(suffix, grey)).pixels, grey)
    np.testing.assert_array_equal(decoded(encode(suffix, colour)).pixels, colour[..., ::-1])  # OpenCV writes BGR


def test_float_tiff() -> None:
    values = GREY.astype(np.float32) / 7
    np.testing.assert_array_equal(decoded(encode(".tif", values)).pixels, values)
    values[3, 3] = np.nan
    with pytest.raises(DataError, match="NaN") as caught:
        decoded(encode(".tif", values))
    assert caught.value.kind == "not-finite"


def test_jpeg_is_near_and_said_to_be_lossy() -> None:
    picture = decoded(encode(".jpg", GREY, cv2.IMWRITE_JPEG_QUALITY, 95))
    assert picture.lossy
    assert picture.pixels.shape == GREY.shape
    smooth = cv2.GaussianBlur(COLOUR, (0, 0), 3)
    colour = decoded(encode(".jpg", smooth, cv2.IMWRITE_JPEG_QUALITY, 95)).pixels
    assert np.abs(colour.astype(int) - smooth[..., ::-1]).mean() < 6


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_three_equal_channels_are_grey(suffix: str) -> None:
    assert decoded(encode(suffix, np.dstack([GREY] * 3))).pixels.shape == GREY.shape


def test_palettes_small_depths_and_interlacing() -> None:
    rows = bytes([0, 0b00011011]) * 4
    palette = chunk(b"PLTE", bytes([0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128]))
    assert decoded(png(4, 4, 2, 0, rows)).pixels[0].tolist() == [0, 1, 2, 3]  # stored values, not stretched to 255
    assert decoded(png(4, 4, 2, 3, rows, palette)).pixels[0].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [0, 0, 128],
    ]
    bits = decoded(png(8, 1, 1, 0, bytes([0, 0b10110000]))).pixels
    assert (bits[0] > 0).tolist() == [True, False, True, True, False, False, False, False]


def test_tiff_in_which_zero_is_white() -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        data = bytearray(encode(".tif", GREY.astype(dtype), cv2.IMWRITE_TIFF_COMPRESSION, 1))
        place = data.find(struct.pack("<HHI", 262, 3, 1))
        data[place + 8] = 0
        np.testing.assert_array_equal(decoded(bytes(data)).pixels, top - GREY.astype(dtype))


def test_opaque_alpha_is_dropped_and_transparent_pixels_become_black() -> None:
    opaque = np.dstack([COLOUR, np.full(GREY.shape, 255, np.uint8)])
    picture = decoded(encode(".png", opaque))
    assert picture.alpha is None
    assert to_slice(picture)[1] == ()
    half = opaque.copy()
    half[:, :16, 3] = 0
    pixels, notes = to_slice(decoded(encode(".png", half)))
    assert pixels.shape == COLOUR.shape
    assert not pixels[:, :16].any()
    np.testing.assert_array_equal(pixels[:, 16:], COLOUR[:, 16:, ::-1])
    assert notes == ("transparent pixels became black",)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("kerasseg_tfrecords.formats.images.decode", explode)
    bomb = png(20_000, 20_000, 8, 0, b"\0" * 1000)
    jpeg = bytearray(encode(".jpg", GREY))
    place = jpeg.find(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    tiff = bytearray(encode(".tif", GREY))
    for tag in (256, 257):
        place = tiff.find(struct.pack("<HH", tag, 3))
        tiff[place + 8 : place + 10] = struct.pack("<H", 60_000)
    for data in (bomb, bytes(jpeg), bytes(tiff)):
        with pytest.raises(DataError, match="too large") as caught:
            decode_picture(data, "big", 64_000_000)
        assert caught.value.kind == "too-large"
        assert "big" in str(caught.value)


def test_no_pixels() -> None:
    with pytest.raises(DataError, match="damaged PNG"):
        decoded(png(0, 5, 8, 0, b""))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_always_refused(suffix: str, share: float) -> None:
    data = encode(suffix, COLOUR)
    with pytest.raises(DataError):
        decoded(data[: int(len(data) * share)])


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), palette=st.booleans())
def test_a_flipped_bit_in_a_png_never_changes_the_picture(place: int, bit: int, palette: bool) -> None:
    colours = chunk(b"PLTE", bytes(range(0, 240, 20)))
    whole = png(4, 4, 2, 3, bytes([0, 0b00011011]) * 4, colours) if palette else encode(".png", GREY)
    data = bytearray(whole)
    data[place % len(data)] ^= 1 << bit
    try:
        pixels = decoded(bytes(data)).pixels
    except DataError:
        return
    np.testing.assert_array_equal(pixels, decoded(whole).pixels)


def test_damage_is_never_printed(capfd: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(5)
    files = [encode(suffix, cv2.resize(COLOUR, (160, 120))) for suffix in (".png", ".jpg", ".tif")]
    refused = 0
    for data in files * 60:
        broken = bytearray(data)
        for _ in range(3):
            broken[draw.randrange(2, len(data))] ^= 1 << draw.randrange(8)
        try:
            decoded(bytes(broken))
        except DataError:
            refused += 1
    assert refused > 60
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_that_the_decoder_would_fill_with_grey_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(".jpg", cv2.resize(COLOUR, (320, 240)))
    half = data[: len(data) // 2] + b"\xff\xd9"
    assert cv2.imdecode(np.frombuffer(half, np.uint8), cv2.IMREAD_UNCHANGED) is not None  # OpenCV takes it
    capfd.readouterr()
    with pytest.raises(DataError, match="damaged JPEG"):
        decoded(half)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", [5, 8, 32946])
def test_a_damaged_compressed_tiff_is_refused(compression: int) -> None:
    data = bytearray(encode(".tif", cv2.resize(COLOUR, (160, 120)), cv2.IMWRITE_TIFF_COMPRESSION, compression))
    data[20:400] = bytes(reversed(data[20:400]))
    with pytest.raises(DataError, match="damaged TIFF"):
        decoded(bytes(data))


def test_what_others_print_meanwhile_still_arrives(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def talk(*_: object) -> NDArray[np.uint8]:
        os.write(2, b"a progress bar\n")
        os.write(2, b"Corrupt JPEG data: bad Huffman code\n")
        return GREY

    monkeypatch.setattr(codecs.cv2, "imdecode", talk)
    with pytest.raises(DataError, match="bad Huffman code"):
        codecs.decode(b"x", "a.jpg", "JPEG")
    assert capfd.readouterr().err == "a progress bar\n"


def test_colour_profiles_do_not_make_noise(capfd: pytest.CaptureFixture[str]) -> None:
    rows = b"".join(b"\0" + bytes(range(8)) for _ in range(4))
    data = png(8, 4, 8, 0, rows, chunk(b"iCCP", b"bad\0\0" + zlib.compress(b"no profile")) + chunk(b"tEXt", b"k\0v"))
    np.testing.assert_array_equal(decoded(data).pixels, np.tile(np.arange(8), (4, 1)))
    assert capfd.readouterr() == ("", "")


def test_stray_bytes_between_jpeg_segments_are_no_damage(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(".jpg", GREY)
    place = data.find(b"\xff\xdb")
    stray = data[:place] + b"\x00" + data[place:]
    np.testing.assert_array_equal(decoded(stray).pixels, decoded(data).pixels)
    assert capfd.readouterr() == ("", "")


def test_tiffs_with_several_pages_are_refused(tmp_path: Path) -> None:
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [GREY, GREY])
    data = (tmp_path / "a.tif").read_bytes()
    with pytest.raises(DataError, match=r"2 pages.*one slice per file"):
        decoded(bytes(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"hello there\n", "a text file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (bytes(range(200)), "something else"),
        (b"GIF89a", "a damaged GIF file"),
        (b"%PDF-1.4", "a PDF file"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        decoded(data)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b""]),
)
def test_noise_after_a_magic_number_is_refused(noise: bytes, magic: bytes) -> None:
    with pytest.raises(DataError):
        inspect(magic + noise, "a", PIXELS)


def test_pillow_agrees() -> None:
    image = pytest.importorskip("PIL.Image")
    for data in (encode(".png", COLOUR), encode(".jpg", COLOUR), encode(".tif", COLOUR), encode(".png", GREY)):
        theirs = np.asarray(image.open(io.BytesIO(data)))
        assert np.abs(decoded(data).pixels.astype(int) - theirs).max() <= 2


def test_check_sums_are_verified_before_decoding() -> None:
    data = bytearray(png(4, 4, 2, 3, bytes([0, 0b00011011]) * 4, chunk(b"PLTE", bytes(12))))
    data[data.find(b"PLTE") + 5] ^= 1
    with pytest.raises(DataError, match="damaged PNG.*checksum"):
        inspect(bytes(data), "a", PIXELS)


FORK = """
import os, sys, pathlib
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.images import decode_picture
good = pathlib.Path(sys.argv[1]).read_bytes()
bad = good[: len(good) // 2] + bytes([255, 217])
decode_picture(good, "a", 10**6)
child = os.fork()
wrong = 0
for _ in range(300):
    try:
        decode_picture(bad if child else good, "a", 10**6)
        wrong += bool(child)
    except DataError:
        wrong += not child
if not child:
    os._exit(min(wrong, 100))
sys.exit(wrong or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_processes_hear_only_their_own_files(tmp_path: Path, python: str, child_environment: dict[str, str]) -> None:
    # Forked and busy at the same time: a shared file would mix up what is said about good and about bad pictures.
    (tmp_path / "a.jpg").write_bytes(encode(".jpg", cv2.resize(COLOUR, (320, 240))))
    done = subprocess.run([python, "-c", FORK, str(tmp_path / "a.jpg")], env=child_environment, check=False)
    assert done.returncode == 0


def in_little_time(data: bytes) -> None:
    working_on("a", 5)
    decoded(data)


def test_bytes_of_ff_behind_a_scan_cost_no_time() -> None:
    data = encode(".jpg", GREY)
    with pytest.raises(DataError, match="damaged JPEG"):  # not "takes too long"
        call(in_little_time, data[:-2] + b"\xff" * 200_000)


def test_scans_without_end_are_refused() -> None:
    data = encode(".jpg", GREY)
    scan = data.find(b"\xff\xda")
    with pytest.raises(DataError, match="more than 100 scans"):
        decoded(data[:scan] + data[scan:-2] * 101 + data[-2:])


def test_tables_of_a_tiff_that_overlap_cost_neither_time_nor_memory() -> None:
    """Pages of 4,096 entries each, all of which name the same megabyte as their table of strips."""
    entries = b"".join(struct.pack("<HHII", 273, 4, 250_000, 8) for _ in range(4096))
    size = 2 + len(entries) + 4
    body = bytearray(b"II*\0\x08\0\0\0")
    for number in range(20):
        following = 8 + (number + 1) * size if number < 19 else 0
        body += struct.pack("<H", 4096) + entries + struct.pack("<I", following)
    body += bytes(1_000_000)
    with pytest.raises(DataError, match="damaged TIFF"):  # not "takes too long"
        call(in_little_time, bytes(body))


def test_a_black_page_of_a_colour_file_has_three_channels(tmp_path: Path) -> None:
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [COLOUR, np.zeros_like(COLOUR)])
    pages = decode_pages((tmp_path / "a.tif").read_bytes(), "a.tif", PIXELS)
    np.testing.assert_array_equal(np.stack([page.pixels for page in pages]), [COLOUR[..., ::-1], np.zeros_like(COLOUR)])


@pytest.mark.parametrize("text", ["{'descr': '|u1', ", "(" * 500, "{'descr': '|u1', 'shape': 5L}", "\0", "[]"])
def test_arrays_with_a_damaged_header_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="a damaged NPY file"):
        decoded(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(99))


def test_pixels_count_with_their_bytes() -> None:
    deep = png(8000, 8000, 16, 6, b"\0" * 1000)
    with pytest.raises(DataError, match="8000 x 8000 pixels of 8 bytes") as caught:
        decode_picture(deep, "a", 64_000_000)
    assert caught.value.kind == "too-large"


def test_a_gif_of_very_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    frames = [Image.new("L", (20, 30), value) for value in range(4)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert len(decode_pages(stream.getvalue(), "a", PIXELS)) == 4
    monkeypatch.setattr("kerasseg_tfrecords.formats.images._MOST_FRAMES", 2399)
    with pytest.raises(DataError, match="too many pages") as refused:
        decode_pages(stream.getvalue(), "a", PIXELS)
    assert refused.value.kind == "too-large"
