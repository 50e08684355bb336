"""Overrides of the command line and text that is no configuration."""

import re

import pytest

from tests.unit.config_texts import EVERY_SECTION, SMALLEST, refusal
from tlray.config.file import parse_config
from tlray.errors import ConfigError, InputError


def test_an_override_sets_adds_and_replaces_values_with_yaml_types() -> None:
    config = parse_config(
        EVERY_SECTION,
        [
            "name=cats",
            "training.lr=3e-4",
            "training.freeze_bn=false",
            "data.val=null",
            "data.test=a folder/with spaces",
            "backbones.1.weights=none",
            "backbones.0=timm/resnet10t",
            "search_space.lr.choice=[0.1, 0.01]",
            "storage=~/runs=1",
        ],
    )
    assert (config.name, config.training.lr, config.training.freeze_bn) == ("cats", 3e-4, False)
    assert (config.data.val, config.data.test) == (None, "a folder/with spaces")
    assert config.backbones[0].id == "timm/resnet10t"
    assert config.search_space["lr"].choice == (0.1, 0.01)
    assert config.storage == "~/runs=1"
    assert config.training.epochs == 4


def test_the_last_of_two_overrides_of_one_key_wins() -> None:
    assert parse_config(SMALLEST, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.epochs", "'training.epochs' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("backbones=[1", "expected ',' or ']'"),
        ("data.train.x=1", "train is a single value and has no key below it"),
        ("backbones.1=x", "'1' is not an index of a list of 1"),
        ("backbones.first=x", "'first' is not an index of a list of 1"),
        ("backbones.5.weights=none", "'5' is not an index of a list of 1"),
        ("backbones.first.weights=none", "'first' is not an index of a list of 1"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused_by_name(override: str, reason: str) -> None:
    message = refusal(SMALLEST, override)
    assert reason in message
    assert override.partition("=")[0] in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no configuration"),
        ("- a\n- b", "holds no configuration"),
        ("name: [", "is not valid YAML"),
        ("name: !!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_text_that_is_no_mapping_is_refused_with_the_name_of_its_file(text: str, reason: str) -> None:
    message = refusal(text)
    assert message.startswith("run.yaml ")
    assert reason in message


def test_a_missing_required_key_is_named() -> None:
    assert refusal("name: pets\nbackbones: [x]") == "run.yaml: data: field required"


@pytest.mark.parametrize("override", ["training.epochs=0", "training.epoch=1", "strategies=[partial]", "name=[1"])
def test_every_refusal_is_one_line_and_the_users_mistake(override: str) -> None:
    assert not re.search(r"[\r\n]", refusal(SMALLEST, override))
    assert issubclass(ConfigError, InputError)
    assert ConfigError.exit_code == 2
