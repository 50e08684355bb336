"""Rows of stored activations in any order, out of memory maps that all processes of a node share.

    reader = store.reader(key, content_ids)
    (features,) = reader.read(np.array([3, 1, 4]))          # (3, 512) float16, a copy

What is read is copied once, into the batch. Nothing else stays resident, however large the store (see shard.py).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from tlray.activations.errors import ActivationError
from tlray.activations.index import ActivationIndex, Shard
from tlray.activations.shard import MAPS, ShardMap

if TYPE_CHECKING:
    import torch

OPENED_AT_ONCE = 8  # shards that one read opens side by side: on a remote store each may be a download


class ActivationReader:
    """The activations of some images for one key. Threads may share it."""

    def __init__(
        self,
        index: ActivationIndex,
        content_ids: Sequence[str],
        path_of: Callable[[Shard], str],
        opened: Callable[[Shard], ShardMap],
    ) -> None:
        """path_of: the local file of a shard, opened: its map; ActivationError when the index lacks an image."""
        places, rows = index.locate(content_ids)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            raise ActivationError(
                f"{len(missing)} of {len(content_ids)} images have no stored activations, the first is "
                f"{content_ids[missing[0]]}; `tlray resume` computes what is missing"
            )
        used, shard_of = np.unique(places, return_inverse=True)
        self._shard_of, self._row_of = shard_of.astype(np.int32), rows
        self._shards = [index.entries[place].without_images() for place in used.tolist()]
        self._paths = [path_of(shard) for shard in self._shards]
        self._opened = opened
        self._closed = False
        some = index.entries[0] if index.entries else None
        self.shapes: tuple[tuple[int, ...], ...] = some.shapes if some else ()  # of each value, without the batch
        self.dtype: str | None = some.dtype if some else None  # float16 or float32; None where nothing is stored
        self._dtype = np.dtype(self.dtype)
        self._row_bytes = sum(int(np.prod(shape)) for shape in self.shapes) * self._dtype.itemsize

    def __len__(self) -> int:
        return len(self._row_of)

    def read(self, positions: np.ndarray, device: "torch.device | None" = None) -> "tuple[torch.Tensor, ...]":
        """A copy of each value (B, ...) in the stored dtype; positions (B,) int index the content ids.

        In memory of the host, pinned where it is to go to a GPU, the `device`.

        DamagedShardError when a shard is no longer what was written; it is then missing in the store.
        """
        import torch

        from tlray.data.to_device import host_tensor

        assert not self._closed, "this reader is closed"
        positions = np.asarray(positions)
        dtype, where = getattr(torch, self.dtype or "float32"), device or torch.device("cpu")
        tensors = tuple(host_tensor((len(positions), *shape), dtype, where) for shape in self.shapes)
        batch = [tensor.numpy() for tensor in tensors]
        shard_of, row_of = self._shard_of[positions], self._row_of[positions]
        if len(positions) and (shard_of == shard_of[0]).all():
            mapped = self._map(int(shard_of[0]))
            for values, out in zip(mapped.values, batch, strict=True):
                np.take(values, row_of, axis=0, out=out, mode="clip")  # other modes gather into a buffer first
            MAPS.touch(self._paths[shard_of[0]], len(positions), self._row_bytes)
        else:
            self._gather(shard_of, row_of, batch)
        return tensors

    def close(self) -> None:
        """Let go of the maps; the reader cannot be used any more."""
        self._closed = True
        MAPS.drop(self._paths)

    def _gather(self, shard_of: np.ndarray, row_of: np.ndarray, batch: list[np.ndarray]) -> None:
        """Fill the batch shard by shard."""
        order = np.argsort(shard_of, kind="stable")
        bounds = np.flatnonzero(np.diff(shard_of[order], prepend=-1, append=len(self._shards))).tolist()
        groups = [order[start:end] for start, end in pairwise(bounds)]
        numbers = shard_of[[group[0] for group in groups]].tolist()
        for number, mapped, where in zip(numbers, self._maps(numbers), groups, strict=True):
            rows = row_of[where]
            for values, out in zip(mapped.values, batch, strict=True):
                if len(where) == 1:  # the usual case for a shuffled batch, and twice as fast
                    out[where[0]] = values[rows[0]]
                else:
                    out[where] = values[rows]
            MAPS.touch(self._paths[number], len(where), self._row_bytes)

    def _maps(self, numbers: Sequence[int]) -> Iterator[ShardMap]:
        """The maps of some shards one after the other, those that are not open yet opened a few ahead."""
        remaining = iter(numbers)
        while some := list(islice(remaining, OPENED_AT_ONCE)):
            if sum(not MAPS.holds(self._paths[number]) for number in some) < 2:
                yield from map(self._map, some)
            else:
                with ThreadPoolExecutor(len(some), thread_name_prefix="tlray-shards") as pool:
                    yield from pool.map(self._map, some)

    def _map(self, number: int) -> ShardMap:
        return MAPS.get(self._paths[number], lambda: self._opened(self._shards[number]))
