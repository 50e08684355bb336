"""Batches of images whose pixels the node keeps on its disk, because every epoch sees them alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tlray.catalogue import Preprocessing
from tlray.data.batch import Batch
from tlray.data.images import Images
from tlray.data.pixels import PixelStore

ROWS_AT_ONCE = 1024  # of images on their way to the disk, whose names are in memory


@dataclass(frozen=True)
class KeptPixels:
    """Where a node may keep decoded images on disk, and how many bytes of them."""

    folder: str
    max_bytes: int


class KeptImages:
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
    ) -> "KeptImages":
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
