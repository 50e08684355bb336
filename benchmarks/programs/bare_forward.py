"""What a model's forward alone allows: images a second over preloaded batches, with both ways to use all cores.

    python -m benchmarks.programs.bare_forward EXPORT IMAGES

The last line is JSON: for the model as `tlray.load` gives it and as batch prediction runs it (BatchNorms folded,
channels last), images a second and CPU seconds an image of the fastest of four ways: batches of 4 or of 16, one forward
with all threads or as many forwards side by side as there are cores.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import torch

from tlray.data.decode import decode
from tlray.data.transforms import eval_transform, normalise
from tlray.export.model import load_backbones
from tlray.inference.classify import faster

NUM_IMAGES = 64  # that are preloaded
BATCH_SIZES = (4, 16)
REPEATS = 3  # of which the first is a warm-up
Forward = Callable[[torch.Tensor], torch.Tensor]


def main(bundle: str, images: str) -> None:
    (backbone,), config = load_backbones(bundle)
    backbone.model.eval()
    paths = sorted(Path(images).glob("*/*.jpg"))[:NUM_IMAGES]
    preprocessing = config.image_preprocessing
    pixels = [torch.from_numpy(decode(path.read_bytes())).permute(2, 0, 1) for path in paths]
    plain = normalise(torch.stack([eval_transform(image, preprocessing) for image in pixels]), preprocessing)
    last = plain.contiguous(memory_format=torch.channels_last)
    fast = faster(backbone, torch.device("cpu"))
    ways = [(backbone.model, plain.contiguous(), "plain"), (fast, last, "folded")]
    best = {name: {"images_per_second": 0.0, "cpu_seconds_per_image": 0.0} for _, _, name in ways}
    for repeat, (forward, ready, name), size, run in product(
        range(REPEATS), ways, BATCH_SIZES, (_with_all_threads, _side_by_side)
    ):
        batches = list(ready.split(size))
        wall, cpu = time.perf_counter(), time.process_time()
        run(forward, batches)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if repeat > 0 and len(paths) / wall > best[name]["images_per_second"]:
            best[name] = {"images_per_second": len(paths) / wall, "cpu_seconds_per_image": cpu / len(paths)}
    print(json.dumps(best))


def _with_all_threads(forward: Forward, batches: list[torch.Tensor]) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    with torch.inference_mode():
        for batch in batches:
            forward(batch)


def _side_by_side(forward: Forward, batches: list[torch.Tensor]) -> None:
    torch.set_num_threads(1)

    def one(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            forward(batch)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, batches))


if __name__ == "__main__":
    main(*sys.argv[1:])
