"""Linear probes that share features, as one task a group: each is still a trial with its own row.

run_probe_groups(run, groups, resources, watch)

A task tells of epochs while it runs. What a killed one has done lies in the run folder, where the next one finds it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from tlray.config import TrialConfig
from tlray.distributed.activation_pass import POLL_SECONDS
from tlray.distributed.resources import TaskResources
from tlray.distributed.tasks import probe_group_task
from tlray.distributed.watch import Watcher
from tlray.runs.board import append_result
from tlray.runs.prepare import Run
from tlray.runs.results import TrialResult
from tlray.runs.trials import read_states


def run_probe_groups(
    run: Run,
    groups: Sequence[Sequence[TrialConfig]],
    resources: TaskResources,
    watch: Watcher,
    time_left: Callable[[bool], float] = lambda has_one: math.inf,
) -> dict[str, BaseException]:
    """Train every group and append its rows -> why, for each trial that has none because its group broke down.

    When no `time_left` is, the groups under way are given up; their trials have no row. It is asked with whether a
    trial has ended.
    """
    task = probe_group_task.options(**resources.options, max_retries=run.config.sweep.max_failures)
    running: dict[Any, Sequence[TrialConfig]] = {}  # by the generator of what the task tells
    for group in groups:
        ids = [trial.trial_id for trial in group]
        running[task.remote(run.uri, ids, resources.threads)] = group
    started: set[str] = set()
    broken: dict[str, BaseException] = {}
    ended: set[str] = set()

    def end(result: TrialResult) -> None:
        ended.add(result.trial_id)
        append_result(run.uri, result)
        watch.trial_ended(result)

    while running:
        some_ready, _ = ray.wait(list(running), timeout=POLL_SECONDS if math.isfinite(time_left(bool(ended))) else None)
        if time_left(bool(ended)) <= 0:
            for result in _give_up(run, running):
                if result.trial_id not in ended:
                    end(result)
            return broken
        if not some_ready:
            continue
        ready: Any = some_ready[0]
        group = running[ready]
        try:
            news = ray.get(next(ready))
        except StopIteration:
            del running[ready]
            continue
        except ray.exceptions.RayError as error:
            del running[ready]
            for trial_id, state in read_states(run.uri, [trial.trial_id for trial in group]).items():
                if state.result is None:
                    broken[trial_id] = error
                else:  # written before its group broke down
                    end(state.result)
            continue
        for item in news:
            if isinstance(item, TrialResult):
                end(item)
                continue
            trial_id, metrics = item
            if trial_id not in started:
                started.add(trial_id)
                watch.trial_started(trial_id)
            watch.epoch_ended(trial_id, dataclasses.asdict(metrics))
    return broken


def _give_up(run: Run, running: Mapping[Any, Sequence[TrialConfig]]) -> list[TrialResult]:
    """What had a row already keeps it."""
    for generator in running:
        ray.cancel(generator, force=True)
    states = read_states(run.uri, [trial.trial_id for group in running.values() for trial in group])
    return [state.result for state in states.values() if state.result is not None]
