"""Labelled images of noise: as many as a benchmark wants, different from each other."""

from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES = 2


def write_images(folder: Path, start: int, stop: int, pixels: int) -> None:
    """JPEGs number `start` to `stop` - 1, square, in one sub-folder per class."""
    for label in range(NUM_CLASSES):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    for number in range(start, stop):
        generator = np.random.default_rng(number)
        coarse = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        coarse[..., number % NUM_CLASSES] //= 2
        image = Image.fromarray(coarse).resize((pixels, pixels), Image.Resampling.BICUBIC)
        image.save(folder / f"class{number % NUM_CLASSES}" / f"{number:06}.jpg", quality=90)
