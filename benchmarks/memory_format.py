"""Does training with channels-last images and weights beat PyTorch's default order of dimensions on this CPU?

    python -m benchmarks.memory_format

Forward (evaluation) and forward + backward (training) of one batch of 16 images of 224 px on one thread, the two orders
in turn, CPU time of the process, best of three. The last line is one JSON object: {model: {forward, train}} with the
ratio default / channels-last; above 1 means that channels-last is faster.
"""

import json
import platform
import time
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn

BATCH, PIXELS, REPEATS = 16, 224, 3
MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision/mobilenet_v2": torchvision.models.mobilenet_v2,
    "torchvision/resnet18": torchvision.models.resnet18,
    "torchvision/squeezenet1_0": torchvision.models.squeezenet1_0,
    "timm/mobilenetv1_100": lambda: timm.create_model("mobilenetv1_100"),
    "timm/test_vit": lambda: timm.create_model("test_vit", img_size=PIXELS),
}


def forward(model: nn.Module, images: torch.Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(images)


def train(model: nn.Module, images: torch.Tensor) -> None:
    model.train()
    model(images).sum().backward()


def best_of(step: Callable[[nn.Module, torch.Tensor], None], build: Callable[[], nn.Module]) -> dict[str, float]:
    """Milliseconds of CPU time an image for both orders, measured in turn."""
    formats = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
    models = {name: build().to(memory_format=order) for name, order in formats.items()}
    inputs = {
        name: torch.randn(BATCH, 3, PIXELS, PIXELS).contiguous(memory_format=order) for name, order in formats.items()
    }
    times: dict[str, list[float]] = {name: [] for name in formats}
    for repeat in range(REPEATS + 1):
        for name in formats:
            started = time.process_time()
            step(models[name], inputs[name])
            if repeat > 0:  # the first is a warm-up
                times[name].append((time.process_time() - started) / BATCH * 1000)
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, python -m benchmarks.memory_format"
    )
    print(f"{'model':28} {'step':8} {'default ms':>11} {'channels-last ms':>17} {'ratio':>6}")
    ratios: dict[str, dict[str, float]] = {}
    for name, build in MODELS.items():
        for step in (forward, train):
            found = best_of(step, build)
            ratio = found["default"] / found["channels_last"]
            ratios.setdefault(name, {})[step.__name__] = round(ratio, 2)
            print(
                f"{name:28} {step.__name__:8} {found['default']:11.1f} {found['channels_last']:17.1f} {ratio:6.2f}",
                flush=True,
            )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
