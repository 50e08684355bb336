"""How long a backbone takes for one batch on this machine: measured once with random weights, kept on disk.

    milliseconds("timm", "resnet18", None, size=224, batch_size=1)

Time does not depend on the values of weights, so nothing is downloaded.
"""

import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tlray.catalogue.libraries import library, version
from tlray.storage.home_cache import remembered

if TYPE_CHECKING:
    from torch import Tensor, nn

WARM_UP = 3
RUNS = 9
PATIENCE = 5.0  # seconds of runs after which a slow model is known well enough


def milliseconds(home: str, name: str, tag: str | None, *, size: int, batch_size: int) -> float:
    """Median time of one batch of `size` x `size` pixels in evaluation; on the GPU where there is one."""
    import torch

    from tlray.process.device import given_device

    device = given_device()
    what = {
        "id": f"{home}/{name}",
        "size": size,
        "batch_size": batch_size,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "library": version(home),
    }

    def measure() -> dict[str, float]:
        model = library(home).construct(name, tag, "none", size, {}, 1000).eval().to(device)
        return {"milliseconds": 1000 * _median_time(model, torch.zeros(batch_size, 3, size, size, device=device))}

    return remembered("latency", what, measure)["milliseconds"]


def device_name() -> str:
    """The GPU, or the processor's model, that latencies are measured on."""
    import torch

    from tlray.process.device import given_device

    if given_device().type == "cuda":
        return torch.cuda.get_device_name()
    return processor_name()


def processor_name() -> str:
    with suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def _median_time(model: "nn.Module", images: "Tensor") -> float:
    """Seconds of one forward pass; the first ones, which allocate and choose kernels, do not count."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        for _ in range(WARM_UP):
            once()
        times: list[float] = []
        while len(times) < RUNS and (len(times) < 3 or sum(times) < PATIENCE):
            times.append(once())
    return statistics.median(times)
