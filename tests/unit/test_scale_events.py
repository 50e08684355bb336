"""The simulation of a sweep on many nodes, where its results can be worked out by hand or by another way."""

import random

import pytest

from benchmarks.scale_events import Cluster, Job, Stage, simulate
from tlray.runs.budget.estimate import makespan

TWO_CORES = [0.0, 1.0, 2.0, 2.0, 2.0, 2.0].__getitem__
TWO_HALVES = [0.0, 1.0, 1.25, 1.25].__getitem__  # of one core: two at once get a quarter more done than one


def jobs(*seconds: float) -> list[Job]:
    return [Job((one,)) for one in seconds]


def test_a_stage_takes_what_list_scheduling_takes() -> None:
    draw = random.Random(0)
    durations = [draw.uniform(1, 20) for _ in range(50)]
    for workers in (1, 3, 7, 64):
        result = simulate([Stage("trials", jobs(*durations), 0.0)], Cluster(workers))
        assert result.seconds == pytest.approx(makespan(durations, workers))


def test_workers_that_share_cores_slow_each_other_down() -> None:
    stage = [Stage("trials", jobs(10, 10, 10, 10), 0.0)]
    assert simulate(stage, Cluster(4, capacity=TWO_CORES)).seconds == pytest.approx(20)
    assert simulate(stage, Cluster(2, capacity=TWO_CORES)).seconds == pytest.approx(20)
    assert simulate(stage, Cluster(1, capacity=TWO_CORES)).seconds == pytest.approx(40)
    assert simulate(stage, Cluster(2, capacity=TWO_HALVES)).seconds == pytest.approx(32)
    # 3 share 2 cores until the short one has ended at 3 s; the others have done 2 s of their work by then
    assert simulate([Stage("trials", jobs(2, 12, 12), 0.0)], Cluster(3, capacity=TWO_CORES)).seconds == pytest.approx(
        13
    )


def test_a_jobs_own_threads_use_a_core_that_is_idle() -> None:
    one, two = [Stage("trials", jobs(12), 0.0, 1.5)], [Stage("trials", jobs(12, 12), 0.0, 1.5)]
    assert simulate(one, Cluster(1, capacity=TWO_CORES)).seconds == pytest.approx(8)
    assert simulate(two, Cluster(1, capacity=TWO_CORES)).seconds == pytest.approx(16)
    assert simulate(two, Cluster(2, capacity=TWO_CORES)).seconds == pytest.approx(12)
    assert simulate([Stage("trials", jobs(12), 0.0, 1.5)], Cluster(1, capacity=TWO_HALVES)).seconds == pytest.approx(
        9.6
    )


def test_a_worker_pays_for_its_process_once_a_stage_and_stages_follow_each_other() -> None:
    stages = [Stage("a", jobs(5, 5, 5, 5), 3.0), Stage("b", jobs(7), 1.0)]
    result = simulate(stages, Cluster(2))
    assert result.stages == {"a": pytest.approx(13), "b": pytest.approx(8)}
    assert result.seconds == pytest.approx(21)


def test_nodes_come_late_and_go_when_they_are_idle() -> None:
    stages = [Stage("many", jobs(*[100.0] * 4), 0.0), Stage("one", jobs(1000.0), 0.0)]
    result = simulate(stages, Cluster(4, start_seconds=60, idle_seconds=50))
    assert result.seconds == pytest.approx(60 + 100 + 1000)
    # the one that works to the end, and three that are given back 50 s after their jobs
    assert result.node_seconds == pytest.approx(1160 + 3 * (60 + 100 + 50))


def test_a_node_that_was_given_back_is_asked_for_again() -> None:
    stages = [
        Stage("two", jobs(100.0, 100.0), 0.0),
        Stage("one", jobs(200.0), 0.0),
        Stage("two again", jobs(100.0, 100.0), 0.0),
    ]
    result = simulate(stages, Cluster(2, start_seconds=60, idle_seconds=50))
    assert result.seconds == pytest.approx(160 + 200 + 160)
    assert result.node_seconds == pytest.approx(min(520, 160 + 200 + 100 + 50) + (160 + 50) + 160)


def test_a_trial_that_is_stopped_frees_its_worker() -> None:
    stopped = Job((10.0,) * 5, lambda piece: piece < 1)
    result = simulate([Stage("trials", [stopped, Job((10.0,))], 0.0)], Cluster(1))
    assert result.seconds == pytest.approx(30)
