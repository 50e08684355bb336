"""The configuration: what is accepted, what every refusal says, and that the written form reads back unchanged."""

import pytest
import yaml

from tests.unit.config_texts import EVERY_SECTION, SMALLEST, refusal
from tlray.config import Recipe, RunConfig, StrategyConfig, recipe_value
from tlray.config.file import dump_config, parse_config


def with_strategy(strategy: str) -> RunConfig:
    return parse_config(SMALLEST, [f"strategies=[{strategy}]"])


def test_three_keys_are_enough_and_everything_else_has_its_default() -> None:
    config = parse_config(SMALLEST)
    assert config.backbones[0].id == "torchvision/resnet18"
    assert config.backbones[0].weights == "pretrained"
    assert config.training == Recipe()
    assert [strategy.strategy for strategy in config.strategies] == ["linear_probe", "full"]
    assert config.baseline.backbone.weights == "none"


def test_a_file_with_every_section_arrives_value_by_value() -> None:
    config = parse_config(EVERY_SECTION)
    assert config.storage == "s3://bucket/runs"
    assert config.data.exclude == ("*.gif",)
    assert config.backbones[1].options == {"drop_rate": 0.1}
    assert config.strategies[1].training == {"epochs": 3}
    assert config.strategies[2].unfreeze == {1: 0, 2: 3, 4: "all"}
    assert config.strategies[3].search_space["lr"].loguniform == (0.0001, 0.01)
    assert config.search_space["weight_decay"].grid == (0.0, 0.0001)
    assert config.sweep.num_samples == 2


@pytest.mark.parametrize("text", [SMALLEST, EVERY_SECTION], ids=["smallest", "every section"])
def test_a_dumped_configuration_reads_back_equal(text: str) -> None:
    config = parse_config(text)
    assert parse_config(dump_config(config)) == config


def test_a_dumped_configuration_writes_every_default_out() -> None:
    document = yaml.safe_load(dump_config(parse_config(SMALLEST)))
    assert set(document) == set(RunConfig.model_fields)
    assert set(document["training"]) == set(Recipe.model_fields)


def test_a_configuration_cannot_be_changed_after_it_was_read() -> None:
    config = parse_config(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "wrong", "right"),
    [
        ("sede=1", "sede", "seed"),
        ("training.epoch=3", "training.epoch", "epochs"),
        ("data.trian=photos", "data.trian", "train"),
        ("data.synthetic.locatoin=x", "data.synthetic.locatoin", "location"),
        ("sweep.num_sample=3", "sweep.num_sample", "num_samples"),
        ("export.topk=3", "export.topk", "top_k"),
        ("baseline.trainign.epochs=3", "baseline.trainign", "training"),
        ("baseline.training.epoch=3", "baseline.training.epoch", "epochs"),
        ("baseline.backbone={id: x, weight: none}", "baseline.backbone.weight", "weights"),
        ("backbones=[{id: x, wieghts: none}]", "backbones.0.wieghts", "weights"),
        ("strategies=[{stratgy: full}]", "strategies.0.stratgy", "strategy"),
        ("strategies=[full, {strategy: full, training: {l_r: 1}}]", "strategies.1.training.l_r", "lr"),
        ("strategies=[{strategy: full, search_space: {lrr: {grid: [1]}}}]", "strategies.0.search_space.lrr", "lr"),
        ("search_space.batchsize.grid=[8]", "search_space.batchsize", "batch_size"),
        ("search_space.lr.gird=[0.1]", "search_space.lr.gird", "grid"),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_valid_key(
    override: str, wrong: str, right: str
) -> None:
    message = refusal(SMALLEST, override)
    key = wrong.rpartition(".")[2]
    assert message.startswith("run.yaml: ")
    assert f"{wrong}: unknown key {key!r}; did you mean {right!r}? valid keys: " in message


def test_an_unknown_key_with_no_near_one_is_refused_with_the_valid_keys() -> None:
    assert "export.zzz: unknown key 'zzz'; valid keys: top_k" in refusal(SMALLEST, "export.zzz=1")


def test_every_mistake_is_reported_at_once_each_with_its_place() -> None:
    message = refusal(SMALLEST, "training.epochs=0", "sweep.num_samples=-1", "nmae=x")
    assert all(place in message for place in ("training.epochs:", "sweep.num_samples:", "nmae:"))


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("name=my pets", "name", "'my pets'"),
        ("seed=-1", "seed", "-1"),
        ("training.epochs=many", "training.epochs", "'many'"),
        ("training.epochs=2.5", "training.epochs", "2.5"),
        ("training.lr=0", "training.lr", "0"),
        ("training.lr=.nan", "training.lr", "nan"),
        ("training.layer_decay=1.5", "training.layer_decay", "1.5"),
        ("training.optimizer=adam", "training.optimizer", "'adam'"),
        ("data.val_fraction=1.5", "data.val_fraction", "1.5"),
        ("data.max_bad_fraction=2", "data.max_bad_fraction", "2"),
        ("sweep.workers_per_trial=0", "sweep.workers_per_trial", "0"),
        ("sweep.scheduler=pbt", "sweep.scheduler", "'pbt'"),
        ("strategies=[fulll]", "strategies.0.strategy", "'fulll'"),
        ("baseline.training.epochs=0", "baseline.training.epochs", "0"),
        ("strategies=[{strategy: full, training: {lr: -1}}]", "strategies.0.training.lr", "-1"),
        ("search_space.lr.grid=[0.1, -1]", "search_space.lr", "-1"),
        ("search_space.optimizer.choice=[sgd, adam]", "search_space.optimizer", "'adam'"),
        ("search_space.epochs.grid=[1, 2.5]", "search_space.epochs", "2.5"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_place_and_the_value(override: str, place: str, value: str) -> None:
    message = refusal(SMALLEST, override)
    assert f"{place}: " in message
    assert message.endswith(f", not {value}")


@pytest.mark.parametrize("key", list(Recipe.model_fields))
def test_every_recipe_key_can_be_searched_and_its_default_is_a_valid_value(key: str) -> None:
    default = getattr(Recipe(), key)
    assert recipe_value("search_space", key, default) == default
    config = parse_config(SMALLEST, [f"search_space.{key}.choice=[{yaml.safe_dump(default).split()[0]}]"])
    assert config.search_space[key].choice == (default,)


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ("{}", "give exactly one of grid, choice, uniform, loguniform"),
        ("{grid: [0.1], choice: [0.2]}", "give exactly one of grid, choice, uniform, loguniform"),
        ("{grid: []}", "the list of values is empty"),
        ("{choice: []}", "the list of values is empty"),
        ("{uniform: [0.3, 0.1]}", "the lower bound 0.3 is not below the upper bound 0.1"),
        ("{uniform: [0.1, 0.1]}", "the lower bound 0.1 is not below the upper bound 0.1"),
        ("{loguniform: [0, 0.1]}", "loguniform needs a lower bound above 0"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_reason(space: str, reason: str) -> None:
    assert f"search_space.lr: {reason}" in refusal(SMALLEST, f"search_space.lr={space}")


def test_a_range_over_whole_numbers_is_refused_because_it_draws_fractions() -> None:
    assert "search_space.epochs: " in refusal(SMALLEST, "search_space.epochs.uniform=[1, 3]")


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("partial", "partial needs exactly one of trainable_blocks, frozen_fraction"),
        (
            "{strategy: partial, trainable_blocks: 2, frozen_fraction: 0.5}",
            "partial needs exactly one of trainable_blocks, frozen_fraction",
        ),
        ("{strategy: full, trainable_blocks: 2}", "trainable_blocks belongs to partial, not to full"),
        ("{strategy: scratch, frozen_fraction: 0.5}", "frozen_fraction belongs to partial, not to scratch"),
        ("{strategy: partial, trainable_blocks: 1, unfreeze: {1: 2}}", "unfreeze belongs to gradual, not to partial"),
    ],
)
def test_arguments_of_another_strategy_are_refused(strategy: str, reason: str) -> None:
    assert refusal(SMALLEST, f"strategies=[{strategy}]") == f"run.yaml: strategies.0: {reason}"


def test_feature_extractor_is_another_name_for_linear_probe() -> None:
    assert with_strategy("feature_extractor") == with_strategy("linear_probe")


@pytest.mark.parametrize(
    ("strategy", "label"),
    [
        ("full", "full"),
        ("{strategy: partial, trainable_blocks: 2}", "partial(2)"),
        ("{strategy: partial, trainable_blocks: 0}", "partial(0)"),
        ("{strategy: partial, frozen_fraction: 0.5}", "partial(0.5)"),
    ],
)
def test_a_strategy_is_labelled_with_its_argument(strategy: str, label: str) -> None:
    assert with_strategy(strategy).strategies[0].label == label


def test_the_baseline_must_train_from_random_weights() -> None:
    message = refusal(SMALLEST, "baseline.backbone.id=torchvision/resnet18")
    assert "baseline: the baseline trains from random weights: its backbone needs weights: none" in message


@pytest.mark.parametrize("override", ["data.train=null", "data.synthetic.location=somewhere"])
def test_images_come_from_exactly_one_source(override: str) -> None:
    assert "data: give data.train (a folder or s3:// prefix), or data.synthetic" in refusal(SMALLEST, override)


def test_fractions_that_leave_nothing_to_train_on_are_refused_only_where_both_are_used() -> None:
    fractions = ["data.val_fraction=0.6", "data.test_fraction=0.5"]
    assert "val_fraction and test_fraction leave nothing to train on" in refusal(SMALLEST, *fractions)
    assert parse_config(SMALLEST, [*fractions, "data.val=elsewhere"]).data.val == "elsewhere"


def test_at_least_one_backbone_and_one_strategy_are_needed() -> None:
    assert "backbones: " in refusal(SMALLEST, "backbones=[]")
    assert "strategies: " in refusal(SMALLEST, "strategies=[]")


def test_sections_compare_by_value() -> None:
    assert StrategyConfig(strategy="full") == with_strategy("full").strategies[0]


@pytest.mark.parametrize(
    ("strategy", "training", "message"),
    [
        ({"strategy": "full", "solver": "lbfgs"}, {}, "solver belongs to linear_probe, not to full"),
        ({"strategy": "partial", "trainable_blocks": 1, "solver": "gradient"}, {}, "not to partial"),
        ({"strategy": "linear_probe", "solver": "lbfgs", "training": {"lr": 1}}, {}, "solver lbfgs has no lr"),
        ({"strategy": "linear_probe", "solver": "lbfgs"}, {"freeze_bn": False}, "training.freeze_bn is false"),
    ],
)
def test_a_solver_that_does_not_fit_is_refused_with_the_reason(
    strategy: dict[str, object], training: dict[str, object], message: str
) -> None:
    fields = {"name": "x", "data": {"train": "d"}, "backbones": ["timm/a"], "training": training}
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({**fields, "strategies": [strategy]})
