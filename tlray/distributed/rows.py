"""Which trials have ended, and the rows that the driver writes for them.

open_trials = [trial for trial in run.trials if not is_finished(run.uri, trial.trial_id)]
"""

from tlray import storage
from tlray.distributed.watch import Watcher
from tlray.prepare import Run
from tlray.results import append_result, load_results, read_trial_result, stopped_marker, write_trial_result
from tlray.training.record import failed_result


def is_finished(run_uri: str, trial_id: str) -> bool:
    """Whether the trial has a final row; one that failed is tried again by a resume."""
    result = read_trial_result(run_uri, trial_id)
    return result is not None and result.status != "failed"


def has_ended(run_uri: str, trial_id: str) -> bool:
    """Whether there is nothing left to train: the trial has a row, also a failed one, or was stopped."""
    return read_trial_result(run_uri, trial_id) is not None or was_stopped(run_uri, trial_id)


def append_missing_rows(run: Run) -> None:
    """Rows of trials that wrote their result just before the driver was killed."""
    known = {result.trial_id for result in load_results(run.uri)}
    for trial in run.trials:
        result = read_trial_result(run.uri, trial.trial_id)
        if result is not None and trial.trial_id not in known:
            append_result(run.uri, result)


def was_stopped(run_uri: str, trial_id: str) -> bool:
    return storage.exists(stopped_marker(run_uri, trial_id))


def fail(run: Run, reasons: dict[str, str], watch: Watcher) -> None:
    """A failed row for each trial id in `reasons`."""
    for trial in run.trials:
        if trial.trial_id in reasons:
            result = failed_result(trial, run.uri, reasons[trial.trial_id])
            write_trial_result(run.uri, result)
            append_result(run.uri, result)
            watch.trial_ended(result)
