"""A budget against a plan, on made-up costs: what is refused before anything is spent, and what is kept for the end."""

import dataclasses
import math
from typing import Any

import pytest

from tests.plans import empty_plan
from tlray.activations.planned import ActivationSource
from tlray.config import BackboneConfig, Recipe, RunConfig, StrategyConfig, TrialConfig
from tlray.data.manifest import Manifest
from tlray.distributed.budgeting import Accounts, baseline_seconds, open_budget, spare_trials, worth_their_frozen_work
from tlray.errors import ConfigError
from tlray.planning.within_budget import check_start, time_to_plan, too_slow, within_budget
from tlray.runs.budget.clock import Budget
from tlray.runs.budget.estimate import TrialCost, estimate_run, reserved_seconds, soonest_end, start_seconds
from tlray.runs.budget.machines import Machines
from tlray.runs.plan import PlannedRun
from tlray.runs.prepare import Run

MACHINES = Machines(concurrent_trials=1, process_seconds=10)
SECONDS = {"000-baseline": 100.0, "long": 400.0, "short": 50.0, "middle": 200.0}
START = 16.0  # of Tune and the first process of a trial


def planned(machines: Machines = MACHINES, **fields: Any) -> PlannedRun:
    config = RunConfig.model_validate({"name": "x", "data": {"train": "d"}, "backbones": ["a"], **fields})
    trials = tuple(
        TrialConfig(
            trial_id=trial_id,
            backbone=BackboneConfig(id="a"),
            strategy=StrategyConfig(strategy="full"),
            recipe=Recipe(epochs=10),
            seed=0,
            is_baseline=trial_id.startswith("000"),
        )
        for trial_id in SECONDS
    )
    costs = [TrialCost(trial_id=name, seconds=each, group=None, score_seconds=4.0) for name, each in SECONDS.items()]
    plan = empty_plan(
        estimate=estimate_run((), costs, (), machines, config.export, config.prices),
    )
    return PlannedRun(config, Manifest(("a", "b"), (), ()), trials, plan)


def run_of(plan: PlannedRun, folder: object) -> Run:
    return Run(str(folder), plan.config, plan.manifest, plan.trials, plan.plan)


def test_the_start_of_the_first_trials_is_that_of_the_estimate() -> None:
    assert start_seconds(MACHINES) == START


def test_a_budget_that_holds_baseline_and_shortest_trial_and_end_is_kept_and_names_what_it_drops() -> None:
    least = START + 100 + 50 + reserved_seconds(planned().config.export, MACHINES)
    enough = planned(budget={"hours": (least + 31) / 3600})
    kept = within_budget(enough, spent=30)
    assert kept.plan.estimate is not None
    assert kept.plan.estimate.dropped == ("long", "middle")
    more = within_budget(planned(budget={"hours": (least + 231) / 3600}), spent=30)
    assert more.plan.estimate is not None
    assert more.plan.estimate.dropped == ("long",)


def test_a_budget_that_does_not_is_refused_with_its_value_what_is_needed_and_a_remedy() -> None:
    least = START + 100 + 50 + reserved_seconds(planned().config.export, MACHINES)
    small = planned(budget={"hours": (least + 29) / 3600})
    with pytest.raises(ConfigError) as refused:
        within_budget(small, spent=30)
    words = str(refused.value)
    assert words.startswith(f"budget.hours {(least + 29) / 3600:g} is too small: ")
    assert "took 30 s" in words
    hours = float(words.partition("give at least ")[2].partition(",")[0])
    assert least + 30 <= hours * 3600 < 1.1 * (least + 30)
    assert within_budget(planned(budget={"hours": hours}), spent=30) is not None
    assert refused.value.exit_code == 2


def test_a_cost_that_is_too_small_is_refused_in_its_own_currency() -> None:
    prices = {"per_hour": {"gpu": 36.0}}
    with pytest.raises(ConfigError, match=r"budget\.cost 1 is too small: .* give at least 2\.\d,"):
        within_budget(planned(budget={"hours": 5, "cost": 1}, prices=prices), spent=0)


def test_a_budget_that_no_run_can_end_in_is_refused_before_anything_starts() -> None:
    config = planned(budget={"hours": 30 / 3600}).config
    with pytest.raises(ConfigError, match=r"budget\.hours 0\.00833333 is too small: .* give at least 0\.0\d+$"):
        check_start(config, load=1.0, spent=0.5)
    check_start(planned(budget={"hours": 60 / 3600}).config, load=1.0, spent=0.5)
    with pytest.raises(ConfigError, match="too small"):
        check_start(planned(budget={"hours": 60 / 3600}).config, load=3.0, spent=0.5)
    check_start(planned().config, load=100.0, spent=1e9)


def test_a_plan_may_take_what_the_end_of_the_run_leaves_and_the_refusal_names_what_it_took() -> None:
    config = planned(budget={"hours": 0.1}).config
    assert time_to_plan(config, load=1.0, spent=60) == 300 - soonest_end(config.export, 1.0)
    assert time_to_plan(config, load=1.0, spent=600) == 0
    assert time_to_plan(planned().config, load=1.0, spent=60) is None
    assert str(too_slow(config, spent=320)).startswith(
        "budget.hours 0.1 is too small: start and plan have taken 5 min and go on; give at least 0.19, or"
    )


def test_without_a_limit_nothing_is_refused_and_nothing_changes() -> None:
    plan = planned(budget={"trials": 1})
    assert within_budget(plan, spent=1e9) is plan


def test_a_busy_machine_needs_a_larger_budget() -> None:
    idle = planned(budget={"hours": 0.065})
    assert within_budget(idle, spent=0) is not None
    with pytest.raises(ConfigError, match="too small"):
        within_budget(planned(MACHINES.model_copy(update={"load": 3.0}), budget={"hours": 0.065}), spent=0)


def test_the_end_of_a_run_keeps_more_with_every_trial_that_waits_for_its_score(tmp_path: object) -> None:
    run = run_of(planned(budget={"hours": 1}), tmp_path)
    now = 0.0
    budget = Budget(run.uri, 3600, 100, now=lambda: now)
    accounts = Accounts(run, budget)
    accounts.trial_stopped("long")
    assert budget.left() == 3600 - 100 - 4
    for _ in range(10):
        accounts.epoch_ended("middle", seconds=80)
    assert budget.pace > 1.5, "an epoch was expected to take a tenth of 200 seconds, or somewhat more"
    Accounts(run, Budget(run.uri, math.inf)).epoch_ended("middle", seconds=80)


def test_the_clock_of_a_run_starts_with_the_command_and_keeps_the_end(tmp_path: object) -> None:
    run = run_of(planned(budget={"hours": 1}), tmp_path)
    budget = open_budget(run, began=-1e6)
    assert budget.spent() > 1e6
    assert budget.left() + budget.spent() == pytest.approx(3600 - reserved_seconds(run.config.export, MACHINES), abs=1)


def test_where_no_frozen_work_fits_a_shorter_trial_without_any_takes_its_place(tmp_path: object) -> None:
    plan = planned(budget={"hours": 1})
    probes = ["long", "middle"]
    source = made_up_source(probes, seconds=1000.0)
    run = run_of(dataclasses.replace(plan, plan=plan.plan.model_copy(update={"activations": (source,)})), tmp_path)

    def kept(left: float) -> list[str]:
        budget = Budget(run.uri, left, now=lambda: 0.0)
        return [one.trial_id for one in worth_their_frozen_work(run, run.trials, probes, [source], budget)]

    assert kept(5000) == ["000-baseline", "long", "short", "middle"]
    assert kept(300) == ["000-baseline", "short"]


def test_trials_with_room_for_an_epoch_wait_for_those_that_end_before_their_time(tmp_path: object) -> None:
    run = run_of(planned(budget={"hours": 1}), tmp_path)
    baseline, _, short, _ = run.trials

    def spare(left: float) -> list[str]:
        budget = Budget(run.uri, left, now=lambda: 0.0)
        return [one.trial_id for one in spare_trials(run, run.trials, [baseline, short], budget)]

    assert spare(1000) == ["long", "middle"]
    assert spare(START + 60) == ["middle"], "an epoch of the long one takes some 80 seconds"
    assert spare(START) == []
    assert spare(math.inf) == []


def made_up_source(trials: list[str], seconds: float) -> ActivationSource:
    return ActivationSource(
        backbone=BackboneConfig(id="a"),
        seed=0,
        num_frozen=9,
        num_blocks=10,
        last_block="b",
        augmentation="none",
        views=1,
        trials=tuple(trials),
        with_test=True,
        bytes_per_image=1000,
        num_draws=100,
        num_stored=0,
        num_reads=1000,
        decode_seconds=0.0,
        prefix_seconds=seconds / 100,
        materialise_seconds=seconds,
        recompute_seconds=2 * seconds,
        materialise=True,
        reason="",
        keys=(),
    )


def test_time_is_kept_for_the_baseline_until_it_has_ended(tmp_path: object) -> None:
    run = run_of(planned(budget={"hours": 1}), tmp_path)
    assert baseline_seconds(run, run.trials) == START + 100
    assert baseline_seconds(run, run.trials[1:]) == 0
