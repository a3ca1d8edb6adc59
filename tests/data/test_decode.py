from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from placket import _C, _build
from placket.data import _pillow

Photograph = Callable[..., NDArray[np.uint8]]
needs_jpeg = pytest.mark.skipif(not _build.JPEG, reason="built without libjpeg-turbo")


def by_pillow(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("size", [(64, 48), (33, 47), (1, 1), (7, 200)], ids=str)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"subsampling": "4:2:0", "progressive": True, "quality": 30}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
    ],
    ids=str,
)
def test_jpeg_is_decoded_as_by_pillow(
    tmp_path: Path, photograph: Photograph, size: tuple[int, int], mode: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(*size)).convert(mode).save(path, **options)
    decoded = _C.decode_file(str(path))
    assert decoded.dtype == np.uint8
    assert decoded.shape == (*size, 3)
    np.testing.assert_array_equal(decoded, by_pillow(path))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"subsampling": "4:2:0", "restart_marker_blocks": 3}),
        ("RGB", {"subsampling": "4:2:0", "progressive": True}),
        ("RGB", {"subsampling": "4:2:0", "exif": turned_exif(6)}),
        ("L", {}),
        ("CMYK", {}),
    ],
    ids=str,
)
def test_a_part_of_a_jpeg_is_that_of_the_whole(
    tmp_path: Path, photograph: Photograph, mode: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(125, 147)).convert(mode).save(path, **options)
    whole = _C.decode_file(str(path))
    height, width, _ = whole.shape
    random = np.random.default_rng(0)
    for _ in range(200):
        x0, y0 = int(random.integers(width)), int(random.integers(height))
        x1, y1 = int(random.integers(x0, width)) + 1, int(random.integers(y0, height)) + 1
        part = _C.decode_file(str(path), part=(x0, y0, x1, y1))
        np.testing.assert_array_equal(part, whole[y0:y1, x0:x1])


def test_a_part_outside_the_image_is_refused(tmp_path: Path, photograph: Photograph) -> None:
    Image.fromarray(photograph(20, 30)).save(tmp_path / "a.jpg")
    with pytest.raises(
        ValueError, match=r"part must lie in the image of 30 x 20 pixels, got \[0, 0, 31, 5\]"
    ):
        _C.decode_file(str(tmp_path / "a.jpg"), part=(0, 0, 31, 5))


@needs_jpeg
def test_damage_outside_the_part_is_found(tmp_path: Path, photograph: Photograph) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RuntimeError, match="damaged JPEG"):
        _C.decode_file(str(path), part=(0, 0, 16, 16))


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_exif_orientation(
    tmp_path: Path, photograph: Photograph, ending: str, orientation: int, big_endian: bool
) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[0x010F] = "a maker's name"
    exif[0x0112] = orientation
    Image.fromarray(photograph(20, 30)).save(path, exif=exif)
    with Image.open(path) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(_C.decode_file(str(path)), turned)
    np.testing.assert_array_equal(_C.decode_file(str(path), upright=False), by_pillow(path))


@needs_jpeg
@pytest.mark.parametrize(
    "block",
    [b"", b"II", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff",
     b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0",
     b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0"],
    ids=repr,
)  # fmt: skip
def test_a_damaged_exif_block_means_upright(tmp_path: Path, photograph: Photograph, block: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(20, 30)).save(path, exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(_C.decode_file(str(path)), by_pillow(path))


def transparent_palette() -> Image.Image:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 4, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.info["transparency"] = 2
    return image


def grey16() -> Image.Image:
    return Image.fromarray((np.arange(12, dtype=np.uint16) * 5000).reshape(3, 4))


def faded() -> Image.Image:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[..., 3] = [[0, 128, 255], [1, 64, 254]]
    return Image.fromarray(pixels, "RGBA")


def on_white() -> NDArray[np.uint8]:
    alpha = np.array([[0, 128, 255], [1, 64, 254]])[..., None]
    return np.round((np.array([200, 0, 0]) * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tiff"])
def test_other_formats_are_decoded_by_the_fallback(
    tmp_path: Path, photograph: Photograph, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    pixels = photograph(20, 31)
    Image.fromarray(pixels).save(path, **({"lossless": True} if ending == "webp" else {}))
    np.testing.assert_array_equal(_C.decode_file(str(path)), pixels)


def test_the_format_is_told_by_content_not_by_name(tmp_path: Path, photograph: Photograph) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(8, 9)).save(path, format="PNG")
    np.testing.assert_array_equal(_C.decode_file(str(path)), photograph(8, 9))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (faded(), on_white()),
        (transparent_palette(), None),
        (grey16(), np.repeat((np.arange(12) * 5000 >> 8).astype(np.uint8).reshape(3, 4, 1), 3, axis=2)),
        (Image.fromarray(np.array([[True, False]])), np.array([[[255] * 3, [0] * 3]], np.uint8)),
    ],
    ids=["alpha", "palette", "16 bits", "1 bit"],
)
def test_modes_of_png(tmp_path: Path, image: Image.Image, expected: NDArray[np.uint8] | None) -> None:
    path = tmp_path / "a.png"
    image.save(path)
    if expected is None:
        colours = np.array([[255, 0, 0], [0, 255, 0], [255, 255, 255], [9, 9, 9]], np.uint8)
        expected = colours[np.arange(12).reshape(3, 4) % 4]
    np.testing.assert_array_equal(_C.decode_file(str(path)), expected)


def jpeg_bytes(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_an_error(tmp_path: Path, photograph: Photograph, kind: str, part: float) -> None:
    path = tmp_path / "a"
    Image.fromarray(photograph(64, 64)).save(path, format=kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(RuntimeError, match=f"^{re.escape(str(path))}: ."):
        _C.decode_file(str(path))


@needs_jpeg
def test_a_jpeg_whose_end_was_made_up_is_an_error(tmp_path: Path, photograph: Photograph) -> None:
    path = tmp_path / "a.jpg"
    data = jpeg_bytes(photograph(64, 64))
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    assert by_pillow(path).shape == (64, 64, 3)  # Pillow fills the rest in
    with pytest.raises(RuntimeError, match=f"^{re.escape(str(path))}: damaged JPEG: "):
        _C.decode_file(str(path))


def test_an_enormous_image_is_refused_by_its_header(tmp_path: Path, photograph: Photograph) -> None:
    path = tmp_path / "a.jpg"
    data = bytearray(jpeg_bytes(photograph(8, 8)))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match=rf"a\.jpg: image must have at most {_C.MAX_PIXELS} pixels"):
        _C.decode_file(str(path))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "No such file or directory"),
        (b"", "file is empty|not an image"),
        (b"hello" * 9, "is not an image"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None, cause: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=f"^{re.escape(str(path))}: .*({cause})"):
        _C.decode_file(str(path))


def test_a_message_names_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    with pytest.raises(RuntimeError, match=r"caf\udce9\.jpg: No such file or directory$"):
        _C.decode_file(path)


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(RuntimeError, match=r"a\.jpg: .*is not a file"):
        _C.decode_file(str(tmp_path / "a.jpg"))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(str(tmp_path))}: .*(is not a file|Is a directory)"):
        _C.decode_file(str(tmp_path))


@pytest.fixture
def no_fallback() -> Iterator[None]:
    _C.set_decode_fallback(None)
    yield
    _C.set_decode_fallback(_pillow.decode)


@pytest.mark.usefixtures("no_fallback")
def test_the_fallback_can_be_replaced(tmp_path: Path, photograph: Photograph) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photograph(8, 8)).save(path)
    with pytest.raises(RuntimeError, match=r"a\.png: .*no.* decoder.* is set"):
        _C.decode_file(str(path))
    _C.set_decode_fallback(lambda data, upright: np.full((1, 2, 3), data[1], np.uint8))
    assert _C.decode_file(str(path)).tolist() == [[[ord("P")] * 3] * 2]
    _C.set_decode_fallback(lambda data, upright: np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"image must have shape \[height, width, 3\], got 2 dimensions"):
        _C.decode_file(str(path))


def test_pillow_decodes_jpeg_alike(tmp_path: Path, photograph: Photograph) -> None:
    """What a build without libjpeg-turbo does."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes(photograph(31, 64)))
    np.testing.assert_array_equal(_pillow.decode(path.read_bytes()), _C.decode_file(str(path)))
