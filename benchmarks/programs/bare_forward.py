"""What a model's forward alone allows: images a second over preloaded batches, with both ways to use all cores.

    python -m benchmarks.programs.bare_forward EXPORT IMAGES

The last line is JSON: for the model as `tlray.load` gives it and as batch prediction runs it (BatchNorms folded,
channels last), images a second and CPU seconds an image of the faster way: one forward with all threads, or as many
forwards side by side as there are cores.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tlray.data.decode import decode
from tlray.data.transforms import eval_transform, normalise
from tlray.export.model import load_backbone
from tlray.prediction.classify import IMAGES_AT_ONCE, faster

NUM_BATCHES = 8  # that are preloaded
REPEATS = 2
Forward = Callable[[torch.Tensor], torch.Tensor]


def main(bundle: str, images: str) -> None:
    backbone, config = load_backbone(bundle)
    backbone.model.eval()
    paths = sorted(Path(images).glob("*/*.jpg"))[: NUM_BATCHES * IMAGES_AT_ONCE]
    preprocessing = config.image_preprocessing
    pixels = [torch.from_numpy(decode(path.read_bytes())).permute(2, 0, 1) for path in paths]
    ready = normalise(torch.stack([eval_transform(image, preprocessing) for image in pixels]), preprocessing)
    plain = list(ready.contiguous().split(IMAGES_AT_ONCE))
    last = [batch.contiguous(memory_format=torch.channels_last) for batch in plain]
    ways = {"plain": (backbone.model, plain), "folded": (faster(backbone, torch.device("cpu")), last)}
    best = {name: {"images_per_second": 0.0, "cpu_seconds_per_image": 0.0} for name in ways}
    for repeat in range(REPEATS + 1):
        for name, (forward, batches) in ways.items():
            for run in (_with_all_threads, _side_by_side):
                wall, cpu = time.perf_counter(), time.process_time()
                run(forward, batches)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if repeat > 0 and len(paths) / wall > best[name]["images_per_second"]:  # the first is a warm-up
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
