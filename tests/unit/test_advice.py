"""advice.py: which strategies `strategies: auto` stands for, rule by rule, and how a plan says so."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tlray.config import RunConfig
from tlray.config.file import dump_config, parse_config
from tlray.errors import ConfigError
from tlray.planning.planner import plan_run
from tlray.ranking.advice import (
    FAR,
    FEW_IMAGES,
    FEW_PER_CLASS,
    MANY_IMAGES,
    NEAR,
    RULES,
    Facts,
    advise,
    facts_of,
)
from tlray.runs.plan import plan_tables

TEXT = "name: x\ndata: {train: images}\nbackbones: [timm/test_resnet]\n"
NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}


def names(num_train: int, similarity: float | None, *, num_classes: int = 10, smallest: int | None = None) -> list[str]:
    smallest = num_train // num_classes if smallest is None else smallest
    facts = Facts(num_train=num_train, num_classes=num_classes, smallest_class=smallest, similarity=similarity)
    return [strategy.strategy for strategy in advise(facts).strategies]


@pytest.mark.parametrize("num_train", [100, 5_000, 50_000])
@pytest.mark.parametrize("similarity", [None, 0.1, 0.6, 0.95])
def test_a_linear_probe_always_enters_and_something_that_trains_more(num_train: int, similarity: float | None) -> None:
    found = names(num_train, similarity)
    assert found[0] == "linear_probe"
    assert len(found) >= 2
    assert len(set(found)) == len(found)


def test_few_and_similar_images_train_the_last_blocks_at_most() -> None:
    assert names(244, 0.95) == ["linear_probe", "partial"]


def test_few_and_different_images_train_from_an_earlier_cut_and_the_head_first() -> None:
    near, far = (advise(Facts(num_train=244, num_classes=2, smallest_class=120, similarity=s)) for s in (0.95, 0.2))
    assert [strategy.strategy for strategy in far.strategies] == ["linear_probe", "partial", "gradual"]
    fractions = [advice.strategies[1].frozen_fraction or 0 for advice in (near, far)]
    assert fractions[0] > fractions[1]


def test_few_images_never_train_the_whole_network_at_once_or_from_scratch() -> None:
    for similarity in (None, 0.1, 0.6, 0.95):
        assert not {"full", "scratch"} & set(names(FEW_IMAGES - 1, similarity))
        assert not {"full", "scratch"} & set(names(100_000, similarity, smallest=FEW_PER_CLASS - 1))


def test_many_and_similar_images_fine_tune_everything() -> None:
    assert names(MANY_IMAGES, 0.95) == ["linear_probe", "gradual", "full"]


def test_many_and_different_images_start_from_scratch_too() -> None:
    assert names(MANY_IMAGES, 0.1)[-1] == "scratch"
    assert "scratch" not in names(MANY_IMAGES - 1, 0.1)
    assert "scratch" not in names(MANY_IMAGES, 0.1, num_classes=1000, smallest=60)


def test_good_features_of_some_images_are_not_distorted_by_training_all_at_once() -> None:
    assert names(5_000, 0.95) == ["linear_probe", "partial", "gradual"]
    assert "full" in names(5_000, 0.6)


@pytest.mark.parametrize(("similarity", "word"), [(NEAR, "apart well"), (FAR, "apart partly"), (FAR - 0.01, "mix")])
def test_the_reason_names_size_and_similarity(similarity: float, word: str) -> None:
    reason = advise(Facts(num_train=244, num_classes=2, smallest_class=120, similarity=similarity)).reason
    assert reason.startswith("strategies: auto is linear_probe, partial(")
    assert "244 of 2 classes, the smallest has 120" in reason
    assert word in reason
    assert f"{similarity:.2f} of 1" in reason


def test_without_a_ranking_the_reason_says_that_similarity_is_unknown() -> None:
    reason = advise(Facts(num_train=244, num_classes=2, smallest_class=120, similarity=None)).reason
    assert "similarity to the source unknown" in reason


def test_there_is_a_rule_for_every_amount_and_distance() -> None:
    assert len(RULES) == 3 * 4


def test_facts_leave_out_classes_without_training_images() -> None:
    facts = facts_of(np.array([0, 0, 0, 2, 2]), 4, 0.5)
    assert (facts.num_train, facts.num_classes, facts.smallest_class) == (5, 4, 2)


def test_auto_is_a_word_and_every_other_one_is_refused() -> None:
    assert parse_config(TEXT, ["strategies=auto"]).strategies == "auto"
    assert parse_config(dump_config(parse_config(TEXT, ["strategies=auto"]))).strategies == "auto"
    with pytest.raises(ConfigError, match=r"strategies: .*'auto'"):
        parse_config(TEXT, ["strategies=all"])


def test_a_mistake_in_a_list_of_strategies_is_named_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"strategies\.0\.strategy: .*'lin'"):
        parse_config(TEXT + "strategies: [lin]")
    with pytest.raises(ConfigError, match=r"strategies\.0\.trainable_blocs: .*did you mean 'trainable_blocks'"):
        parse_config(TEXT + "strategies: [{strategy: partial, trainable_blocs: 2}]")


def test_a_plan_goes_by_size_alone_and_prints_why(image_folder: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "storage": str(tmp_path),
            "data": {"train": str(image_folder)},
            "backbones": [NETWORK, {**NETWORK, "input_size": 40}],
            "ranking": {"shortlist": 1},
            "baseline": {"backbone": NETWORK},
            "strategies": "auto",
        }
    )
    planned = plan_run(config)
    assert [trial.strategy.strategy for trial in planned.trials] == [
        "scratch",
        *2 * ["linear_probe", "partial", "gradual"],
    ]
    assert planned.config.strategies == tuple(RULES["few", "unknown"][0])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(plan_tables(planned.plan))
        text = console.export_text()
    assert "strategies: auto is linear_probe, partial(0.8), gradual: few images" in text
    assert "similarity to the source unknown" in text
    assert "a run ranks the 2 backbones first" in text
