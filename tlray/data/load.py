"""One image, read, decoded and transformed as a batch wants it."""

import torch

from tlray.catalogue import Preprocessing
from tlray.data.cache import ImageCache
from tlray.data.decode import decode
from tlray.data.images import Image
from tlray.data.jpeg import SMALLEST_SIDE
from tlray.data.order import seed_of
from tlray.data.read import Read
from tlray.data.transforms import eval_transform, needed_size, train_transform


def load_image(
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
