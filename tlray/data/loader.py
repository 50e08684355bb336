"""Batches of images for training and evaluation: plain PyTorch, threads that read ahead, the same order every time.

    streams = make_streams(manifest, preprocessing, batch_size=32, augmentation="light", seed=0,
                           num_threads=2, memory_cache_mb=512)
    for batch in streams.train(epoch): ...

What an epoch holds, and how each image is augmented, depends on (seed, epoch) and the images' contents; not on the
number of threads or workers, nor on what is cached.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache, partial

import numpy as np
import torch

from tlray.catalogue import Preprocessing
from tlray.data.batch import Batch, Streams
from tlray.data.batching import load_batches
from tlray.data.cache import PROCESS_CACHE
from tlray.data.images import Image, Images, Split
from tlray.data.kept import KeptImages, KeptPixels
from tlray.data.load import load_image
from tlray.data.manifest import Manifest
from tlray.data.order import Windows, evaluation_steps, train_steps
from tlray.data.parallel import ordered_map
from tlray.data.read import Read, read_original
from tlray.process.device import CPU

MIB = 2**20
GB = 10**9


def make_streams(
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    augmentation: str,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int,
    memory_cache_mb: int,
    read: Read = read_original,
    kept_pixels: KeptPixels | None = None,
    windows: Windows | None = None,
    device: torch.device = CPU,
) -> Streams:
    """Streams of one worker, whose batches go to `device`.

    `batch_size` counts images over all workers; evaluation batches are of one worker.

    An epoch is a permutation of the images in ceil(num_train / batch_size) batches as equal as they can be, so that
    each image counts once and no batch is tiny. The cache belongs to the process: the last caller sets its size.
    What every epoch sees alike, and memory does not hold, is kept as pixels on the node's disk where they fit.
    Reading raises DataError for an image that is gone, or is not the one that the manifest was made from.
    """
    PROCESS_CACHE.resize(memory_cache_mb * MIB)
    splits: dict[Split, Images] = {name: manifest.split(name) for name in ("train", "val", "test")}
    load = partial(load_image, preprocessing=preprocessing, cache=PROCESS_CACHE, read=read)
    batches = partial(load_batches, input_size=preprocessing.input_size, num_threads=num_threads, device=device)
    share = slice(rank, None, world_size)
    alike: list[Split] = ["train", "val"] if augmentation == "none" and world_size == 1 else ["val"]
    num_alike = sum(len(splits[name][share]) for name in alike)
    if not _is_worth_keeping(num_alike, preprocessing, memory_cache_mb, kept_pixels):
        alike = []

    @cache
    def kept(name: Split) -> KeptImages:
        assert kept_pixels is not None
        draw = partial(load_draws, preprocessing=preprocessing, num_threads=num_threads, read=read)
        return KeptImages.open(splits[name], range(len(splits[name]))[share], preprocessing, draw, kept_pixels)

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        images = splits["train"]
        steps = train_steps(len(images), batch_size, seed, epoch, windows)[first:]
        num_global = [len(step) for step in steps]
        if "train" in alike:
            return kept("train").batches(steps, num_global)
        load_train = partial(load, augmentation=augmentation, seed=seed, epoch=epoch)
        return batches(load_train, images, [step[share] for step in steps], num_global)

    def evaluation(name: Split) -> Iterator[Batch]:
        images = splits[name]
        mine, num_global = evaluation_steps(len(images), batch_size, rank, world_size)
        if name in alike:
            return kept(name).batches(mine, num_global)
        return batches(load, images, mine, num_global)

    return Streams(
        preprocessing=preprocessing,
        train=train,
        val=partial(evaluation, "val"),
        test=partial(evaluation, "test"),
        num_train=len(splits["train"]),
        num_val=len(splits["val"]),
        num_test=len(splits["test"]),
    )


def _is_worth_keeping(
    num_images: int, preprocessing: Preprocessing, memory_cache_mb: int, kept: KeptPixels | None
) -> bool:
    """Whether the images are too many for the process's memory and few enough for the node's disk."""
    num_bytes = num_images * 3 * preprocessing.input_size[0] * preprocessing.input_size[1]
    return kept is not None and memory_cache_mb * MIB < num_bytes <= kept.max_bytes


def load_draws(
    images: Sequence[Image],
    preprocessing: Preprocessing,
    augmentation: str,
    view: int,
    *,
    num_threads: int,
    read: Read = read_original,
) -> Iterator[torch.Tensor]:
    """One draw of each image -> (3, H, W) uint8, in order; draw 0 is the evaluation transform.

    A draw depends on the image's contents and its number alone, so that every run that asks for it gets the same.
    """
    load = partial(load_image, preprocessing=preprocessing, cache=PROCESS_CACHE, read=read)
    if view > 0:
        load = partial(load, augmentation=augmentation, seed=0, epoch=view)
    return ordered_map(load, images, num_threads=num_threads, ahead=2 * num_threads + 16)


def load_rows(
    images: Images,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    *,
    augmentation: str,
    seed: int,
    epoch: int,
    num_threads: int,
    read: Read = read_original,
) -> torch.Tensor:
    """Some rows of a split, as `make_streams` has them in a batch -> (B, 3, H, W) uint8; augmented unless "none"."""
    load = partial(
        load_image,
        preprocessing=preprocessing,
        cache=PROCESS_CACHE,
        read=read,
        augmentation=augmentation,
        seed=seed,
        epoch=epoch,
    )
    batches = load_batches(
        load, images, [rows], [len(rows)], input_size=preprocessing.input_size, num_threads=num_threads
    )
    with closing(batches):
        return next(batches).inputs[0]
