"""Which trials have ended, and the rows that the driver writes for them.

open_trials = not_finished(run.uri, run.trials)
"""

from collections.abc import Mapping, Sequence

from tlray.config import TrialConfig
from tlray.distributed.errors import may_pass, reason_of
from tlray.distributed.watch import Watcher
from tlray.runs.board import append_result
from tlray.runs.prepare import Run
from tlray.runs.trials import read_states, write_trial_result
from tlray.training.record import failed_result


def not_finished(run_uri: str, trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Those without a final row, and those that failed, which a resume tries again."""
    states = read_states(run_uri, [trial.trial_id for trial in trials])
    return [trial for trial in trials if not states[trial.trial_id].is_finished]


def not_ended(run_uri: str, trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Those that are still to be trained: without a row, be it of a failure, and not stopped by the scheduler."""
    states = read_states(run_uri, [trial.trial_id for trial in trials])
    return [trial for trial in trials if not states[trial.trial_id].has_ended]


def still_to_score(run_uri: str, trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Those that the scheduler has stopped and that have no row."""
    states = read_states(run_uri, [trial.trial_id for trial in trials])
    return [trial for trial in trials if states[trial.trial_id].was_stopped]


def fail(run: Run, reasons: Mapping[str, str | BaseException], watch: Watcher) -> None:
    """A failed row for each trial id in `reasons`: words, or the error that has them."""
    for trial in run.trials:
        if trial.trial_id in reasons:
            reason = reasons[trial.trial_id]
            words = reason if isinstance(reason, str) else reason_of(reason)
            passes = not isinstance(reason, str) and may_pass(reason)
            result = failed_result(trial, run.uri, words, may_pass=passes)
            write_trial_result(run.uri, result)
            append_result(run.uri, result)
            watch.trial_ended(result)
