"""Batches that any node of the cluster decodes: Ray Data between the images and a worker that trains.

    streams = ray_streams(run_uri, preprocessing, batch_size=32, augmentation="light", seed=0, worker=worker, cpus=2)

The batches are those of `tlray.data.loader.make_streams`, in the same order, for any number of workers: what crosses
nodes is the number of a step, and pixels in return. Ray Data keeps a bounded number of batches under way and waits
where the training is slower than the decoding.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import ray.data
import torch

from tlray.catalogue import Preprocessing
from tlray.data.batch import Batch, Streams
from tlray.data.loader import load_rows
from tlray.data.order import evaluation_steps, train_steps
from tlray.data.read import image_reader
from tlray.data.windows import windows_of
from tlray.errors import DataError, TlrayError
from tlray.runs.prepare import Run, load_run
from tlray.training.worker import Worker

BATCHES_AHEAD = 2  # fetched to the worker's node while the model works


@dataclass(frozen=True)
class _Epoch:
    """All that a task needs to make any batch of one worker's pass over a split."""

    run_uri: str
    preprocessing: str  # JSON
    split: Literal["train", "val", "test"]
    batch_size: int
    augmentation: str
    seed: int
    epoch: int
    rank: int
    world_size: int
    num_threads: int


def ray_streams(
    run_uri: str,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    augmentation: str,
    seed: int,
    worker: Worker,
    cpus: float,
) -> Streams:
    """Streams of one worker, like `make_streams`; each task that decodes takes `cpus` of whatever node has them.

    An image that is gone or has changed raises the DataError of the task that found it.
    """
    manifest = _load_run(run_uri).manifest
    num = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
    epoch_of = partial(
        _Epoch,
        run_uri=run_uri,
        preprocessing=json.dumps(preprocessing.to_dict()),
        batch_size=batch_size,
        seed=seed,
        rank=worker.rank,
        world_size=worker.world_size,
        num_threads=max(1, int(cpus)),
    )

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        return _batches(epoch_of(split="train", augmentation=augmentation, epoch=epoch), cpus, first)

    def evaluation(split: Literal["val", "test"]) -> Iterator[Batch]:
        return _batches(epoch_of(split=split, augmentation="none", epoch=0), cpus)

    return Streams(
        preprocessing=preprocessing,
        train=train,
        val=partial(evaluation, "val"),
        test=partial(evaluation, "test"),
        num_train=num["train"],
        num_val=num["val"],
        num_test=num["test"],
    )


def _batches(epoch: _Epoch, cpus: float, first: int = 0) -> Iterator[Batch]:
    """One block of Ray Data's is one batch, or a part of it where Ray Data has cut a large one."""
    steps, num_global = _steps(epoch)
    if not any(len(rows) for rows in steps[first:]):
        yield from (_empty(epoch, count) for count in num_global[first:])
        return
    expected = first  # the step whose batch comes next
    parts: list[dict[str, np.ndarray]] = []
    for block in _blocks(epoch, first, len(steps), cpus):
        parts.append(block)
        step = int(block["step"][0])
        if sum(len(part["row"]) for part in parts) < len(steps[step]):
            continue
        yield from (_empty(epoch, count) for count in num_global[expected:step])
        yield _joined(parts, num_global[step])
        parts, expected = [], step + 1
    yield from (_empty(epoch, count) for count in num_global[expected:])


def _blocks(epoch: _Epoch, first: int, stop: int, cpus: float) -> Iterator[dict[str, np.ndarray]]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    numbers = ray.data.range(stop - first, override_num_blocks=stop - first)
    decoded = numbers.map_batches(partial(_decoded, epoch=epoch, first=first), batch_size=None, num_cpus=cpus)
    for block in decoded.iter_batches(batch_size=None, prefetch_batches=BATCHES_AHEAD):
        if block["error"][0]:
            raise DataError(block["error"][0])
        yield block


def _empty(epoch: _Epoch, num_global: int) -> Batch:
    """This worker's part of a global batch that has fewer images than there are workers."""
    size = Preprocessing.from_dict(json.loads(epoch.preprocessing)).input_size
    none = torch.empty(0, dtype=torch.int64)
    return Batch((torch.empty((0, 3, *size), dtype=torch.uint8),), none, none, num_global)


def _joined(parts: list[dict[str, np.ndarray]], num_global: int) -> Batch:
    columns = {name: np.concatenate([part[name] for part in parts]) for name in ("pixels", "label", "row")}
    pixels, labels, rows = (torch.from_numpy(columns[name]) for name in ("pixels", "label", "row"))
    return Batch((pixels,), labels, rows, num_global)


def _decoded(block: dict[str, np.ndarray], epoch: _Epoch, first: int) -> Iterator[dict[str, np.ndarray]]:
    """Runs on any node: steps counted from `first` -> their images, decoded and transformed."""
    torch.set_num_threads(1)  # the threads are those that decode
    run = _load_run(epoch.run_uri)
    images, read = run.manifest.split(epoch.split), image_reader(run.config.data)
    steps, _ = _steps(epoch)
    for step in (block["id"] + first).tolist():
        rows = steps[step]
        if not len(rows):
            continue
        preprocessing = Preprocessing.from_dict(json.loads(epoch.preprocessing))
        try:
            pixels = load_rows(
                images,
                rows,
                preprocessing,
                augmentation=epoch.augmentation,
                seed=epoch.seed,
                epoch=epoch.epoch,
                num_threads=epoch.num_threads,
                read=read,
            )
        except TlrayError as error:  # as a row: an exception would arrive in Ray Data's words
            none = np.array([-1])
            yield _block(step, none, torch.zeros(1, 3, *preprocessing.input_size, dtype=torch.uint8), none, str(error))
            return
        yield _block(step, rows, pixels, images.labels[rows])


def _block(
    step: int, rows: np.ndarray, pixels: torch.Tensor, labels: np.ndarray, error: str = ""
) -> dict[str, np.ndarray]:
    return {
        "pixels": pixels.contiguous().numpy(),
        "label": labels.astype(np.int64),
        "row": rows.astype(np.int64),
        "step": np.full(len(rows), step, dtype=np.int64),
        "error": np.array([error] * len(rows)),
    }


@lru_cache(maxsize=4)
def _steps(epoch: _Epoch) -> tuple[list[np.ndarray], list[int]]:
    """This worker's rows of each global batch, and the images in each."""
    run = _load_run(epoch.run_uri)
    images = run.manifest.split(epoch.split)
    if epoch.split != "train":
        return evaluation_steps(len(images), epoch.batch_size, epoch.rank, epoch.world_size)
    windows = windows_of(images, run.config.data)
    steps = train_steps(len(images), epoch.batch_size, epoch.seed, epoch.epoch, windows)
    return [rows[epoch.rank :: epoch.world_size] for rows in steps], [len(rows) for rows in steps]


@lru_cache(maxsize=1)
def _load_run(run_uri: str) -> Run:
    return load_run(run_uri)
