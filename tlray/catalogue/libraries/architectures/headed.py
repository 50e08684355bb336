"""Networks with a linear classifier `fc` behind what was a detector's backbone or an image-text model's tower."""

import torch
from torch import nn


class HeadedTower(nn.Module):
    """The visual tower of an image-text model and a linear head: images (B, 3, H, W) -> logits (B, num_classes).

    `visual` maps the images to embeddings (B, width), not normalised to length 1.
    """

    def __init__(self, visual: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.visual = visual
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.visual(images))


class HeadedLayers(nn.Module):
    """Layers that run one after the other, average pooling and a linear head: images (B, 3, H, W) -> (B, num_classes).

    `features` ends with maps (B, C, h, w); `conv`, if there is one, maps them to (B, width, h, w).
    """

    def __init__(self, features: nn.Sequential, conv: nn.Module | None, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.conv = nn.Identity() if conv is None else conv
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.conv(self.features(images))).flatten(1))


def replace_classifier(model: nn.Module, num_classes: int) -> None:
    """A new classifier of `num_classes` outputs in place of the last linear layer, or of the last 1x1 convolution."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    name = (linear or convolutions)[-1]
    old = model.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    else:
        assert isinstance(old, nn.Conv2d)
        assert old.kernel_size == (1, 1), f"{name} is no 1x1 convolution"
        new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1, bias=old.bias is not None)
    model.set_submodule(name, new)
