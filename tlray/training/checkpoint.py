"""A trial's folder: checkpoints, learning curve and how far it got, so that any kill costs one epoch at most.

    trials/<trial_id>/epoch-0003.safetensors   what training has changed, and the optimizer's state
                      history.jsonl            one row an epoch
                      progress.json            written last; names the last and the best checkpoint

A checkpoint is one object, so it is there whole or not at all; progress.json is replaced only after it. Frozen
tensors are not stored: their hash is, and a resumed trial whose frozen weights hash differently refuses to go on.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from tlray import storage
from tlray.errors import TrialError
from tlray.training.record import Progress, load_progress

MODEL, OPTIMIZER = "model/", "optimizer/"


class TrialFolder:
    """Reads and writes one trial's folder; `uri` is local or s3://."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def checkpoint_uri(self, epoch: int) -> str:
        return storage.join(self.uri, f"epoch-{epoch:04d}.safetensors")

    def load_progress(self) -> Progress:
        """The recorded progress, or a fresh one where the trial has not finished an epoch yet."""
        return load_progress(self.uri)

    def save(self, progress: Progress, tensors: dict[str, torch.Tensor], frozen_hash: str) -> Progress:
        """Commit an epoch: its checkpoint, then the curve, then the progress; then drop what nothing names.

        Returns the progress that this one replaces.
        """
        return self._commit(progress, progress.epoch, tensors, frozen_hash)

    def save_best(self, progress: Progress, tensors: dict[str, torch.Tensor], frozen_hash: str) -> None:
        """Commit a training that has ended, with the checkpoint of its best epoch alone."""
        self._commit(progress, progress.best_epoch, tensors, frozen_hash)

    def _commit(self, progress: Progress, epoch: int, tensors: dict[str, torch.Tensor], frozen_hash: str) -> Progress:
        before = self.load_progress()
        write_tensors(self.checkpoint_uri(epoch), tensors, frozen_hash, epoch=str(epoch))
        self.save_history(progress)
        self.save_progress(progress)
        for old in {before.epoch, before.best_epoch} - {0, epoch, progress.best_epoch}:
            storage.delete(self.checkpoint_uri(old))
        return before

    def save_progress(self, progress: Progress) -> None:
        storage.write_text(storage.join(self.uri, "progress.json"), json.dumps(asdict(progress), indent=1))

    def save_history(self, progress: Progress) -> None:
        rows = "".join(json.dumps(asdict(row)) + "\n" for row in progress.history)
        storage.write_text(storage.join(self.uri, "history.jsonl"), rows)

    def load_tensors(self, epoch: int, frozen_hash: str) -> dict[str, torch.Tensor]:
        """The tensors of one epoch's checkpoint; TrialError when it was made over other frozen weights."""
        return read_tensors(self.checkpoint_uri(epoch), frozen_hash)


def write_tensors(uri: str, tensors: dict[str, torch.Tensor], frozen_hash: str, **about: str) -> None:
    """One checkpoint as one object; `frozen_hash` is of the weights that it was trained over."""
    storage.write_bytes(uri, save_safetensors(tensors, metadata={"frozen_hash": frozen_hash, **about}))


def read_tensors(uri: str, frozen_hash: str) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote; TrialError when it was trained over other frozen weights."""
    data = storage.read_bytes(uri)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if header["__metadata__"]["frozen_hash"] != frozen_hash:
        raise TrialError(
            f"{uri} was trained over other frozen weights than the backbone has now; "
            "restore the weights that the run started with, or start a new run"
        )
    return load_safetensors(data)


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """The model's tensors named by `keys` and the optimizer's state as one flat dictionary on the CPU."""
    state = model.state_dict()
    tensors = {MODEL + key: state[key] for key in keys}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if value is not None:
                tensors[f"{OPTIMIZER}{index}/{name}"] = torch.as_tensor(value)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def unpack_model(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's tensors into the model, in place."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(MODEL):
                state[name.removeprefix(MODEL)].copy_(tensor)


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's state into an optimizer that was made over the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split("/", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
