"""ASHA over a sweep: the library's, except that it spares the baseline and remembers what happened before a resume."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tlray.config import SweepConfig, TrialConfig
from tlray.training.epoch import EpochMetrics


def make_scheduler(
    sweep: SweepConfig, trials: Iterable[TrialConfig], history: dict[str, tuple[EpochMetrics, ...]]
) -> FIFOScheduler:
    """`history` is what trials of an earlier part of this run have reported, by trial id."""
    if sweep.scheduler == "fifo":
        return FIFOScheduler()
    return BaselineSparingAsha(sweep, trials, history)


class BaselineSparingAsha(FIFOScheduler):
    """Asynchronous successive halving (Li et al., MLSys 2020) by Ray Tune, asked under tlray's trial ids.

    The baseline is never stopped, or no gain could be measured against it, and takes no part in the rungs. A trial
    that has reached its own last epoch is not stopped either: there is nothing left to save.
    """

    def __init__(
        self, sweep: SweepConfig, trials: Iterable[TrialConfig], history: dict[str, tuple[EpochMetrics, ...]]
    ) -> None:
        super().__init__()
        self._epochs = {trial.trial_id: trial.recipe.epochs for trial in trials if not trial.is_baseline}
        # One more than the longest trial: at max_t ASHA would stop a trial before it has written its result.
        self._asha = ASHAScheduler(
            time_attr="epoch",
            metric="val_accuracy",
            mode="max",
            max_t=max([sweep.grace_period, *self._epochs.values()]) + 1,
            grace_period=sweep.grace_period,
            reduction_factor=sweep.reduction_factor,
        )
        controller: Any = None  # ASHA does not ask it anything
        for trial_id in sorted(history.keys() & self._epochs.keys()):
            self._asha.on_trial_add(controller, _named(trial_id))
            for metrics in history[trial_id]:
                self._asha.on_trial_result(
                    controller, _named(trial_id), {"epoch": metrics.epoch, "val_accuracy": metrics.val_accuracy}
                )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if our_trial_id(trial) in self._epochs:
            self._asha.on_trial_add(tune_controller, _named(our_trial_id(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        last_epoch = self._epochs.get(our_trial_id(trial))
        if last_epoch is None:
            return TrialScheduler.CONTINUE
        action = self._asha.on_trial_result(tune_controller, _named(our_trial_id(trial)), result)
        return TrialScheduler.CONTINUE if result["epoch"] >= last_epoch else action


def our_trial_id(trial: Trial) -> str:
    """The id that the trial has in the run folder; Tune's own changes with every resume."""
    return trial.config["trial"]["trial_id"]


def _named(trial_id: str) -> Any:
    """What ASHA looks at in a trial."""
    return SimpleNamespace(trial_id=trial_id)
