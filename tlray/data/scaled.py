"""Images with more than 8 bits a channel, and how decode.py makes 8 of them: a person should know.

remark = scaling(data)          # "" for nearly all images, which cost a look at their first bytes
"""

import io

from PIL import Image

WHOLE = "images have 16 bits a channel: 0 to 65535 became 0 to 255"
FRACTIONS = "images have floating point values: those up to 1 became 0 to 255, others were cut to 0 to 255"
PNG, BIT_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # the byte that holds it
MAYBE = (b"II*\0", b"MM\0*", b"P2", b"P5", b"Pf", b"PF", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # TIFF, PGM, JPEG 2000
MODES = {"F": FRACTIONS, "I": WHOLE}


def scaling(data: bytes) -> str:
    """What was done to the values of an image that decodes, as text behind a number of images; "" for 8 bits."""
    if data.startswith(PNG):
        return WHOLE if data[BIT_DEPTH : BIT_DEPTH + 1] == b"\x10" else ""
    if not data.startswith(MAYBE):
        return ""
    with Image.open(io.BytesIO(data), formats=("TIFF", "PPM", "JPEG2000")) as image:
        return MODES.get(image.mode.partition(";")[0], "")
