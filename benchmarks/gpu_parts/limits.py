"""What an activation pass cannot be faster than: decoding with every core, and the frozen forward alone."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.gpu_parts.bare import best_speed
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.data.images import Image
from tlray.data.loader import load_draws
from tlray.data.transforms import normalise
from tlray.models.backbone import build_backbone
from tlray.models.fold import folded
from tlray.models.split import find_cut, frozen_prefix
from tlray.process.device import arithmetic, autocast, chosen_precision

BATCH = 128
FORWARDS = 15
WARM = 2  # images of each process


def decode_speed(images: Sequence[Image], preprocessing: Preprocessing) -> float:
    """Images a second read, decoded and resized by a process on every core."""
    cores = os.cpu_count() or 1
    shares = [list(images[first::cores]) for first in range(cores)]
    with ProcessPoolExecutor(cores, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(_decode, [(share[:WARM], preprocessing) for share in shares]))
        started = time.perf_counter()
        done = sum(pool.map(_decode, [(share, preprocessing) for share in shares]))
        return done / (time.perf_counter() - started)


def threads_speed(images: Sequence[Image], preprocessing: Preprocessing, threads: int) -> float:
    """The same by threads of this process."""
    started = time.perf_counter()
    done = sum(1 for _ in load_draws(images, preprocessing, "none", 0, num_threads=threads))
    return done / (time.perf_counter() - started)


def forward_speed(config: BackboneConfig, blocks: Sequence[int], device: torch.device) -> float:
    """Images a second through the frozen prefix with these cuts, on pixels that lie on the device."""
    backbone = build_backbone(config, 4, seed=0)
    cuts = [find_cut(backbone, len(backbone.blocks) - trainable) for trainable in blocks]
    prefix = folded(frozen_prefix(backbone, cuts)).to(device)
    shape = (BATCH, 3, *backbone.preprocessing.input_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    precision = chosen_precision("auto", device)

    def epoch() -> int:
        with torch.inference_mode(), arithmetic(device, precision), autocast(device, precision):
            for _ in range(FORWARDS):
                inputs = normalise(pixels, backbone.preprocessing)
                prefix(inputs.contiguous(memory_format=torch.channels_last))
        return FORWARDS * BATCH

    return best_speed(epoch, device)


def _decode(job: tuple[list[Image], Preprocessing]) -> int:
    torch.set_num_threads(1)
    images, preprocessing = job
    return sum(1 for _ in load_draws(images, preprocessing, "none", 0, num_threads=1))
