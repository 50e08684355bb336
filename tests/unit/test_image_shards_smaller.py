"""Images kept smaller than they came: their shape, their pixels, how they are turned; against Pillow."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from shard_samples import row_of

from tlray.data.decode import decode
from tlray.data.shards import ImageShards

ORIENTATION = 0x0112
MAX_SIDE = 64


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours, with a bright corner that tells how the image is turned."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 200 / width, y * 200 / height, 100 + 50 * np.sin(x * 8 / width)], axis=-1)
    pixels[: height // 4, : width // 4] = 255
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def kept(tmp_path: Path, data: bytes) -> tuple[dict[str, object], bytes]:
    """The row and the bytes that a store has of an image after re-encoding."""
    height, width, _ = decode(data).shape
    store = ImageShards(str(tmp_path / "store"), str(tmp_path / "cache"))
    with store.writer(max_side=MAX_SIDE) as writer:
        writer.add(row_of(0, data, height=height, width=width), data)
    (row,) = store.index().to_pylist()
    return row, bytes(store.read(row["shard"], row["row"]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 400), (64, 85)),
        ((400, 300), (85, 64)),
        ((65, 65), (64, 64)),
        ((70, 2000), (64, 1829)),
        ((3000, 4000), (64, 85)),
    ],
)
def test_the_short_side_is_bounded_and_the_shape_stays(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    data = encoded(picture(*size), quality=95)
    row, smaller = kept(tmp_path, data)
    assert (row["height"], row["width"], row["num_bytes"]) == (*size, len(data))
    assert row["content_id"] == row_of(0, data).content_id  # that of the original
    with Image.open(io.BytesIO(smaller)) as image:
        assert image.format == "JPEG"
        assert (image.height, image.width) == expected
        with Image.open(io.BytesIO(data)) as original:
            reference = original.resize(image.size, Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(image, np.int16) - np.asarray(reference, np.int16))
    assert difference.mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    data = encoded(picture(150, 260), orientation=orientation, quality=95)
    row, smaller = kept(tmp_path, data)
    with Image.open(io.BytesIO(data)) as original:
        upright = ImageOps.exif_transpose(original)
    assert (row["width"], row["height"]) == upright.size
    with Image.open(io.BytesIO(smaller)) as image:
        assert image.getexif().get(ORIENTATION, 1) == 1
        reference = upright.resize(image.size, Image.Resampling.BICUBIC)
    difference = np.abs(decode(smaller).astype(np.int16) - np.asarray(reference, np.int16))
    assert difference.mean() < 1.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_is_small_enough_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    data = encoded(picture(64, 300), kind, orientation=6)
    row, same = kept(tmp_path, data)
    assert same == data
    assert row["num_bytes"] == len(data)


def test_a_large_image_of_another_format_becomes_a_jpeg_on_white(tmp_path: Path) -> None:
    transparent = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    _, smaller = kept(tmp_path, encoded(transparent, "PNG"))
    assert smaller[:2] == b"\xff\xd8"
    assert decode(smaller).shape == (64, 64, 3)
    assert (decode(smaller) == 255).all()
