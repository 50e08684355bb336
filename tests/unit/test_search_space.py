"""The list of trials that a configuration stands for."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tlray.config import RunConfig
from tlray.config.search_space import list_trials
from tlray.config.training import OF_FEATURES


def make_config(**fields: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "data": {"train": "images"},
            "backbones": ["timm/a"],
            "strategies": ["full"],
            "known_recipe": "never",
            **fields,
        }
    )


def test_the_baseline_comes_first_and_trains_from_scratch_with_its_own_recipe() -> None:
    config = make_config(training={"lr": 0.5}, baseline={"training": {"epochs": 3}})
    baseline = list_trials(config)[0]
    assert baseline.is_baseline
    assert (baseline.strategy.strategy, baseline.backbone.weights) == ("scratch", "none")
    assert (baseline.recipe.epochs, baseline.recipe.lr) == (3, 0.5)


def test_every_grid_value_meets_every_backbone_and_strategy() -> None:
    config = make_config(
        backbones=["timm/a", "timm/b"],
        strategies=[{"strategy": "linear_probe", "solver": "gradient"}, "full"],
        search_space={"lr": {"grid": [0.1, 0.01, 0.001]}, "batch_size": {"grid": [8, 16]}},
    )
    trials = list_trials(config)[1:]
    points = {(t.backbone.id, t.strategy.strategy, t.recipe.lr, t.recipe.batch_size) for t in trials}
    assert len(trials) == len(points) == 2 * 2 * 3 * 2


def test_num_samples_repeats_the_grid_with_new_draws() -> None:
    config = make_config(
        search_space={"lr": {"grid": [0.1, 0.01]}, "weight_decay": {"loguniform": [1e-6, 1e-2]}},
        sweep={"num_samples": 3},
    )
    trials = list_trials(config)[1:]
    assert [t.recipe.lr for t in trials] == [0.1, 0.01] * 3
    assert len({t.recipe.weight_decay for t in trials}) == 6


def test_loguniform_is_uniform_in_the_logarithm() -> None:
    config = make_config(search_space={"lr": {"loguniform": [1e-5, 1e-1]}}, sweep={"num_samples": 400})
    logs = np.log10([t.recipe.lr for t in list_trials(config)[1:]])
    assert stats.kstest(logs, stats.uniform(loc=-5, scale=4).cdf).pvalue > 0.01


def test_uniform_and_choice_stay_within_what_they_were_given() -> None:
    config = make_config(
        search_space={"label_smoothing": {"uniform": [0.0, 0.2]}, "optimizer": {"choice": ["sgd", "adamw"]}},
        sweep={"num_samples": 50},
    )
    trials = list_trials(config)[1:]
    assert all(0 <= t.recipe.label_smoothing <= 0.2 for t in trials)
    assert {t.recipe.optimizer for t in trials} == {"sgd", "adamw"}


def test_another_backbone_does_not_change_the_draws_of_the_others() -> None:
    space = {"lr": {"loguniform": [1e-4, 1e-1]}}
    alone = list_trials(make_config(backbones=["timm/b"], search_space=space))[1]
    beside = list_trials(make_config(backbones=["timm/a", "timm/b"], search_space=space))[2]
    assert beside.backbone.id == "timm/b"
    assert alone.recipe == beside.recipe


def test_a_value_that_a_strategy_fixes_is_not_searched_for_it() -> None:
    config = make_config(
        strategies=[
            {"strategy": "linear_probe", "solver": "gradient"},
            {"strategy": "full", "training": {"lr": 0.0001}},
        ],
        search_space={"lr": {"grid": [0.1, 0.01]}},
    )
    rates = [(t.strategy.strategy, t.recipe.lr) for t in list_trials(config)[1:]]
    assert rates == [("linear_probe", 0.1), ("linear_probe", 0.01), ("full", 0.0001)]


def test_scratch_leaves_the_weights_of_its_backbone_out() -> None:
    config = make_config(backbones=[{"id": "timm/a", "weights": "w.safetensors"}], strategies=["scratch", "full"])
    assert [t.backbone.weights for t in list_trials(config)[1:]] == ["none", "w.safetensors"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_configuration_always_gives_the_same_trials(seed: int) -> None:
    config = make_config(seed=seed, search_space={"lr": {"loguniform": [1e-4, 1e-1]}}, sweep={"num_samples": 4})
    assert list_trials(config) == list_trials(config)
    ids = [t.trial_id for t in list_trials(config)]
    assert len(set(ids)) == len(ids)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in ids)


def test_each_backbone_starts_with_what_one_would_do_by_hand_where_values_are_drawn() -> None:
    fields: dict[str, Any] = {
        "backbones": ["timm/a", "timm/b"],
        "strategies": ["scratch", {"strategy": "full", "training": {"weight_decay": 0.5}}, "linear_probe"],
        "search_space": {"lr": {"loguniform": [1e-5, 1e-1]}},
        "training": {"epochs": 7, "batch_size": 64},
    }
    with_known, without = (list_trials(make_config(**fields, known_recipe=choice)) for choice in ("auto", "never"))
    assert len(with_known) == len(without) + 2
    for name in ("timm/a", "timm/b"):
        first = next(trial for trial in with_known if trial.backbone.id == name and not trial.is_baseline)
        assert first.strategy.strategy == "full"
        recipe = first.recipe
        assert (recipe.optimizer, recipe.lr, recipe.momentum) == ("sgd", 0.001, 0.9)
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (7, 64, 0.5), "what the user has fixed stays"
    drawn = {(trial.backbone.id, trial.recipe.lr) for trial in without[1:]}
    assert drawn <= {(trial.backbone.id, trial.recipe.lr) for trial in with_known[1:]}, "the draws are the same"


def test_a_grid_is_chosen_by_hand_and_gets_the_known_recipe_only_when_asked_and_once() -> None:
    grid = {"search_space": {"lr": {"grid": [0.1, 0.001]}}, "training": {"optimizer": "sgd", "weight_decay": 0}}
    assert [t.recipe.lr for t in list_trials(make_config(**grid, known_recipe="auto"))[1:]] == [0.1, 0.001]
    assert [t.recipe.lr for t in list_trials(make_config(**grid, known_recipe="always"))[1:]] == [0.001, 0.1]


def test_a_warm_start_comes_first_and_once_and_changes_no_other_trial() -> None:
    space = {"lr": {"grid": [0.1, 0.001]}}
    plain = list_trials(make_config(backbones=["timm/a"], strategies=["full"], search_space=space))
    found, repeated = (
        list_trials(
            make_config(
                backbones=["timm/a"],
                strategies=["full"],
                search_space=space,
                warm_start={"backbone": {"id": "timm/a"}, "strategy": {"strategy": "full"}, "training": {"lr": rate}},
            )
        )
        for rate in (0.7, 0.001)
    )
    assert [trial.recipe.lr for trial in found[1:]] == [0.7, 0.1, 0.001]
    assert found[0].is_baseline
    assert found[1].trial_id == "001-a-full"
    assert found[2].recipe == plain[1].recipe
    assert [trial.recipe.lr for trial in repeated[1:]] == [0.001, 0.1], "what the search comes upon again is left out"


def test_a_solved_probe_is_one_trial_a_backbone_whatever_is_searched_for_gradients() -> None:
    config = make_config(
        backbones=["timm/a", "timm/b"],
        strategies=["linear_probe", "full"],
        search_space={"lr": {"grid": [0.1, 0.01]}, "weight_decay": {"loguniform": [1e-5, 1e-2]}},
        sweep={"num_samples": 3},
        training={"augmentation": "light", "views": 2},
    )
    probes = [trial for trial in list_trials(config) if trial.strategy.strategy == "linear_probe"]
    assert [trial.backbone.id for trial in probes] == ["timm/a", "timm/b"]
    for trial in probes:
        assert (trial.is_solved, trial.epochs, trial.strategy.solver) == (True, 1, "lbfgs")
        assert trial.params == {"solver": "lbfgs", **trial.recipe.model_dump(include=set(OF_FEATURES))}
        assert (trial.params["augmentation"], trial.params["views"]) == ("light", 2)
    assert len(list_trials(config)) == 1 + 2 * (1 + 6)


@pytest.mark.parametrize(
    ("fields", "solver"),
    [
        ({}, "lbfgs"),
        ({"training": {"augmentation": "none", "views": 2, "precision": "float32"}}, "lbfgs"),
        ({"training": {"lr": 0.1}}, "gradient"),
        ({"training": {"epochs": 3}}, "gradient"),
        ({"search_space": {"momentum": {"grid": [0.5, 0.9]}}}, "gradient"),
        ({"search_space": {"views": {"grid": [1, 4]}}}, "lbfgs"),
        ({"solver": "gradient"}, "gradient"),
        ({"solver": "lbfgs"}, "lbfgs"),
    ],
)
def test_a_probe_is_solved_unless_its_own_entry_sets_what_only_gradients_use(
    fields: dict[str, Any], solver: str
) -> None:
    config = make_config(strategies=[{"strategy": "linear_probe", **fields}], training={"lr": 0.5, "epochs": 7})
    assert {trial.strategy.solver for trial in list_trials(config)[1:]} == {solver}
    frozen = {"freeze_bn": False}
    if fields.get("solver") != "lbfgs":
        config = make_config(strategies=[{"strategy": "linear_probe", **fields}], training=frozen)
        assert {trial.strategy.solver for trial in list_trials(config)[1:]} == {"gradient"}


def test_a_champion_of_before_solvers_is_trained_by_its_recipe_again() -> None:
    start = {"backbone": {"id": "timm/a"}, "strategy": {"strategy": "linear_probe"}, "training": {"lr": 0.03}}
    trials = list_trials(make_config(strategies=["linear_probe"], warm_start=start))[1:]
    assert [(trial.strategy.solver, trial.recipe.lr) for trial in trials] == [("gradient", 0.03), ("lbfgs", 0.001)]
    start |= {"strategy": {"strategy": "linear_probe", "solver": "lbfgs"}, "training": {}}
    assert len(list_trials(make_config(strategies=["linear_probe"], warm_start=start))) == 2, "it is not repeated"


def test_a_solved_probe_needs_no_known_recipe() -> None:
    space = {"lr": {"loguniform": [1e-5, 1e-1]}}
    trials = list_trials(make_config(strategies=["linear_probe", "full"], search_space=space, known_recipe="auto"))
    assert [trial.strategy.strategy for trial in trials] == ["scratch", "linear_probe", "full"]
