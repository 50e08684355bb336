"""What trains and how: the recipe, what of it is searched, backbones, strategies, the baseline."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tlray.config.section import (
    MOST_BATCH,
    MOST_ENTRIES,
    MOST_EPOCHS,
    MOST_INPUT,
    Flag,
    Location,
    Number,
    Section,
    Whole,
)
from tlray.errors import ConfigError, plain_reason, unknown_key

StrategyName = Literal["linear_probe", "partial", "gradual", "full", "scratch"]
STRATEGY_ALIASES = {"feature_extractor": "linear_probe"}
MOST_BLOCKS = 10_000
MOST_ID = 200  # characters
FirstEpoch = Annotated[
    Whole,
    Field(ge=1, le=MOST_EPOCHS),
    BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.isascii() and v.isdecimal() and len(v) < 9 else v),
]
Blocks = Annotated[Whole, Field(ge=0, le=MOST_BLOCKS)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]


class Recipe(Section):
    """How one trial trains. Rates are for the head; blocks further from it may get less (`layer_decay`)."""

    epochs: Whole = Field(10, ge=1, le=MOST_EPOCHS)
    batch_size: Whole = Field(32, ge=1, le=MOST_BATCH, description="images per step, over all workers of the trial")
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Number = Field(0.001, gt=0, le=1e6, description="learning rate of the head (times head_lr_mult)")
    head_lr_mult: Number = Field(1.0, gt=0, le=1e6)
    layer_decay: Number = Field(1.0, gt=0, le=1, description="factor on the rate for each block away from the head")
    weight_decay: Number = Field(0.0001, ge=0, le=1e6, description="not applied to biases and normalisation")
    momentum: Number = Field(0.9, ge=0, lt=1, description="SGD only")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Number = Field(0.0, ge=0, le=MOST_EPOCHS)
    label_smoothing: Fraction = 0.0
    gradient_clip: Number = Field(0.0, ge=0, le=1e9, description="largest gradient norm; 0 does not clip")
    patience: Whole = Field(
        0, ge=0, le=MOST_EPOCHS, description="epochs without a better val accuracy before a stop; 0 never stops"
    )
    augmentation: Literal["none", "light", "standard"] = Field(
        "standard", description="none: evaluation transform; light: flip and shift; standard: random crop and flip"
    )
    views: Whole = Field(
        4,
        ge=0,
        le=1000,
        description="draws of each image whose frozen activations are kept: the evaluation transform and views - 1 "
        "augmented ones; epoch e trains on draw e mod views. 0 augments anew, and recomputes, in every epoch",
    )
    freeze_bn: Flag = Field(True, description="BatchNorm of frozen blocks: evaluation mode, statistics untouched")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of forward and backward; auto: bfloat16 on GPUs that have it, float16 on those that only have "
        "that, float32 on CPUs. Weights, optimizer, loss and metrics are float32 in any case",
    )
    deterministic: Flag = Field(
        False, description="the same bits in every run on the same kind of GPU, for a part of its speed"
    )
    checkpoint_steps: Whole = Field(1000, ge=1, le=10**9, description="batches between checkpoints inside a long epoch")


# Recipe values that a probe by gradients has no use without; the others say how features are computed.
OF_FEATURES = ("augmentation", "views", "precision", "deterministic", "checkpoint_steps")


class Space(Section):
    """Values that a hyper-parameter is searched over; exactly one of the four, with Ray Tune's meaning."""

    grid: tuple[Any, ...] | None = Field(None, max_length=MOST_ENTRIES, description="every value is tried")
    choice: tuple[Any, ...] | None = Field(None, max_length=MOST_ENTRIES, description="one value drawn per sample")
    uniform: tuple[Number, Number] | None = None
    loguniform: tuple[Number, Number] | None = None

    @model_validator(mode="after")
    def one_kind(self) -> "Space":
        given = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of grid, choice, uniform, loguniform")
        for values in (self.grid, self.choice):
            if values is not None and not values:
                raise ValueError("the list of values is empty")
        for bounds in (self.uniform, self.loguniform):
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ValueError(f"the lower bound {bounds[0]} is not below the upper bound {bounds[1]}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs a lower bound above 0")
        return self


class BackboneConfig(Section):
    """A classification model of torchvision or timm and where its weights come from."""

    id: str = Field(
        min_length=1,
        max_length=MOST_ID,
        description="torchvision/resnet50, timm/resnet50.a1_in1k, or a bare name known to one of them",
    )
    weights: Location = Field(
        "pretrained", description="pretrained, none, or the path or URI of a .safetensors or .pth"
    )
    input_size: Whole | None = Field(
        None, ge=16, le=MOST_INPUT, description="pixels; by default what the weights were trained with"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, max_length=MOST_ENTRIES, description="arguments of the library's constructor"
    )


BackboneList = Annotated[
    tuple[Annotated[BackboneConfig, BeforeValidator(lambda v: {"id": v} if isinstance(v, str) else v)], ...],
    Field(min_length=1, max_length=MOST_ENTRIES),
]


class StrategyConfig(Section):
    """Which blocks train, and what this strategy changes in the recipe."""

    strategy: Annotated[StrategyName, BeforeValidator(lambda name: STRATEGY_ALIASES.get(name, name))]
    trainable_blocks: Whole | None = Field(
        None, ge=0, le=MOST_BLOCKS, description="partial: blocks that train, counted from the head"
    )
    frozen_fraction: Number | None = Field(None, ge=0, le=1, description="partial: share of the blocks that is frozen")
    unfreeze: dict[FirstEpoch, Blocks | Literal["all"]] | None = Field(
        None,
        min_length=1,
        max_length=MOST_ENTRIES,
        description="gradual: {epoch: trainable blocks from that epoch on}; by default half, then all",
    )
    training: dict[str, Any] = Field(default_factory=dict, description="recipe values for this strategy only")
    search_space: dict[str, Space] = Field(default_factory=dict)
    solver: Literal["auto", "lbfgs", "gradient"] = Field(
        "auto",
        description="linear_probe. lbfgs: solved as a logistic regression on the features, its regularisation by "
        "cross-validation; gradient: trained by the recipe; auto: lbfgs, unless training or search_space of this "
        "strategy set what only gradients use (lr, epochs, ...), or freeze_bn is false",
    )

    @model_validator(mode="after")
    def arguments_fit_the_strategy(self) -> "StrategyConfig":
        partial = [key for key in ("trainable_blocks", "frozen_fraction") if getattr(self, key) is not None]
        if self.strategy == "partial" and len(partial) != 1:
            raise ValueError("partial needs exactly one of trainable_blocks, frozen_fraction")
        if self.strategy != "partial" and partial:
            raise ValueError(f"{partial[0]} belongs to partial, not to {self.strategy}")
        if self.strategy != "gradual" and self.unfreeze is not None:
            raise ValueError(f"unfreeze belongs to gradual, not to {self.strategy}")
        if self.strategy != "linear_probe" and self.solver != "auto":
            raise ValueError(f"solver belongs to linear_probe, not to {self.strategy}")
        if self.solver == "lbfgs" and self._of_gradients:
            raise ValueError(f"solver lbfgs has no {self._of_gradients[0]}: remove it, or set solver: gradient")
        return self

    @property
    def _of_gradients(self) -> list[str]:
        """What its own training and search_space set that a solved probe has no use for."""
        return [key for key in {**self.training, **self.search_space} if key not in OF_FEATURES]

    def chosen_solver(self, training: Recipe) -> Literal["auto", "lbfgs", "gradient"]:
        """The solver with "auto" decided, under the run's recipe; "auto" of what is no linear probe."""
        if self.strategy != "linear_probe" or self.solver != "auto":
            return self.solver
        return "gradient" if self._of_gradients or not training.freeze_bn else "lbfgs"

    @property
    def label(self) -> str:
        """The strategy with its argument, as results and plots show it: `partial(2)`, `full`."""
        argument = self.trainable_blocks if self.trainable_blocks is not None else self.frozen_fraction
        return self.strategy if argument is None else f"{self.strategy}({argument:g})"


class BaselineConfig(Section):
    """The small model trained from random weights that every gain is measured against."""

    backbone: BackboneConfig = BackboneConfig(id="timm/resnet10t", weights="none")
    training: dict[str, Any] = Field(default_factory=dict, description="recipe values for the baseline only")

    @model_validator(mode="after")
    def from_scratch(self) -> "BaselineConfig":
        if self.backbone.weights != "none":
            raise ValueError("the baseline trains from random weights: its backbone needs weights: none")
        return self


class TrialConfig(Section):
    """One point of the search: everything that a trial depends on beside the images."""

    trial_id: str
    backbone: BackboneConfig
    strategy: StrategyConfig
    recipe: Recipe
    seed: int
    is_baseline: bool = False
    is_known_recipe: bool = False  # see known_recipe.py: never stopped early

    @property
    def is_solved(self) -> bool:
        """Whether its head is solved for and not trained; `epochs` is then 1."""
        return self.strategy.solver == "lbfgs"

    @property
    def epochs(self) -> int:
        return 1 if self.is_solved else self.recipe.epochs

    @property
    def params(self) -> dict[str, Any]:
        """The recipe as rows and plans show it: of a solved probe, what it depends on."""
        if not self.is_solved:
            return self.recipe.model_dump()
        return {"solver": self.strategy.solver, **self.recipe.model_dump(include=set(OF_FEATURES))}


def recipe_value(where: str, key: str, value: Any) -> Any:
    """`value` as the recipe's type for `key`; a ConfigError that names `where.key` if it has no such key or value."""
    if key not in Recipe.model_fields:
        raise ConfigError(f"{where}.{key}: {unknown_key(key, list(Recipe.model_fields))}")
    try:
        return getattr(Recipe.model_validate({key: value}), key)
    except ValidationError as error:
        raise ConfigError(f"{where}.{key}: {plain_reason(error.errors()[0])}") from None


def check_recipe_values(where: str, values: dict[str, Any]) -> None:
    for key, value in values.items():
        recipe_value(where, key, value)


def check_space(where: str, space: dict[str, Space]) -> None:
    for key, dimension in space.items():
        candidates = dimension.grid or dimension.choice or dimension.uniform or dimension.loguniform or ()
        is_range = dimension.uniform is not None or dimension.loguniform is not None
        if is_range and key in Recipe.model_fields and Recipe.model_fields[key].annotation is not float:
            raise ConfigError(f"{where}.{key}: a range draws fractions, which {key} cannot take; use grid or choice")
        values = [recipe_value(where, key, value) for value in candidates]
        if dimension.grid is not None and len(set(values)) < len(values):
            again = next(value for place, value in enumerate(values) if value in values[:place])
            raise ConfigError(f"{where}.{key}: the grid has the value {again!r} twice: remove one of them")
