"""The configuration of a run: every field, its default and its meaning. `config.file` reads it from YAML."""

from tlray.config.data import ActivationsConfig, ColumnsConfig, DataConfig, SyntheticConfig
from tlray.config.retrain import RetrainConfig, WarmStart
from tlray.config.run import ExportConfig, RankingConfig, RunConfig
from tlray.config.sweep import BudgetConfig, ClusterConfig, NodeTypeConfig, PricesConfig, SweepConfig
from tlray.config.training import (
    BackboneConfig,
    BackboneList,
    BaselineConfig,
    Recipe,
    Space,
    StrategyConfig,
    StrategyName,
    TrialConfig,
    recipe_value,
)

__all__ = [
    "ActivationsConfig",
    "BackboneConfig",
    "BackboneList",
    "BaselineConfig",
    "BudgetConfig",
    "ClusterConfig",
    "ColumnsConfig",
    "DataConfig",
    "ExportConfig",
    "NodeTypeConfig",
    "PricesConfig",
    "RankingConfig",
    "Recipe",
    "RetrainConfig",
    "RunConfig",
    "Space",
    "StrategyConfig",
    "StrategyName",
    "SweepConfig",
    "SyntheticConfig",
    "TrialConfig",
    "WarmStart",
    "recipe_value",
]
