"""What a trial is told about the process it runs in, and what it tells back each epoch. Imports torch only.

The training loop never asks Ray for its rank or device; whoever starts the trial passes a Worker and a Report.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One finished epoch; fractions in [0, 1], losses in nats per image, `lr` the head's rate at its end."""

    epoch: int  # 1-based
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_top5_accuracy: float
    val_macro_f1: float
    lr: float
    seconds: float
    images_per_second: float  # training images, over all workers of the trial


Report = Callable[[EpochMetrics], None]


CPU = torch.device("cpu")


def _same_module(model: nn.Module) -> nn.Module:
    return model


def _same_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One of the `world_size` processes that train a trial together; the default is a single process."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    wrap: Callable[[nn.Module], nn.Module] = _same_module  # averages gradients over the workers (DDP)
    sum_across: Callable[[torch.Tensor], torch.Tensor] = _same_tensor  # sum of a tensor over the workers

    @property
    def leads(self) -> bool:
        """Whether this worker writes what the trial keeps."""
        return self.rank == 0


def local_worker() -> Worker:
    """A single process on the first GPU, or on the CPU where there is none."""
    return Worker(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
