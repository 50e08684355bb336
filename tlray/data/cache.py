"""Images that were read before, kept in memory: one cache per process, shared by every stream that runs in it.

A trial actor runs many trials, and most of them look at the same images.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch


class ImageCache:
    """The tensors used last, up to a number of bytes; threads may share it. What it returns must not be changed."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._images: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> torch.Tensor | None:
        with self._lock:
            image = self._images.get(key)
            if image is not None:
                self._images.move_to_end(key)
            return image

    def put(self, key: Hashable, image: torch.Tensor) -> None:
        """Keep an image, at the cost of those not used for longest; one larger than the cache is not kept."""
        with self._lock:
            if image.nbytes > self.max_bytes or key in self._images:
                return
            self._images[key] = image
            self.num_bytes += image.nbytes
            self._shrink()

    def resize(self, max_bytes: int) -> None:
        with self._lock:
            self.max_bytes = max_bytes
            self._shrink()

    def _shrink(self) -> None:
        while self.num_bytes > self.max_bytes:
            _, image = self._images.popitem(last=False)
            self.num_bytes -= image.nbytes


PROCESS_CACHE = ImageCache()
