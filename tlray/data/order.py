"""Which images make up which batch: the same for images and for activations, and for any number of workers.

steps = train_steps(num_images, batch_size, seed, epoch)      # rows of the training split, one array a batch
"""

import hashlib
import math

import numpy as np
import torch


def train_steps(num_images: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """A permutation of the images in ceil(num_images / batch_size) global batches as equal as they can be."""
    num_steps = math.ceil(num_images / batch_size)
    return np.array_split(_permutation(num_images, seed, epoch), max(1, num_steps))


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
