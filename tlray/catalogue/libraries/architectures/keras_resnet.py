"""ResNet-50/101/152 V2 with the layout of Keras Applications, so that its published weights can be converted.

He et al., "Identity Mappings in Deep Residual Networks", arXiv:1603.05027, as keras.applications.resnet_v2 builds it.
What sets it apart from the pre-activation ResNets of timm and pytorchcv: the stem and the last convolution of a block
have biases, a stage halves the resolution in its last block and not in its first, the shortcut there is a max pooling
with a 1x1 window, images are padded before the stem's convolution, and zeros before its max pooling.
"""

from collections import OrderedDict

import torch
from torch import nn

DEPTHS = {"resnet50v2": (3, 4, 6, 3), "resnet101v2": (3, 4, 23, 3), "resnet152v2": (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)  # of a stage's 3x3 convolutions; its outputs have four times as many channels
EXPANSION = 4


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)  # Keras writes 1 - momentum


class PreactivationBlock(nn.Module):
    """(B, in_channels, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int, projects: bool) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.preact_bn = batch_norm(in_channels)
        self.preact_relu = nn.ReLU()
        self.conv0 = nn.Conv2d(in_channels, out_channels, 1, stride) if projects else None
        self.shortcut = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = batch_norm(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = batch_norm(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        activated = self.preact_relu(self.preact_bn(inputs))
        shortcut = self.shortcut(inputs) if self.conv0 is None else self.conv0(activated)
        outputs = self.relu1(self.bn1(self.conv1(activated)))
        outputs = self.relu2(self.bn2(self.conv2(outputs)))
        return shortcut + self.conv3(outputs)


class KerasResNetV2(nn.Module):
    """images (B, 3, H, W) -> logits (B, num_classes); Keras' models end with a softmax, this one does not."""

    def __init__(self, depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1_conv = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3)
        self.pool1_pad = nn.ZeroPad2d(1)  # padding of MaxPool2d would be -inf, which differs where values are negative
        self.pool1_pool = nn.MaxPool2d(3, stride=2)
        channels = WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=2):
            last_stride = 1 if stage == len(WIDTHS) + 1 else 2
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(1, depth + 1):
                stride = last_stride if number == depth else 1
                blocks[f"block{number}"] = PreactivationBlock(channels, width, stride, projects=number == 1)
                channels = EXPANSION * width
            self.add_module(f"conv{stage}", nn.Sequential(blocks))
        self.post_bn = batch_norm(channels)
        self.post_relu = nn.ReLU()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.pool1_pool(self.pool1_pad(self.conv1_conv(images)))
        for stage in range(2, 6):
            maps = self.get_submodule(f"conv{stage}")(maps)
        return self.fc(self.avg_pool(self.post_relu(self.post_bn(maps))).flatten(1))
