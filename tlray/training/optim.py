"""Recipe and trainable parameters -> optimizer, and the learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from tlray.config import Recipe
from tlray.models.freeze import ParameterGroup


def make_optimizer(groups: Iterable[ParameterGroup], recipe: Recipe) -> torch.optim.Optimizer:
    """The head trains at lr x head_lr_mult, a block `depth` away from it at lr x layer_decay^depth.

    Layer-wise decay as in BEiT (Bao et al., 2022). Groups that ask for no weight decay get none.
    """
    groups = list(groups)
    parameters: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "lr": recipe.lr * (recipe.head_lr_mult if group.depth == 0 else recipe.layer_decay**group.depth),
            "weight_decay": recipe.weight_decay if group.weight_decay else 0.0,
        }
        for group in sorted(groups, key=lambda group: group.depth)
    ]
    for group in parameters:
        group["peak_lr"] = group["lr"]
    # On a GPU one kernel updates all parameters, and takes float16's loss scale without asking the host.
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group.parameters)
    fused = True if on_gpu else None
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(parameters, fused=fused)


def rate_factor(step: int, *, steps_per_epoch: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at optimisation step `step` (0-based): linear warm-up, then the schedule.

    The cosine (Loshchilov & Hutter, 2017) reaches zero one step after the last.
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    total = recipe.epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
