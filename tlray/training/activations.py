"""Activations instead of images: the same batches in the same order, read from the store.

    streams = activation_streams(manifest, source, trial, worker, store)

Epoch e trains on draw e mod `views`. Validation and test read the first draw, which is the evaluation transform.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np
import torch

from tlray.activations.keys import ActivationKey
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationReader, ActivationStore
from tlray.config import TrialConfig
from tlray.data.batch import Batch, Streams
from tlray.data.images import Images
from tlray.data.manifest import Manifest
from tlray.data.order import Windows, evaluation_steps, train_steps
from tlray.training.worker import Worker


def activation_streams(
    manifest: Manifest,
    source: ActivationSource,
    trial: TrialConfig,
    worker: Worker,
    store: ActivationStore,
    windows: Windows | None = None,
) -> Streams:
    """One worker's streams of the source's activations; ActivationError when some are not there.

    windows: those that images would be read in, so that the order is the same.
    """
    keys = [ActivationKey(**fields) for fields in source.keys]
    splits = {name: manifest.split(name) for name in ("train", "val", "test")}
    share = slice(worker.rank, None, worker.world_size)

    @cache  # opened when first needed, kept for the epochs that follow
    def reader(view: int, split: str) -> ActivationReader:
        return store.reader(keys[view], [image.content_id for image in splits[split]])

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        images = splits["train"]
        steps = train_steps(len(images), trial.recipe.batch_size, trial.seed, epoch, windows)[first:]
        counts = [len(step) for step in steps]
        return _batches(reader(epoch % len(keys), "train"), images, [step[share] for step in steps], counts)

    def evaluation(split: str) -> Iterator[Batch]:
        images = splits[split]
        steps, num_global = evaluation_steps(len(images), trial.recipe.batch_size, worker.rank, worker.world_size)
        return _batches(reader(0, split), images, steps, num_global)

    return Streams(
        preprocessing=None,
        train=train,
        val=partial(evaluation, "val"),
        test=partial(evaluation, "test"),
        num_train=len(splits["train"]),
        num_val=len(splits["val"]),
        num_test=len(splits["test"]),
    )


def _batches(
    reader: ActivationReader, images: Images, steps: Sequence[np.ndarray], num_global: Sequence[int]
) -> Iterator[Batch]:
    all_labels = images.labels
    for rows, count in zip(steps, num_global, strict=True):
        labels = torch.as_tensor(all_labels[rows], dtype=torch.int64)
        yield Batch(reader.read(rows), labels, torch.as_tensor(rows, dtype=torch.int64), count)
