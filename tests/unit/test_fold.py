"""A folded prefix against the prefix it was made from: equal outputs, and no BatchNorm left where it can go."""

import math

import pytest
import torch
from torch import nn

from tests.unit.families import EACH_FAMILY, built, by_hand, images_for, randomise_norms
from tlray.models.backbone import Backbone
from tlray.models.fold import folded
from tlray.models.split import FrozenPrefix, find_cut, frozen_prefix

torch.set_num_threads(1)


def prefix_of(backbone: Backbone, *nums_frozen: int) -> FrozenPrefix:
    return frozen_prefix(backbone, [find_cut(backbone, num_frozen) for num_frozen in nums_frozen])


def norms(prefix: FrozenPrefix) -> list[str]:
    batch_norm = nn.modules.batchnorm._BatchNorm
    return [name for name, module in prefix.layers.named_modules() if isinstance(module, batch_norm)]


def assert_close(values: tuple, expected: tuple) -> None:
    """To 1e-4 of the largest number in each value."""
    for cut, expected_cut in zip(values, expected, strict=True):
        for value, reference in zip(cut, expected_cut, strict=True):
            assert value.shape == reference.shape
            assert (value - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_folded_prefix_gives_what_the_prefix_gives_at_every_cut(family: str) -> None:
    backbone = built(family)
    count = len(backbone.blocks)
    prefix = prefix_of(backbone, *sorted({1, math.ceil(count / 2), count}))
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    images = images_for(backbone)
    expected = prefix(images)
    assert_close(folded(prefix)(images), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(prefix(images), expected, strict=True) for a, b in zip(a, b, strict=True)
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.model.state_dict().items())


# how many BatchNorms stay: those in front of their convolution, and those behind a concatenation of dense layers
REMAINING = {
    "torchvision/resnet18": 0,
    "torchvision/mobilenet_v2": 0,
    "torchvision/mobilenet_v3_small": 0,
    "torchvision/efficientnet_b0": 0,
    "torchvision/googlenet": 0,
    "timm/mobilenetv1_100": 0,
    "timm/tf_efficientnet_b0": 0,
    "timm/resnet18": 0,
    "timm/resnetv2_18": 9,  # the first of each of 8 blocks, and the last of all
    "torchvision/densenet121": 62,  # the first of each of 58 layers, 3 transitions, the last of all
}


@pytest.mark.parametrize("family", REMAINING)
def test_batch_norms_behind_their_convolution_disappear(family: str) -> None:
    backbone = built(family)
    prefix = prefix_of(backbone, len(backbone.blocks))
    before = norms(prefix)
    assert len(before) > REMAINING[family]
    assert len(norms(folded(prefix))) == REMAINING[family]
    assert norms(prefix) == before


def test_a_folded_prefix_is_channels_last_and_stays_in_evaluation_mode() -> None:
    backbone = built("torchvision/efficientnet_b0")
    fast = folded(prefix_of(backbone, 3))
    fast.train()
    ((values,),) = fast(images_for(backbone))
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


class Tangled(nn.Module):
    """Pairs that may not be folded, and one that may."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(4)
        self.block = TangledBlock()
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.stem(images)
        values = values + self.stem_norm(values)  # somebody else sees the convolution's output
        return self.head(self.block(values).mean((2, 3)))


class TangledBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm_1, self.norm_2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.read, self.norm_3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.plain, self.norm_4 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.norm_2(self.twice(self.norm_1(self.twice(values))))  # one convolution, two norms
        values = self.norm_3(self.read(values)) * self.read.weight.sum()
        return self.norm_4(self.plain(values))


def test_only_pairs_are_folded_whose_convolution_nothing_else_reads() -> None:
    model = Tangled()
    randomise_norms(model)
    backbone = by_hand(model)
    prefix, images = prefix_of(backbone, 1, 2), images_for(backbone)
    fast = folded(prefix)
    assert_close(fast(images), prefix(images))
    assert norms(fast) == ["stem_norm", "block.norm_1", "block.norm_2", "block.norm_3"]


class Branching(nn.Module):
    """Its block's forward depends on the size of its input, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.block = BranchingBlock()
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem_norm(self.stem(images))).mean((2, 3)))


class BranchingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(values if values.shape[-1] > 2 else -values))


def test_a_block_that_cannot_be_traced_keeps_its_norms() -> None:
    model = Branching()
    randomise_norms(model)
    backbone = by_hand(model)
    prefix, images = prefix_of(backbone, 1, 2), images_for(backbone)
    fast = folded(prefix)
    assert_close(fast(images), prefix(images))
    assert [name for name, module in fast.layers.named_modules() if isinstance(module, nn.BatchNorm2d)] == [
        "block.norm"
    ]
