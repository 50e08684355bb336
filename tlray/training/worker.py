"""What a trial is told about the process it runs in. Imports torch only.

The training loop never asks Ray for its rank or device; whoever starts the trial passes a Worker.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tlray.process.device import CPU, given_device


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


def local_worker(gpus_per_worker: float | str | None = None) -> Worker:
    """A single process on the GPU that it was given, or on the CPU where there is none or the user wants none."""
    return Worker(device=given_device(gpus_per_worker))
