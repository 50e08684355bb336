"""Which training images backbones are ranked on: a part of each class in proportion, the same on every machine.

subset = choose_subset(manifest, num_images=1000)      # a Manifest of training images only

Within a class the images with the smallest content ids are taken: a hash knows nothing of what it is the hash of, so
that is a fair draw, it does not depend on names or places, and a larger subset contains a smaller one's images.
"""

from dataclasses import replace

import numpy as np

from tlray.data.images import Images
from tlray.data.manifest import Manifest
from tlray.errors import DataError

LEAST_OF_A_CLASS = 2  # images: leave-one-out scores need another one of the class


def choose_subset(manifest: Manifest, num_images: int) -> Manifest:
    """About `num_images` training images of different contents, at least two of each class that has two.

    DataError where fewer than two classes have training images.
    """
    train = manifest.split("train")
    labels = train.labels
    ids = np.ascontiguousarray(train.content_ids).view("S32").ravel() if len(train) else np.empty(0, "S32")
    order = np.lexsort((ids, labels))
    rows = [_distinct(ids, some) for some in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)]
    if len(rows) < 2:
        raise DataError("ranking needs training images of two classes or more")
    total = sum(map(len, rows))
    chosen = [some[: max(LEAST_OF_A_CLASS, round(len(some) * num_images / total))] for some in rows]
    return replace(manifest, images=Images(train.table.take(np.sort(np.concatenate(chosen)))))


def _distinct(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of one class, sorted by content, without copies of the same content."""
    _, first = np.unique(ids[rows], return_index=True)
    return rows[first]
