"""The backbone of YOLOv7: Wang et al., "YOLOv7: Trainable bag-of-freebies ...", arXiv:2207.02696.

Channels and kernels as in the MIT-licensed configuration `v7` of github.com/MultimediaTechLab/YOLO. YOLOv7 was
published as a detector only, so the pooling and linear head behind it start untrained (`HeadedLayers`).
"""

import torch
from torch import nn

WIDTH = 1024  # channels of the last maps


class ConvNormAct(nn.Module):
    """Convolution, batch norm, SiLU: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(maps)))


class Elan(nn.Module):
    """Efficient layer aggregation (figure 2 c of the paper): (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.conv_a = ConvNormAct(in_channels, hidden, 1)
        self.conv_b = ConvNormAct(in_channels, hidden, 1)
        self.pair1 = nn.Sequential(ConvNormAct(hidden, hidden, 3), ConvNormAct(hidden, hidden, 3))
        self.pair2 = nn.Sequential(ConvNormAct(hidden, hidden, 3), ConvNormAct(hidden, hidden, 3))
        self.merge = ConvNormAct(4 * hidden, out_channels, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        second = self.conv_b(maps)
        third = self.pair1(second)
        return self.merge(torch.cat([self.pair2(third), third, second, self.conv_a(maps)], dim=1))


class Downsample(nn.Module):
    """Half by max pooling, half by a strided convolution: (B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv_pooled = ConvNormAct(channels, channels // 2, 1)
        self.conv_before = ConvNormAct(channels, channels // 2, 1)
        self.conv_strided = ConvNormAct(channels // 2, channels // 2, 3, stride=2)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        strided = self.conv_strided(self.conv_before(maps))
        return torch.cat([strided, self.conv_pooled(self.pool(maps))], dim=1)


def yolov7_layers() -> nn.Sequential:
    """images (B, 3, H, W) -> maps (B, 1024, H / 32, W / 32)."""
    return nn.Sequential(
        ConvNormAct(3, 32, 3),
        ConvNormAct(32, 64, 3, stride=2),
        ConvNormAct(64, 64, 3),
        ConvNormAct(64, 128, 3, stride=2),
        Elan(128, 64, 256),
        Downsample(256),
        Elan(256, 128, 512),
        Downsample(512),
        Elan(512, 256, 1024),
        Downsample(1024),
        Elan(1024, 256, WIDTH),
    )
