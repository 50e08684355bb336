"""The configuration's search space -> the list of trials, complete before the first one starts.

Grids, choices, uniform and loguniform mean what they mean in Ray Tune: every grid value is tried, the others
are drawn, and all of it is repeated `num_samples` times. The draws are made here and not by Tune so that the plan
can show every trial, a trial keeps its id and values over a resume, and adding a backbone changes no other trial.
"""

import itertools
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tlray.config import BackboneConfig, Recipe, RunConfig, Space, StrategyConfig, TrialConfig, WarmStart, recipe_value
from tlray.config.known_recipe import KNOWN_RECIPES


def list_trials(config: RunConfig) -> list[TrialConfig]:
    """Every trial of the run: the baseline first, then backbones x strategies x samples x grid values.

    `warm_start` stands right behind the baseline, and is not repeated where the search comes upon it again.
    Where values are drawn, each backbone starts with what one would do by hand, so that no search is worse than that.
    Of `strategies: auto`, which the plan replaces by what it advises, the linear probes alone, which are always there.
    """
    trials = [_baseline(config)]
    first = config.warm_start
    if first is not None:
        trials.append(_trial(config, len(trials), first.backbone, _of_warm_start(first), first.training))
    strategies = config.strategies if config.strategies != "auto" else (StrategyConfig(strategy="linear_probe"),)
    for backbone in config.chosen_backbones:
        known = _known(config, strategies)
        if known is not None and not _is_first(config, backbone, *known):
            trial = _trial(config, len(trials), backbone, *known)
            trials.append(trial.model_copy(update={"is_known_recipe": True}))
        for strategy in strategies:
            for values in _draws(config, backbone, strategy):
                recipe = _recipe(config.training, {**values, **strategy.training}, where="strategies.training")
                if (strategy, recipe) != known and not _is_first(config, backbone, strategy, recipe):
                    trials.append(_trial(config, len(trials), backbone, strategy, recipe))
    return trials


def _known(config: RunConfig, strategies: Sequence[StrategyConfig]) -> tuple[StrategyConfig, Recipe] | None:
    """The first strategy that keeps pre-trained weights, with its known recipe; None where none is asked for.

    A solved probe is what one would do by hand, and has no rate that could be known.
    """
    spaces = [config.search_space, *(strategy.search_space for strategy in strategies)]
    drawn = any(dimension.grid is None for space in spaces for dimension in space.values())
    if config.known_recipe == "never" or (config.known_recipe == "auto" and not drawn):
        return None
    strategy = next((s for s in strategies if s.strategy != "scratch"), strategies[0])
    if _is_solved(config, strategy):
        return None
    values = {**KNOWN_RECIPES[strategy.strategy], **strategy.training}
    return strategy, _recipe(config.training, values, where="strategies.training")


def _of_warm_start(first: WarmStart) -> StrategyConfig:
    """Its recipe is a trial's, so that a linear probe is one by gradients unless it says that it was solved."""
    is_probe = first.strategy.strategy == "linear_probe" and first.strategy.solver == "auto"
    return first.strategy.model_copy(update={"solver": "gradient"}) if is_probe else first.strategy


def _is_first(config: RunConfig, backbone: BackboneConfig, strategy: StrategyConfig, recipe: Recipe) -> bool:
    """Whether this is the warm start over again; what a strategy searches is no part of it by then."""
    first = config.warm_start
    if first is None:
        return False
    return (backbone, _bare(config, strategy), recipe) == (first.backbone, _of_warm_start(first), first.training)


def _is_solved(config: RunConfig, strategy: StrategyConfig) -> bool:
    return strategy.chosen_solver(config.training) == "lbfgs"


def _bare(config: RunConfig, strategy: StrategyConfig) -> StrategyConfig:
    """Which blocks train, and how: its recipe is a trial's by now, and its search is resolved."""
    solver = strategy.chosen_solver(config.training)
    return strategy.model_copy(update={"training": {}, "search_space": {}, "solver": solver})


def _baseline(config: RunConfig) -> TrialConfig:
    recipe = _recipe(config.training, config.baseline.training, where="baseline.training")
    return TrialConfig(
        trial_id="000-baseline",
        backbone=config.baseline.backbone,
        strategy=StrategyConfig(strategy="scratch"),
        recipe=recipe,
        seed=config.seed,
        is_baseline=True,
    )


def _trial(
    config: RunConfig, index: int, backbone: BackboneConfig, strategy: StrategyConfig, recipe: Recipe
) -> TrialConfig:
    if strategy.strategy == "scratch":
        backbone = backbone.model_copy(update={"weights": "none"})
    strategy = _bare(config, strategy)
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{backbone.id.rpartition('/')[2]}-{strategy.label}").strip("-")
    return TrialConfig(
        trial_id=f"{index:03d}-{name}", backbone=backbone, strategy=strategy, recipe=recipe, seed=config.seed
    )


def _recipe(defaults: Recipe, values: dict[str, Any], *, where: str) -> Recipe:
    return defaults.model_copy(update={key: recipe_value(where, key, value) for key, value in values.items()})


def _draws(config: RunConfig, backbone: BackboneConfig, strategy: StrategyConfig) -> Iterator[dict[str, Any]]:
    """The searched values of each trial of one backbone and strategy; a value that the strategy fixes is not drawn."""
    if _is_solved(config, strategy):
        space = strategy.search_space
        if not space:
            yield {}
            return
    else:
        space = {**config.search_space, **strategy.search_space}
    space = {key: dimension for key, dimension in sorted(space.items()) if key not in strategy.training}
    grids = {key: dimension.grid for key, dimension in space.items() if dimension.grid is not None}
    drawn = {key: dimension for key, dimension in space.items() if dimension.grid is None}
    for sample in range(config.sweep.num_samples):
        for grid_index, combination in enumerate(itertools.product(*grids.values())):
            place = zlib.crc32(f"{backbone.id}|{backbone.weights}|{strategy.label}".encode())
            generator = np.random.default_rng([config.seed, place, sample, grid_index])
            values = {key: _draw(dimension, generator) for key, dimension in drawn.items()}
            yield {**dict(zip(grids, combination, strict=True)), **values}


def _draw(dimension: Space, generator: np.random.Generator) -> Any:
    if dimension.choice is not None:
        return dimension.choice[int(generator.integers(len(dimension.choice)))]
    if dimension.uniform is not None:
        return float(generator.uniform(*dimension.uniform))
    assert dimension.loguniform is not None
    low, high = dimension.loguniform
    return float(math.exp(generator.uniform(math.log(low), math.log(high))))
