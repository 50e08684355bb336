"""Batches of images for training and evaluation: plain PyTorch, threads that read ahead, the same order every time.

    streams = make_streams(manifest, preprocessing, batch_size=32, augmentation="light", seed=0,
                           num_threads=2, memory_cache_mb=512)
    for batch in streams.train(epoch): ...

What an epoch holds, and how each image is augmented, depends on (seed, epoch) and the images' contents; not on the
number of threads or workers, nor on what is cached.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch

from tlray.catalogue import Preprocessing
from tlray.data.cache import PROCESS_CACHE, ImageCache
from tlray.data.decode import decode
from tlray.data.images import Image, Images, Split
from tlray.data.jpeg import SMALLEST_SIDE
from tlray.data.manifest import Manifest
from tlray.data.order import Windows, evaluation_steps, seed_of, train_steps
from tlray.data.parallel import ordered_map
from tlray.data.pixels import PixelStore
from tlray.data.read import Read, read_original
from tlray.data.transforms import eval_transform, needed_size, train_transform

ROWS_AT_ONCE = 1024  # of images on their way to the disk, whose names are in memory
BATCHES_AHEAD = 2  # made ready while the model works
IMAGES_AT_ONCE = 8  # that a thread loads before it hands over
MIB = 2**20
GB = 10**9


@dataclass(frozen=True)
class KeptPixels:
    """Where a node may keep decoded images on disk, and how many bytes of them."""

    folder: str
    max_bytes: int


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
    read: Read = read_original,
    kept_pixels: KeptPixels | None = None,
    windows: Windows | None = None,
) -> Streams:
    """Streams of one worker. `batch_size` counts images over all workers; evaluation batches are of one worker.

    An epoch is a permutation of the images in ceil(num_train / batch_size) batches as equal as they can be, so that
    each image counts once and no batch is tiny. The cache belongs to the process: the last caller sets its size.
    What every epoch sees alike, and memory does not hold, is kept as pixels on the node's disk where they fit.
    Reading raises DataError for an image that is gone, or is not the one that the manifest was made from.
    """
    PROCESS_CACHE.resize(memory_cache_mb * MIB)
    splits: dict[Split, Images] = {name: manifest.split(name) for name in ("train", "val", "test")}
    load = partial(_load, preprocessing=preprocessing, cache=PROCESS_CACHE, read=read)
    batches = partial(_batches, input_size=preprocessing.input_size, num_threads=num_threads)
    share = slice(rank, None, world_size)
    alike: list[Split] = ["train", "val"] if augmentation == "none" and world_size == 1 else ["val"]
    num_alike = sum(len(splits[name][share]) for name in alike)
    if not _is_worth_keeping(num_alike, preprocessing, memory_cache_mb, kept_pixels):
        alike = []

    @cache
    def kept(name: Split) -> _KeptImages:
        assert kept_pixels is not None
        draw = partial(load_draws, preprocessing=preprocessing, num_threads=num_threads, read=read)
        return _KeptImages.open(splits[name], range(len(splits[name]))[share], preprocessing, draw, kept_pixels)

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
    load = partial(_load, preprocessing=preprocessing, cache=PROCESS_CACHE, read=read)
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
        _load,
        preprocessing=preprocessing,
        cache=PROCESS_CACHE,
        read=read,
        augmentation=augmentation,
        seed=seed,
        epoch=epoch,
    )
    batches = _batches(load, images, [rows], [len(rows)], input_size=preprocessing.input_size, num_threads=num_threads)
    with closing(batches):
        return next(batches).inputs[0]


def _batches(
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


class _KeptImages:
    """Images whose pixels the node keeps: those of one split that this worker evaluates, or all of them."""

    def __init__(self, store: PixelStore, places: np.ndarray, labels: np.ndarray) -> None:
        """places (N,): where the pixels of each row of the split lie; labels (N,)"""
        self._store, self._places, self._labels = store, places, labels

    @classmethod
    def open(
        cls,
        images: Images,
        rows: range,
        preprocessing: Preprocessing,
        draw: Callable[..., Iterator[torch.Tensor]],
        kept: KeptPixels,
    ) -> "_KeptImages":
        """`rows` of the images; the first process of the node that asks decodes them."""
        mine = np.asarray(rows, dtype=np.int64)
        ids = [image.content_id for image in images[rows.start : rows.stop : rows.step]]

        def decoded(some: Sequence[int]) -> Iterator[torch.Tensor]:
            for start in range(0, len(some), ROWS_AT_ONCE):
                chosen = images.at(mine[list(some[start : start + ROWS_AT_ONCE])])
                yield from draw(chosen, augmentation="none", view=0)

        store = PixelStore.open(kept.folder, ids, preprocessing, decoded, kept.max_bytes)
        places = np.full(len(images), -1, dtype=np.int64)
        places[mine] = store.rows_of(ids)
        return cls(store, places, images.labels)

    def batches(self, steps: Sequence[np.ndarray], num_global: Sequence[int]) -> Iterator[Batch]:
        for rows, count in zip(steps, num_global, strict=True):
            labels = torch.as_tensor(self._labels[rows], dtype=torch.int64)
            pixels = self._store.gather(self._places[rows])
            yield Batch((pixels,), labels, torch.as_tensor(rows, dtype=torch.int64), count)


def _load(
    image: Image,
    *,
    preprocessing: Preprocessing,
    cache: ImageCache,
    read: Read,
    augmentation: str = "none",
    seed: int = 0,
    epoch: int = 0,
    place: torch.Tensor | None = None,
) -> torch.Tensor:
    """One image, ready for a batch: from the cache where it is there, else read and decoded, no larger than needed.

    `place`: its place in the batch, for eval_transform, where no cache is to have the result.
    """
    size = _reduced_to(image, preprocessing, augmentation)
    whole = (image.content_id, size)
    if augmentation != "none":
        decoded = cache.get(whole)
        if decoded is None:
            decoded = _decoded(read(image), size)
            cache.put(whole, decoded)
        return train_transform(decoded, preprocessing, augmentation, _generator(seed, epoch, image.content_id))

    ready = cache.get((image.content_id, preprocessing))
    if ready is not None:
        return ready
    decoded = cache.get(whole)
    was_cached = decoded is not None
    if decoded is None:
        decoded = _decoded(read(image), size)
    ready = eval_transform(decoded, preprocessing, None if cache.max_bytes else place)
    if ready.nbytes < decoded.nbytes:  # the smaller of the two is kept
        if ready.nbytes <= cache.max_bytes:
            # a crop would hold on to the whole
            cache.put((image.content_id, preprocessing), ready.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    elif not was_cached:
        cache.put(whole, decoded)
    return ready


def _reduced_to(image: Image, preprocessing: Preprocessing, augmentation: str) -> tuple[int, int] | None:
    """The size below which the image must not be reduced; None for one that decoding leaves whole in any case."""
    if min(image.height, image.width) < SMALLEST_SIDE:
        return None
    return needed_size((image.height, image.width), preprocessing, augmentation)


def _decoded(data: bytes | memoryview, size: tuple[int, int] | None) -> torch.Tensor:
    """(3, H, W) uint8, channels last in memory."""
    return torch.from_numpy(decode(data, size)).permute(2, 0, 1)


def _generator(seed: int, epoch: int, content_id: str) -> torch.Generator:
    """The randomness of one image's augmentation in one epoch."""
    return torch.Generator().manual_seed(seed_of(f"augmentation/{seed}/{epoch}/{content_id}"))
