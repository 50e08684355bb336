"""Batches of images for training and evaluation: plain PyTorch, threads that read ahead, the same order every time.

    streams = make_streams(manifest, preprocessing, batch_size=32, augmentation="light", seed=0,
                           num_threads=2, memory_cache_mb=512)
    for batch in streams.train(epoch): ...

What an epoch holds, and how each image is augmented, depends on (seed, epoch) and the images' contents; not on the
number of threads or workers, nor on what is cached.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.data.cache import PROCESS_CACHE, ImageCache
from tlray.data.decode import decode
from tlray.data.manifest import Image, Manifest
from tlray.data.order import evaluation_steps, seed_of, train_steps
from tlray.data.parallel import ordered_map
from tlray.data.transforms import eval_transform, train_transform
from tlray.errors import DataError

BATCHES_AHEAD = 2  # made ready while the model works
MIB = 2**20


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch; B may differ by one between workers, and be 0 where images run out."""

    inputs: tuple[torch.Tensor, ...]  # images (B, 3, H, W) uint8 after the transform; or activations (B, ...)
    labels: torch.Tensor  # (B,) int64
    rows: torch.Tensor  # (B,) int64, position in the manifest's split
    num_global: int  # images in the global batch, over all workers


class TrainBatches(Protocol):
    """An epoch's batches from number `first` on: those that an epoch from the start has at these places."""

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Streams:
    """The three splits as batches. Closing an iterator early ends its threads."""

    preprocessing: Preprocessing | None  # how images are normalised; None: activations, which are not

    train: TrainBatches  # every worker gets equally many batches
    val: Callable[[], Iterator[Batch]]
    test: Callable[[], Iterator[Batch]]
    num_train: int  # images, over all workers
    num_val: int
    num_test: int


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
) -> Streams:
    """Streams of one worker. `batch_size` counts images over all workers; evaluation batches are of one worker.

    An epoch is a permutation of the images in ceil(num_train / batch_size) batches as equal as they can be, so that
    each image counts once and no batch is tiny. The cache belongs to the process: the last caller sets its size.
    Reading raises DataError for an image that is gone, or is not the one that the manifest was made from.
    """
    PROCESS_CACHE.resize(memory_cache_mb * MIB)
    splits = {name: manifest.split(name) for name in ("train", "val", "test")}
    load = partial(_load, preprocessing=preprocessing, cache=PROCESS_CACHE)
    batches = partial(_batches, input_size=preprocessing.input_size, num_threads=num_threads)
    share = slice(rank, None, world_size)

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        images = splits["train"]
        steps = train_steps(len(images), batch_size, seed, epoch)[first:]
        load_train = partial(load, augmentation=augmentation, seed=seed, epoch=epoch)
        return batches(load_train, images, [step[share] for step in steps], [len(step) for step in steps])

    def evaluation(images: Sequence[Image]) -> Iterator[Batch]:
        mine, num_global = evaluation_steps(len(images), batch_size, rank, world_size)
        return batches(load, images, mine, num_global)

    return Streams(
        preprocessing=preprocessing,
        train=train,
        val=partial(evaluation, splits["val"]),
        test=partial(evaluation, splits["test"]),
        num_train=len(splits["train"]),
        num_val=len(splits["val"]),
        num_test=len(splits["test"]),
    )


def load_draws(
    images: Sequence[Image], preprocessing: Preprocessing, augmentation: str, view: int, *, num_threads: int
) -> Iterator[torch.Tensor]:
    """One draw of each image -> (3, H, W) uint8, in order; draw 0 is the evaluation transform.

    A draw depends on the image's contents and its number alone, so that every run that asks for it gets the same.
    """
    load = partial(_load, preprocessing=preprocessing, cache=PROCESS_CACHE)
    if view > 0:
        load = partial(load, augmentation=augmentation, seed=0, epoch=view)
    return ordered_map(load, images, num_threads=num_threads, ahead=2 * num_threads + 16)


def load_rows(
    images: Sequence[Image],
    rows: Sequence[int],
    preprocessing: Preprocessing,
    *,
    augmentation: str,
    seed: int,
    epoch: int,
    num_threads: int,
) -> torch.Tensor:
    """Some rows of a split, as `make_streams` has them in a batch -> (B, 3, H, W) uint8; augmented unless "none"."""
    load = partial(
        _load, preprocessing=preprocessing, cache=PROCESS_CACHE, augmentation=augmentation, seed=seed, epoch=epoch
    )
    pixels = torch.empty((len(rows), 3, *preprocessing.input_size), dtype=torch.uint8)
    chosen = [images[row] for row in rows]
    for index, image in enumerate(ordered_map(load, chosen, num_threads=num_threads, ahead=len(chosen))):
        pixels[index] = image
    return pixels


def _batches(
    load: Callable[[Image], torch.Tensor],
    images: Sequence[Image],
    steps: Sequence[np.ndarray],
    num_global: Sequence[int],
    *,
    input_size: tuple[int, int],
    num_threads: int,
) -> Iterator[Batch]:
    """One batch for each step, which is a list of rows of `images`."""
    ahead = max(2 * num_threads, BATCHES_AHEAD * max((len(rows) for rows in steps), default=1))
    wanted = (images[row] for rows in steps for row in rows)
    loaded = ordered_map(load, wanted, num_threads=num_threads, ahead=ahead)
    try:
        for rows, count in zip(steps, num_global, strict=True):
            pixels = torch.empty((len(rows), 3, *input_size), dtype=torch.uint8)
            for index in range(len(rows)):
                pixels[index] = next(loaded)
            labels = torch.tensor([images[row].label for row in rows], dtype=torch.int64)
            yield Batch((pixels,), labels, torch.as_tensor(rows, dtype=torch.int64), count)
    finally:
        loaded.close()


def _load(
    image: Image,
    *,
    preprocessing: Preprocessing,
    cache: ImageCache,
    augmentation: str = "none",
    seed: int = 0,
    epoch: int = 0,
) -> torch.Tensor:
    """One image, ready for a batch: from the cache where it is there, else from storage."""
    if augmentation != "none":
        decoded = cache.get(image.content_id)
        if decoded is None:
            decoded = _read(image)
            cache.put(image.content_id, decoded)
        return train_transform(decoded, preprocessing, augmentation, _generator(seed, epoch, image.content_id))

    ready = cache.get((image.content_id, preprocessing))
    if ready is not None:
        return ready
    decoded = cache.get(image.content_id)
    was_cached = decoded is not None
    if decoded is None:
        decoded = _read(image)
    ready = eval_transform(decoded, preprocessing)
    if ready.nbytes < decoded.nbytes:  # the smaller of the two is kept
        cache.put((image.content_id, preprocessing), ready.clone())  # a crop alone would hold on to the whole
    elif not was_cached:
        cache.put(image.content_id, decoded)
    return ready


def _read(image: Image) -> torch.Tensor:
    """The image decoded -> (3, H, W) uint8, once it is sure to be the one in the manifest."""
    try:
        data = storage.read_bytes(image.uri)
    except storage.NotFoundError:
        raise DataError(
            f"{image.uri} is gone since the run's manifest was made: put it back or start a new run"
        ) from None
    if hashlib.sha256(data).hexdigest() != image.content_id:
        raise DataError(f"{image.uri} has changed since the run's manifest was made: start a new run")
    return torch.from_numpy(decode(data)).permute(2, 0, 1).contiguous()


def _generator(seed: int, epoch: int, content_id: str) -> torch.Generator:
    """The randomness of one image's augmentation in one epoch."""
    return torch.Generator().manual_seed(seed_of(f"augmentation/{seed}/{epoch}/{content_id}"))
