"""The bytes of an image file -> RGB pixels; every odd image right, every bad one a reason.

    pixels = decode(storage.read_bytes(uri))     # (height, width, 3) uint8

Transparent parts are shown on white. The orientation that a camera wrote is applied. Of several frames the first is
taken. Colour profiles are ignored, as torchvision and timm do.
"""

import io
import warnings
from functools import cache

import numpy as np
from PIL import Image

from tlray.errors import DataError

# Read from files of unknown origin, so a short list: some of Pillow's other formats start programs (PostScript).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb: 256 MiB as RGB
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


def decode(data: bytes) -> np.ndarray:
    """File contents -> (height, width, 3) uint8 RGB; raises BadImageError."""
    if not data:
        raise BadImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(_too_large(image.width, image.height))
            image.load()
            return np.array(as_rgb(image))
    except (BadImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_too_large()) from None
    except Image.UnidentifiedImageError:
        raise BadImageError(_what_else(data)) from None
    except Exception as error:  # Pillow's decoders raise almost anything when they meet bytes that make no sense
        raise BadImageError(" ".join(f"{error}".split()) or type(error).__name__) from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any mode, upright and as RGB with 8 bits a channel; transparency becomes white."""
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be shown; an EXIF block that makes no sense says nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # see decode; viewers show such an image as it is
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's -> RGB, 8 bits a channel."""
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image).astype(np.float64) / 65535)
    if image.mode == "I":  # what Pillow makes of 16-bit gray in formats such as PGM; its range is still 16 bits
        return _gray(np.asarray(image).astype(np.float64) / 65535)
    if image.mode == "F":  # TIFF's floating point has no fixed range: 0..1 and 0..255 are both in use
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        return _gray(values if values.max() <= 1 else values / 255)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(values: np.ndarray) -> Image.Image:
    """(height, width) values in 0..1 -> a gray image."""
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _too_large(width: int = 0, height: int = 0) -> str:
    size = f"{width} x {height} pixels" if width else "far more pixels"
    return f"too large: {size}, where {MAX_PIXELS:,} in all are allowed"


def _what_else(data: bytes) -> str:
    """What bytes that no decoder recognises are, as far as their start tells."""
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    if start.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG file, not pixels"
    return "not an image, or of an unknown format"
