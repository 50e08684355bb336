"""Which images make up which batch: the same for images and for activations, and for any number of workers.

steps = train_steps(num_images, batch_size, seed, epoch)      # rows of the training split, one array a batch
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Windows:
    """For images in more shards than a node holds: an epoch goes through a few shards at a time, in random order."""

    shard_of: np.ndarray  # (num_images,) number of the shard that holds each row
    shards_at_once: int


def train_steps(
    num_images: int, batch_size: int, seed: int, epoch: int, windows: Windows | None = None
) -> list[np.ndarray]:
    """A permutation of the images in ceil(num_images / batch_size) global batches as equal as they can be.

    With `windows` the shards are permuted first, and the images within as many of them as are open at once.
    """
    order = _permutation(num_images, seed, epoch)
    if windows is not None:
        shards = _permutation(int(windows.shard_of.max(initial=-1)) + 1, seed, epoch)
        window = np.argsort(shards)[windows.shard_of] // windows.shards_at_once
        order = order[np.argsort(window[order], kind="stable")]
    return np.array_split(order, max(1, math.ceil(num_images / batch_size)))


def evaluation_steps(
    num_images: int, batch_size: int, rank: int, world_size: int
) -> tuple[list[np.ndarray], list[int]]:
    """One worker's batches of at most `batch_size` rows in order, and the images in each global batch."""
    mine = np.arange(num_images)[rank::world_size]
    starts = range(0, len(mine), batch_size)
    num_global = [min(batch_size * world_size, num_images - start * world_size) for start in starts]
    return [mine[start : start + batch_size] for start in starts], num_global


def seed_of(text: str) -> int:
    """A seed for torch.Generator that depends on all of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed_of(f"order/{seed}/{epoch}"))
    return torch.randperm(num_images, generator=generator).numpy()
