"""Activations instead of images: the same batches in the same order, read from the store.

    streams = activation_streams(manifest, source, trial, worker, store)

Epoch e trains on draw e mod `views`. Validation and test read the first draw, which is the evaluation transform. On a
GPU they are read once and held there where they fit (resident.py).
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np
import torch

from tlray.activations.keys import ActivationKey
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationReader, ActivationStore
from tlray.config import TrialConfig
from tlray.data.batch import Batch, HeldEpoch, Streams
from tlray.data.images import Images
from tlray.data.manifest import Manifest
from tlray.data.order import Windows, evaluation_steps, train_steps
from tlray.data.parallel import ordered_map
from tlray.training.resident import READERS, Held, held_batches, hold, room_on, upload_order
from tlray.training.worker import Worker


def activation_streams(
    manifest: Manifest,
    source: ActivationSource,
    trial: TrialConfig,
    worker: Worker,
    store: ActivationStore,
    windows: Windows | None = None,
    room: int | None = None,
) -> Streams:
    """One worker's streams of the source's activations; ActivationError when some are not there.

    windows: those that images would be read in, so that the order is the same. room: bytes that the device may hold,
    by default a share of a GPU's free memory; what fits is read once, the rest in every epoch.
    """
    keys = [ActivationKey(**fields) for fields in source.keys]
    splits = {name: manifest.split(name) for name in ("train", "val", "test")}
    share = slice(worker.rank, None, worker.world_size)
    room = room_on(worker.device) if room is None else room
    num_bytes = source.bytes_per_image * (len(keys) * len(splits["train"]) + len(splits["val"]) + len(splits["test"]))
    fits = num_bytes <= room

    @cache  # opened when first needed, kept for the epochs that follow
    def reader(view: int, split: str) -> ActivationReader:
        return store.reader(keys[view], [image.content_id for image in splits[split]])

    @cache
    def rows(split: str) -> Held:
        views = range(len(keys)) if split == "train" else range(1)
        return hold([reader(view, split) for view in views], splits[split].labels, worker.device)

    def train_order(epoch: int) -> list[np.ndarray]:
        return train_steps(len(splits["train"]), trial.recipe.batch_size, trial.seed, epoch, windows)

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        steps, view = train_order(epoch)[first:], epoch % len(keys)
        mine, counts = [step[share] for step in steps], [len(step) for step in steps]
        if fits:
            return held_batches(rows("train"), mine, counts, view * len(splits["train"]))
        return _batches(reader(view, "train"), splits["train"], mine, counts, worker.device)

    def held(epoch: int) -> HeldEpoch | None:
        if not fits or worker.world_size > 1:
            return None
        steps, there = train_order(epoch), rows("train")
        order = upload_order(there, steps, (epoch % len(keys)) * len(splits["train"]))
        return HeldEpoch(there.values, there.labels, order, tuple(len(step) for step in steps))

    def evaluation(split: str) -> Iterator[Batch]:
        images = splits[split]
        steps, num_global = evaluation_steps(len(images), trial.recipe.batch_size, worker.rank, worker.world_size)
        if fits:
            return held_batches(rows(split), steps, num_global)
        return _batches(reader(0, split), images, steps, num_global, worker.device)

    return Streams(
        preprocessing=None,
        train=train,
        val=partial(evaluation, "val"),
        test=partial(evaluation, "test"),
        num_train=len(splits["train"]),
        num_val=len(splits["val"]),
        num_test=len(splits["test"]),
        held=held,
    )


def _batches(
    reader: ActivationReader,
    images: Images,
    steps: Sequence[np.ndarray],
    num_global: Sequence[int],
    device: torch.device,
) -> Iterator[Batch]:
    """Rows are read ahead by threads where a GPU would otherwise wait for them."""
    all_labels = images.labels
    read = partial(reader.read, device=device)
    ahead = ordered_map(read, steps, num_threads=READERS, ahead=READERS + 2) if device.type == "cuda" else None
    values = ahead if ahead is not None else map(read, steps)
    try:
        for rows, count in zip(steps, num_global, strict=True):
            inputs = next(values)
            labels = torch.as_tensor(all_labels[rows], dtype=torch.int64)
            yield Batch(inputs, labels, torch.as_tensor(rows, dtype=torch.int64), count)
    finally:
        if ahead is not None:
            ahead.close()
