"""Batches put together by threads that read ahead.

for batch in load_batches(load, images, steps, num_global, input_size=(224, 224), num_threads=2): ...
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from tlray.data.batch import Batch
from tlray.data.images import Image, Images
from tlray.data.parallel import ordered_map
from tlray.data.to_device import host_tensor
from tlray.process.device import CPU

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
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """One batch for each step, which is a list of rows of `images`; pinned where it is to go to a GPU."""
    largest = max((len(rows) for rows in steps), default=1)
    groups = (Group(images.at(rows), load, input_size) for rows in steps)
    all_labels = images.labels
    filled = fill_batches(groups, largest=largest, num_threads=num_threads, device=device)
    with closing(filled):
        for rows, count, pixels in zip(steps, num_global, filled, strict=True):
            labels = torch.as_tensor(all_labels[rows], dtype=torch.int64)
            yield Batch((pixels,), labels, torch.as_tensor(rows, dtype=torch.int64), count)


@dataclass(frozen=True)
class Group:
    """The images of one batch and how each of them is loaded."""

    images: Sequence[Image]
    load: Callable[..., torch.Tensor]
    input_size: tuple[int, int]


def fill_batches(
    groups: Iterable[Group], *, largest: int, num_threads: int, device: torch.device = CPU
) -> Generator[torch.Tensor, None, None]:
    """(B, 3, H, W) uint8 of each group of at most `largest` images, in order, read ahead across groups.

    Threads take a few images at a time and write them into the batch themselves. Handed over one by one and copied
    here, 500x375 photos cost twice their decoding: torch copies an image with all of its threads, and each of them
    then spins for a while.
    """
    size = max(1, min(IMAGES_AT_ONCE, largest // (2 * num_threads)))
    ahead = max(2 * num_threads, BATCHES_AHEAD * math.ceil(largest / size))
    parts = (part for group in groups for part in _parts(group, size, device))
    loaded = ordered_map(_load_part, parts, num_threads=num_threads, ahead=ahead)
    with closing(loaded):
        for part in loaded:
            if part.is_last:
                yield part.batch


@dataclass(frozen=True)
class _Part:
    """Some images that follow each other in a batch."""

    group: Group
    images: Sequence[Image]
    batch: torch.Tensor  # (B, 3, H, W) uint8, channels last
    first: int  # the place of the first in it

    @property
    def is_last(self) -> bool:
        return self.first + len(self.images) == len(self.batch)


def _parts(group: Group, size: int, device: torch.device) -> Iterator[_Part]:
    """A batch in parts of up to `size` images; one part of none where it has none.

    Channels last, as decoded pixels are: copying them is six times faster so.
    """
    images = group.images
    shape = (len(images), 3, *group.input_size)
    batch = host_tensor(shape, torch.uint8, device, torch.channels_last)
    for first in range(0, max(1, len(images)), size):
        yield _Part(group, images[first : first + size], batch, first)


def _load_part(part: _Part) -> _Part:
    """-> the part, filled"""
    for image, place in zip(part.images, part.batch[part.first :], strict=False):
        loaded = part.group.load(image, place=place)
        if loaded is not place:  # numpy copies in the thread that asks
            place.permute(1, 2, 0).numpy()[:] = loaded.permute(1, 2, 0).numpy()
    return part
