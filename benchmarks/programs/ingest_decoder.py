"""A decoder on bytes in memory: no loader, no files, two threads, each with its part of the images.

python -m benchmarks.programs.ingest_decoder WORK.json      # settings: "decoder", a name of DECODERS
"""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.v2 import functional as F

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, measure, read_work
from benchmarks.programs.ingest_tlray import PREPROCESSING
from tlray.data.decode import check, decode
from tlray.data.transforms import eval_transform, needed_size

Item = tuple[bytes, tuple[int, int]]  # a file and its image's (height, width), as a manifest knows it


def with_tlray(item: Item) -> np.ndarray:
    data, size = item
    pixels = torch.from_numpy(decode(data, needed_size(size, PREPROCESSING, "none")))
    return eval_transform(pixels.permute(2, 0, 1), PREPROCESSING).numpy()


def with_pillow(item: Item) -> np.ndarray:
    image = Image.open(io.BytesIO(item[0])).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def with_torchvision(item: Item) -> np.ndarray:
    pixels = decode_jpeg(torch.frombuffer(bytearray(item[0]), dtype=torch.uint8))
    return F.resize(pixels, [SIZE, SIZE], antialias=True).numpy()


DECODERS = {"tlray": with_tlray, "pillow": with_pillow, "torchvision": with_torchvision}


def main() -> None:
    work = read_work()
    files = [path.read_bytes() for path in work.paths]
    items = [(data, check(data)) for data in files]
    decoder = DECODERS[work.settings["decoder"]]
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        measure(work, partial(decode_all, decoder, items, pool))


def decode_all(decoder, items: list[Item], pool: ThreadPoolExecutor) -> Iterable[list[np.ndarray]]:
    size = min(BATCH, len(items) // (2 * NUM_WORKERS))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return pool.map(lambda part: [decoder(item) for item in part], parts)


if __name__ == "__main__":
    main()
