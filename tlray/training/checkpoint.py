"""A trial's folder: checkpoints, learning curve and how far it got, so that any kill costs one epoch at most.

    trials/<trial_id>/epoch-0003.safetensors   what training has changed, and the optimizer's state
                      history.jsonl            one row an epoch
                      progress.json            written last; names checkpoints with their sha256: the last, the one
                                               before it, and the best

A checkpoint is one object, so it is there whole or not at all; progress.json is replaced only after it. One that is
damaged later is known by its checksum, and the trial goes on from the one before. Frozen tensors are not stored: their
hash is, and a resumed trial whose frozen weights hash differently refuses to go on.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from tlray import storage
from tlray.errors import DamagedError, TrialError
from tlray.runs.notes import leave_note
from tlray.runs.trials import TRAIN_AGAIN
from tlray.storage.sealed import is_whole, read_checked, write_checked
from tlray.training.record import PROGRESS, Progress, load_progress, save_history, save_progress

MODEL, OPTIMIZER = "model/", "optimizer/"
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # of safetensors


class TrialFolder:
    """Reads and writes one trial's folder; `uri` is local or s3://."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def checkpoint_uri(self, epoch: int) -> str:
        return storage.join(self.uri, checkpoint_name(epoch))

    def load_progress(self) -> Progress:
        """The recorded progress, or a fresh one where the trial has not finished an epoch yet."""
        return load_progress(self.uri)

    def save(self, progress: Progress, tensors: dict[str, torch.Tensor], frozen_hash: str) -> None:
        """Commit an epoch: its checkpoint, then the curve, then the progress; then drop what nothing names."""
        files = {checkpoint_name(progress.epoch): self._write(progress.epoch, tensors, frozen_hash)}
        save_history(self.uri, progress)
        self.commit(progress, files)

    def save_best(self, progress: Progress, tensors: dict[str, torch.Tensor], frozen_hash: str) -> str:
        """Commit a training that has ended, with the checkpoint of its best epoch alone -> the checkpoint's sha256."""
        checksum = self._write(progress.best_epoch, tensors, frozen_hash)
        save_history(self.uri, progress)
        save_progress(self.uri, replace(progress, files={checkpoint_name(progress.best_epoch): checksum}, before=None))
        return checksum

    def commit(self, progress: Progress, files: dict[str, str]) -> None:
        """Write the progress that goes on from `files`, sha256 by name; then delete what it and the one before it do
        not need any more: the best epoch's checkpoint stays.

        The one before is that of the last whole epoch, also for checkpoints inside an epoch.
        """
        earlier = self.load_progress()
        best = checkpoint_name(progress.best_epoch)
        kept = {best: earlier.files[best]} if best in earlier.files else {}
        epoch_before = earlier.before if earlier.step else earlier
        before = replace(epoch_before, before=None) if epoch_before is not None and epoch_before.files else None
        now = replace(progress, files={**kept, **files}, before=before)
        save_progress(self.uri, now)
        for name in _names(earlier) - _names(now):
            storage.delete(storage.join(self.uri, name))

    def go_back(self) -> None:
        """Make the progress one whose checkpoints are whole: the last, else the one before, else none at all.

        Where it is not the last, a note of the run says so.
        """
        try:
            last = self.load_progress()
        except DamagedError:
            self._begin_anew(f"{PROGRESS} is damaged")
            return
        self._remove_left_over(last)
        damaged = self._damaged(last)
        if not damaged:
            return
        reason = f"{', '.join(damaged)} is damaged or missing"
        if last.before is None or self._damaged(last.before):
            self._begin_anew(reason)
            return
        save_history(self.uri, last.before)
        save_progress(self.uri, last.before)
        place = f"epoch {last.before.epoch}" + (f", step {last.before.step}" if last.before.step else "")
        self._note(f"{reason}; the trial goes on from {place}")

    def load_tensors(self, progress: Progress, epoch: int, frozen_hash: str) -> dict[str, torch.Tensor]:
        """The tensors of one epoch's checkpoint; TrialError when it was made over other frozen weights."""
        name = checkpoint_name(epoch)
        return read_tensors(storage.join(self.uri, name), progress.files.get(name, ""), frozen_hash)

    def _write(self, epoch: int, tensors: dict[str, torch.Tensor], frozen_hash: str) -> str:
        return write_tensors(self.checkpoint_uri(epoch), tensors, frozen_hash, epoch=str(epoch))

    def _remove_left_over(self, progress: Progress) -> None:
        """Delete checkpoints that a kill left between the progress that named them and their deletion."""
        named = _names(progress)
        if named:
            for info in list(storage.list_files(self.uri)):
                if info.uri.endswith(".safetensors") and info.uri.rpartition("/")[2] not in named:
                    storage.delete(info.uri)

    def _damaged(self, progress: Progress) -> list[str]:
        return [name for name, sha in progress.files.items() if not is_whole(storage.join(self.uri, name), sha)]

    def _begin_anew(self, reason: str) -> None:
        storage.delete(storage.join(self.uri, PROGRESS))
        self._note(f"{reason}; the trial starts again")

    def _note(self, text: str) -> None:
        run_uri, trials, trial_id = self.uri.rsplit("/", 2)
        leave_note(run_uri, f"{trials}/{trial_id}: {text}")


def checkpoint_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}.safetensors"


def write_tensors(uri: str, tensors: dict[str, torch.Tensor], frozen_hash: str, **about: str) -> str:
    """One checkpoint as one object -> its sha256; `frozen_hash` is of the weights that it was trained over."""
    return write_checked(uri, file_of(tensors, {"frozen_hash": frozen_hash, **about}))


def read_tensors(uri: str, checksum: str, frozen_hash: str) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote; DamagedError when it is not, TrialError when it is of other frozen weights."""
    try:
        data = read_checked(uri, checksum, TRAIN_AGAIN)
    except storage.NotFoundError:
        raise DamagedError(f"{uri} is missing: {TRAIN_AGAIN}") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if header["__metadata__"]["frozen_hash"] != frozen_hash:
        raise TrialError(
            f"{uri} was trained over other frozen weights than the backbone has now; "
            "restore the weights that the run started with, or start a new run"
        )
    return load_safetensors(data)


def _names(progress: Progress) -> set[str]:
    """The files that a progress and the one before it go on from."""
    return {*progress.files, *(progress.before.files if progress.before is not None else ())}


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """Copies on the CPU of all that `state_of` names."""
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_of(model, optimizer, keys).items()
    }


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """The model's tensors named by `keys` and the optimizer's state as one flat dictionary, where they are."""
    state = model.state_dict()
    tensors = {MODEL + key: state[key] for key in keys}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if value is not None:
                tensors[f"{OPTIMIZER}{index}/{name}"] = torch.as_tensor(value)
    return tensors


def unpack_model(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's tensors into the model, in place."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(MODEL):
                state[name.removeprefix(MODEL)].copy_(tensor)


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's state into an optimizer that was made over the same parameters.

    Moments lie in memory like their parameters, channels last for one: a fused optimizer takes them in no other way.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split("/", 1)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor).detach()
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def file_of(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> memoryview:
    """The tensors, on the CPU, as a safetensors file.

    The library's own `save` keeps every other thread of Python waiting while it copies: of a ViT's gigabyte for half a
    second, in which nobody asks the GPU for more. torch copies without that.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    front = len(text).to_bytes(8, "little") + text
    data = torch.empty(len(front) + end, dtype=torch.uint8)
    data[: len(front)] = torch.frombuffer(bytearray(front), dtype=torch.uint8)
    place = len(front)
    for tensor in tensors.values():
        flat = tensor.contiguous().flatten().view(torch.uint8)
        data[place : place + tensor.nbytes] = flat
        place += tensor.nbytes
    return data.numpy().data
