"""How long the solution of a linear probe takes on this machine, without the features that it reads.

    seconds = measure_solution(num_train, width, num_classes, gpus_per_worker, num_threads)

A smaller problem with made-up features is solved and the time extrapolated by the size of its matrix products. It is
remembered in ~/.cache/tlray/solving, so that planning again costs nothing.
"""

import time

import torch

from tlray.catalogue.latency import device_name, processor_name
from tlray.process.device import given_device, wait
from tlray.process.threads import torch_threads
from tlray.storage.home_cache import remembered
from tlray.training.probe_solution import solve

LARGEST_MEASURED, MOST_CLASSES = 256, 10


def measure_solution(
    num_train: int, width: int, num_classes: int, gpus_per_worker: float | str | None, num_threads: int
) -> float:
    """Seconds; `width`: numbers of an image that the head reads."""
    device = given_device(gpus_per_worker)
    images, classes = min(num_train, LARGEST_MEASURED), min(num_classes, MOST_CLASSES)
    what = {
        "images": images,
        "width": width,
        "classes": classes,
        "device": device_name() if device.type == "cuda" else processor_name(),
        "threads": num_threads,
        "torch": torch.__version__,
    }

    def measure() -> dict[str, float]:
        draw = torch.Generator().manual_seed(0)
        features = torch.randn(images, width, generator=draw).to(device)
        labels = torch.arange(images, device=device) % classes
        with torch_threads(num_threads):
            solve([features[: 4 * classes]], labels[: 4 * classes], classes, seed=0)  # warm
            started = time.perf_counter()
            solve([features], labels, classes, seed=0)
            wait(device)
        return {"seconds": time.perf_counter() - started}

    products = num_train * min(num_train, width) * num_classes / (images * min(images, width) * classes)
    return remembered("solving", what, measure)["seconds"] * products
