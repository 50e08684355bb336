"""From which epoch on more blocks train, where a strategy thaws them one after the other. No torch here.

schedule = thaw_schedule(strategy, num_blocks, epochs)      # {first epoch: trainable blocks, counted from the head}
"""

import math
from typing import Literal

from tlray.config.training import Recipe, StrategyConfig


def thaw_schedule(strategy: StrategyConfig, num_blocks: int, epochs: int) -> dict[int, int | Literal["all"]]:
    """Of `gradual`: its own schedule, or half of the blocks from the second third of the epochs on, then all."""
    if strategy.unfreeze is not None:
        return dict(strategy.unfreeze)
    return {math.ceil(epochs / 3) + 1: max(1, num_blocks // 2), math.ceil(2 * epochs / 3) + 1: "all"}


def uncounted_epochs(strategy: StrategyConfig, recipe: Recipe) -> int:
    """Epochs of warm-up and those before the last thaw, after which the trial is not yet what it is going to be.

    The last epoch always counts.
    """
    thawed = 0
    if strategy.strategy == "gradual":
        starts = [start for start in thaw_schedule(strategy, 2, recipe.epochs) if start <= recipe.epochs]
        thawed = max(starts, default=1) - 1
    return min(max(math.ceil(recipe.warmup_epochs), thawed), recipe.epochs - 1)
