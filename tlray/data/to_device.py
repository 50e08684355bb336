"""From the host to the device, ahead of the model: batches in pinned memory, copied on a stream of their own.

    batch = host_tensor((32, 3, 224, 224), torch.uint8, device, torch.channels_last)     # filled by decoding threads
    for batch in on_device(streams.train(epoch), device): ...                             # the same batches, there

Where the device is the CPU all of this does nothing. Pinned memory comes from torch's own pool, which hands a buffer
out again only when the copies from it are done: that is the ring.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from tlray.data.batch import Batch

COPIED_AHEAD = 2  # batches on the device beside the one that the model works on


def host_tensor(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """Uninitialised memory of the host, pinned where it is to be copied to a GPU, or from one."""
    pinned = device.type == "cuda"
    return torch.empty(shape, dtype=dtype, memory_format=memory_format, pin_memory=pinned)


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches in the same order with inputs and labels on the device; `rows` stay on the host."""
    copied = _copied(batches, device) if device.type == "cuda" else iter(batches)
    try:
        yield from copied
    finally:
        for iterator in (copied, batches):
            if isinstance(iterator, Generator):
                iterator.close()


@dataclass(frozen=True)
class _Copy:
    batch: Batch  # on the device once `done`
    done: torch.cuda.Event


def _copied(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    stream = torch.cuda.Stream(device)
    remaining = iter(batches)
    pending: deque[_Copy] = deque()
    while True:
        while len(pending) <= COPIED_AHEAD and (batch := next(remaining, None)) is not None:
            if batch.labels.is_cuda:  # held on the device
                yield batch
            else:
                pending.append(_copy(batch, device, stream))
        if not pending:
            return
        copy = pending.popleft()
        model = torch.cuda.current_stream(device)
        model.wait_event(copy.done)
        for tensor in (*copy.batch.inputs, copy.batch.labels):
            tensor.record_stream(model)  # its memory is not given away while the model may read it
        yield copy.batch


def _copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> _Copy:
    with torch.cuda.stream(stream):
        inputs = tuple(_pinned(tensor).to(device, non_blocking=True) for tensor in batch.inputs)
        labels = _pinned(batch.labels).to(device, non_blocking=True)
        done = torch.cuda.Event()
        done.record(stream)
    return _Copy(replace(batch, inputs=inputs, labels=labels), done)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """What was not made with `host_tensor`, labels for one, or pixels of Ray Data's, is copied once more."""
    return tensor if tensor.is_cuda or tensor.is_pinned() or tensor.numel() == 0 else tensor.pin_memory()
