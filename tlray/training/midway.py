"""Checkpoints inside an epoch, for epochs that take long: a kill then costs `checkpoint_steps` batches at most.

    epoch-0004-step-000500-worker-0.safetensors   what training has changed, and where this worker was

Every worker writes a file, because each has its own random numbers, share of the loss and, until the epoch ends, its
own BatchNorm statistics. Only when all have written does the trial's progress name the step.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from tlray import storage
from tlray.training.checkpoint import (
    TrialFolder,
    pack,
    read_tensors,
    unpack_model,
    unpack_optimizer,
    write_tensors,
)
from tlray.training.record import Progress
from tlray.training.worker import Worker

BUFFER, LOSS, RANDOM, RANDOM_GPU = "worker/buffer/", "worker/loss_sum", "worker/random", "worker/random_gpu"


@dataclass(frozen=True)
class MidwayFolder:
    """One worker's view of a trial's checkpoints inside epochs."""

    folder: TrialFolder
    worker: Worker
    frozen_hash: str

    def save(
        self,
        progress: Progress,
        loss_sum: torch.Tensor,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        changing_keys: tuple[str, ...],
    ) -> None:
        """Keep where this worker is after batch `progress.step` of the epoch that follows `progress.epoch`."""
        changing = set(changing_keys)
        tensors = pack(model, optimizer, changing_keys) if self.worker.leads else {}
        tensors |= {
            BUFFER + name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if name in changing
        }
        tensors |= {LOSS: loss_sum.detach().cpu().clone(), RANDOM: torch.get_rng_state()}
        if self.worker.device.type == "cuda":
            tensors[RANDOM_GPU] = torch.cuda.get_rng_state(self.worker.device)
        checksum = write_tensors(self._uri(progress, self.worker.rank), tensors, self.frozen_hash)
        checksums = torch.zeros(self.worker.world_size, len(checksum) // 2, dtype=torch.int64)
        checksums[self.worker.rank] = torch.tensor(list(bytes.fromhex(checksum)))
        checksums = self.worker.sum_across(checksums)  # all have written
        if self.worker.leads:
            rows = enumerate(checksums.tolist())
            self.folder.commit(progress, {_name(progress, rank): bytes(row).hex() for rank, row in rows})

    def load(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The model and the optimizer as they were; before the model is wrapped for several workers."""
        tensors = self._read(progress, 0)
        unpack_model(model, tensors)
        unpack_optimizer(optimizer, tensors)

    def restore_worker(self, progress: Progress, model: nn.Module) -> torch.Tensor:
        """This worker's BatchNorm statistics and random numbers -> its sum of losses so far."""
        tensors = self._read(progress, self.worker.rank)
        buffers = dict(model.named_buffers())
        for name, tensor in tensors.items():
            if name.startswith(BUFFER):
                buffers[name.removeprefix(BUFFER)].copy_(tensor)
        torch.set_rng_state(tensors[RANDOM])
        if RANDOM_GPU in tensors:
            torch.cuda.set_rng_state(tensors[RANDOM_GPU], self.worker.device)
        return tensors[LOSS].to(self.worker.device)

    def _read(self, progress: Progress, rank: int) -> dict[str, torch.Tensor]:
        checksum = progress.files.get(_name(progress, rank), "")
        return read_tensors(self._uri(progress, rank), checksum, self.frozen_hash)

    def _uri(self, progress: Progress, rank: int) -> str:
        return storage.join(self.folder.uri, _name(progress, rank))


def _name(progress: Progress, rank: int) -> str:
    return f"epoch-{progress.epoch + 1:04d}-step-{progress.step:06d}-worker-{rank}.safetensors"


def at_step(progress: Progress, step: int, seconds: float, scaler: torch.amp.GradScaler | None) -> Progress:
    """The progress of a trial that has trained `step` batches of its next epoch, in `seconds`."""
    state = progress.scaler if scaler is None else scaler.state_dict()
    return replace(progress, step=step, seconds=progress.seconds + seconds, scaler=state)
