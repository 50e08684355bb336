"""Large JPEGs at a reduced size: how far their pixels are from the whole image's, and when they are not reduced."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from benchmarks.decoding import made_photo
from tests.hostile_images import encoded, exif, picture
from tlray.data.decode import BadImageError, check, decode
from tlray.data.jpeg import MARGIN, SMALLEST_SIDE

SMALL_BOUND, LARGE_BOUND = 0.1, 1.0  # mean absolute error, of 255 grey levels


def error_to_pillow(data: bytes, at_least: tuple[int, int], pixels: np.ndarray) -> float:
    """Mean absolute difference after a bilinear resize to `at_least`, to that of the whole image by Pillow."""
    reference = Image.open(io.BytesIO(data)).convert("RGB").resize(at_least[::-1], Image.Resampling.BILINEAR)
    resized = F.resize(torch.from_numpy(pixels).permute(2, 0, 1), list(at_least), antialias=True).permute(1, 2, 0)
    return float(np.abs(resized.numpy().astype(int) - np.asarray(reference).astype(int)).mean())


@pytest.mark.parametrize(
    ("size", "scale"), [((3000, 4000), 8), ((4032, 3024), 8), ((3004, 4000), 4), ((4002, 3000), 2), ((4003, 3001), 1)]
)
def test_twelve_megapixels_are_reduced_by_what_divides_their_sides_and_stay_within_the_bound(
    size: tuple[int, int], scale: int
) -> None:
    data = encoded(made_photo(*size, seed=5), "JPEG", quality=90)
    at_least = (298, 224) if size[0] > size[1] else (224, 298)
    pixels = decode(data, at_least)
    assert pixels.shape == (size[0] // scale, size[1] // scale, 3)
    assert error_to_pillow(data, at_least, pixels) <= LARGE_BOUND


@pytest.mark.parametrize(
    ("at_least", "height"),
    [
        ((114, 142), 160),
        ((115, 10), 320),
        ((10, 143), 320),
        ((228, 285), 320),
        ((229, 1), 640),
        ((457, 571), 640),
        ((458, 571), 1280),
        ((457, 572), 1280),
        ((9000, 9000), 1280),
    ],
)
def test_the_result_is_larger_than_asked_for_by_the_margin(at_least: tuple[int, int], height: int) -> None:
    assert MARGIN == 1.4  # 160 / 114 and 200 / 142 are a little more
    assert decode(encoded(picture(1280, 1600), "JPEG"), at_least).shape == (height, height * 5 // 4, 3)


def test_photos_of_500x375_are_decoded_whole_and_stay_within_the_bound(shared_dir: Path) -> None:
    checked = 0
    for path in sorted((shared_dir / "data/hymenoptera/train").glob("*/*.jpg"))[::8]:
        data = path.read_bytes()
        height, width = check(data)
        if max(height, width) == 500:
            short = min(height, width)
            at_least = (224 * height // short, 224 * width // short)
            pixels = decode(data, at_least)
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
            assert error_to_pillow(data, at_least, pixels) <= SMALL_BOUND
            checked += 1
    assert checked >= 15


@pytest.mark.parametrize("name", ["train/ants/Nepenthes_rafflesiana_ant.jpg"])
def test_the_largest_real_photo_stays_within_the_bound_at_each_size(name: str, shared_dir: Path) -> None:
    data = (shared_dir / "data/hymenoptera" / name).read_bytes()
    size = check(data)
    seen = set()
    for side in (96, 128, 160, 224, 300, 384, 448):
        at_least = (side, side * size[1] // size[0])
        pixels = decode(data, at_least)
        seen.add(round(size[0] / pixels.shape[0]))
        assert error_to_pillow(data, at_least, pixels) <= LARGE_BOUND
    assert seen >= {2, 4, 8}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_image_is_turned_as_the_whole_one_is(orientation: int) -> None:
    plain = encoded(picture(1000, 3000), "JPEG")
    data = plain[:2] + exif(orientation) + plain[2:]
    tall = orientation >= 5
    whole, reduced = decode(data), decode(data, (700, 100) if tall else (100, 700))
    assert whole.shape == ((3000, 1000, 3) if tall else (1000, 3000, 3))
    assert reduced.shape == ((1500, 500, 3) if tall else (500, 1500, 3))
    shrunk = Image.fromarray(whole).resize(reduced.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(reduced.astype(int) - np.asarray(shrunk).astype(int)).mean() < 4


def test_images_that_are_not_large_are_never_reduced() -> None:
    data = encoded(picture(SMALLEST_SIDE - 8, SMALLEST_SIDE + 200), "JPEG")
    assert decode(data, (8, 8)).shape == (SMALLEST_SIDE - 8, SMALLEST_SIDE + 200, 3)
    data = encoded(picture(SMALLEST_SIDE, SMALLEST_SIDE + 200), "JPEG")
    assert decode(data, (8, 8)).shape == (SMALLEST_SIDE // 8, SMALLEST_SIDE // 8 + 25, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_come_back_whole(kind: str) -> None:
    data = encoded(picture(1000, 1200), kind)
    np.testing.assert_array_equal(decode(data, (50, 50)), decode(data))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 9}], ids=str)
@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_large_truncated_jpeg_is_refused_at_every_scale(options: dict[str, object], share: float) -> None:
    data = encoded(picture(1100, 1200), "JPEG", **options)
    for at_least in (None, (50, 50), (200, 200), (700, 700)):
        assert decode(data, at_least).shape[0] <= 1100
        with pytest.raises(BadImageError, match="truncated"):
            decode(data[: int(len(data) * share)], at_least)
