"""Frozen means frozen: real training steps of every family, then every tensor is compared with what it was."""

from functools import lru_cache

import pytest
import torch
from torch import nn

from tests.unit import families
from tlray.config import BackboneConfig, StrategyConfig
from tlray.errors import BackboneError
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import (
    blocks_by_epoch,
    freeze,
    num_trainable_blocks,
    parameter_groups,
    train_mode,
    trainable_state,
)

torch.set_num_threads(1)

# with two whose cuts take seconds to check
FAMILIES = {**families.FAMILIES, "torchvision/alexnet": (64, {}), "timm/inception_v4": (80, {})}
# how many blocks train, counted from the head
TRAINABLE = {"linear_probe": 0, "partial(1)": 1, "partial(2)": 2, "full": None}


@lru_cache(maxsize=1)  # the strategies of one family follow each other and share its model
def built(id: str) -> tuple[Backbone, dict[str, torch.Tensor]]:
    size, options = FAMILIES[id]
    backbone = build_backbone(BackboneConfig(id=id, weights="none", input_size=size, options=options), 3)
    return backbone, snapshot(backbone.model)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def train(backbone: Backbone, trainable_blocks: int, *, freeze_bn: bool = True, steps: int = 2) -> None:
    """SGD steps on random images; asserts on the way that exactly the parameters that train got a gradient."""
    freeze(backbone, trainable_blocks)
    train_mode(backbone, trainable_blocks, freeze_bn)
    groups = [{"params": group.parameters} for group in parameter_groups(backbone)]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.01)
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for _ in range(steps):
        images = torch.rand(4, 3, *backbone.preprocessing.input_size, generator=draw)
        loss = nn.functional.cross_entropy(backbone.model(images), torch.tensor([0, 1, 1, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in backbone.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def restore(backbone: Backbone, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for key, tensor in backbone.model.state_dict().items():
            tensor.copy_(state[key])
    backbone.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("strategy", TRAINABLE)
@pytest.mark.parametrize("id", FAMILIES)
def test_frozen_tensors_stay_bit_identical_and_all_others_get_a_gradient(id: str, strategy: str) -> None:
    backbone, before = built(id)
    restore(backbone, before)
    count = TRAINABLE[strategy]
    trainable_blocks = len(backbone.blocks) if count is None else count
    train(backbone, trainable_blocks)
    after = backbone.model.state_dict()
    may_change = set(trainable_state(backbone, trainable_blocks, freeze_bn=True))
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed <= may_change
    # weight decay alone changes every weight that trains; biases start at 0 and may stay there behind a norm
    weights = {name for name, p in backbone.model.named_parameters() if p.requires_grad and p.ndim > 1}
    assert weights <= changed
    trained = [p for name, p in backbone.model.named_parameters() if p.requires_grad]
    assert sum(p.grad.abs().sum() > 0 for p in trained if p.grad is not None) > 0.6 * len(trained)
    expected = {name for block in backbone.blocks[-trainable_blocks:] for name in block.parameters if trainable_blocks}
    expected |= {name for name, _ in backbone.model.named_parameters() if backbone.in_head(name)}
    assert {name for name, p in backbone.model.named_parameters() if p.requires_grad} == expected
    statistics = {key for key in after if key.endswith("running_mean")}
    assert {key for key in statistics if key in may_change} == {key for key in statistics if key in changed}


def test_every_batch_norm_statistic_follows_its_blocks_batches_unless_frozen() -> None:
    backbone, before = built("torchvision/resnet18")
    restore(backbone, before)
    train(backbone, 1, freeze_bn=False)
    after = backbone.model.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    statistics = {key for key in after if "running_" in key or "num_batches" in key}
    assert statistics <= changed <= set(trainable_state(backbone, 1, freeze_bn=False))
    assert "layer1.0.bn1.weight" not in changed


def test_frozen_blocks_are_in_evaluation_mode_down_to_the_last_module() -> None:
    backbone, _ = built("torchvision/efficientnet_b0")
    train_mode(backbone, 2, freeze_bn=True)
    model = backbone.model
    for block in backbone.blocks:
        flags = {part.training for name in block.modules for part in model.get_submodule(name).modules()}
        assert flags == {block.index >= len(backbone.blocks) - 2}
    assert model.classifier[0].training  # dropout in front of the head belongs to the head
    train_mode(backbone, len(backbone.blocks), freeze_bn=True)
    assert all(module.training for module in model.modules())


def test_dropout_between_blocks_is_on_where_the_layer_behind_it_trains() -> None:
    backbone, _ = built("torchvision/alexnet")
    train_mode(backbone, 1, freeze_bn=True)  # classifier: 0 dropout, 1 linear, 2 relu, 3 dropout, 4 linear, 5, 6 head
    assert [layer.training for layer in backbone.model.classifier] == [False, False, False, True, True, True, True]


def test_the_frozen_part_is_a_pure_function_of_the_image_while_the_head_trains() -> None:
    backbone, before = built("torchvision/efficientnet_b0")  # its blocks have stochastic depth, its head dropout
    restore(backbone, before)
    features: list[torch.Tensor] = []
    hook = backbone.model.features.register_forward_hook(lambda _, __, output: features.append(output.detach()))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # statistics of random weights first, or the features vanish
        for _ in range(20):
            backbone.model.train()(images)
    features.clear()
    backbone.model.eval()
    backbone.model(images)
    train_mode(backbone, 0, freeze_bn=True)
    first, second = backbone.model(images), backbone.model(images)
    hook.remove()
    assert features[0].abs().max() > 0.01
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[1], features[2])
    assert not torch.equal(first, second)


def test_a_batch_norm_between_blocks_is_frozen_with_the_block_before_it() -> None:
    backbone, _ = built("torchvision/densenet121")
    assert "features.norm5" in backbone.blocks[-1].modules
    frozen = set(backbone.model.state_dict()) - set(trainable_state(backbone, 0, freeze_bn=True))
    assert {"features.norm5.running_var", "features.norm5.weight", "features.norm0.num_batches_tracked"} <= frozen


def strategy(name: str, **arguments: object) -> StrategyConfig:
    return StrategyConfig(strategy=name, **arguments)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (strategy("linear_probe"), 0),
        (strategy("feature_extractor"), 0),
        (strategy("partial", trainable_blocks=3), 3),
        (strategy("partial", frozen_fraction=0.5), 8),  # 8.5 of 17 blocks are frozen, rounded half up
        (strategy("partial", frozen_fraction=1.0), 0),
        (strategy("partial", frozen_fraction=0.0), 17),
        (strategy("full"), 17),
        (strategy("scratch"), 17),
    ],
)
def test_strategies_count_trainable_blocks_from_the_head(config: StrategyConfig, expected: int) -> None:
    assert {num_trainable_blocks(config, 17, epoch, 5) for epoch in range(1, 6)} == {expected}


@pytest.mark.parametrize(
    ("config", "epochs", "expected"),
    [
        (strategy("gradual"), 6, [0, 0, 8, 8, 17, 17]),
        (strategy("gradual"), 10, [0, 0, 0, 0, 8, 8, 8, 17, 17, 17]),
        (strategy("gradual"), 1, [0]),
        (strategy("gradual", unfreeze={2: 1, 4: "all"}), 5, [0, 1, 1, 17, 17]),
        (strategy("gradual", unfreeze={1: 2}), 2, [2, 2]),
    ],
)
def test_gradual_unfreezes_at_its_epochs(config: StrategyConfig, epochs: int, expected: list[int]) -> None:
    assert [num_trainable_blocks(config, 17, epoch, epochs) for epoch in range(1, epochs + 1)] == expected


def test_more_blocks_than_there_are_is_refused_with_their_number() -> None:
    backbone, _ = built("timm/test_vit")
    with pytest.raises(
        BackboneError, match=r"timm/test_vit: partial\(9\) asks for 9 trainable blocks, and there are 7"
    ):
        blocks_by_epoch(strategy("partial", trainable_blocks=9), backbone, 3)
    with pytest.raises(BackboneError, match=r"gradual from epoch 8 on asks for 9 trainable blocks, and there are 7"):
        blocks_by_epoch(strategy("gradual", unfreeze={8: 9}), backbone, 3)
    assert blocks_by_epoch(strategy("gradual"), backbone, 3) == (0, 3, 7)


class Branching(nn.Module):
    """A model whose forward depends on the values of its images, which torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images if images.sum() > 0 else -images).flatten(1))


def test_without_blocks_the_head_or_everything_trains_and_the_rest_is_refused_with_the_reason() -> None:
    backbone = Backbone(
        "timm/branching", Branching(), ("head",), (), "it branches", built("timm/test_vit")[0].preprocessing, "none"
    )
    assert blocks_by_epoch(strategy("linear_probe"), backbone, 1) == (0,)
    before = snapshot(backbone.model)
    train(backbone, 0)
    after = backbone.model.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {"head.weight", "head.bias"}
    assert trainable_state(backbone, 0, freeze_bn=True) == ["head.weight", "head.bias"]
    assert "body.1.running_mean" in trainable_state(backbone, 0, freeze_bn=False)

    (everything,) = blocks_by_epoch(strategy("full"), backbone, 1)
    backbone.model.zero_grad(set_to_none=True)
    train(backbone, everything)
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
    assert {group.depth for group in parameter_groups(backbone)} == {0, 1}
    assert trainable_state(backbone, everything, freeze_bn=True) == list(after)

    for config in (strategy("partial", trainable_blocks=1), strategy("gradual")):
        with pytest.raises(BackboneError, match=r"timm/branching: .*it branches"):
            blocks_by_epoch(config, backbone, 3)


def test_auxiliary_heads_never_train() -> None:
    backbone, before = built("timm/test_vit")
    restore(backbone, before)
    unused = Backbone(
        **{**vars(backbone), "trace": type(backbone.trace)(**{**vars(backbone.trace), "unused": ("pos_embed",)})}
    )
    freeze(unused, len(unused.blocks))
    assert not unused.model.pos_embed.requires_grad
    assert "pos_embed" not in trainable_state(unused, len(unused.blocks), freeze_bn=True)


def test_groups_hold_each_trainable_parameter_once_by_depth_and_decay() -> None:
    backbone, _ = built("torchvision/resnet18")
    freeze(backbone, 2)
    groups = parameter_groups(backbone)
    assert [(group.depth, group.weight_decay) for group in groups] == [
        (depth, decays) for depth in (0, 1, 2) for decays in (False, True)
    ]
    names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
    in_groups = [names[id(parameter)] for group in groups for parameter in group.parameters]
    assert sorted(in_groups) == sorted(name for name, p in backbone.model.named_parameters() if p.requires_grad)
    head_weights = next(group for group in groups if group.depth == 0 and group.weight_decay)
    assert [names[id(parameter)] for parameter in head_weights.parameters] == ["fc.weight"]
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group.parameters} == {group.weight_decay}
        block = (
            backbone.blocks[len(backbone.blocks) - group.depth].parameters if group.depth else ("fc.weight", "fc.bias")
        )
        assert {names[id(parameter)] for parameter in group.parameters} <= set(block)
