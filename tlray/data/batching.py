"""Batches put together by threads that read ahead.

for batch in load_batches(load, images, steps, num_global, input_size=(224, 224), num_threads=2): ...
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tlray.data.batch import Batch
from tlray.data.images import Image, Images
from tlray.data.parallel import ordered_map

BATCHES_AHEAD = 2  # made ready while the model works
IMAGES_AT_ONCE = 8  # that a thread loads before it hands over


def load_batches(
    load: Callable[..., torch.Tensor],
    images: Images,
    steps: Sequence[np.ndarray],
    num_global: Sequence[int],
    *,
    input_size: tuple[int, int],
    num_threads: int,
) -> Generator[Batch, None, None]:
    """One batch for each step, which is a list of rows of `images`.

    Threads take a few images at a time and write them into the batch themselves. Handed over one by one and copied
    here, 500x375 photos cost twice their decoding: torch copies an image with all of its threads, and each of them
    then spins for a while.
    """
    largest = max((len(rows) for rows in steps), default=1)
    size = max(1, min(IMAGES_AT_ONCE, largest // (2 * num_threads)))
    parts = (part for rows in steps for part in _parts(images.at(rows), input_size, size))
    ahead = max(2 * num_threads, BATCHES_AHEAD * math.ceil(largest / size))
    all_labels = images.labels
    loaded = ordered_map(partial(_load_part, load), parts, num_threads=num_threads, ahead=ahead)
    try:
        for rows, count in zip(steps, num_global, strict=True):
            for _ in range(max(1, math.ceil(len(rows) / size))):
                pixels = next(loaded)
            labels = torch.as_tensor(all_labels[rows], dtype=torch.int64)
            yield Batch((pixels,), labels, torch.as_tensor(rows, dtype=torch.int64), count)
    finally:
        loaded.close()


@dataclass(frozen=True)
class _Part:
    """Some images that follow each other in a batch."""

    images: Sequence[Image]
    batch: torch.Tensor  # (B, 3, H, W) uint8, channels last
    first: int  # the place of the first in it


def _parts(images: Sequence[Image], input_size: tuple[int, int], size: int) -> Iterator[_Part]:
    """A batch in parts of up to `size` images; one part of none where it has none.

    Channels last, as decoded pixels are: copying them is six times faster so.
    """
    shape = (len(images), 3, *input_size)
    batch = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    for first in range(0, max(1, len(images)), size):
        yield _Part(images[first : first + size], batch, first)


def _load_part(load: Callable[..., torch.Tensor], part: _Part) -> torch.Tensor:
    """-> the batch, with this part of it filled"""
    for image, place in zip(part.images, part.batch[part.first :], strict=False):
        loaded = load(image, place=place)
        if loaded is not place:  # numpy copies in the thread that asks
            place.permute(1, 2, 0).numpy()[:] = loaded.permute(1, 2, 0).numpy()
    return part.batch
