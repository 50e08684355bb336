"""Every odd image right, every bad one a reason; the references are Pillow's and numpy's own results."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tlray.data.decode import MAX_PIXELS, BadImageError, decode
from tlray.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", zlib.crc32(b"IDAT"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(Image.fromarray(RGB), kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000"])
def test_lossy_formats_are_as_pillow_decodes_them(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_gray_and_palette_images_become_rgb(mode: str) -> None:
    image = Image.fromarray(RGB).quantize(16) if mode == "P" else Image.fromarray(GRAY).convert(mode)
    np.testing.assert_array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_shown_on_white(mode: str) -> None:
    rgba = np.dstack([RGB, np.linspace(0, 255, 13 * 17).reshape(13, 17).astype(np.uint8)])
    image = Image.fromarray(rgba).convert(mode)
    assert np.abs(decode(encoded(image)) - on_white(np.asarray(image.convert("RGBA")))).max() <= 1


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.fromarray(GRAY // 64).convert("L")
    image = image.convert("P")
    index = image.getpixel((0, 0))
    pixels = decode(encoded(image, "GIF", transparency=index))
    expected = np.where((np.asarray(image) == index)[..., None], 255, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(pixels, expected)


def test_a_transparent_colour_of_an_rgb_png_is_white() -> None:
    pixels = decode(encoded(Image.fromarray(RGB), transparency=tuple(RGB[0, 0].tolist())))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(pixels[1:], RGB[1:])


def test_cmyk_jpegs_with_adobes_inverted_values_have_their_colours() -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    data = encoded(flat, "JPEG", quality=100)  # Pillow writes such files inverted, as Adobe does
    assert b"Adobe" in data
    assert np.abs(decode(data).astype(int) - [255, 0, 0]).max() <= 3


def test_cmyk_tiffs_have_their_colours() -> None:
    assert decode(encoded(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF"))[0, 0].tolist() == [0, 255, 255]


def test_ycbcr_images_have_their_colours() -> None:
    image = Image.fromarray(RGB).convert("YCbCr")
    np.testing.assert_array_equal(decode(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_cut_off(kind: str) -> None:
    values = np.linspace(0, 65535, 13 * 17).reshape(13, 17).astype(np.uint16)
    expected = np.repeat((values / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(values), kind)), expected)


@pytest.mark.parametrize("largest", [1.0, 255.0])
def test_floating_point_images_are_scaled_by_their_range(largest: float) -> None:
    values = np.linspace(0, largest, 13 * 17, dtype=np.float32).reshape(13, 17)
    expected = (values / largest * 255).round()
    assert np.abs(decode(encoded(Image.fromarray(values), "TIFF"))[..., 1] - expected).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), kind, exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = decode(data)
    np.testing.assert_array_equal(pixels, np.asarray(reference))
    assert pixels.shape == ((13, 17, 3) if orientation <= 4 else (17, 13, 3))


@pytest.mark.parametrize("orientation", [0, 9, 6000])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RGB), exif=exif)), RGB)


def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF header")
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixels = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_truncated_file_is_bad_with_a_reason(kind: str) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(BadImageError) as caught:
        decode(data[: len(data) // 2])
    assert 0 < len(caught.value.reason) < 120


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"  <!DOCTYPE html><html><body>404 Not Found</body></html>", "a web page, not an image"),
        (b'<?xml version="1.0"?><svg></svg>', "an XML or SVG file, not pixels"),
        (b"\x00" * 100, "not an image, or of an unknown format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image, or of an unknown format"),
    ],
)
def test_what_is_not_an_image_is_bad_with_a_short_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=f"^{reason}$") as caught:
        decode(data)
    assert isinstance(caught.value, DataError)


@pytest.mark.parametrize("side", [10_000, 30_000])
@pytest.mark.parametrize("warnings_are_errors", [True, False])
def test_a_decompression_bomb_is_bad_before_it_takes_memory(side: int, warnings_are_errors: bool) -> None:
    assert side**2 > MAX_PIXELS
    with warnings.catch_warnings():
        if not warnings_are_errors:
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with pytest.raises(BadImageError, match="too large"):
            decode(png_header(side, side))


def test_random_damage_is_either_survived_or_a_reason() -> None:
    random = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        whole = np.frombuffer(encoded(Image.fromarray(RGB), kind), dtype=np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[random.integers(0, len(whole), 8)] = random.integers(0, 256, 8)
            with contextlib.suppress(BadImageError):  # any other exception would end the run
                assert decode(damaged.tobytes()).shape[2] == 3


def test_the_gif_placeholder_among_the_real_jpegs_is_an_image(shared_dir: Path) -> None:
    data = (shared_dir / "data/hymenoptera/train/ants/imageNotFound.gif").read_bytes()
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
