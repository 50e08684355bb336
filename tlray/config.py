"""The configuration of a run: every field, its default and its meaning. `config_file` reads it from YAML.

`training` holds one value for every hyper-parameter; `search_space` says which of them are searched.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from tlray.config_query import LIST_FORM, QUERY_FORM, BackboneQuery
from tlray.config_section import Section
from tlray.errors import ConfigError, plain_reason, unknown_key

StrategyName = Literal["linear_probe", "partial", "gradual", "full", "scratch"]
STRATEGY_ALIASES = {"feature_extractor": "linear_probe"}
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Section):
    """How one trial trains. Rates are for the head; blocks further from it may get less (`layer_decay`)."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=1, description="images per step, over all workers of the trial")
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(0.001, gt=0, description="learning rate of the head (times head_lr_mult)")
    head_lr_mult: float = Field(1.0, gt=0)
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the rate for each block away from the head")
    weight_decay: float = Field(0.0001, ge=0, description="not applied to biases and normalisation")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    label_smoothing: Fraction = 0.0
    gradient_clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    patience: int = Field(0, ge=0, description="epochs without a better val accuracy before a stop; 0 never stops")
    augmentation: Literal["none", "light", "standard"] = Field(
        "standard", description="none: evaluation transform; light: flip and shift; standard: random crop and flip"
    )
    views: int = Field(
        4,
        ge=0,
        description="draws of each image whose frozen activations are kept: the evaluation transform and views - 1 "
        "augmented ones; epoch e trains on draw e mod views. 0 augments anew, and recomputes, in every epoch",
    )
    freeze_bn: bool = Field(True, description="BatchNorm of frozen blocks: evaluation mode, statistics untouched")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_steps: int = Field(1000, ge=1, description="batches between checkpoints inside a long epoch")


class Space(Section):
    """Values that a hyper-parameter is searched over; exactly one of the four, with Ray Tune's meaning."""

    grid: tuple[Any, ...] | None = Field(None, description="every value is tried")
    choice: tuple[Any, ...] | None = Field(None, description="one value drawn per sample")
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None

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

    id: str = Field(description="torchvision/resnet50, timm/resnet50.a1_in1k, or a bare name known to one of them")
    weights: str = Field("pretrained", description="pretrained, none, or the path or URI of a .safetensors or .pth")
    input_size: int | None = Field(None, ge=16, description="pixels; by default what the weights were trained with")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the library's constructor")


BackboneList = Annotated[
    tuple[Annotated[BackboneConfig, BeforeValidator(lambda v: {"id": v} if isinstance(v, str) else v)], ...],
    Field(min_length=1),
]


class StrategyConfig(Section):
    """Which blocks train, and what this strategy changes in the recipe."""

    strategy: Annotated[StrategyName, BeforeValidator(lambda name: STRATEGY_ALIASES.get(name, name))]
    trainable_blocks: int | None = Field(None, ge=0, description="partial: blocks that train, counted from the head")
    frozen_fraction: float | None = Field(None, ge=0, le=1, description="partial: share of the blocks that is frozen")
    unfreeze: dict[int, int | Literal["all"]] | None = Field(
        None, description="gradual: {epoch: trainable blocks from that epoch on}; by default half, then all"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="recipe values for this strategy only")
    search_space: dict[str, Space] = Field(default_factory=dict)

    @model_validator(mode="after")
    def arguments_fit_the_strategy(self) -> "StrategyConfig":
        partial = [key for key in ("trainable_blocks", "frozen_fraction") if getattr(self, key) is not None]
        if self.strategy == "partial" and len(partial) != 1:
            raise ValueError("partial needs exactly one of trainable_blocks, frozen_fraction")
        if self.strategy != "partial" and partial:
            raise ValueError(f"{partial[0]} belongs to partial, not to {self.strategy}")
        if self.strategy != "gradual" and self.unfreeze is not None:
            raise ValueError(f"unfreeze belongs to gradual, not to {self.strategy}")
        return self

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


class SyntheticConfig(Section):
    """The demo's images and the backbone pre-trained on another task, made at `location` on first use."""

    location: str
    seed: int = 0


class ColumnsConfig(Section):
    """Names of the columns of CSV and Parquet files; `label` also in the .json of WebDataset samples."""

    uri: str = Field("uri", description="where an image lies; relative to the file's own folder, or anywhere")
    label: str = Field("label", description="its class: strings or whole numbers")
    split: str | None = Field(None, description="train, val or test; by default the column `split` where there is one")
    image: str = Field("image", description="the image's bytes, in Parquet files that hold them")


class DataConfig(Section):
    """Labelled images on local disk or s3://: class folders, a CSV or Parquet file, WebDataset shards."""

    train: str | None = None
    val: str | None = Field(None, description="by default val_fraction of train")
    test: str | None = Field(None, description="by default test_fraction of train")
    val_fraction: float = Field(0.15, gt=0, lt=1)
    test_fraction: float = Field(0.15, gt=0, lt=1)
    split_seed: int = Field(0, description="decides, with an image's contents, its split; seed does not")
    format: Literal["auto", "folder", "csv", "parquet", "webdataset"] = Field(
        "auto", description="how images and labels are stored; auto: what lies at each location"
    )
    columns: ColumnsConfig = ColumnsConfig()
    exclude: tuple[str, ...] = Field((), description="glob patterns of paths, relative to the folder, to leave out")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="unreadable images tolerated before the run fails")
    synthetic: SyntheticConfig | None = None
    num_threads: int = Field(2, ge=1, description="threads per worker that read and decode images")
    stream: Literal["threads", "ray_data"] = Field(
        "threads", description="who decodes: each worker's own threads, or Ray Data's tasks on any node"
    )
    stream_cpus: float = Field(1, gt=0, description="CPUs that Ray Data decodes with for each trial")
    memory_cache_mb: int = Field(512, ge=0, description="decoded images kept per worker process, in MiB")
    prepare: Literal["auto", "always", "never"] = Field(
        "auto", description="copy the images once into large shards; auto: those on S3, and inside Parquet files"
    )
    prepared: str | None = Field(None, description="where the shards are kept; by default STORAGE/images")
    prepared_max_gb: float | None = Field(None, gt=0, description="size of all data sets' shards; the oldest go first")
    max_side: int | None = Field(None, ge=32, description="shards keep larger images as JPEGs of that short side")
    cache: str = Field("~/.cache/tlray/images", description="shards and decoded pixels on each node's disk")
    cache_max_gb: float | None = Field(None, gt=0, description="size of the copies of shards on each node")
    pixels_max_gb: float = Field(
        10, ge=0, description="decoded images on each node's disk, where memory does not hold them; 0: none"
    )

    @model_validator(mode="after")
    def has_a_source(self) -> "DataConfig":
        if (self.train is None) == (self.synthetic is None):
            raise ValueError("give data.train (a folder or s3:// prefix), or data.synthetic for the demo's images")
        if self.val is None and self.test is None and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")
        return self


class ActivationsConfig(Section):
    """What frozen blocks compute of the images: where it is kept, how precisely, and when it is worth it."""

    location: str | None = Field(None, description="the store, shared by all runs; by default STORAGE/activations")
    cache: str = Field("~/.cache/tlray/activations", description="copies of a remote store on each node's disk")
    max_gb: float | None = Field(None, gt=0, description="size of the store; what was not used for longest goes first")
    cache_max_gb: float | None = Field(None, gt=0, description="size of the copies on each node")
    dtype: Literal["float16", "float32"] = Field("float16", description="how activations are stored")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="how frozen blocks compute")
    materialise: Literal["auto", "always", "never"] = Field("auto", description="auto: where the plan finds it cheaper")
    fuse_probes: bool = Field(True, description="linear probes of one backbone train together, as one batched head")
    images_per_shard: int = Field(512, ge=1, description="computed and kept together; what a kill can cost")


class SweepConfig(Section):
    """How trials are drawn, scheduled and given resources; names and meanings are Ray Tune's."""

    num_samples: int = Field(1, ge=1)
    scheduler: Literal["asha", "fifo"] = "asha"
    grace_period: int = Field(1, ge=1, description="epochs before ASHA may stop a trial")
    reduction_factor: float = Field(3, gt=1)
    max_concurrent_trials: int | None = Field(None, ge=1, description="by default as many as the cluster holds")
    max_failures: int = Field(2, ge=0, description="times a trial is restarted from its last checkpoint")
    trainer: Literal["auto", "ray_train"] = Field("auto", description="auto: in the Tune actor where one worker does")
    workers_per_trial: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] | None = Field(
        None,
        description="by default 1 where the cluster has GPUs, else 0; auto: the share of a GPU whose memory the trial "
        "needs, by the plan",
    )
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="further resources of Ray's, by name: accelerator_type:A100, or your own"
    )

    @model_validator(mode="after")
    def resources_have_one_name(self) -> "SweepConfig":
        for name, field in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
            if name in self.resources_per_worker:
                raise ValueError(f"resources_per_worker has {name}, which {field} says")
        return self

    @model_validator(mode="after")
    def workers_that_train_together_have_whole_gpus(self) -> "SweepConfig":
        gpus = self.gpus_per_worker
        if self.workers_per_trial > 1 and (gpus == "auto" or (gpus is not None and 0 < gpus < 1)):
            raise ValueError(
                f"gpus_per_worker is {gpus} with workers_per_trial {self.workers_per_trial}: "
                "workers that train together need whole GPUs"
            )
        return self


class NodeTypeConfig(Section):
    """Nodes of one kind that an autoscaler may start."""

    cpus: float = Field(ge=0)
    gpus: float = Field(0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict, description="further resources, by name")
    max_workers: int = Field(ge=1, description="so many of them at most")


class ClusterConfig(Section):
    """The cluster that a run waits for. Trials and tasks are asked for by what it can become, so that it grows."""

    node_types: tuple[NodeTypeConfig, ...] = Field(
        (), description="what the autoscaler may start; by default read from where Ray keeps its configuration"
    )
    wait_minutes: float = Field(20, ge=0, description="for the first node that holds a trial, before the run gives up")


class BudgetConfig(Section):
    """What a run may take at most; it ends cleanly with the best so far."""

    hours: float | None = Field(None, gt=0, description="by the clock, interruptions not counted")
    cost: float | None = Field(None, gt=0, description="in the currency of prices; needs prices")
    trials: int | None = Field(None, ge=1, description="beside the baseline")


class PricesConfig(Section):
    """What the machines of the cluster cost, to say what a run will."""

    per_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1, description="price of each instance type")
    instances: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="how many of each type work on the run; by default one, of the only type"
    )

    @model_validator(mode="after")
    def every_instance_has_a_price(self) -> "PricesConfig":
        for name in self.instances:
            if name not in self.per_hour:
                raise ValueError(f"instances.{name} has no price; per_hour has {', '.join(self.per_hour)}")
        if not self.instances and len(self.per_hour) > 1:
            raise ValueError("per_hour has several types: say in instances how many of each work on the run")
        return self

    def cost_of(self, seconds: float) -> float:
        """What all instances together cost in that time."""
        instances = self.instances or dict.fromkeys(self.per_hour, 1.0)
        return sum(number * self.per_hour[name] for name, number in instances.items()) * seconds / 3600


class RankingConfig(Section):
    """Which backbones go on to the sweep, by scores of their features of some training images."""

    shortlist: int | None = Field(None, ge=1, description="how many go on to the sweep; by default all, unranked")
    images: int = Field(1000, ge=4, description="training images that backbones are ranked on, of all classes alike")
    score: Literal["linear_probe", "knn", "logme", "h_score", "nleep", "mean_rank"] = Field(
        "linear_probe", description="which score decides; mean_rank: the mean place over all of them"
    )


class ExportConfig(Section):
    top_k: int = Field(1, ge=0)


class WarmStart(Section):
    """One trial in full, which is tried before all others."""

    backbone: BackboneConfig
    strategy: StrategyConfig
    training: Recipe = Recipe()


class RetrainConfig(Section):
    """When `tlray retrain` promotes its challenger, and whom it tells."""

    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="with which the challenger must be better (McNemar's exact test, one-sided)"
    )
    max_class_drop: float = Field(0.05, ge=0, le=1, description="largest fall of a class's recall that is accepted")
    min_class_images: int = Field(
        20, ge=1, description="test images from which a class is judged by itself; smaller ones are judged together"
    )
    min_test_images: int = Field(50, ge=1, description="test images without which nothing is promoted")
    warm_start: bool = Field(True, description="the champion's own configuration is the first trial")
    drift_images: int = Field(1000, ge=10, description="new, and old, images at most whose features are compared")
    webhook: str | None = Field(
        None,
        exclude=True,  # it may hold a token: run folders keep the configuration without it
        repr=False,
        description="http(s) URL that the outcome is posted to; by default TLRAY_WEBHOOK of the environment, or none",
    )
    webhook_timeout: float = Field(10, gt=0, description="seconds that one attempt of the webhook may take")

    @model_validator(mode="after")
    def webhook_is_a_url(self) -> "RetrainConfig":
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError("webhook is not an http:// or https:// URL")
        return self


LIST = "[list]"  # in the place of an error; never shown
Strategies = Annotated[
    tuple[Annotated[StrategyConfig, BeforeValidator(lambda v: {"strategy": v} if isinstance(v, str) else v)], ...],
    Field(min_length=1),
    Tag(LIST),
]
Auto = Annotated[Literal["auto"], Tag("[auto]")]


class RunConfig(Section):
    """Everything a run needs; `tlray run` writes it, resolved, to the run folder's config.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: str = Field("~/tlray-runs", description="local path or s3:// prefix under which run folders are made")
    seed: int = Field(0, ge=0)
    data: DataConfig
    backbones: Annotated[
        Annotated[BackboneList, Tag(LIST_FORM)] | Annotated[BackboneQuery, Tag(QUERY_FORM)],
        Discriminator(lambda given: QUERY_FORM if isinstance(given, dict | BackboneQuery) else LIST_FORM),
    ] = Field(description="ids, or a query that the catalogue answers")
    accept_licences: tuple[str, ...] = Field((), description="licences that bind whoever uses the weights: agpl-3.0")
    strategies: Annotated[Strategies | Auto, Discriminator(lambda v: "[auto]" if isinstance(v, str) else LIST)] = Field(
        (StrategyConfig(strategy="linear_probe"), StrategyConfig(strategy="full")),
        description="a list, or auto: chosen by what the images are like, see tlray/advice.py",
    )
    training: Recipe = Recipe()
    search_space: dict[str, Space] = Field(default_factory=dict, description="recipe keys to search")
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

    @property
    def chosen_backbones(self) -> tuple[BackboneConfig, ...]:
        """The backbones, after `catalogue.select.select_backbones` has answered a query."""
        assert isinstance(self.backbones, tuple), "backbones is still a query"
        return self.backbones

    @model_validator(mode="after")
    def recipes_are_valid(self) -> "RunConfig":
        _check_recipe_values("baseline.training", self.baseline.training)
        _check_space("search_space", self.search_space)
        for i, strategy in enumerate(self.strategies if self.strategies != "auto" else ()):
            _check_recipe_values(f"strategies.{i}.training", strategy.training)
            _check_space(f"strategies.{i}.search_space", strategy.search_space)
        return self


class TrialConfig(Section):
    """One point of the search: everything that a trial depends on beside the images."""

    trial_id: str
    backbone: BackboneConfig
    strategy: StrategyConfig
    recipe: Recipe
    seed: int
    is_baseline: bool = False


def recipe_value(where: str, key: str, value: Any) -> Any:
    """`value` as the recipe's type for `key`; a ConfigError that names `where.key` if it has no such key or value."""
    if key not in Recipe.model_fields:
        raise ConfigError(f"{where}.{key}: {unknown_key(key, list(Recipe.model_fields))}")
    try:
        return getattr(Recipe.model_validate({key: value}), key)
    except ValidationError as error:
        raise ConfigError(f"{where}.{key}: {plain_reason(error.errors()[0])}") from None


def _check_recipe_values(where: str, values: dict[str, Any]) -> None:
    for key, value in values.items():
        recipe_value(where, key, value)


def _check_space(where: str, space: dict[str, Space]) -> None:
    for key, dimension in space.items():
        candidates = dimension.grid or dimension.choice or dimension.uniform or dimension.loguniform or ()
        for value in candidates:
            recipe_value(where, key, value)
        is_range = dimension.uniform is not None or dimension.loguniform is not None
        if is_range and Recipe.model_fields[key].annotation is not float:
            raise ConfigError(f"{where}.{key}: a range draws fractions, which {key} cannot take; use grid or choice")
