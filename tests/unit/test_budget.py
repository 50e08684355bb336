"""What a budget has room for, and how it is spent."""

import math
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from tlray.config import BackboneConfig, PricesConfig, Recipe, RunConfig, StrategyConfig, TrialConfig
from tlray.runs.budget.choice import choose, limit_seconds, limit_trials
from tlray.runs.budget.worth import backbone_key, by_worth, score_backbones


def trials_of(**counts: int) -> list[TrialConfig]:
    """The baseline, then so many trials of each backbone."""

    def trial(trial_id: str, name: str, is_baseline: bool = False) -> TrialConfig:
        return TrialConfig(
            trial_id=trial_id,
            backbone=BackboneConfig(id=name),
            strategy=StrategyConfig(strategy="full"),
            recipe=Recipe(),
            seed=0,
            is_baseline=is_baseline,
        )

    others = [trial(f"{name}{number}", name) for name, count in counts.items() for number in range(count)]
    return [trial("000-baseline", "small", is_baseline=True), *others]


def probes_and_full(*rates: float) -> list[TrialConfig]:
    """One backbone's linear probes with these rates, then all blocks with them; no baseline."""

    def trial(strategy: str, lr: float) -> TrialConfig:
        return TrialConfig(
            trial_id=f"{strategy} {lr:g}",
            backbone=BackboneConfig(id="a"),
            strategy=StrategyConfig(strategy=strategy),
            recipe=Recipe(lr=lr),
            seed=0,
        )

    return [trial(strategy, lr) for strategy in ("linear_probe", "full") for lr in rates]


def ten_seconds_each(trials: Sequence[TrialConfig]) -> float:
    return 10.0 * len(trials)


def key(name: str) -> str:
    return backbone_key(BackboneConfig(id=name))


def ids(trials: Sequence[TrialConfig]) -> list[str]:
    return [trial.trial_id for trial in trials]


def run_config(**fields: object) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "data": {"train": "d"}, "backbones": ["a"], **fields})


def test_the_first_trial_of_every_backbone_comes_before_any_second_one_and_better_backbones_first() -> None:
    ordered = by_worth(trials_of(a=3, b=1, c=2), {key("c"): 0.9, key("a"): 0.5})
    assert ids(ordered) == ["c0", "a0", "b0", "c1", "a1", "a2"]


def test_after_a_backbones_first_trial_its_strategies_take_turns_from_the_middle_of_their_rates() -> None:
    trials = probes_and_full(0.0001, 0.0004, 0.001, 0.01, 0.1)
    assert ids(by_worth(trials, {}))[:7] == [
        "linear_probe 0.0001",
        "linear_probe 0.001",
        "full 0.001",
        "linear_probe 0.0004",
        "full 0.0004",
        "full 0.0001",
        "linear_probe 0.01",
    ]
    assert sorted(ids(by_worth(trials, {}))) == sorted(ids(trials))


def test_a_strategy_with_long_trials_waits_until_the_others_have_had_as_much_time() -> None:
    trials = probes_and_full(0.001, 0.01, 0.05)
    seconds = {one.trial_id: 10.0 if one.strategy.strategy == "full" else 4.0 for one in trials}
    assert ids(by_worth(trials, {}, seconds)) == [
        "linear_probe 0.001",
        "linear_probe 0.01",
        "full 0.01",
        "linear_probe 0.05",
        "full 0.05",
        "full 0.001",
    ]


def test_backbones_are_compared_by_trials_of_one_kind_only() -> None:
    def trial(trial_id: str) -> TrialConfig:
        name, strategy = trial_id.split()
        strategies = {"head": "linear_probe", "full": "full", "gradual": "gradual"}
        return TrialConfig(
            trial_id=trial_id,
            backbone=BackboneConfig(id=name),
            strategy=StrategyConfig(strategy=strategies[strategy]),
            recipe=Recipe(),
            seed=0,
        )

    trials = [trial(name) for name in ("a head", "b head", "b full", "c head", "c full", "d gradual")]
    heads = {"a head": 0.9, "b head": 0.8, "c head": 0.7}
    assert score_backbones(trials, heads) == pytest.approx({key("a"): 0.0, key("b"): -0.1, key("c"): -0.2})
    alone = {**heads, "b full": 0.95}
    assert score_backbones(trials, alone) == pytest.approx({key("a"): 0.0, key("b"): -0.1, key("c"): -0.2})
    two = {**alone, "c full": 0.97}
    assert score_backbones(trials, two) == pytest.approx({key("a"): 0.0, key("b"): -0.02, key("c"): 0.0})
    assert score_backbones(trials, {**two, "d gradual": 0.3})[key("d")] == 0.0, "nothing speaks against it"
    assert key("d") not in score_backbones(trials, {**two, "d gradual": None})


def test_while_all_do_not_fit_the_worse_half_of_the_backbones_goes_to_the_end() -> None:
    scores = {key("a"): 0.1, key("b"): 0.9, key("c"): 0.8, key("d"): 0.2}
    trials = trials_of(a=2, b=2, c=2, d=2)
    assert choose(trials, ten_seconds_each, 90, scores) == (trials, [])
    kept, dropped = choose(trials, ten_seconds_each, 59, scores)
    assert ids(kept) == ["000-baseline", "b0", "c0", "b1", "c1"]
    assert dropped == ["a0", "a1", "d0", "d1"]
    kept, _ = choose(trials, ten_seconds_each, 35, scores)
    assert ids(kept) == ["000-baseline", "b0", "b1"]
    kept, _ = choose(trials, ten_seconds_each, 20, scores)
    assert ids(kept) == ["000-baseline", "b0"]


def test_what_the_better_backbones_leave_of_the_time_goes_to_those_that_went_last() -> None:
    scores = {key("a"): 0.1, key("b"): 0.9, key("c"): 0.8, key("d"): 0.2}
    kept, dropped = choose(trials_of(a=2, b=2, c=2, d=2), ten_seconds_each, 89, scores)
    assert ids(kept) == ["000-baseline", "b0", "c0", "b1", "c1", "d0", "a0", "d1"]
    assert dropped == ["a1"]
    kept, dropped = choose(trials_of(a=1, b=1, c=1, d=1), ten_seconds_each, 45, scores)
    assert ids(kept) == ["000-baseline", "b0", "c0", "d0"]
    assert dropped == ["a0"]


def test_a_long_trial_makes_room_for_a_shorter_one_behind_it() -> None:
    long = {"a0": 100.0}

    def seconds_of(trials: Sequence[TrialConfig]) -> float:
        return sum(long.get(trial.trial_id, 1.0) for trial in trials)

    kept, dropped = choose(trials_of(a=3), seconds_of, 10, {})
    assert ids(kept) == ["000-baseline", "a1", "a2"]
    assert dropped == ["a0"]


def test_with_room_for_nothing_the_baseline_stays_and_one_trial_unless_another_has_a_score_already() -> None:
    kept, dropped = choose(trials_of(a=2), ten_seconds_each, 0, {})
    assert ids(kept) == ["000-baseline", "a0"]
    assert dropped == ["a1"]
    kept, dropped = choose(trials_of(a=2), ten_seconds_each, 0, {key("a"): 0.5})
    assert ids(kept) == ["000-baseline"]
    assert dropped == ["a0", "a1"]


def test_with_room_for_nothing_the_shortest_trial_stays() -> None:
    seconds = {"a0": 50.0, "a1": 20.0, "b0": 30.0}

    def seconds_of(trials: Sequence[TrialConfig]) -> float:
        return sum(seconds.get(trial.trial_id, 10.0) for trial in trials)

    kept, dropped = choose(trials_of(a=2, b=1), seconds_of, 15, {})
    assert ids(kept) == ["000-baseline", "a1"]
    assert dropped == ["a0", "b0"]


def test_a_trial_that_stays_without_room_brings_those_that_cost_next_to_nothing_beside_it() -> None:
    def seconds_of(trials: Sequence[TrialConfig]) -> float:
        probes = sum(trial.backbone.id == "a" for trial in trials)
        return 50 * (probes > 0) + 0.1 * probes + 50 * (len(trials) - probes)

    kept, dropped = choose(trials_of(a=4, b=2), seconds_of, 20, {})
    assert ids(kept) == ["000-baseline", "a0", "a1", "a2", "a3"]
    assert dropped == ["b0", "b1"]


def test_a_number_of_trials_takes_some_of_each_backbone() -> None:
    kept, dropped = limit_trials(trials_of(a=3, b=3), 3)
    assert ids(kept) == ["000-baseline", "a0", "a1", "b0"]
    assert dropped == ["a2", "b1", "b2"]
    assert limit_trials(trials_of(a=3), None)[1] == []


def test_the_tighter_of_hours_and_cost_is_the_limit() -> None:
    prices = PricesConfig(per_hour={"gpu": 2.0}, instances={"gpu": 3})
    assert limit_seconds(run_config()) == math.inf
    assert limit_seconds(run_config(budget={"hours": 2})) == 7200
    assert limit_seconds(run_config(budget={"hours": 2, "cost": 3}, prices=prices.model_dump())) == pytest.approx(1800)
    assert limit_seconds(run_config(budget={"hours": 0.1, "cost": 3}, prices=prices.model_dump())) == 360


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budget": {"cost": 3}}, "budget.cost needs prices"),
        ({"budget": {"hours": 3}, "export": {"refit": True}}, "export.refit trains after the sweep"),
        ({"budget": {"hours": 0}}, "greater than 0"),
        ({"budget": {"trials": 0}}, "greater than or equal to 1"),
        ({"prices": {"per_hour": {}}}, "at least 1"),
        ({"prices": {"per_hour": {"a": 1}, "instances": {"b": 1}}}, "instances.b has no price"),
        ({"prices": {"per_hour": {"a": 1, "b": 2}}}, "say in instances how many"),
        ({"prices": {"per_hour": {"a": -1}}}, "greater than or equal to 0"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        run_config(**fields)
