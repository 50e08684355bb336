"""The bytes of an image file -> RGB pixels; every odd image right, every bad one a reason.

    pixels = decode(storage.read_bytes(uri))                # (height, width, 3) uint8
    pixels = decode(storage.read_bytes(uri), (224, 224))    # no smaller than that; a large JPEG comes back reduced
    height, width = check(storage.read_bytes(uri))          # whether decode would take it

Transparent parts are shown on white. The orientation that a camera wrote is applied. Of several frames the first is
taken. Colour profiles are ignored, as torchvision and timm do.

Ordinary JPEGs are decoded by simplejpeg (libjpeg-turbo), with the pixels that Pillow gives. Pillow decodes all other
files, and every JPEG at which the fast way hesitates: what is refused, and why, is Pillow's word.

CPU milliseconds an image with its resize to 224, on one core of an AMD EPYC (`python -m benchmarks.decoding`):

                          tlray   Pillow   Pillow draft   torchvision   OpenCV reduced
    500x375                1.65     2.95           2.81          1.93             2.35
    12 megapixels          22.9      113           25.1          41-61            23.4

torchvision has no scales, and OpenCV's pixels are others (an error of 1.0 grey levels at 500x375).
"""

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import numpy as np
from PIL import Image

from tlray.data import jpeg
from tlray.errors import DataError

Result = TypeVar("Result")

# Read from files of unknown origin, so a short list: some of Pillow's other formats start programs (PostScript).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb: 256 MiB as RGB
MAX_RATIO = 100  # long side to short side; a network's input has a part of such a strip that says little of it
JPEG, SCAN = b"\xff\xd8", b"\xff\xda"  # how a JPEG and each of its scans start
MAX_SCANS = (
    500  # some ten are usual; each goes over all pixels, so that a small file could keep a core busy for minutes
)
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# An image past MAX_PIXELS is refused below, with a reason; Pillow's warning on standard error adds nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.Image")


class BadImageError(DataError):
    """The bytes are not an image that can be used; the message is the reason, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes | memoryview, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """File contents -> (height, width, 3) uint8 RGB; raises BadImageError.

    With `at_least`, the (height, width) that the image will be resized to, a large JPEG comes back at 1/2, 1/4 or 1/8
    of its size: still larger than that by jpeg.MARGIN. Resized, it then differs from the whole image, resized, by a
    mean of 0.9 grey levels of 255 on a typical photo of 12 megapixels, and up to 1.7 where textures are rough. Without
    it, pixels are exact.
    """
    header = _ordinary_jpeg(data)
    if header is not None and (orientation := _orientation_of(header, data)) is not None:
        size = header.at_scale(1)
        if at_least is not None:
            size = header.reduced(*(at_least if orientation < 5 else at_least[::-1]))
        if (pixels := jpeg.read_pixels(data, size)) is not None:
            return pixels if orientation == 1 else jpeg.upright(pixels, orientation)
    return _by_pillow(data, lambda image: np.array(as_rgb(image)))


def check(data: bytes | memoryview) -> tuple[int, int]:
    """File contents -> (height, width) as decode shows it whole; raises BadImageError wherever decode does.

    Reads all that decode reads, as damage shows nowhere else, and leaves out what makes pixels of it.
    """
    header = _ordinary_jpeg(data)
    if header is not None and (orientation := _orientation_of(header, data)) is not None:
        smallest = header.at_scale(max(jpeg.SCALES))
        if jpeg.read_pixels(data, smallest, "GRAY") is not None:
            return (header.height, header.width) if orientation < 5 else (header.width, header.height)
    return _by_pillow(data, _size)


def shape_problem(height: int, width: int) -> str:
    """Why an image of these sides is no use, as a reason for people; "" where it is."""
    if height == 0 or width == 0:
        return "no pixels"
    if max(height, width) > MAX_RATIO * min(height, width):
        return f"too thin: {width} x {height} pixels, where one side may be {MAX_RATIO} times the other"
    return ""


def _ordinary_jpeg(data: bytes | memoryview) -> jpeg.Header | None:
    """The header of a JPEG that the fast way may try; Pillow's way has the words for one that is too large."""
    header = jpeg.read_header(data)
    if header is None or header.width * header.height > MAX_PIXELS or shape_problem(header.height, header.width):
        return None
    if header.progressive and bytes(data).count(SCAN) > MAX_SCANS:
        return None
    return header


def _orientation_of(header: jpeg.Header, data: bytes | memoryview) -> int | None:
    """1 to 8; None for what Pillow would not open."""
    if header.orientation is not None:
        return header.orientation
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return _orientation(image)
    except Exception:  # the same again in _by_pillow gives the reason
        return None


def _by_pillow(data: bytes | memoryview, result: Callable[[Image.Image], Result]) -> Result:
    """What `result` makes of the image, once all of it is read; raises BadImageError."""
    if not data:
        raise BadImageError("the file is empty")
    if data[:2] == JPEG and bytes(data).count(SCAN) > MAX_SCANS:
        raise BadImageError(f"a JPEG with more than {MAX_SCANS} scans, made to take long")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(_too_large(image.width, image.height))
            if problem := shape_problem(image.height, image.width):
                raise BadImageError(problem)
            image.load()
            return result(image)
    except (BadImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_too_large()) from None
    except Image.UnidentifiedImageError:
        raise BadImageError(_what_else(bytes(data[:256]))) from None
    except Exception as error:  # Pillow's decoders raise almost anything when they meet bytes that make no sense
        raise BadImageError(" ".join(f"{error}".split()) or type(error).__name__) from None


def _size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as shown, of a mode that can be made RGB: what one pixel tells of all."""
    as_rgb(image.crop((0, 0, 1, 1)))
    return (image.height, image.width) if _orientation(image) < 5 else (image.width, image.height)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any mode, upright and as RGB with 8 bits a channel; transparency becomes white."""
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be shown."""
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF numbers them; 1 where an EXIF block makes no sense, as viewers show such an image as it is."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # see _by_pillow
        return 1
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's -> RGB, 8 bits a channel."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # "I" is what 16-bit gray is in formats such as PGM
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return _gray((values + 128) // 257)
    if image.mode == "F":  # TIFF's floating point has no fixed range: 0..1 and 0..255 are both in use
        values = np.nan_to_num(np.asarray(image)).clip(0, 255)
        return _gray((values * 255 if values.max() <= 1 else values).round())
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(values: np.ndarray) -> Image.Image:
    """(height, width) whole numbers in 0..255 -> a gray image."""
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _too_large(width: int = 0, height: int = 0) -> str:
    size = f"{width} x {height} pixels" if width else "far more pixels"
    return f"too large: {size}, where {MAX_PIXELS:,} in all are allowed"


def _what_else(start: bytes) -> str:
    """What a file that no decoder recognises is, as far as its start tells."""
    start = start.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    if start.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG file, not pixels"
    return "not an image, or of an unknown format"
