"""One backbone's forwards over a chunk: its frozen prefix, and the shards that come of it.

    one = PrefixPass(wanted, keys, num_rows, num_classes, device, out)
    one.forward(pixels)                                # batch after batch
    futures = one.commit(store, content_ids, run, writers)

On a GPU a batch's activations are made half precision and checked there, then copied into the shard's own file in
pinned memory on the stream `out`. Threads hash and write it once the copies are done. On a CPU copies are done at once.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import nn

from tlray.activations.chunks import BACKBONES_AT_ONCE, Wanted
from tlray.activations.keys import ActivationKey
from tlray.activations.shard_image import ShardImage
from tlray.activations.store import ActivationStore, not_finite
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.data.to_device import host_tensor
from tlray.data.transforms import normalise
from tlray.errors import DataError
from tlray.models.backbone import build_backbone
from tlray.models.fold import folded
from tlray.models.freeze import frozen_keys, hash_tensors
from tlray.models.split import find_cut, frozen_prefix
from tlray.process.device import arithmetic, autocast

DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass
class _Shard:
    """What is collected for one key."""

    key: ActivationKey
    finite: torch.Tensor  # () bool on the device
    image: ShardImage | None = field(default=None)  # from the first batch on, which tells the shapes


class PrefixPass:
    """The forwards of one chunk, and their results as files."""

    def __init__(
        self,
        wanted: Wanted,
        keys: Sequence[ActivationKey],
        num_rows: int,
        num_classes: int,
        device: torch.device,
        out: torch.cuda.Stream | None,
    ) -> None:
        self.wanted = wanted
        self._num_rows, self._device, self._out = num_rows, device, out
        self._end = 0  # rows done
        self._preprocessing = Preprocessing.from_dict(json.loads(keys[0].preprocessing))
        cuts = tuple((key.num_frozen, key.weights_hash) for key in keys)
        self._prefix = _load_prefix(wanted.backbone.model_dump_json(), wanted.seed, cuts, num_classes, device)
        self._shards = [_Shard(key, torch.ones((), dtype=torch.bool, device=device)) for key in keys]

    def forward(self, images: torch.Tensor) -> None:
        """images (B, 3, H, W) uint8 on the device."""
        inputs = normalise(images, self._preprocessing).contiguous(memory_format=torch.channels_last)
        precision = self._shards[0].key.precision
        with torch.inference_mode(), arithmetic(self._device, precision), autocast(self._device, precision):
            cuts = self._prefix(inputs)
            for shard, values in zip(self._shards, cuts, strict=True):
                stored = [value.to(DTYPES[shard.key.dtype]).contiguous() for value in values]
                for value in stored:
                    shard.finite = shard.finite & value.isfinite().all()
                self._collect(shard, stored)
        self._end += len(images)

    def commit(
        self, store: ActivationStore, content_ids: Sequence[str], run: str, writers: ThreadPoolExecutor
    ) -> list[Future[bool]]:
        """Have the shards written behind what comes next; a future raises what went wrong with its shard."""
        flags = [self._to_host(shard.finite) for shard in self._shards]
        done = None
        if self._out is not None:
            done = torch.cuda.Event()
            done.record(self._out)

        def write(shard: _Shard, finite: torch.Tensor) -> bool:
            if done is not None:
                done.synchronize()
            if not finite:
                raise not_finite(shard.key)
            assert shard.image is not None, "a chunk has images"
            return store.write_image(shard.key, content_ids, shard.image.data, shard.image.shapes, run=run)

        return [writers.submit(write, shard, finite) for shard, finite in zip(self._shards, flags, strict=True)]

    def _collect(self, shard: _Shard, values: Sequence[torch.Tensor]) -> None:
        if shard.image is None:
            shapes = [tuple(value.shape[1:]) for value in values]
            shard.image = ShardImage(shard.key.dtype, self._num_rows, shapes, self._device)
        for value, rows in zip(values, shard.image.values, strict=True):
            self._copy(value, rows[self._end : self._end + len(value)])

    def _to_host(self, value: torch.Tensor) -> torch.Tensor:
        place = host_tensor(tuple(value.shape), value.dtype, self._device)
        self._copy(value, place)
        return place

    def _copy(self, value: torch.Tensor, place: torch.Tensor) -> None:
        """Into the host's memory, on the stream for results where there is one."""
        if self._out is None:
            place.copy_(value)
            return
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            place.copy_(value, non_blocking=True)
        value.record_stream(self._out)


@lru_cache(maxsize=2 * BACKBONES_AT_ONCE)
def _load_prefix(
    config: str, seed: int, cuts: tuple[tuple[int, str], ...], num_classes: int, device: torch.device
) -> nn.Module:
    """The frozen prefix with an output for each of `cuts`, which are (frozen blocks, hash of their weights)."""
    backbone = build_backbone(BackboneConfig.model_validate_json(config), num_classes, seed=seed)
    for num_frozen, weights_hash in cuts:
        names = frozen_keys(backbone, len(backbone.blocks) - num_frozen)
        if hash_tensors(backbone.model, names) != weights_hash:
            raise DataError(f"{backbone.id}: its weights have changed since the run was planned; start a new run")
    prefix = frozen_prefix(backbone, [find_cut(backbone, num_frozen) for num_frozen, _ in cuts])
    return folded(prefix).to(device)
