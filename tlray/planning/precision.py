"""`precision: auto` decided for a run, by the device that trains: the run's config.yaml, plan and rows have the choice.

config = with_chosen_precision(config, given_device(config.sweep.gpus_per_worker))
"""

from collections.abc import Mapping
from typing import Any

import torch

from tlray.config import Recipe, RunConfig, Space
from tlray.process.device import chosen_precision


def with_chosen_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration without "auto" for any precision, wherever one may be given."""
    chosen = chosen_precision("auto", device)
    activations = config.activations
    if activations.precision == "auto":
        activations = activations.model_copy(update={"precision": chosen})
    strategies = config.strategies
    if strategies != "auto":
        strategies = tuple(
            strategy.model_copy(
                update={
                    "training": _in_recipe(strategy.training, chosen),
                    "search_space": _in_space(strategy.search_space, chosen),
                }
            )
            for strategy in strategies
        )
    baseline = config.baseline.model_copy(update={"training": _in_recipe(config.baseline.training, chosen)})
    first = config.warm_start
    if first is not None:
        first = first.model_copy(update={"training": _recipe(first.training, chosen)})
    return config.model_copy(
        update={
            "training": _recipe(config.training, chosen),
            "activations": activations,
            "strategies": strategies,
            "search_space": _in_space(config.search_space, chosen),
            "baseline": baseline,
            "warm_start": first,
        }
    )


def _recipe(recipe: Recipe, chosen: str) -> Recipe:
    return recipe.model_copy(update={"precision": chosen}) if recipe.precision == "auto" else recipe


def _in_recipe(values: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    return {key: chosen if key == "precision" and value == "auto" else value for key, value in values.items()}


def _in_space(space: Mapping[str, Space], chosen: str) -> dict[str, Space]:
    return {key: _decided(values, chosen) if key == "precision" else values for key, values in space.items()}


def _decided(space: Space, chosen: str) -> Space:
    """The values of a precision's search; a grid tries none of them twice."""

    def decided(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(chosen if value == "auto" else value for value in values)

    grid = decided(space.grid)
    return space.model_copy(
        update={"grid": None if grid is None else tuple(dict.fromkeys(grid)), "choice": decided(space.choice)}
    )
