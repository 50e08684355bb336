"""How long a run is expected to take, from what its parts take."""

import numpy as np
import pytest

from tlray.activations.planned import ActivationSource
from tlray.config import BackboneConfig, ExportConfig, PricesConfig
from tlray.runs.budget.estimate import (
    TrialCost,
    conclusion_seconds,
    estimate_run,
    makespan,
    start_seconds,
    sweep_seconds,
)
from tlray.runs.budget.machines import Machines, cpus_of_a_pass_task

MACHINES = Machines(concurrent_trials=2, process_seconds=10)


def source(name: str, num_frozen: int, trials: tuple[str, ...], **fields: object) -> ActivationSource:
    values = {
        "backbone": BackboneConfig(id=name),
        "seed": 0,
        "num_frozen": num_frozen,
        "num_blocks": 10,
        "last_block": "b",
        "augmentation": "none",
        "views": 1,
        "trials": trials,
        "with_test": True,
        "bytes_per_image": 1000,
        "num_draws": 100,
        "num_stored": 0,
        "num_reads": 1000,
        "decode_seconds": 0.01,
        "prefix_seconds": 0.02,
        "materialise_seconds": 3.0,
        "recompute_seconds": 30.0,
        "materialise": True,
        "reason": "",
        "keys": (),
    }
    return ActivationSource.model_validate(values | fields)


def cost(trial_id: str, seconds: float, group: str | None = None) -> TrialCost:
    return TrialCost(trial_id=trial_id, seconds=seconds, group=group)


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_the_makespan_is_that_of_trials_started_one_by_one_on_the_first_free_slot(slots: int) -> None:
    seconds = np.random.default_rng(slots).uniform(1, 9, 20).tolist()
    busy: list[list[float]] = [[] for _ in range(slots)]
    for duration in seconds:
        min(busy, key=sum).append(duration)
    assert makespan(seconds, slots) == pytest.approx(max(sum(jobs) for jobs in busy))


def test_trials_of_a_batched_head_cost_little_more_than_one_and_others_share_the_slots() -> None:
    one = sweep_seconds([cost("a", 5, "g")], (), MACHINES)
    many = sweep_seconds([cost(f"a{number}", 5, "g") for number in range(20)], (), MACHINES)
    assert many < 1.5 * one
    assert sweep_seconds([cost(f"b{number}", 5) for number in range(20)], (), MACHINES) == pytest.approx(
        start_seconds(MACHINES) + 50
    )


def test_a_trial_beside_idle_cores_takes_what_reading_and_training_take_at_once() -> None:
    costs = [TrialCost(trial_id="a", seconds=10, overlapped_seconds=7, group=None)]
    idle = MACHINES.model_copy(update={"idle_cores": True})
    assert sweep_seconds(costs, (), MACHINES) - sweep_seconds(costs, (), idle) == pytest.approx(3)
    assert sweep_seconds([cost("a", 10)], (), idle) == sweep_seconds([cost("a", 10)], (), MACHINES)


def test_cuts_of_one_backbone_cost_one_forward_and_what_is_stored_nothing() -> None:
    costs = [cost("a", 0, "g"), cost("b", 0, "g")]
    deep = source("x", 9, ("a",), prefix_seconds=0.09)
    shallow = source("x", 5, ("b",), prefix_seconds=0.05)
    assert sweep_seconds(costs, [deep, shallow], MACHINES) == pytest.approx(100 * 0.1)
    other = source("y", 9, ("b",), prefix_seconds=0.09)
    assert sweep_seconds(costs, [deep, other], MACHINES) == pytest.approx(200 * 0.1)
    stored = source("x", 9, ("a",), num_stored=100)
    assert sweep_seconds(costs, [stored], MACHINES) == 0
    assert sweep_seconds(costs[1:], [deep], MACHINES) == 0, "nobody reads it"


def test_frozen_work_is_shared_among_pass_tasks_and_a_gpu_computes_while_images_are_decoded() -> None:
    costs, kept = [cost("a", 0, "g"), cost("b", 0, "h")], [source("x", 9, ("a", "b"))]
    one = Machines(concurrent_trials=1)
    assert sweep_seconds(costs, kept, one) == pytest.approx(100 * (0.01 + 0.02))
    assert sweep_seconds(costs, kept, one.model_copy(update={"pass_tasks": 4})) == pytest.approx(100 * 0.03 / 4)
    assert sweep_seconds(costs, kept, one.model_copy(update={"on_gpus": True})) == pytest.approx(100 * 0.02)


def test_groups_of_probes_train_at_once_on_as_many_pass_tasks() -> None:
    costs = [cost("a", 6, "g"), cost("b", 4, "h"), cost("c", 3, "i")]
    assert sweep_seconds(costs, (), Machines(concurrent_trials=1)) == pytest.approx(13)
    assert sweep_seconds(costs, (), Machines(concurrent_trials=1, pass_tasks=2)) == pytest.approx(7)


def test_a_pass_task_takes_a_gpus_share_of_the_cpus_or_a_few_cpus() -> None:
    assert cpus_of_a_pass_task([(8, 1), (96, 8)], on_gpus=True) == 8
    assert cpus_of_a_pass_task([(96, 2)], on_gpus=True) == 16
    assert cpus_of_a_pass_task([(64, 0)], on_gpus=False) == 4
    assert cpus_of_a_pass_task([(2, 0), (64, 0)], on_gpus=False) == 2
    assert cpus_of_a_pass_task([(0.5, 0)], on_gpus=False) == 1


def test_the_end_of_a_run_takes_longer_with_every_bundle_on_a_busy_machine_and_with_an_ensemble() -> None:
    def seconds(machines: Machines = MACHINES, **fields: object) -> float:
        return conclusion_seconds(ExportConfig.model_validate(fields), machines)

    one, two = seconds(top_k=1), seconds(top_k=2)
    assert seconds(top_k=3) - two == pytest.approx(two - one)
    assert seconds(top_k=1, ensemble=True) > two > one > seconds(top_k=0) > MACHINES.process_seconds
    busy = MACHINES.model_copy(update={"load": 3.0})
    assert seconds(busy, top_k=1) - MACHINES.process_seconds == pytest.approx(2 * (one - MACHINES.process_seconds))


def test_a_run_is_priced_by_all_its_instances_and_without_what_is_dropped() -> None:
    costs = [cost("000-baseline", 100), cost("a", 200), cost("b", 5000)]
    prices = PricesConfig(per_hour={"gpu": 3.6, "cpu": 0.36}, instances={"gpu": 2, "cpu": 1})
    estimate = estimate_run((), costs, ["b"], MACHINES, ExportConfig(top_k=1), prices)
    seconds = start_seconds(MACHINES) + 200 + conclusion_seconds(ExportConfig(top_k=1), MACHINES)
    assert estimate.seconds == pytest.approx(seconds)
    assert estimate.price == pytest.approx(seconds * (2 * 3.6 + 0.36) / 3600)
    assert estimate.dropped == ("b",)
    assert estimate_run((), costs, [], MACHINES, ExportConfig(), None).price is None
