"""The same work for tlray and for what it is compared with: models, noise in pinned memory, JPEGs on disk."""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.batch import Batch, Streams

POOL = 4  # batches that an epoch goes round in
NUM_CLASSES = 10
NUM_VAL = 2  # images: what follows an epoch is no part of its speed
WIDTH, HEIGHT = 500, 375
DECODERS = min(16, os.cpu_count() or 1)  # processes that make images


def network(name: str) -> BackboneConfig:
    return BackboneConfig(id=f"torchvision/{name}", weights="none")


def trial(name: str, strategy: str = "full", blocks: int | None = None, **recipe: object) -> TrialConfig:
    how = StrategyConfig.model_validate({"strategy": strategy, "trainable_blocks": blocks})
    return TrialConfig(trial_id="t", backbone=network(name), strategy=how, recipe=Recipe.model_validate(recipe), seed=0)


def noise_streams(preprocessing: Preprocessing, batch: int, steps: int, device: torch.device) -> Streams:
    """Training batches of noise, as decoding threads would have put them into pinned memory."""
    pool = noise_batches(preprocessing, batch, device)

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        return (pool[step % POOL] for step in range(first, steps))

    def val() -> Iterator[Batch]:
        some = pool[0]
        yield Batch((some.inputs[0][:NUM_VAL],), some.labels[:NUM_VAL], some.rows[:NUM_VAL], NUM_VAL)

    return Streams(preprocessing, train, val, val, num_train=batch * steps, num_val=NUM_VAL, num_test=NUM_VAL)


def noise_batches(preprocessing: Preprocessing, batch: int, device: torch.device) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, *preprocessing.input_size)
    batches = []
    for _ in range(POOL):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, NUM_CLASSES, (batch,), generator=generator)
        if device.type == "cuda":
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        batches.append(Batch((pixels,), labels, torch.arange(batch), batch))
    return batches


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, so that no disk is measured."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = tempfile.mkdtemp(prefix="tlray-gpu-", dir=base)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_jpegs(folder: Path, number: int) -> None:
    """Photos' size and detail, in four classes."""
    with ProcessPoolExecutor(DECODERS, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(_make_some, [(folder, first, number) for first in range(DECODERS)]))


def _make_some(job: tuple[Path, int, int]) -> None:
    folder, first, number = job
    random = np.random.default_rng(first)
    for index in range(first, number, DECODERS):
        coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = random.integers(-14, 15, (HEIGHT, WIDTH, 1), dtype=np.int16)
        pixels = (np.asarray(photo, np.int16) + grain).clip(0, 255).astype(np.uint8)
        place = folder / f"class{index % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:06d}.jpg", quality=88)
