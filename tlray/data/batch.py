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
class HeldEpoch:
    """An epoch whose rows all lie on the device: batch after batch, of `sizes`, takes the next of `order`."""

    values: tuple[torch.Tensor, ...]  # each (N, ...), of all draws; four-dimensional ones (N, H, W, C), see `at`
    labels: torch.Tensor  # (N,) int64
    order: torch.Tensor  # (num_train,) int64, rows of them
    sizes: tuple[int, ...]

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Some rows as a batch's inputs, images channels last."""
        return tuple(rows_of(value, rows) for value in self.values)


def rows_of(value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(N, ...) -> (B, ...); (N, H, W, C), as images are held, -> (B, C, H, W), channels last as convolutions want."""
    chosen = value.index_select(0, rows)
    return chosen.permute(0, 3, 1, 2) if chosen.ndim == 4 else chosen


def _not_held(epoch: int) -> HeldEpoch | None:
    return None


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
    held: Callable[[int], HeldEpoch | None] = _not_held  # an epoch of `train` where the device holds it, else None
