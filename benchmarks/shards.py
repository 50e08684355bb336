"""What do prepared shards and decoded pixels cost in CPU, for each image?

    python -m benchmarks.shards [URI]

Photos of 500x375 (generated) are written to a store of shards at URI, by default a local folder; fetched, that is
copied where the store is remote, verified and opened; and read in random order, each copied once out of the map so that
its pages are touched. Beside it the same from loose files on the same disk, and writing with a short side of 256 px at
most. Then batches of 32 decoded images of 224 px are gathered in random order from a pixel store, and from an array in
memory: the copy alone.

CPU time of this process, median of the rounds, all ways in turn; the files stay in the page cache. The last line is one
JSON object in milliseconds an image: {"shard_read_ms", "pixel_gather_ms", …}.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.machine import describe
from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.data.pixels import PixelStore
from tlray.data.shards import ImageShards

NUM_PHOTOS, HEIGHT, WIDTH = 2048, 375, 500
NUM_DIFFERENT = 64  # photos; the others differ in their names only, which costs the same
NUM_PIXELS, BATCH = 3000, 32
MAX_SIDE, NUM_SMALLER = 256, 256
ROUNDS = 7
PREPROCESSING = Preprocessing(
    input_size=(224, 224),
    resize=256,
    crop_mode="center",
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclass(frozen=True)
class Photo:
    """A row for the store, and the bytes that go with it."""

    uri: str
    content_id: str
    data: bytes
    version: str = "1"
    width: int = WIDTH
    height: int = HEIGHT
    status: str = "ok"

    @property
    def num_bytes(self) -> int:
        return len(self.data)


def make_photos() -> list[Photo]:
    """Smooth shapes with grain, of as many bytes as photos of that size have."""
    different = []
    for number in range(NUM_DIFFERENT):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + random.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        different.append(simplejpeg.encode_jpeg(pixels, quality=90))
    return [
        Photo(f"{number:06}.jpg", hashlib.sha256(str(number).encode()).hexdigest(), different[number % NUM_DIFFERENT])
        for number in range(NUM_PHOTOS)
    ]


def write(store: ImageShards, photos: Sequence[Photo], max_side: int | None = None) -> None:
    with store.writer(max_side=max_side) as writer:
        for photo in photos:
            writer.add(photo, photo.data)


def fetch(store: ImageShards, names: Iterable[str]) -> None:
    for name in names:
        store.fetch(name)


def read_shards(store: ImageShards, places: Sequence[tuple[str, int]]) -> None:
    for shard, row in places:
        bytes(store.read(shard, row))


def read_files(paths: Sequence[Path]) -> None:
    for path in paths:
        path.read_bytes()


def gather(read: Callable[[np.ndarray], torch.Tensor], order: np.ndarray) -> None:
    for start in range(0, len(order), BATCH):
        read(order[start : start + BATCH])


def gather_in_memory(images: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    batch = np.empty((len(rows), *images.shape[1:]), np.uint8)
    for image, row in zip(batch, rows.tolist(), strict=True):
        image[...] = images[row]
    return torch.from_numpy(batch)


class Times:
    """CPU milliseconds an image of each way, by round."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = defaultdict(list)

    def measure(self, way: str, num_images: int, work: Callable[[], object]) -> None:
        started = time.process_time()
        work()
        self._times[way].append((time.process_time() - started) / num_images * 1000)

    def medians(self) -> dict[str, float]:
        return {way: statistics.median(times) for way, times in self._times.items()}


def measure_shards(times: Times, folder: Path, uri: str, photos: Sequence[Photo]) -> None:
    paths = [folder / "loose" / photo.uri for photo in photos]
    paths[0].parent.mkdir()
    for path, photo in zip(paths, photos, strict=True):
        path.write_bytes(photo.data)
    for number in range(ROUNDS):
        measure_round(times, storage.join(uri, str(number)), folder / f"cache{number}", photos, paths)


def measure_round(times: Times, uri: str, cache: Path, photos: Sequence[Photo], paths: Sequence[Path]) -> None:
    """A store of its own, as a process verifies a shard that it has seen no second time."""
    store, smaller = ImageShards(uri, str(cache)), ImageShards(f"{uri}-smaller", str(cache))
    times.measure("shard_write", len(photos), lambda: write(store, photos))
    index = store.index()
    shards = index["shard"].to_pylist()
    times.measure("shard_fetch", len(photos), lambda: fetch(store, dict.fromkeys(shards)))
    order = np.random.default_rng(0).permutation(len(photos)).tolist()
    places = list(zip(shards, index["row"].to_pylist(), strict=True))
    times.measure("shard_read", len(photos), lambda: read_shards(store, [places[row] for row in order]))
    times.measure("loose_read", len(photos), lambda: read_files([paths[row] for row in order]))
    times.measure("shard_write_smaller", NUM_SMALLER, lambda: write(smaller, photos[:NUM_SMALLER], MAX_SIDE))
    for file in [*storage.list_files(store.uri), *storage.list_files(smaller.uri)]:
        storage.delete(file.uri)


def measure_pixels(times: Times, folder: Path) -> None:
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(NUM_PIXELS)]
    images = np.random.default_rng(0).integers(0, 256, (NUM_PIXELS, 3, 224, 224), dtype=np.uint8)

    def draw(rows: Sequence[int]) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(images[row]) for row in rows)

    with PixelStore.open(str(folder / "pixels"), ids, PREPROCESSING, draw) as pixels:
        rows = pixels.rows_of(ids)
        order = np.random.default_rng(0).permutation(NUM_PIXELS)
        for _ in range(ROUNDS):
            times.measure("pixel_gather", NUM_PIXELS, lambda: gather(pixels.gather, rows[order]))
            times.measure("copy", NUM_PIXELS, lambda: gather(lambda some: gather_in_memory(images, some), order))


def main() -> None:
    torch.set_num_threads(1)
    print(describe())
    photos = make_photos()
    print(f"{NUM_PHOTOS} photos of {sum(photo.num_bytes for photo in photos) / len(photos) / 1000:.0f} KB")
    times = Times()
    with tempfile.TemporaryDirectory(prefix="tlray-") as name:
        folder = Path(name)
        uri = sys.argv[1] if len(sys.argv) > 1 else str(folder / "store")
        measure_shards(times, folder, uri, photos)
        measure_pixels(times, folder)
    medians = times.medians()
    for way, milliseconds in medians.items():
        print(f"{way:20} {milliseconds:8.4f} ms of CPU an image")
    print(json.dumps({f"{way}_ms": round(milliseconds, 5) for way, milliseconds in medians.items()}))


if __name__ == "__main__":
    main()
