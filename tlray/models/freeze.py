"""Freeze strategies over ordered blocks: which parameters train, what frozen BatchNorm does, how groups are decayed.

    plan = blocks_by_epoch(strategy, backbone, epochs)        # trainable blocks in each epoch, counted from the head
    freeze(backbone, plan[epoch - 1])                         # requires_grad
    train_mode(backbone, plan[epoch - 1], freeze_bn=True)     # instead of model.train()

A frozen block is in evaluation mode as a whole (BatchNorm, dropout, stochastic depth), so that everything in front of
the first trainable block is a pure function of the image. A backbone without blocks trains its head only, or whole.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tlray.config import StrategyConfig
from tlray.config.thawing import thaw_schedule
from tlray.errors import BackboneError
from tlray.models.backbone import Backbone, Block

BatchNorm = nn.modules.batchnorm._BatchNorm  # all BatchNorm classes, SyncBatchNorm and timm's fused ones included


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters that one optimizer setting applies to."""

    depth: int  # 0 is the head, 1 the last block, 2 the one before it
    weight_decay: bool  # no for biases and everything else of one dimension (norms, layer scales)
    parameters: list[nn.Parameter]


def num_trainable_blocks(strategy: StrategyConfig, num_blocks: int, epoch: int, epochs: int) -> int:
    """How many blocks, counted from the head, train in `epoch` (1-based) of `epochs`; 0 trains the head only.

    A backbone without blocks counts as one that trains whole or not at all. BackboneError when the strategy asks for
    more blocks than there are.
    """
    if strategy.strategy == "linear_probe":
        return 0
    if strategy.strategy in ("full", "scratch"):
        return max(1, num_blocks)
    if num_blocks == 0:
        raise BackboneError(f"{strategy.label} needs blocks to freeze, and none were found in this backbone")
    if strategy.strategy == "partial":
        if strategy.frozen_fraction is not None:
            return num_blocks - math.floor(strategy.frozen_fraction * num_blocks + 0.5)
        assert strategy.trainable_blocks is not None, "checked by StrategyConfig"
        return _within(strategy.trainable_blocks, num_blocks, strategy.label)
    schedule = thaw_schedule(strategy, num_blocks, epochs)
    counts = {
        start: num_blocks if blocks == "all" else _within(blocks, num_blocks, f"gradual from epoch {start} on")
        for start, blocks in schedule.items()
    }
    return counts[max(start for start in counts if start <= epoch)] if min(counts, default=epoch + 1) <= epoch else 0


def blocks_by_epoch(strategy: StrategyConfig, backbone: Backbone, epochs: int) -> tuple[int, ...]:
    """`num_trainable_blocks` for every epoch; its errors name the backbone, and why it has no blocks."""
    try:
        return tuple(
            num_trainable_blocks(strategy, len(backbone.blocks), epoch, epochs) for epoch in range(1, epochs + 1)
        )
    except BackboneError as error:
        reason = f" ({backbone.blocks_error}); use linear_probe or full" if backbone.blocks_error else ""
        raise BackboneError(f"{backbone.id}: {error}{reason}") from None


def freeze(backbone: Backbone, trainable_blocks: int) -> None:
    """Let the head and the last `trainable_blocks` blocks train and nothing else, by requires_grad."""
    frozen = _frozen_parameters(backbone, trainable_blocks)
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def train_mode(backbone: Backbone, trainable_blocks: int, freeze_bn: bool) -> None:
    """`model.train()` with the frozen blocks in evaluation mode.

    With `freeze_bn` False the BatchNorm of frozen blocks normalises by the batch and updates its statistics; its weight
    and bias stay frozen all the same.
    """
    backbone.model.train()
    for name in _frozen_modules(backbone, trainable_blocks):
        module = backbone.model.get_submodule(name)
        module.training = not freeze_bn and isinstance(module, BatchNorm)


def parameter_groups(backbone: Backbone) -> list[ParameterGroup]:
    """The parameters that train now, by distance from the head and by whether weight decay applies."""
    depths = {name: len(backbone.blocks) - block.index for block in backbone.blocks for name in block.parameters}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in backbone.model.named_parameters():
        if not parameter.requires_grad:
            continue
        without_blocks = 0 if backbone.in_head(name) else 1
        depth = depths.get(name, 0) if backbone.blocks else without_blocks
        decays = parameter.ndim > 1 and not name.endswith("bias")
        groups.setdefault((depth, decays), []).append(parameter)
    return [ParameterGroup(depth, decays, groups[depth, decays]) for depth, decays in sorted(groups)]


def trainable_state(backbone: Backbone, max_trainable_blocks: int, freeze_bn: bool) -> list[str]:
    """Keys of the model's state dict that training may change; all others stay bit for bit what they are."""
    model = backbone.model
    frozen_parameters = _frozen_parameters(backbone, max_trainable_blocks)
    frozen_modules = _frozen_modules(backbone, max_trainable_blocks)
    if not freeze_bn:
        frozen_modules = {name for name in frozen_modules if not isinstance(model.get_submodule(name), BatchNorm)}
    frozen_modules |= {_owner(name) for name in backbone.unused}
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a shared one stands under each of its names
    frozen = {id(parameters[name]) for name in frozen_parameters}

    def may_change(key: str) -> bool:
        return id(parameters[key]) not in frozen if key in parameters else _owner(key) not in frozen_modules

    return [key for key in model.state_dict() if may_change(key)]


def frozen_keys(backbone: Backbone, trainable_blocks: int) -> list[str]:
    """Keys of the state dict that nothing changes while the last `trainable_blocks` blocks and the head train."""
    changing = set(trainable_state(backbone, trainable_blocks, freeze_bn=True))
    return [key for key in backbone.model.state_dict() if key not in changing]


def hash_tensors(model: nn.Module, keys: Iterable[str]) -> str:
    """sha256 over names, dtypes and bytes of the model's tensors named by `keys`."""
    state = model.state_dict()
    digest = hashlib.sha256()
    for key in sorted(keys):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _within(asked: int, num_blocks: int, what: str) -> int:
    if asked > num_blocks:
        raise BackboneError(f"{what} asks for {asked} trainable blocks, and there are {num_blocks}")
    return asked


def _frozen_blocks(backbone: Backbone, trainable_blocks: int) -> tuple[Block, ...]:
    num_blocks = len(backbone.blocks)
    assert 0 <= trainable_blocks <= max(1, num_blocks), f"{trainable_blocks} of {num_blocks} blocks"
    return backbone.blocks[: max(0, num_blocks - trainable_blocks)]


def _frozen_parameters(backbone: Backbone, trainable_blocks: int) -> set[str]:
    frozen = {name for block in _frozen_blocks(backbone, trainable_blocks) for name in block.parameters}
    if _only_head_trains_untraced(backbone, trainable_blocks):
        frozen = {name for name, _ in backbone.model.named_parameters() if not backbone.in_head(name)}
    return frozen.union(backbone.unused)


def _frozen_modules(backbone: Backbone, trainable_blocks: int) -> set[str]:
    """Names of the frozen modules and of all modules in them."""
    if _only_head_trains_untraced(backbone, trainable_blocks):
        return {name for name, _ in backbone.model.named_modules() if not backbone.in_head(name)}
    return {
        f"{name}.{inner}" if inner else name
        for block in _frozen_blocks(backbone, trainable_blocks)
        for name in block.modules
        for inner, _ in backbone.model.get_submodule(name).named_modules()
    }


def _only_head_trains_untraced(backbone: Backbone, trainable_blocks: int) -> bool:
    """Without blocks nothing tells what runs in front of the head: then all modules but the head itself are frozen."""
    return not backbone.blocks and trainable_blocks == 0


def _owner(key: str) -> str:
    return key.rpartition(".")[0]
