"""Activations that fit stay on the device: read once, then batches are picked there, without the host.

    held = hold(readers, labels, device)                 # all draws of a split, one behind the other
    for batch in held_batches(held, steps, num_global): ...

A GPU reads its own memory a hundred times as fast as the host can gather rows for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tlray.activations.store import ActivationReader
from tlray.data.batch import Batch, rows_of
from tlray.data.parallel import ordered_map

SHARE = 0.4  # of a GPU's free memory, for what is held on it
ROWS_AT_ONCE = 512
READERS = 4  # threads; a single one copies rows at a twentieth of what the bus takes


@dataclass(frozen=True)
class Held:
    """Rows of a split on the device: D draws of N images are D x N rows."""

    values: tuple[torch.Tensor, ...]  # each (D x N, ...), four-dimensional ones (D x N, H, W, C)
    labels: torch.Tensor  # (D x N,) int64


def room_on(device: torch.device) -> int:
    """Bytes that may be held there; none on a CPU, whose page cache holds the files."""
    return int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def hold(readers: Sequence[ActivationReader], labels: np.ndarray, device: torch.device) -> Held:
    """Read everything, through pinned memory. The readers are of the same images, one for each draw."""
    num_rows, first = len(labels), readers[0]
    dtype = getattr(torch, first.dtype or "float32")
    shapes = [(shape[1], shape[2], shape[0]) if len(shape) == 3 else shape for shape in first.shapes]
    values = tuple(torch.empty((len(readers) * num_rows, *shape), dtype=dtype, device=device) for shape in shapes)
    parts = [
        (draw, np.arange(start, min(num_rows, start + ROWS_AT_ONCE)))
        for draw in range(len(readers))
        for start in range(0, num_rows, ROWS_AT_ONCE)
    ]
    read = ordered_map(partial(_read, readers, device), parts, num_threads=READERS, ahead=2 * READERS)
    for (draw, rows), tensors in zip(parts, read, strict=True):
        begin = draw * num_rows + int(rows[0])
        for value, tensor in zip(values, tensors, strict=True):
            there = tensor.to(device, non_blocking=True)
            value[begin : begin + len(rows)] = there.permute(0, 2, 3, 1) if there.ndim == 4 else there
    of_each = torch.tensor(labels, dtype=torch.int64).repeat(len(readers)).to(device)
    return Held(values, of_each)


def held_batches(held: Held, steps: Sequence[np.ndarray], num_global: Sequence[int], first: int = 0) -> Iterator[Batch]:
    """One batch for each step; `first` is the row of the first image of the draw."""
    order = upload_order(held, steps, first)
    end = 0
    for rows, count in zip(steps, num_global, strict=True):
        begin, end = end, end + len(rows)
        chosen = order[begin:end]
        inputs = tuple(rows_of(value, chosen) for value in held.values)
        labels = held.labels.index_select(0, chosen)
        yield Batch(inputs, labels, torch.as_tensor(rows, dtype=torch.int64), count)


def upload_order(held: Held, steps: Sequence[np.ndarray], first: int = 0) -> torch.Tensor:
    """All rows of the steps, one behind the other, on the device: one copy for a whole epoch."""
    rows = np.concatenate([*steps, np.empty(0, dtype=np.int64)]).astype(np.int64)
    return torch.from_numpy(rows + first).to(held.labels.device)


def _read(
    readers: Sequence[ActivationReader], device: torch.device, part: tuple[int, np.ndarray]
) -> tuple[torch.Tensor, ...]:
    draw, rows = part
    return readers[draw].read(rows, device)
