"""An image as a smaller JPEG, where its short side is larger than anybody will ask for.

bounded(data, (3000, 4000), max_side=512)               # a JPEG of 512 x 683, upright
"""

import numpy as np
import simplejpeg
from PIL import Image

from tlray.data.decode import decode

QUALITY = 95  # libjpeg's scale


def bounded(data: bytes | memoryview, size: tuple[int, int], *, max_side: int) -> bytes | memoryview:
    """The encoded image of `size` (height, width) as shown; as it is where its short side is `max_side` or less.

    A smaller one is upright, RGB and without metadata, as `decode` shows it, of the same shape to within a pixel.
    """
    if min(size) <= max_side:
        return data
    height, width = (max(1, round(side * max_side / min(size))) for side in size)
    pixels = decode(data, (height, width))
    smaller = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.asarray(smaller), quality=QUALITY, colorspace="RGB", colorsubsampling="420")
