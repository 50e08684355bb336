"""The sweep: trials in parallel under Ray Tune, each one's final row appended to results.jsonl as it ends.

    run_sweep(config, trials, run_uri, watch)

What is finished and how far the rest is stands in the run folder, written by the trials themselves; Tune's own state
is thrown away. So a resume is this same call: it starts what has no final row, and the trials find their checkpoints.
"""

import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial

from tlray import storage
from tlray.config import RunConfig, TrialConfig
from tlray.distributed.driver import nested_trial
from tlray.distributed.resources import DRIVER_MEMORY_BYTES, TrialResources, cluster_summary, connect, trial_resources
from tlray.distributed.scheduler import make_scheduler, our_trial_id
from tlray.distributed.worker import conclude_trial, in_process_trial, trial_settings
from tlray.errors import TrialError
from tlray.results import (
    TrialResult,
    append_result,
    delete_trial_result,
    load_results,
    read_trial_result,
    write_trial_result,
)
from tlray.training.trial import failed_result, trial_folder


class Watcher(Protocol):
    """Told what happens while it happens; see `tlray.progress`."""

    def trial_started(self, trial_id: str) -> None: ...
    def epoch_ended(self, trial_id: str, metrics: dict[str, Any]) -> None: ...
    def trial_ended(self, result: TrialResult) -> None: ...
    def trial_stopped(self, trial_id: str) -> None: ...
    def sweep_broke(self, reason: str) -> None: ...


def check_cluster(config: RunConfig) -> TrialResources:
    """What a trial gets on the cluster as it is now; ClusterError when that is more than it has."""
    return trial_resources(config.sweep, cluster_summary())


def run_sweep(config: RunConfig, trials: Sequence[TrialConfig], run_uri: str, watch: Watcher) -> None:
    """Run every trial that has no final row yet, then score those that the scheduler stopped."""
    connect()
    resources = check_cluster(config)
    _append_missing_rows(run_uri, trials)
    remaining = [trial for trial in trials if not _is_finished(run_uri, trial.trial_id)]
    for trial in remaining:  # a failed attempt's row must not be taken for the new attempt's
        delete_trial_result(run_uri, trial.trial_id)
    failures = 0
    while open_trials := [trial for trial in remaining if not _has_ended(run_uri, trial.trial_id)]:
        try:
            _tune(config, trials, open_trials, run_uri, resources, watch)
            break
        except RuntimeError as error:
            # Tune gives up the whole sweep when Ray kills one trial's process for want of memory. The run folder
            # knows how far each trial is, so a new Tune goes on from there.
            failures += 1
            if failures > config.sweep.max_failures:
                reason = str(error).splitlines()[0]
                raise TrialError(f"the sweep broke down: {reason}; `tlray resume {run_uri}` goes on") from error
            watch.sweep_broke(str(error).splitlines()[0])
    stopped = [trial for trial in remaining if _was_stopped(run_uri, trial.trial_id)]
    _conclude(stopped, run_uri, resources, watch)


def _tune(
    config: RunConfig,
    trials: Sequence[TrialConfig],
    open_trials: Sequence[TrialConfig],
    run_uri: str,
    resources: TrialResources,
    watch: Watcher,
) -> None:
    # Rows are written by the trials; Tune's loggers, progress bars and metric checks would only stand in the way.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    if resources.nested:
        nested = functools.partial(nested_trial, resources=resources, max_failures=config.sweep.max_failures)
        trainable = tune.with_resources(nested, {"memory": DRIVER_MEMORY_BYTES})
    else:
        trainable = tune.with_resources(in_process_trial, {"cpu": resources.cpus, "gpu": resources.gpus})
    settings = [trial_settings(run_uri, trial.trial_id, resources.threads) for trial in open_trials]
    history = {trial.trial_id: trial_folder(run_uri, trial.trial_id).load_progress().history for trial in trials}
    with tempfile.TemporaryDirectory(prefix="tlray-tune-") as scratch:
        tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(settings)},
            tune_config=tune.TuneConfig(
                scheduler=make_scheduler(config.sweep, trials, history),
                max_concurrent_trials=resources.concurrent,
                reuse_actors=not resources.nested,
                trial_dirname_creator=our_trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=[_Rows({trial.trial_id: trial for trial in open_trials}, run_uri, watch)],
                failure_config=tune.FailureConfig(max_failures=config.sweep.max_failures),
            ),
        ).fit()


class _Rows(tune.Callback):
    """Turns what Tune says of its trials into final rows and into what the watcher is told."""

    def __init__(self, trials: dict[str, TrialConfig], run_uri: str, watch: Watcher) -> None:
        self._trials, self._run_uri, self._watch = trials, run_uri, watch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is never made, and a console cannot be pickled."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._watch.trial_started(our_trial_id(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self._watch.epoch_ended(our_trial_id(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called for a trial that returned and for one that the scheduler stopped; only the first has a result."""
        trial_id = our_trial_id(trial)
        result = read_trial_result(self._run_uri, trial_id)
        if result is None:
            storage.write_text(_stopped_marker(self._run_uri, trial_id), "")
            self._watch.trial_stopped(trial_id)
            return
        append_result(self._run_uri, result)
        self._watch.trial_ended(result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called when a trial has used up its restarts."""
        traceback = storage.read_text(trial.error_file) if trial.error_file else "no reason was given"
        reason = traceback.strip().splitlines()[-1]
        result = failed_result(self._trials[our_trial_id(trial)], self._run_uri, reason)
        write_trial_result(self._run_uri, result)
        append_result(self._run_uri, result)
        self._watch.trial_ended(result)


def _conclude(trials: Sequence[TrialConfig], run_uri: str, resources: TrialResources, watch: Watcher) -> None:
    task = conclude_trial.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    waiting = {task.remote(run_uri, trial.trial_id, resources.threads): trial for trial in trials}
    while waiting:
        done = ray.wait(list(waiting))[0][0]
        trial = waiting.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            result = failed_result(trial, run_uri, str(error).strip().splitlines()[-1])
            write_trial_result(run_uri, result)
        append_result(run_uri, result)
        watch.trial_ended(result)


def _is_finished(run_uri: str, trial_id: str) -> bool:
    """Whether the trial has a final row; one that failed is tried again by a resume."""
    result = read_trial_result(run_uri, trial_id)
    return result is not None and result.status != "failed"


def _has_ended(run_uri: str, trial_id: str) -> bool:
    """Whether there is nothing left to train: the trial has a row, also a failed one, or was stopped."""
    return read_trial_result(run_uri, trial_id) is not None or _was_stopped(run_uri, trial_id)


def _append_missing_rows(run_uri: str, trials: Sequence[TrialConfig]) -> None:
    """Rows of trials that wrote their result just before the driver was killed."""
    known = {result.trial_id for result in load_results(run_uri)}
    for trial in trials:
        result = read_trial_result(run_uri, trial.trial_id)
        if result is not None and trial.trial_id not in known:
            append_result(run_uri, result)


def _stopped_marker(run_uri: str, trial_id: str) -> str:
    return storage.join(run_uri, "trials", trial_id, "stopped")


def _was_stopped(run_uri: str, trial_id: str) -> bool:
    return storage.exists(_stopped_marker(run_uri, trial_id))
