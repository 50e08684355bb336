"""The whole configuration of a run.

`training` holds one value for every hyper-parameter; `search_space` says which of them are searched.
"""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tlray.config.data import ActivationsConfig, DataConfig
from tlray.config.query import LIST_FORM, QUERY_FORM, BackboneQuery
from tlray.config.retrain import RetrainConfig, WarmStart
from tlray.config.section import MOST_ENTRIES, MOST_SEED, MOST_TRIALS, Flag, Location, Section, Whole
from tlray.config.sweep import BudgetConfig, ClusterConfig, PricesConfig, SweepConfig
from tlray.config.training import (
    BackboneConfig,
    BackboneList,
    BaselineConfig,
    Recipe,
    Space,
    StrategyConfig,
    check_recipe_values,
    check_space,
)

LIST = "[list]"  # in the place of an error; never shown
Strategies = Annotated[
    tuple[Annotated[StrategyConfig, BeforeValidator(lambda v: {"strategy": v} if isinstance(v, str) else v)], ...],
    Field(min_length=1, max_length=MOST_ENTRIES),
    Tag(LIST),
]
Auto = Annotated[Literal["auto"], Tag("[auto]")]


class RankingConfig(Section):
    """Which backbones go on to the sweep, by scores of their features of some training images."""

    shortlist: Whole | None = Field(
        None, ge=1, le=MOST_ENTRIES, description="how many go on to the sweep; by default all, unranked"
    )
    images: Whole = Field(
        1000, ge=4, le=10**7, description="training images that backbones are ranked on, of all classes alike"
    )
    score: Literal["linear_probe", "knn", "logme", "h_score", "nleep", "mean_rank"] = Field(
        "linear_probe", description="which score decides; mean_rank: the mean place over all of them"
    )


class ExportConfig(Section):
    """What a run leaves to be used; the leaderboard shows the ensemble in any case."""

    top_k: Whole = Field(1, ge=0, le=MOST_ENTRIES, description="how many of the best trials")
    refit: Flag = Field(
        False, description="train the winner once more, on the training and validation images, and export that"
    )
    tta: Literal["none", "flip"] = Field(
        "none", description="flip: the graph averages over the image and its mirror image, for twice the forwards"
    )
    ensemble: Flag = Field(
        False, description="also the ensemble, as one bundle: an image costs as many forwards as it has members"
    )


class RunConfig(Section):
    """Everything a run needs; `tlray run` writes it, resolved, to the run folder's config.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    storage: Location = Field("~/tlray-runs", description="local path or s3:// prefix under which run folders are made")
    seed: Whole = Field(0, ge=0, le=MOST_SEED)
    data: DataConfig
    backbones: Annotated[
        Annotated[BackboneList, Tag(LIST_FORM)] | Annotated[BackboneQuery, Tag(QUERY_FORM)],
        Discriminator(lambda given: QUERY_FORM if isinstance(given, dict | BackboneQuery) else LIST_FORM),
    ] = Field(description="ids, or a query that the catalogue answers")
    accept_licences: tuple[str, ...] = Field(
        (), max_length=MOST_ENTRIES, description="licences that bind whoever uses the weights: agpl-3.0"
    )
    strategies: Annotated[Strategies | Auto, Discriminator(lambda v: "[auto]" if isinstance(v, str) else LIST)] = Field(
        (StrategyConfig(strategy="linear_probe"), StrategyConfig(strategy="full")),
        description="a list, or auto: chosen by what the images are like, see tlray/ranking/advice.py",
    )
    training: Recipe = Recipe()
    search_space: dict[str, Space] = Field(
        default_factory=dict, max_length=MOST_ENTRIES, description="recipe keys to search"
    )
    known_recipe: Literal["auto", "always", "never"] = Field(
        "auto",
        description="each backbone's first trial is the usual recipe of its strategy; auto: where values are drawn",
    )
    baseline: BaselineConfig = BaselineConfig()
    activations: ActivationsConfig = ActivationsConfig()
    ranking: RankingConfig = RankingConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()
    export: ExportConfig = ExportConfig()
    budget: BudgetConfig = BudgetConfig()
    prices: PricesConfig | None = None
    warm_start: WarmStart | None = Field(None, description="a trial before all others; `tlray retrain` writes it")
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def a_cost_needs_prices(self) -> "RunConfig":
        if self.budget.cost is not None and (self.prices is None or self.prices.cost_of(3600) == 0):
            raise ValueError("budget.cost needs prices.per_hour, what an instance costs an hour")
        return self

    @model_validator(mode="after")
    def a_refit_has_no_part_in_a_budget(self) -> "RunConfig":
        if self.export.refit and (self.budget.hours is not None or self.budget.cost is not None):
            raise ValueError(
                "export.refit trains after the sweep, where budget.hours and budget.cost leave no time: remove one"
            )
        return self

    @property
    def chosen_backbones(self) -> tuple[BackboneConfig, ...]:
        """The backbones, after `catalogue.select.select_backbones` has answered a query."""
        assert isinstance(self.backbones, tuple), "backbones is still a query"
        return self.backbones

    @model_validator(mode="after")
    def nothing_is_listed_twice(self) -> "RunConfig":
        for name in ("backbones", "strategies"):
            entries = getattr(self, name)
            for place, entry in enumerate(entries if isinstance(entries, tuple) else ()):
                first = entries.index(entry)
                if first < place:
                    raise ValueError(f"{name}.{place} is the same as {name}.{first}: remove one of them")
        return self

    @model_validator(mode="after")
    def trials_are_bounded(self) -> "RunConfig":
        """By count, before any is drawn."""
        backbones = len(self.backbones) if isinstance(self.backbones, tuple) else self.backbones.limit
        strategies = self.strategies if self.strategies != "auto" else ()
        of_each = [self._grid_size(strategy) for strategy in strategies] or [1]
        solved = [strategy for strategy in strategies if self._is_solved(strategy) and not strategy.search_space]
        total = backbones * (self.sweep.num_samples * (sum(of_each) - len(solved)) + len(solved))
        if total > MOST_TRIALS:
            raise ValueError(
                f"sweep.num_samples {self.sweep.num_samples} makes {total} trials of {backbones} backbones, "
                f"{len(of_each)} strategies and grids of {max(of_each)} points at most: lower one of them, "
                f"{MOST_TRIALS} trials are the most"
            )
        return self

    def _grid_size(self, strategy: StrategyConfig) -> int:
        space = {**({} if self._is_solved(strategy) else self.search_space), **strategy.search_space}
        return math.prod(len(space[key].grid or (0,)) for key in space if key not in strategy.training)

    def _is_solved(self, strategy: StrategyConfig) -> bool:
        return strategy.chosen_solver(self.training) == "lbfgs"

    @model_validator(mode="after")
    def recipes_are_valid(self) -> "RunConfig":
        check_recipe_values("baseline.training", self.baseline.training)
        check_space("search_space", self.search_space)
        for i, strategy in enumerate(self.strategies if self.strategies != "auto" else ()):
            check_recipe_values(f"strategies.{i}.training", strategy.training)
            check_space(f"strategies.{i}.search_space", strategy.search_space)
            if strategy.solver == "lbfgs" and not self.training.freeze_bn:
                raise ValueError(
                    f"strategies.{i}.solver lbfgs needs features that stay as they are, and training.freeze_bn is "
                    "false: set it to true, or set solver: gradient"
                )
        return self
