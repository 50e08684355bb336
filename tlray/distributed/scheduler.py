"""Early stopping under Ray Tune: `tlray.runs.stopping` decides, under tlray's trial ids; Tune asks and obeys."""

from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tlray.config import SweepConfig, TrialConfig
from tlray.runs.stopping import Halving
from tlray.training.epoch import EpochMetrics


def make_scheduler(
    sweep: SweepConfig, trials: Iterable[TrialConfig], history: Mapping[str, Iterable[EpochMetrics]]
) -> FIFOScheduler:
    """`history` is what trials of an earlier part of this run have reported, by trial id."""
    if sweep.scheduler == "fifo":
        return FIFOScheduler()
    before = {trial_id: [(one.epoch, one.val_accuracy) for one in epochs] for trial_id, epochs in history.items()}
    return FairHalving(Halving(sweep, trials, before))


class FairHalving(FIFOScheduler):
    """Tune's order of trials, and a stop after an epoch where `halving` says so."""

    def __init__(self, halving: Halving) -> None:
        super().__init__()
        self._halving = halving

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        stops = self._halving.report(our_trial_id(trial), result["epoch"], result["val_accuracy"])
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE


def our_trial_id(trial: Trial) -> str:
    """The id that the trial has in the run folder; Tune's own changes with every resume."""
    return trial.config["trial"]["trial_id"]
