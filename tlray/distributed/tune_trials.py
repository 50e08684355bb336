"""Trials under Ray Tune: those that train blocks, or read images, each one's final row appended as it ends.

    tune_trials(run, open_trials, budget, resources, watch)

What is finished and how far the rest is stands in the run folder, written by the trials themselves; Tune's own state
is thrown away.
"""

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from tlray import storage
from tlray.config import TrialConfig
from tlray.distributed.budget_stopper import BudgetStopper
from tlray.distributed.budgeting import Accounts
from tlray.distributed.errors import may_pass
from tlray.distributed.private_ray import keep_secrets_at_home
from tlray.distributed.resources import DRIVER_MEMORY_BYTES, TrialResources
from tlray.distributed.scheduler import make_scheduler, our_trial_id
from tlray.distributed.tune_actor import in_process_trial, nested_trial
from tlray.distributed.watch import Watcher
from tlray.distributed.watchdog import Loop, turning
from tlray.process.scratch import temporary_folder
from tlray.runs.board import append_result
from tlray.runs.budget.clock import Budget
from tlray.runs.prepare import Run
from tlray.runs.trials import for_each, mark_stopped, read_states, read_trial_result, trial_uri, write_trial_result
from tlray.training.record import failed_result, load_progress

# Rows are written by the trials; Tune's loggers, progress bars and metric checks would only stand in the way.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # An actor that does not stop by itself holds what the next trial waits for: by default for ten minutes. All that
    # it has done stands in the run folder.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "20",
}
NOT_REUSED = "reuse requires reset_config()"  # in Tune's words for an actor whose last trial has not stopped yet


def tune_trials(
    run: Run, open_trials: Sequence[TrialConfig], budget: Budget, resources: TrialResources, watch: Watcher
) -> None:
    """Train `open_trials` until each has ended, was stopped, or has lost its workers too often.

    What has come further until it lost them has neither a row nor a mark: started again, its restarts count anew. A run
    on nodes that come and go would otherwise use up `sweep.max_failures` in time. RuntimeError when Tune itself breaks
    down.
    """
    config = run.config
    os.environ |= ENVIRONMENT
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what a run survives; what it does not is raised
    keep_secrets_at_home()
    if resources.nested:
        nested = functools.partial(nested_trial, resources=resources, max_failures=config.sweep.max_failures)
        trainable = tune.with_resources(nested, {"memory": DRIVER_MEMORY_BYTES})
    else:
        trainable = tune.with_resources(in_process_trial, functools.partial(_reserved, resources=resources))
    settings = [{"run_uri": run.uri, "trial_id": trial.trial_id, "threads": resources.threads} for trial in open_trials]
    ids = [trial.trial_id for trial in run.trials]
    history = for_each(ids, lambda trial_id: load_progress(trial_uri(run.uri, trial_id)).history)
    with turning("Ray Tune") as loop, temporary_folder("tune") as scratch:
        rows = _Rows({trial.trial_id: trial for trial in open_trials}, run.uri, Accounts(run, budget), watch, loop)
        tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(settings)},
            tune_config=tune.TuneConfig(
                scheduler=make_scheduler(config.sweep, run.trials, history),
                max_concurrent_trials=resources.concurrent,
                reuse_actors=not resources.nested,
                trial_dirname_creator=our_trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[rows],
                stop=BudgetStopper(budget, functools.partial(_can_conclude, run)),
                failure_config=tune.FailureConfig(max_failures=config.sweep.max_failures),
            ),
        ).fit()
    if budget.left() <= 0:  # Tune says nothing of the trials that it then ends
        _end_of_budget(run.uri, [trial.trial_id for trial in open_trials], watch)


def _reserved(config: dict[str, Any], *, resources: TrialResources) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([resources.worker(config["trial"]["trial_id"])])


def _end_of_budget(run_uri: str, trial_ids: Sequence[str], watch: Watcher) -> None:
    """What had an epoch is scored as it stands."""
    states = read_states(run_uri, trial_ids)
    for trial_id in trial_ids:
        if not states[trial_id].has_ended and load_progress(trial_uri(run_uri, trial_id)).epoch > 0:
            _stop(run_uri, trial_id, watch)


def _can_conclude(run: Run) -> bool:
    """Whether the baseline, if there is one, and another trial have an epoch or a row each."""
    states = read_states(run.uri, [trial.trial_id for trial in run.trials])

    def has_epoch(trial: TrialConfig) -> bool:
        return states[trial.trial_id].has_ended or load_progress(trial_uri(run.uri, trial.trial_id)).epoch > 0

    baseline = [trial for trial in run.trials if trial.is_baseline]
    return all(map(has_epoch, baseline)) and any(has_epoch(one) for one in run.trials if not one.is_baseline)


def _how_far(run_uri: str, trial_id: str) -> tuple[int, int]:
    """(epochs, batches of the next one)"""
    progress = load_progress(trial_uri(run_uri, trial_id))
    return progress.epoch, progress.step


def _stop(run_uri: str, trial_id: str, watch: Watcher) -> None:
    mark_stopped(run_uri, trial_id)
    watch.trial_stopped(trial_id)


class _Rows(tune.Callback):
    """Turns what Tune says of its trials into final rows and into what the watcher is told."""

    def __init__(
        self, trials: dict[str, TrialConfig], run_uri: str, accounts: Accounts, watch: Watcher, loop: Loop
    ) -> None:
        self._trials, self._run_uri, self._watch, self._loop = trials, run_uri, watch, loop
        self._accounts = accounts
        self._before = {trial_id: _how_far(run_uri, trial_id) for trial_id in trials}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is never made, and a console cannot be pickled."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._loop.beat(at_work=any(trial.status == Trial.RUNNING for trial in trials))

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._watch.trial_started(our_trial_id(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self._accounts.epoch_ended(our_trial_id(trial), result["seconds"])
            self._watch.epoch_ended(our_trial_id(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called for a trial that returned and for one that was stopped; only the first has a result."""
        trial_id = our_trial_id(trial)
        with self._loop.own_work():
            result = read_trial_result(self._run_uri, trial_id)
            if result is None:
                self._accounts.trial_stopped(trial_id)
                _stop(self._run_uri, trial_id, self._watch)
                return
            append_result(self._run_uri, result)
        self._watch.trial_ended(result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called when a trial has used up its restarts, or has got the actor of one that stops slowly.

        Neither it nor what has come further since it was started gets a row: the next Tune starts it in a new actor.
        """
        trial_id = our_trial_id(trial)
        traceback = storage.read_text(trial.error_file) if trial.error_file else "no reason was given"
        reason = traceback.strip().splitlines()[-1]
        with self._loop.own_work():
            if NOT_REUSED in reason or _how_far(self._run_uri, trial_id) > self._before[trial_id]:
                return
            passes = may_pass(trial.get_pickled_error())
            result = failed_result(self._trials[trial_id], self._run_uri, reason, may_pass=passes)
            write_trial_result(self._run_uri, result)
            append_result(self._run_uri, result)
        self._watch.trial_ended(result)
