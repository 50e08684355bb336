"""The demo's data set: small labelled JPEGs of shapes, written to any storage location.

    make_dataset("~/shapes", task="target", images_per_class={"train": 25, "val": 25, "test": 50}, seed=0)
    # ~/shapes/train/arrow/0000.jpg ...

Two tasks with no class in common and the same kind of picture: a bright shape of some size, place and tilt on a dark
noisy background with scribbles over it. A network that has learned to see the source task's shapes needs few images of
the target's; one that starts from random weights has to find edges and corners first.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tlray import storage

Task = Literal["source", "target"]
Point = tuple[float, float]
Outline = Callable[[], list[Point]]  # corners of a shape around the origin, within the unit circle

SIZE = 64  # pixels of an image
OVERSAMPLING = 3  # drawn larger and scaled down, for smooth edges


def _regular(corners: int) -> list[Point]:
    return [_polar(1.0, index / corners) for index in range(corners)]


def _star(points: int, inner: float) -> list[Point]:
    return [_polar(inner if index % 2 else 1.0, index / (2 * points)) for index in range(2 * points)]


def _polar(radius: float, turn: float) -> Point:
    return radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)


def _box(width: float, height: float) -> list[Point]:
    return [(-width, -height), (width, -height), (width, height), (-width, height)]


def _crescent() -> list[Point]:
    outer = [_polar(1.0, 0.15 + 0.7 * index / 24) for index in range(25)]
    inner = [(0.35 + 0.75 * x, 0.75 * y) for x, y in (_polar(1.0, 0.85 - 0.7 * index / 24) for index in range(25))]
    return outer + inner


def _heart() -> list[Point]:
    turns = [2 * math.pi * index / 40 for index in range(40)]
    curve = [
        (16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        for t in turns
    ]
    return [(x / 17, y / 17) for x, y in curve]


SHAPES: dict[Task, dict[str, Outline]] = {
    "source": {
        "bar": lambda: _box(1.0, 0.3),
        "circle": lambda: _regular(40),
        "corner": lambda: [(-0.8, -0.8), (-0.2, -0.8), (-0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (-0.8, 0.8)],
        "gear": lambda: _star(10, 0.75),
        "half": lambda: [_polar(1.0, 0.5 * index / 24) for index in range(25)],
        "hexagon": lambda: _regular(6),
        "kite": lambda: [(0.0, 1.0), (0.6, 0.3), (0.0, -1.0), (-0.6, 0.3)],
        "oval": lambda: [(x, 0.5 * y) for x, y in _regular(40)],
        "square": lambda: _box(0.75, 0.75),
        "star4": lambda: _star(4, 0.35),
        "trapezoid": lambda: [(-0.9, -0.5), (0.9, -0.5), (0.4, 0.5), (-0.4, 0.5)],
        "triangle": lambda: _regular(3),
    },
    "target": {
        "arrow": lambda: [(1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3), (-1, -0.3), (0.1, -0.3), (0.1, -0.8)],
        "crescent": _crescent,
        "cross": lambda: [
            *((-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3)),
            *((0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3)),
        ],
        "heart": _heart,
        "pentagon": lambda: _regular(5),
        "star5": lambda: _star(5, 0.45),
    },
}


def make_dataset(location: str, *, task: Task, images_per_class: Mapping[str, int], seed: int = 0) -> None:
    """Write `images_per_class[split]` images of every class of `task` to location/split/class/NNNN.jpg.

    The bytes of an image depend on the seed, the task, the split, the class and its number alone.
    """
    wanted = [
        (split, name, number)
        for split, count in images_per_class.items()
        for name in SHAPES[task]
        for number in range(count)
    ]

    def write(item: tuple[str, str, int]) -> None:
        split, name, number = item
        image = f"{split}/{name}/{number:04d}"
        # not only numbers: two tasks with the same backgrounds and places would be one task in part
        digest = hashlib.sha256(f"{seed}/{task}/{image}".encode()).digest()
        generator = np.random.default_rng(list(digest))
        storage.write_bytes(storage.join(location, f"{image}.jpg"), _jpeg(_draw(SHAPES[task][name](), generator)))

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(write, wanted))


def _draw(outline: list[Point], generator: np.random.Generator) -> Image.Image:
    """One picture: background, shape, scribbles, blur and noise."""
    side = SIZE * OVERSAMPLING
    background = generator.uniform(20, 100, size=3)
    patches = np.clip(background + generator.normal(0, 14, size=(6, 6, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(2):
        _scribble(pen, side, generator)
    radius = side * generator.uniform(0.24, 0.4)
    center = generator.uniform(radius, side - radius, size=2)
    angle, squeeze = math.radians(generator.uniform(-40, 40)), generator.uniform(0.85, 1.0)
    pen.polygon(
        [_placed(point, center, radius, angle, squeeze) for point in outline],
        fill=_rgb(generator.uniform(140, 255, size=3)),
    )
    _scribble(pen, side, generator)
    image = image.filter(ImageFilter.GaussianBlur(OVERSAMPLING * generator.uniform(0.0, 0.8)))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    return Image.fromarray(np.clip(pixels + generator.normal(0, 8, size=pixels.shape), 0, 255).astype(np.uint8))


def _placed(point: Point, center: np.ndarray, radius: float, angle: float, squeeze: float) -> Point:
    x, y = point[0] * radius, point[1] * radius * squeeze
    return (
        float(center[0] + x * math.cos(angle) - y * math.sin(angle)),
        float(center[1] + x * math.sin(angle) + y * math.cos(angle)),
    )


def _scribble(pen: ImageDraw.ImageDraw, side: int, generator: np.random.Generator) -> None:
    ends = [tuple(point) for point in generator.uniform(0, side, size=(2, 2)).tolist()]
    pen.line(ends, fill=_rgb(generator.uniform(0, 255, size=3)), width=int(generator.integers(2, 5)))


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
