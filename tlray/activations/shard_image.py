"""A shard's file as it will be written, filled row by row: a device copies its results straight to their place in it.

image = ShardImage("float16", num_rows=512, shapes=[(512,)], device=device)
image.values[0][0:128].copy_(features, non_blocking=True)
store.write_image(key, content_ids, image.data, image.shapes, run=run)
"""

from collections.abc import Sequence

import torch

from tlray.activations.shard import header_of
from tlray.data.to_device import host_tensor


class ShardImage:
    """`shard.serialise`'s bytes, in memory of the host that a GPU copies into without a detour."""

    def __init__(self, dtype: str, num_rows: int, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self.shapes = tuple(shapes)
        header, ends = header_of(dtype, [(num_rows, *shape) for shape in shapes])
        self._bytes = host_tensor((len(header) + ends[-1],), torch.uint8, device)
        self._bytes[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        begins = [len(header) + end for end in (0, *ends[:-1])]
        self.values = tuple(
            self._bytes[begin : len(header) + end].view(getattr(torch, dtype)).view(num_rows, *shape)
            for begin, end, shape in zip(begins, ends, shapes, strict=True)
        )

    @property
    def data(self) -> memoryview:
        """The whole file."""
        return self._bytes.numpy().data
