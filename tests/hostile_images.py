"""A folder's worth of odd and broken image files, each with what decoding it must give: pixels, or a reason.

The pixels are those that the file was made from where its format keeps them all, else what plain Pillow reads; colours
that no reference shows (CMYK) are stated.
"""

import base64
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

HEIGHT, WIDTH = 45, 67  # no multiple of a JPEG's blocks
ORIENTATION = 0x0112
# 24 x 16 pixels, written by libjpeg-turbo's `jpegtran -arithmetic`: none of our libraries encode this
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8X"
    "GBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQAR"
    "CAAQABgDAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AN1+Fje8nbmfeXAZo6iZtWuUBs10XJcCSKGDJ89kGCoKPD92QDrP"
    "QbUTdLiwFkpZ+K/bFivpitYytJmgFRG//BOvRfJ0Svij6ESek8DoZbD/2Q=="
)


@dataclass(frozen=True)
class Hostile:
    """One file; exactly one of `pixels` (H, W, 3) and `reason`, a regular expression."""

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    reason: str = ""
    tolerance: int = 0  # grey levels, in any pixel


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3) uint8: slopes, an edge and some noise."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (height + width)], axis=-1)
    slopes[height // 3 : height // 2, width // 4 : width // 2] = 255 - slopes[height // 3 : height // 2, :1]
    noise = np.random.default_rng(0).normal(0, 8, slopes.shape)
    return (slopes + noise).clip(0, 255).astype(np.uint8)


RGB = picture()
GRAY = RGB[..., 1].copy()
RAMP = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of EXIF blocks that make no sense
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def gray3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return (rgb * share + 255 * (1 - share)).round().astype(np.uint8)


def every_case() -> list[Hostile]:
    parts = (_png, _webp, _gif, _bmp, _tiff, _jpeg, _jpeg_metadata, _other_formats, _sizes, _bombs, _no_images)
    whole = [case for part in parts for case in part()]
    return whole + list(_truncated(whole))


def _png() -> Iterator[Hostile]:
    image = Image.fromarray(RGB)
    palette = image.quantize(16)
    ramp = gray3((RAMP / 257).round())
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    gray_alpha = Image.fromarray(np.dstack([GRAY, ALPHA]))
    yield Hostile("png", encoded(RGB, "PNG"), RGB)
    yield Hostile("png-palette", encoded(palette, "PNG"), np.asarray(palette.convert("RGB")))
    yield Hostile("png-1-bit", encoded(Image.fromarray(GRAY > 128), "PNG"), gray3((GRAY > 128) * 255))
    yield Hostile("png-gray", encoded(GRAY, "PNG"), gray3(GRAY))
    yield Hostile("png-alpha", encoded(rgba, "PNG"), on_white(RGB, ALPHA), tolerance=1)
    yield Hostile("png-gray-alpha", encoded(gray_alpha, "PNG"), on_white(gray3(GRAY), ALPHA), tolerance=1)
    yield Hostile("png-16-bit-gray", encoded(RAMP, "PNG"), ramp)
    yield Hostile("png-16-bit-rgb", png(RAMP.repeat(3).astype(">u2").tobytes(), 16, 2), ramp, tolerance=1)
    yield Hostile("png-interlaced", png(adam7(RGB), 8, 2, interlace=1), RGB)
    yield Hostile("png-bad-checksum", encoded(RGB, "PNG").replace(b"IDAT", b"IDAT\x00", 1), reason=".+")
    yield Hostile("png-named-jpg", encoded(RGB, "PNG", comment="photo.jpg"), RGB)
    yield Hostile("png-trailing-garbage", encoded(RGB, "PNG") + b"garbage" * 9, RGB)


def png(pixels: bytes, bits: int, colour: int, *, interlace: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    """A PNG of any kind, with filter 0 in each row; interlaced pixels bring their filters along."""
    rows = len(pixels) // size[0] if pixels else 0
    if not interlace:
        pixels = b"".join(b"\0" + pixels[start : start + rows] for start in range(0, len(pixels), rows or 1))
    header = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, interlace)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def adam7(pixels: np.ndarray) -> bytes:
    """The seven passes of an interlaced PNG."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )


def _webp() -> Iterator[Hostile]:
    lossy = encoded(RGB, "WEBP", quality=80)
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    yield Hostile("webp-lossy", lossy, by_pillow(lossy))
    yield Hostile("webp-lossless", encoded(RGB, "WEBP", lossless=True), RGB)
    data = encoded(rgba, "WEBP", lossless=True, exact=True)
    yield Hostile("webp-alpha", data, on_white(RGB, ALPHA), tolerance=1)
    yield Hostile("webp-animated", animated, np.full((HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8))


def _gif() -> Iterator[Hostile]:
    frames = [Image.fromarray(image).quantize(64) for image in (RGB, 255 - RGB)]
    first = np.asarray(frames[0].convert("RGB"))
    index = frames[0].getpixel((0, 0))
    seen_through = np.where((np.asarray(frames[0]) == index)[..., None], 255, first).astype(np.uint8)
    yield Hostile("gif", encoded(frames[0], "GIF"), first)
    yield Hostile("gif-animated", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), first)
    yield Hostile("gif-transparent", encoded(frames[0], "GIF", transparency=index), seen_through)
    yield Hostile(
        "gif-placeholder-named-jpg", encoded(Image.new("L", (200, 150), 7), "GIF"), gray3(np.full((150, 200), 7))
    )
    yield Hostile("gif-without-trailer", encoded(frames[0], "GIF")[:-1], first)
    yield Hostile("gif-without-a-frame", encoded(frames[0], "GIF")[:13] + b";", reason=".+")


def _bmp() -> Iterator[Hostile]:
    palette = Image.fromarray(RGB).quantize(16)
    yield Hostile("bmp", encoded(RGB, "BMP"), RGB)
    yield Hostile("bmp-palette", encoded(palette, "BMP"), np.asarray(palette.convert("RGB")))
    yield Hostile("bmp-1-bit", encoded(Image.fromarray(GRAY > 128), "BMP"), gray3((GRAY > 128) * 255))
    yield Hostile("bmp-32-bit", encoded(Image.fromarray(np.dstack([RGB, ALPHA])), "BMP"), RGB)  # it has no alpha
    top_down = bytearray(encoded(RGB, "BMP"))
    struct.pack_into("<i", top_down, 22, -HEIGHT)
    yield Hostile("bmp-top-down", bytes(top_down), RGB[::-1])
    yield Hostile("bmp-unknown-compression", encoded(RGB, "BMP")[:30] + b"\x63" + encoded(RGB, "BMP")[31:], reason=".+")


def _tiff() -> Iterator[Hostile]:
    image = Image.fromarray(RGB)
    second = Image.fromarray(255 - RGB)
    fractions = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    broken = fractions.copy()
    broken[0, :3] = np.nan, np.inf, -np.inf
    clean = gray3(np.concatenate([[0, 255, 0], (broken.ravel()[3:]).clip(0, 255).round()]).reshape(broken.shape))
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        yield Hostile(f"tiff-{compression}", encoded(image, "TIFF", compression=compression), RGB)
    yield Hostile("tiff", encoded(image, "TIFF"), RGB)
    yield Hostile("tiff-big-endian", encoded(image, "TIFF", big_tiff=True), RGB)
    yield Hostile("tiff-multi-page", encoded(image, "TIFF", save_all=True, append_images=[second]), RGB)
    yield Hostile("tiff-16-bit", encoded(RAMP, "TIFF"), gray3((RAMP / 257).round()))
    yield Hostile("tiff-float", encoded(fractions, "TIFF"), gray3((fractions * 255).round()), tolerance=1)
    yield Hostile("tiff-float-with-nan-and-infinity", encoded(broken, "TIFF"), clean)
    cyan = Image.new("CMYK", (9, 5), (255, 0, 0, 0))
    yield Hostile("tiff-cmyk", encoded(cyan, "TIFF"), np.full((5, 9, 3), (0, 255, 255), np.uint8))
    lab = encoded(Image.new("LAB", (9, 5), (120, 140, 90)), "TIFF")
    yield Hostile("tiff-lab", lab, by_pillow(lab))
    fax = Image.fromarray(GRAY > 128)
    yield Hostile("tiff-fax", encoded(fax, "TIFF", compression="group4"), gray3((GRAY > 128) * 255))
    as_jpeg = encoded(image, "TIFF", compression="jpeg")
    yield Hostile("tiff-jpeg-inside", as_jpeg, by_pillow(as_jpeg))


def _jpeg() -> Iterator[Hostile]:
    kinds: dict[str, dict[str, Any]] = {
        "baseline": {},
        "progressive": {"progressive": True},
        "4:4:4": {"subsampling": "4:4:4"},
        "4:2:2": {"subsampling": "4:2:2"},
        "4:1:1": {"subsampling": "4:1:1"},
        "rgb-inside": {"keep_rgb": True},
        "restart-markers": {"restart_marker_blocks": 3},
        "quality-1": {"quality": 1},
        "quality-100": {"quality": 100, "subsampling": 0},
    }
    for name, options in kinds.items():
        data = encoded(RGB, "JPEG", **options)
        yield Hostile(f"jpeg-{name}", data, by_pillow(data))
    data = encoded(GRAY, "JPEG")
    yield Hostile("jpeg-gray", data, by_pillow(data))
    data = encoded(RGB, "JPEG")
    yield Hostile("jpeg-trailing-garbage", data + b"\xff\xd8garbage" * 9, by_pillow(data))
    yield Hostile("jpeg-without-end-marker", data[:-2], reason="truncated")
    yield Hostile("jpeg-with-the-usual-huffman-tables-left-out", without(data, b"\xff\xc4"), by_pillow(data))
    yield Hostile("jpeg-twice-in-a-file", data * 2, by_pillow(data))
    padded = data[:2] + b"\xff\xff\xff" + data[2:]
    yield Hostile("jpeg-padded-markers", padded, by_pillow(padded))
    yield Hostile("jpeg-arithmetic", ARITHMETIC_JPEG, by_pillow(ARITHMETIC_JPEG))
    red = Image.new("CMYK", (19, 13), (0, 255, 255, 0))
    expected = np.full((13, 19, 3), (255, 0, 0), np.uint8)
    yield Hostile("jpeg-cmyk", encoded(red, "JPEG", quality=100), expected, tolerance=3)
    inverted = 255 - np.asarray(red)  # as Adobe's programs store it
    ycck = simplejpeg.encode_jpeg(np.ascontiguousarray(inverted), 100, "CMYK", "444")
    yield Hostile("jpeg-ycck", ycck, expected, tolerance=3)
    frame = data.index(b"\xff\xc0")
    for name, changed in {
        "12-bit": data[: frame + 4] + b"\x0c" + data[frame + 5 :],
        "no-height": data[: frame + 5] + b"\0\0" + data[frame + 7 :],
        "lossless-frame": data[: frame + 1] + b"\xc3" + data[frame + 2 :],
        "no-quantization-tables": without(data, b"\xff\xdb"),
        "header-only": data[: data.index(b"\xff\xda")],
        "start-marker-only": data[:2],
    }.items():
        yield Hostile(f"jpeg-{name}", changed, reason=".+")
    waves = encoded(RGB, "JPEG", progressive=True)
    last = waves[waves.rindex(b"\xff\xc4") : -2]
    yield Hostile("jpeg-thousands-of-scans", waves[:-2] + last * 3000 + waves[-2:], reason="more than 500 scans")


def without(data: bytes, marker: bytes) -> bytes:
    """The segments of that kind made comments."""
    return data.replace(marker, b"\xff\xfe")


def exif(orientation: int, order: str = "<") -> bytes:
    """An APP1 segment that holds the orientation after a text, as cameras write it."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8)
    make = struct.pack(order + "HHLL", 0x010F, 2, 10, 38)
    tag = struct.pack(order + "HHLHH", ORIENTATION, 3, 1, orientation, 0)
    block = head + struct.pack(order + "H", 2) + make + tag + struct.pack(order + "L", 0) + b"camera...\0"
    return segment(0xE1, b"Exif\0\0" + block)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _jpeg_metadata() -> Iterator[Hostile]:
    data = encoded(RGB, "JPEG")
    plain = by_pillow(data)
    tables = data.index(b"\xff\xdb")
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')
    for order in "<>":
        for orientation in range(1, 9):
            turned = data[:2] + exif(orientation, order) + data[2:]
            name = f"jpeg-exif-{orientation}-{'little' if order == '<' else 'big'}-endian"
            yield Hostile(name, turned, by_pillow(turned))
    for name, inserted in {
        "exif-garbage": segment(0xE1, b"Exif\0\0garbage that is no TIFF header"),
        "exif-empty": segment(0xE1, b"Exif\0\0"),
        "exif-orientation-0": exif(0),
        "exif-orientation-9": exif(9),
        "icc-profile": segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\0" * 500),
        "comment": segment(0xFE, b"\xff\xda\xff\xd9 a comment"),
        "photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\2ok"),
    }.items():
        yield Hostile(f"jpeg-{name}", data[:2] + inserted + data[2:], plain)
    for name, inserted in {
        "exif-after-the-tables": exif(6),
        "xmp-orientation": xmp,
        "xmp-says-otherwise-than-exif": exif(8) + xmp,
        "two-exif-blocks": exif(6) + exif(3),
        "exif-tag-points-outside": exif(6).replace(struct.pack("<LL", 10, 38), struct.pack("<LL", 10, 3800)),
        "exif-orientation-as-long": exif(6).replace(
            struct.pack("<HHL", ORIENTATION, 3, 1), struct.pack("<HHL", ORIENTATION, 4, 1)
        ),
    }.items():
        turned = data[:tables] + inserted + data[tables:]
        yield Hostile(f"jpeg-{name}", turned, by_pillow(turned))
    second = Image.fromarray(255 - RGB)
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    mpo = encoded(RGB, "MPO", save_all=True, append_images=[second], exif=tags)
    yield Hostile("jpeg-of-two-pictures", mpo, by_pillow(mpo))
    yield Hostile("jpeg-of-two-pictures-the-second-cut", mpo[:-300], by_pillow(mpo))
    cut = data[:2] + struct.pack(">HH", 0xFFE1, 60000) + data[2:]
    yield Hostile("jpeg-segment-past-the-end", cut, reason=".+")


def _other_formats() -> Iterator[Hostile]:
    for kind in ("JPEG2000", "AVIF"):
        data = encoded(RGB, kind)
        yield Hostile(kind.lower(), data, by_pillow(data))
    yield Hostile("ppm", encoded(RGB, "PPM"), RGB)
    yield Hostile("pgm-16-bit", encoded(RAMP, "PPM"), gray3((RAMP / 257).round()))
    yield Hostile("ppm-text", b"P3 2 1 255 255 0 0 0 0 255", np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))


def _sizes() -> Iterator[Hostile]:
    for height, width in ((1, 1), (3, 300), (300, 3)):
        pixels = picture(height, width)
        yield Hostile(f"png-{width}x{height}", encoded(pixels, "PNG"), pixels)
        data = encoded(pixels, "JPEG")
        yield Hostile(f"jpeg-{width}x{height}", data, by_pillow(data))
    yield Hostile("png-10000x1", encoded(picture(1, 10_000), "PNG"), reason="too thin: 10000 x 1 pixels, .*")
    yield Hostile("jpeg-1x10000", encoded(picture(10_000, 1), "JPEG"), reason="too thin: 1 x 10000 pixels, .*")
    yield Hostile("png-0x0", png(b"", 8, 2, size=(0, 0)), reason=".+")


def _bombs() -> Iterator[Hostile]:
    """Headers that promise far more pixels than follow."""
    jpeg = encoded(RGB, "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    bmp = encoded(RGB, "BMP")
    gif = encoded(Image.fromarray(RGB).quantize(16), "GIF")
    webp_size = (16_383).to_bytes(3, "little") * 2
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + webp_size + b"VP8 " + struct.pack("<I", 0)
    tags = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)]
    tiff = b"II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(struct.pack("<HHLL", *tag) for tag in tags) + bytes(4)
    for name, data in {
        "png-10000x10000": png(b"", 8, 2, size=(10_000, 10_000)),
        "png-2000000000x1": png(b"", 8, 2, size=(1, 2_000_000_000)),
        "jpeg-10000x10000": jpeg[:frame] + struct.pack(">HH", 10_000, 10_000) + jpeg[frame + 4 :],
        "jpeg-65500x65500": jpeg[:frame] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 4 :],
        "gif-65535x65535": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "webp-16384x16384": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "bmp-100000x100000": bmp[:18] + struct.pack("<ii", 100_000, 100_000) + bmp[26:],
        "tiff-60000x60000": tiff,
        "ppm-60000x60000": b"P6 60000 60000 255\n" + bytes(99),
    }.items():
        yield Hostile(f"bomb-{name}", data, reason="^too large: ")


def _no_images() -> Iterator[Hostile]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", encoded(RGB, "JPEG"))
    for name, data, reason in (
        ("zero-bytes", b"", "the file is empty"),
        ("html", b"\n <!DOCTYPE html><html><body>404 Not Found</body></html>", "a web page, not an image"),
        ("html-without-doctype", b"<HTML><HEAD></HEAD></HTML>", "a web page, not an image"),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "an XML or SVG file, not pixels"),
        (
            "s3-error",
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
            "an XML or SVG file, not pixels",
        ),
        ("text", "just some text, with an umlaut: ä\n".encode() * 20, "not an image, or of an unknown format"),
        ("json", b'{"image": null}', "not an image, or of an unknown format"),
        ("zip", archive.getvalue(), "not an image, or of an unknown format"),
        ("pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not an image, or of an unknown format"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image, or of an unknown format"),
        ("icon", encoded(RGB, "ICO"), "not an image, or of an unknown format"),
        ("zeros", bytes(5000), "not an image, or of an unknown format"),
        ("noise", np.random.default_rng(0).bytes(5000), "not an image, or of an unknown format"),
    ):
        yield Hostile(name, data, reason=f"^{reason}$")


def _truncated(whole: list[Hostile]) -> Iterator[Hostile]:
    """The first part of a file of each kind: an image that is not all there is no image."""
    kinds: tuple[str, ...] = (
        "png",
        "png-interlaced",
        "webp-lossy",
        "webp-lossless",
        "webp-animated",
        "gif",
        "bmp",
        "tiff",
        "tiff-tiff_lzw",
    )
    kinds += ("jpeg-baseline", "jpeg-progressive", "jpeg-gray", "jpeg-cmyk", "jpeg-restart-markers", "jpeg-arithmetic")
    kinds += ("jpeg-exif-6-big-endian", "jpeg2000", "avif", "ppm")
    for case in whole:
        if case.name in kinds:
            for share in (0.05, 0.3, 0.5, 0.8):
                end = int(len(case.data) * share)
                yield Hostile(f"{case.name}-first-{end}-of-{len(case.data)}-bytes", case.data[:end], reason=".+")
