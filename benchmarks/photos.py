"""Folders of photographs to read, one sub-folder per class: small ones, and ones of 12 megapixels.

    write_small(folder, 1000);  write_large(folder, 24)

They come from the shared sets where $TLRAY_SHARED, by default ../shared, has them, and are made up elsewhere, with the
spectrum of photos. All are JPEGs of quality 90.
"""

import io
import os
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.decoding import made_photo

SMALL, LARGE = (500, 375), (4000, 3000)  # width, height
QUALITY = 90
NUM_CLASSES = 2
SETS = ("data/hymenoptera", "data/dogcat")
SHORTEST_SIDE = 300  # of an original: one that is enlarged much is smooth, and its file small
LONGEST_RATIO = 1.6  # of its sides: none is squeezed much
GRAIN = 7.5  # grey levels; an enlarged photo with it has as many bytes as a camera's of that size


def write_small(folder: Path, count: int) -> str:
    """`count` photos of 500x375 or 375x500 -> where they come from, in words."""
    paths = shared_photos()
    originals = cycle(paths) if paths else None
    for number in range(count):
        image = Image.fromarray(made_photo(*SMALL[::-1], number)) if originals is None else _usual(next(originals))
        _save(folder, number, image)
    return f"photos of {', '.join(SETS)}" if paths else "made-up photos"


def write_large(folder: Path, count: int) -> str:
    """`count` photos of 4000x3000, enlarged from small ones and given a camera's grain -> where they come from."""
    paths = [path for path in islice(shared_photos(), 4 * count) if _is_landscape(path)][:count]
    grain = _grain()
    for number in range(count):
        small = Image.open(paths[number % len(paths)]) if paths else Image.fromarray(made_photo(375, 500, number))
        pixels = np.asarray(small.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC), np.int16)
        moved = np.roll(grain, (number * 997, number * 613), axis=(0, 1))  # another one for each photo, at no cost
        _save(folder, number, Image.fromarray((pixels + moved[..., None]).clip(0, 255).astype(np.uint8)))
    return "photos enlarged, with grain" if paths else "made-up photos enlarged, with grain"


def shared_photos() -> list[Path]:
    """The photos of the shared sets whose size is near 500x375; none where the sets are not there."""
    shared = Path(os.environ.get("TLRAY_SHARED", "../shared"))
    return [path for name in SETS for path in sorted((shared / name).glob("*/*/*.jpg")) if _is_usual(path)]


def as_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.jpg"))


def _is_usual(path: Path) -> bool:
    with Image.open(path) as image:
        return min(image.size) >= SHORTEST_SIDE and max(image.size) <= LONGEST_RATIO * min(image.size)


def _is_landscape(path: Path) -> bool:
    with Image.open(path) as image:
        return image.width > image.height


def _usual(path: Path) -> Image.Image:
    with Image.open(path) as image:
        size = SMALL if image.width >= image.height else SMALL[::-1]
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _grain() -> np.ndarray:
    """(3000, 4000) int16, of a lens that does not resolve single pixels."""
    noise = np.random.default_rng(0).normal(size=(LARGE[1], LARGE[0])).astype(np.float32)
    for axis in (0, 1):
        noise = noise + np.roll(noise, 1, axis)
    return (noise * (GRAIN / noise.std())).round().astype(np.int16)


def _save(folder: Path, number: int, image: Image.Image) -> None:
    path = folder / f"class{number % NUM_CLASSES}" / f"{number:06}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    path.write_bytes(buffer.getvalue())
