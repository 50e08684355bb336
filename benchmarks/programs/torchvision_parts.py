"""What the recipe and the script have in common: the transform of the weights, and the model with a new head."""

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


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
