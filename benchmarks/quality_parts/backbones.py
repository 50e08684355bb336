"""The four backbones as plain PyTorch, without tlray: what a rival's user loads.

body, facts = load_body("mobilenet_v2", weights)       # images (B, 3, H, W) -> map (B, C, h, w)
model = classifier(body, facts, num_classes=5)         # average pool, dropout, linear
"""

import json
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from safetensors import safe_open
from torch import nn
from torchvision import transforms

from benchmarks.quality_parts.weights import BACKBONES, INPUT_SIZE, RESIZE

DROPOUT = 0.2


@dataclass(frozen=True)
class Facts:
    """What belongs to the weights."""

    mean: tuple[float, ...]  # of values in 0..1
    std: tuple[float, ...]
    channels: int  # of the map


class Body(nn.Module):
    """Everything before the pooling."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(images)


def load_body(name: str, weights: Path) -> tuple[nn.Module, Facts]:
    """The backbone with its ImageNet weights, in training mode."""
    with safe_open(weights / f"{name}.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    choice = BACKBONES[name]
    if choice.id.startswith("torchvision/"):
        model = torchvision.models.get_model(name, weights=None)
        body = model.features
    else:
        model = timm.create_model(name, pretrained=False, num_classes=0, **choice.options)
        body = Body(model)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    found = model.load_state_dict(stored, strict=False)
    lacking = [key for key in found.missing_keys if not key.startswith("classifier.") and key not in counters]
    if lacking or found.unexpected_keys:
        raise ValueError(f"{name}: the weights do not fit: {lacking[:3]} are missing, {found.unexpected_keys[:3]} new")
    body.eval()
    with torch.inference_mode():
        channels = body(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)).shape[1]
    mean, std = (tuple(map(float, facts[key].split(","))) for key in ("mean", "std"))
    return body.train(), Facts(mean, std, channels)


def classifier(body: nn.Module, facts: Facts, num_classes: int) -> nn.Module:
    """images (B, 3, H, W) float32 -> logits (B, num_classes)."""
    head = nn.Linear(facts.channels, num_classes)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), head)


def crop() -> transforms.Compose:
    """image -> (3, H, W) float32 in 0..1, the same for every backbone."""
    return transforms.Compose([transforms.Resize(RESIZE), transforms.CenterCrop(INPUT_SIZE), transforms.ToTensor()])


def evaluation_transform(facts: Facts) -> transforms.Compose:
    """Resize, centre crop, normalise."""
    return transforms.Compose([crop(), transforms.Normalize(facts.mean, facts.std)])


def read_job(path: str) -> dict:
    """What a program is to do: images, weights, backbones (best first), seed."""
    job = json.loads(Path(path).read_text())
    return {**job, "images": Path(job["images"]), "weights": Path(job["weights"])}
