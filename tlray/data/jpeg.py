"""The fast way for ordinary JPEGs; whatever is odd about a file is left to Pillow (see decode.py).

    header = read_header(data)                       # a few microseconds; None: Pillow is to look at it
    pixels = read_pixels(data, header.reduced(224, 224))

libjpeg-turbo decodes at 1/2, 1/4 and 1/8 of the size for less work, as parts of its inverse transform and all later
steps shrink. Reading the entropy code does not: at 12 megapixels it is 30 of the 50 ms that the whole image takes.
"""

import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg

SCALES = (8, 4, 2)
# A reduced image is this much larger than what is asked for, so that the filter that follows has pixels to work with:
# at 1.4, photos of 12 megapixels that are resized to 224 differ by a mean of 0.4 to 0.9 grey levels of 255.
MARGIN = 1.4
SMALLEST_SIDE = 1000  # pixels; smaller photos are sharp to the pixel, so that reducing them shows, and saves little

EXIF = b"Exif\x00\x00"
XMP = b"http://ns.adobe.com/xap/1.0/\x00"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[0-9]')
TAG_ORIENTATION = 0x0112
SHORT = 3
BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}

SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4}  # lossless, hierarchical, arithmetic; 0xC4 holds Huffman tables
SOS, APP1, APP2, COM = 0xDA, 0xE1, 0xE2, 0xFE
SEGMENTS = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), COM}


@dataclass(frozen=True, slots=True)
class Header:
    """What an ordinary JPEG says before its pixels. Height and width are as stored."""

    height: int
    width: int
    progressive: bool
    orientation: int | None  # 1 to 8 (others mean 1); None: only Pillow can tell

    def reduced(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size to decode to, so that the image can then be resized to (height, width) as stored.

        Only scales that divide both sides, as those of cameras' images are multiples of 8. Else the last pixels lie in
        part outside the image: resized, everything would be shifted, by up to half a pixel at 12 megapixels to 224,
        which is an error of 2 to 5 grey levels.
        """
        if min(self.height, self.width) >= SMALLEST_SIDE:
            for scale in SCALES:
                size = self.at_scale(scale)
                divides = self.height % scale == self.width % scale == 0
                if divides and size[0] >= MARGIN * height and size[1] >= MARGIN * width:
                    return size
        return self.height, self.width

    def at_scale(self, scale: int) -> tuple[int, int]:
        return -(-self.height // scale), -(-self.width // scale)


def read_header(data: bytes | memoryview) -> Header | None:
    """The header of a JPEG with 8 bits, Huffman-coded, gray or of three colours; None for all else, broken or not."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame: tuple[int, int, int] | None = None
    exif: list[bytes] = []
    xmp = b""
    needs_pillow = False
    position, end = 2, len(data)
    while position + 4 <= end and data[position] == 0xFF:
        marker = data[position + 1]
        start, position = position + 4, position + 2 + (data[position + 2] << 8 | data[position + 3])
        if position < start or position > end:
            return None
        if marker == SOS:
            return None if frame is None else _header(*frame, None if needs_pillow else _orientation(exif, xmp))
        if marker in (SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE):
            if frame is not None or position - start < 6 or data[start] != 8 or data[start + 5] not in (1, 3):
                return None
            frame = (*struct.unpack_from(">HH", data, start + 1), marker)
        elif marker not in SEGMENTS:
            return None
        elif marker == APP1 and data[start : start + 6] == EXIF:
            exif.append(bytes(data[start + 6 : position]))
        elif marker == APP1 and data[start : start + len(XMP)] == XMP:
            xmp = bytes(data[start + len(XMP) : position])
        elif marker == APP2 and data[start : start + 4] == b"MPF\x00":
            needs_pillow = True
    return None


def read_pixels(data: bytes | memoryview, size: tuple[int, int], colours: str = "RGB") -> np.ndarray | None:
    """(height, width, 3) uint8, or (height, width, 1) for "GRAY"; `size` is one of Header.at_scale.

    None where libjpeg-turbo so much as warns, as it does of truncated and of damaged data.
    """
    try:
        return simplejpeg.decode_jpeg(data, colours, min_height=size[0], min_width=size[1], strict=True)
    except ValueError:
        return None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(height, width, 3) as stored -> as EXIF's orientation says that it is to be shown."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _header(height: int, width: int, marker: int, orientation: int | None) -> Header | None:
    if height == 0 or width == 0:
        return None
    return Header(height, width, marker == SOF_PROGRESSIVE, orientation)


def _orientation(exif: list[bytes], xmp: bytes) -> int | None:
    """What whole and simple metadata says, 1 where there is none; None where it is for Pillow to make sense of it."""
    found: int | None = 0
    if exif:
        found = _exif_orientation(exif[0]) if len(exif) == 1 else None
    if found != 0:
        return found
    return None if XMP_ORIENTATION.search(xmp) else 1


def _exif_orientation(block: bytes) -> int | None:
    """The tag in the first directory of a TIFF header: 1 to 8, 0 where it is not there, None where anything is odd."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(order + "L", block, 4)
        (num_entries,) = struct.unpack_from(order + "H", block, offset)
        for entry in range(num_entries):
            tag, kind, count, value = struct.unpack_from(order + "HHLL", block, offset + 2 + 12 * entry)
            if tag == TAG_ORIENTATION:
                (number,) = struct.unpack_from(order + "H", block, offset + 2 + 12 * entry + 8)
                return (number if 1 <= number <= 8 else 1) if (kind, count) == (SHORT, 1) else None
            size = count * BYTES_OF_TYPE.get(kind, 0)
            if size > 4 and value + size > len(block):
                return None
    except struct.error:
        return None
    return 0
