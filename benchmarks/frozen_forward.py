"""How fast does a frozen prefix compute, and what does a lower precision cost in accuracy?

    python -m benchmarks.frozen_forward

For each backbone with real weights: CPU milliseconds an image (224 px, one thread) of the plain forward, channels last,
with BatchNorm folded as the activation pass does it, and folded in bfloat16, the ways taken in turn, best of three.
Then the accuracy of a logistic regression on the features of ants and bees, float32 and bfloat16, over the same 153
images: `activations.precision: bfloat16` is for whoever finds the two alike. Images and weights are looked for in
$TLRAY_SHARED, by default ../shared. Last line, JSON: {backbone: {plain, channels_last, folded, bfloat16,
accuracy_float32, accuracy_bfloat16}}.
"""

import json
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.machine import describe, shared_folder
from tlray.config import BackboneConfig, DataConfig
from tlray.data.loader import load_draws
from tlray.data.manifest import Image, make_manifest
from tlray.data.transforms import normalise
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.fold import folded
from tlray.models.split import find_cut, frozen_prefix

BATCH, REPEATS = 16, 3
BACKBONES = {
    "torchvision/mobilenet_v2.IMAGENET1K_V1": {"weights": "mobilenet_v2"},
    "timm/mobilenetv1_100": {"weights": "mobilenetv1_100"},
    "torchvision/squeezenet1_0": {"weights": "squeezenet1_0"},
    "timm/mobilenetv2_035": {"weights": "mobilenetv2_035", "options": {"pad_type": "same"}},
}
Forward = Callable[[torch.Tensor], tuple[tuple[torch.Tensor, ...], ...]]


def in_bfloat16(module: nn.Module) -> Forward:
    def forward(images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(images)

    return forward


def timed(ways: dict[str, Forward], images: torch.Tensor) -> dict[str, float]:
    """Milliseconds of CPU an image, measured in turn."""
    best = dict.fromkeys(ways, float("inf"))
    for repeat in range(REPEATS + 1):
        for name, forward in ways.items():
            started = time.process_time()
            forward(images)
            if repeat > 0:  # the first is a warm-up
                best[name] = min(best[name], (time.process_time() - started) / len(images) * 1000)
    return best


def features(forward: Forward, backbone: Backbone, images: tuple[Image, ...]) -> torch.Tensor:
    pixels = load_draws(images, backbone.preprocessing, "none", 0, num_threads=1)
    ready = normalise(torch.stack(list(pixels)), backbone.preprocessing)
    parts = [forward(batch.contiguous(memory_format=torch.channels_last))[0][0] for batch in ready.split(BATCH)]
    return torch.cat(parts).to(torch.float16).float().flatten(1)


def probe_accuracy(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor) -> float:
    """Of a logistic regression with a little weight decay on standardised features, trained to the end."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    head = nn.Linear(train.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(head(train), labels) + 1e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float((head(test).argmax(1) == test_labels).float().mean())


def main() -> None:
    torch.set_num_threads(1)
    shared = shared_folder()
    print(describe())
    columns = ("plain", "channels_last", "folded", "bfloat16", "accuracy_float32", "accuracy_bfloat16")
    print(f"{'backbone':40}" + "".join(f"{column:>18}" for column in columns))
    hymenoptera = shared / "data/hymenoptera"
    data = DataConfig(
        train=str(hymenoptera / "train"), test=str(hymenoptera / "val"), val_fraction=0.1, exclude=("*.gif",)
    )
    manifest = make_manifest(data)
    train, test = ([*manifest.split("train"), *manifest.split("val")], manifest.split("test"))
    labels, test_labels = (torch.tensor([image.label for image in some]) for some in (train, test))
    outcome = {}
    for id_, fields in BACKBONES.items():
        weights = str(shared / "weights" / f"{fields['weights']}.safetensors")
        config = BackboneConfig(id=id_, weights=weights, options=fields.get("options", {}))
        backbone = build_backbone(config, 2)
        prefix = frozen_prefix(backbone, [find_cut(backbone, len(backbone.blocks))])
        fast = folded(prefix)
        images = torch.randn(BATCH, 3, 224, 224)
        with torch.inference_mode():
            plain = timed({"plain": prefix}, images)
            backbone.model.to(memory_format=torch.channels_last)
            ways = {"channels_last": prefix, "folded": fast, "bfloat16": in_bfloat16(fast)}
            found = plain | timed(ways, images.contiguous(memory_format=torch.channels_last))
            by_way = {
                way: [features(forward, backbone, some) for some in (train, test)]
                for way, forward in (("float32", fast), ("bfloat16", in_bfloat16(fast)))
            }
        for way, (of_train, of_test) in by_way.items():
            with torch.inference_mode(False):
                found[f"accuracy_{way}"] = probe_accuracy(of_train.clone(), labels, of_test.clone(), test_labels)
        outcome[id_] = {name: round(value, 4) for name, value in found.items()}
        print(f"{id_:40}" + "".join(f"{found[column]:18.3f}" for column in columns), flush=True)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
