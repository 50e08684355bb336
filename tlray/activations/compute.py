"""The activation pass over one chunk of images: decoded once, pushed through every frozen prefix that wants them.

    outcome = compute_chunk(chunk, images, store, num_classes=2, run=run_id, device=device, num_threads=2)

All cuts of a backbone come out of one forward. A shard is committed as soon as its chunk has been through, and a chunk
that is begun again after a kill computes only what no shard holds. Plain PyTorch: the caller decides where it runs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from torch import nn

from tlray.activations.chunks import BACKBONES_AT_ONCE, Chunk, ChunkOutcome, Draw, Wanted
from tlray.activations.keys import ActivationKey
from tlray.activations.store import ActivationStore
from tlray.backbone import build_backbone
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.data.images import Image
from tlray.data.loader import load_draws
from tlray.data.read import Read, read_original
from tlray.data.transforms import normalise
from tlray.errors import DataError, TlrayError, UnreachableError
from tlray.fold import folded
from tlray.freeze import frozen_keys, hash_tensors
from tlray.split import find_cut, frozen_prefix

BATCH_SIZE = {"cpu": 16, "cuda": 128}
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def compute_chunk(
    chunk: Chunk,
    images: Mapping[str, Image],
    store: ActivationStore,
    *,
    num_classes: int,
    run: str,
    device: torch.device,
    num_threads: int,
    read: Read = read_original,
) -> ChunkOutcome:
    """Compute and commit what `chunk` names; a backbone that fails does not keep the others from their shards.

    DataError when an image is gone or has changed: that is for the whole run to know. UnreachableError when a store is
    away: no backbone is at fault, and the chunk can be computed later.
    """
    outcome = ChunkOutcome()
    chosen = [images[content_id] for content_id in chunk.content_ids]
    for draw in chunk.draws:
        passes = []
        for wanted in draw.wanted:
            keys = tuple(key for key in wanted.keys if not store.has_shard(key, chunk.content_ids))
            try:
                if keys:
                    passes.append(_Pass(wanted, keys, num_classes, device))
            except UnreachableError:
                raise
            except TlrayError as error:
                outcome.failures[wanted.backbone.id] = str(error)
        if not passes:
            continue
        for batch in _batches(chosen, draw, device, num_threads, read):
            for one in passes:
                one.forward(batch)
        for one in passes:
            try:
                one.commit(store, chunk.content_ids, run)
                outcome.num_forwards += len(chunk.content_ids)
            except (DataError, UnreachableError):
                raise
            except TlrayError as error:
                outcome.failures[one.wanted.backbone.id] = str(error)
    return outcome


class _Pass:
    """One backbone's forwards over a chunk."""

    def __init__(self, wanted: Wanted, keys: tuple[ActivationKey, ...], num_classes: int, device: torch.device) -> None:
        self.wanted, self.keys = wanted, keys
        self._device = device
        self._preprocessing = Preprocessing.from_dict(json.loads(keys[0].preprocessing))
        cuts = tuple((key.num_frozen, key.weights_hash) for key in keys)
        self._prefix = _load_prefix(wanted.backbone.model_dump_json(), wanted.seed, cuts, num_classes, device)
        self._collected: list[list[list[np.ndarray]]] = [[] for _ in keys]  # by key, by batch, by value

    def forward(self, images: torch.Tensor) -> None:
        """images (B, 3, H, W) uint8 on the device."""
        inputs = normalise(images, self._preprocessing).contiguous(memory_format=torch.channels_last)
        reduced = self.keys[0].precision == "bfloat16"
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=reduced)
        with torch.inference_mode(), autocast:
            cuts = self._prefix(inputs)
        for key, values, collected in zip(self.keys, cuts, self._collected, strict=True):
            dtype = DTYPES[key.dtype]
            collected.append([value.to(dtype).cpu().contiguous().numpy() for value in values])

    def commit(self, store: ActivationStore, content_ids: Sequence[str], run: str) -> None:
        for key, batches in zip(self.keys, self._collected, strict=True):
            values = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
            batches.clear()
            store.write_shard(key, content_ids, values, run=run)


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


def _batches(
    images: Sequence[Image], draw: Draw, device: torch.device, num_threads: int, read: Read
) -> Iterator[torch.Tensor]:
    """(B, 3, H, W) uint8 on the device, read ahead by threads."""
    preprocessing = Preprocessing.from_dict(json.loads(draw.preprocessing))
    loaded = load_draws(images, preprocessing, draw.augmentation, draw.view, num_threads=num_threads, read=read)
    while batch := list(islice(loaded, BATCH_SIZE[device.type])):
        yield torch.stack(batch).to(device)
