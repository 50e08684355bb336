"""What the recipe and the script have in common: crop and normalisation of the weights, the model with a new head."""

from collections.abc import Sequence

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

CROP = (transforms.Resize(256), transforms.CenterCrop(224))


def make_transform(mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """An image of PIL -> (3, 224, 224) float32, normalised as the weights want it."""
    return transforms.Compose([*CROP, transforms.ToTensor(), transforms.Normalize(mean, std)])


def make_model(name: str, weights: str, num_classes: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """torchvision's model with these weights and a new, small head -> (model, head)."""
    model = torchvision.models.get_model(name)
    model.load_state_dict(load_file(weights))
    torch.manual_seed(seed)
    head: nn.Module
    if name == "resnet18":
        model.fc = head = nn.Linear(model.fc.in_features, num_classes)
    else:
        model.classifier[1] = head = nn.Linear(model.classifier[1].in_features, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return model, head
