"""What trials train and evaluate on: batches, and streams of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from tlray.catalogue import Preprocessing


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
