"""Which split an image belongs to: decided by its contents and `data.split_seed`, whatever else the data set holds.

    codes = place(content_ids, split_seed=0, test_fraction=0.15, val_fraction=0.15)

Every content has a fixed number u in [0, 1): below test_fraction it is tested on, below test_fraction + val_fraction
validated, else trained on. So an image that is added or removed moves no other one, copies of one image stay together,
and a retraining with another training seed does not train on what was tested on before. The price: fractions are
kept on average only, and a class of few images may have none in a split, which `check_counts` reports.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from tlray.config import DataConfig
from tlray.data.images import SPLITS
from tlray.errors import DataError

TEST, TRAIN, VAL = (SPLITS.index(name) for name in ("test", "train", "val"))
FEW_IMAGES = 5  # of a class in a split; fewer say little about it
NUM_NAMED = 10  # classes in a note


def position(split_seed: int, content_id: str) -> float:
    """The number u in [0, 1) of a content, whose id is a hexadecimal sha256."""
    digest = hashlib.sha256(f"{split_seed}/{content_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def place(content_ids: np.ndarray, *, split_seed: int, test_fraction: float, val_fraction: float) -> np.ndarray:
    """(N, 32) uint8 -> (N,) int8, the code of each one's split."""
    ids = (row.tobytes().hex() for row in content_ids)
    numbers = np.fromiter((position(split_seed, content_id) for content_id in ids), np.float64, len(content_ids))
    codes = np.full(len(content_ids), TRAIN, dtype=np.int8)
    codes[numbers < test_fraction + val_fraction] = VAL
    codes[numbers < test_fraction] = TEST
    return codes


def check_counts(classes: Sequence[str], counts: np.ndarray, data: DataConfig) -> tuple[str, ...]:
    """Different images of each class and split, (num_classes, 3) by code -> notes on those with few.

    DataError where val or test would be empty, or a class would have nothing to train on.
    """
    remedy = f"data.split_seed={data.split_seed}"
    for code in (VAL, TEST):
        if counts[:, code].sum() == 0:
            raise DataError(_empty_split(SPLITS[code], data, remedy))
    for label, name in enumerate(classes):
        if counts[label, TRAIN] == 0:
            raise DataError(
                f"data.train: class {name!r} has {counts[label].sum()} different readable images, none of them in "
                f"train ({remedy}): add images, try another data.split_seed, or leave the class out with data.exclude"
            )
    return tuple(note for code in (TRAIN, VAL, TEST) if (note := _few(SPLITS[code], classes, counts[:, code])))


def _empty_split(split: str, data: DataConfig, remedy: str) -> str:
    if getattr(data, split) is not None:
        return f"data.{split}: {getattr(data, split)} holds no readable image"
    fraction = f"data.{split}_fraction={getattr(data, f'{split}_fraction'):g}"
    return (
        f"data.train: none of its images falls to {split} ({fraction}, {remedy}): add images, "
        f"name data.{split}, or try a larger fraction or another data.split_seed"
    )


def _few(split: str, classes: Sequence[str], counts: np.ndarray) -> str:
    labels = np.flatnonzero(counts < FEW_IMAGES)
    if not len(labels):
        return ""
    named = ", ".join(f"{classes[label]!r} ({counts[label]})" for label in labels[:NUM_NAMED])
    more = f" and {len(labels) - NUM_NAMED} more" if len(labels) > NUM_NAMED else ""
    which = "class has" if len(labels) == 1 else "classes have"
    return f"{split}: {len(labels)} {which} fewer than {FEW_IMAGES} different images: {named}{more}"
