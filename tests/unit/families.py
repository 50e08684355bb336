"""Small backbones, one of every family, and BatchNorms that do something."""

from typing import Any

import pytest
import torch
from torch import nn

from tlray.catalogue import default_preprocessing
from tlray.config import BackboneConfig
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.blocks import trace_model

# input size, and options that make the model small or switch its dropout on; the families whose smallest member takes
# seconds (AlexNet, Inception v4, NASNet) stand in test_split_catalogue.py alone
FAMILIES: dict[str, tuple[int | None, dict[str, Any]]] = {
    "torchvision/googlenet": (64, {}),
    "torchvision/inception_v3": (80, {}),
    "timm/vgg11": (64, {"mlp_ratio": 0.02}),
    "torchvision/resnet18": (64, {}),
    "timm/resnet18": (64, {"drop_rate": 0.2, "drop_path_rate": 0.2}),
    "timm/resnetv2_18": (64, {}),
    "torchvision/efficientnet_b0": (64, {}),
    "timm/tf_efficientnet_b0": (64, {"drop_rate": 0.2, "drop_path_rate": 0.2}),
    "torchvision/densenet121": (64, {}),
    "timm/mobilenetv1_100": (64, {}),
    "torchvision/mobilenet_v2": (64, {}),
    "torchvision/mobilenet_v3_small": (64, {}),
    "timm/legacy_xception": (72, {}),
    "timm/test_vit": (64, {"drop_rate": 0.1, "pos_drop_rate": 0.1}),
    "timm/deit_tiny_distilled_patch16_224": (64, {"depth": 3}),
    "torchvision/swin_t": (64, {}),
    "timm/test_convnext": (64, {}),
    "timm/resnetv2_50x1_bit": (64, {}),
    "torchvision/squeezenet1_0": (64, {}),
    "torchvision/shufflenet_v2_x0_5": (64, {}),
    "torchvision/mnasnet0_5": (64, {}),
    "torchvision/regnet_y_400mf": (64, {}),
}

# One with BatchNorm, and one with attention, in `make test`; all in `make test-slow`.
IN_EVERY_RUN = ("torchvision/resnet18", "timm/test_vit")
EACH_FAMILY = [pytest.param(id, marks=[] if id in IN_EVERY_RUN else [pytest.mark.slow]) for id in FAMILIES]


def built(id: str) -> Backbone:
    """A family's backbone for 3 classes, with random weights and norms, in evaluation mode."""
    size, options = FAMILIES[id]
    return untrained(id, size, options)


def untrained(id: str, size: int | None, options: dict[str, Any]) -> Backbone:
    backbone = build_backbone(BackboneConfig(id=id, weights="none", input_size=size, options=options), 3)
    randomise_norms(backbone.model)
    backbone.model.eval()
    return backbone


def by_hand(model: nn.Module, size: int = 16, head: str = "head") -> Backbone:
    """A backbone around a model of a test, in evaluation mode."""
    trace = trace_model(model, (head,))
    preprocessing = default_preprocessing("timm/test_vit").with_input_size(size)
    return Backbone("timm/by_hand", model.eval(), (head,), trace.blocks, None, preprocessing, "none", trace=trace)


def randomise_norms(model: nn.Module) -> None:
    """Fresh statistics are 0 and 1, with which a BatchNorm does nothing."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.3, generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=draw)
                    module.bias.normal_(0, 0.3, generator=draw)


def images_for(backbone: Backbone, count: int = 3, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *backbone.preprocessing.input_size, generator=draw)
