"""A sweep replayed from the learning curves of one that has trained everything to its end.

    outcome = replay(curves, fair(sweep), seed=0)       # tlray's own rule, trials in an order drawn by the seed

Workers take the trials in that order; time is the seconds of the epochs. The best epoch of a trial and the best of all
trials are found by tlray's own rules, from what each trial has reached, with the test accuracy of that epoch.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.config import SweepConfig, TrialConfig
from tlray.runs.results import TrialResult, ranked
from tlray.runs.stopping import Halving, kind_of
from tlray.training.epoch import EpochMetrics
from tlray.training.record import Progress


@dataclass(frozen=True)
class Curve:
    """A trial that was trained to its end."""

    trial: TrialConfig
    epochs: tuple[EpochMetrics, ...]
    test_accuracies: tuple[float, ...]  # after each epoch
    num_val: int  # validation images

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)

    def row(self, num_epochs: int) -> TrialResult:
        """As if it had been stopped after so many epochs."""
        progress = Progress()
        for metrics in self.epochs[:num_epochs]:
            progress = progress.after(metrics, self.num_val)
        return TrialResult(
            trial_id=self.trial.trial_id,
            backbone=self.trial.backbone.id,
            weights=self.trial.backbone.weights,
            strategy=self.trial.strategy.label,
            params={},
            seed=self.trial.seed,
            status="stopped",
            epochs=num_epochs,
            best_epoch=progress.best_epoch,
            val_accuracy=progress.best.val_accuracy,
            val_loss=progress.best.val_loss,
            test_accuracy=self.test_accuracies[progress.best_epoch - 1],
        )


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    choice: TrialResult
    seconds: float  # of all trials
    stopped: tuple[str, ...]  # trial ids


Stops = Callable[[str, int, float], bool]  # (trial id, epoch, validation accuracy) -> whether the trial is stopped
Rule = Callable[[Sequence[TrialConfig]], Stops]


def never(trials: Sequence[TrialConfig]) -> Stops:
    """FIFO."""
    return lambda trial_id, epoch, val_accuracy: False


def fair(sweep: SweepConfig, kind: Callable[[TrialConfig], str] = kind_of) -> Rule:
    """tlray's own rule."""
    return lambda trials: Halving(sweep, trials, kind=kind).report


def rungs_for_all(grace: int, factor: float) -> Rule:
    """ASHA as Ray Tune has it: one ladder of rungs for trials of all kinds, and what arrives first goes on."""

    def start(trials: Sequence[TrialConfig]) -> Stops:
        seen: dict[int, list[float]] = {}
        last = {trial.trial_id: trial.recipe.epochs for trial in trials}

        def stops(trial_id: str, epoch: int, val_accuracy: float) -> bool:
            rung = float(grace)
            while rung < epoch:
                rung *= factor
            if rung != epoch:
                return False
            here = seen.setdefault(epoch, [])
            cutoff = np.percentile(here, 100 * (1 - 1 / factor)) if here else -1.0
            here.append(val_accuracy)
            return epoch < last[trial_id] and bool(val_accuracy < cutoff)

        return stops

    return start


def replay(curves: Sequence[Curve], rule: Rule, *, seed: int | None, workers: int = 2) -> Outcome:
    """`seed` None: in their own order."""
    order = list(curves) if seed is None else random.Random(seed).sample(curves, len(curves))
    stops = rule([curve.trial for curve in curves])
    waiting, stopped, seconds = iter(order), [], 0.0
    reached: dict[str, int] = {}  # epochs by trial id
    running: list[tuple[float, int, Curve | None, int]] = [(0.0, place, None, 0) for place in range(workers)]
    while running:
        now, worker, curve, done = heapq.heappop(running)
        if curve is not None:
            epoch = curve.epochs[done - 1]
            seconds += epoch.seconds
            reached[curve.trial.trial_id] = done
            if stops(curve.trial.trial_id, done, epoch.val_accuracy):
                stopped.append(curve.trial.trial_id)
                curve = None
            elif done == len(curve.epochs):
                curve = None
        if curve is None:
            curve, done = next(waiting, None), 0
        if curve is not None:
            heapq.heappush(running, (now + curve.epochs[done].seconds, worker, curve, done + 1))
    rows = [curve.row(reached[curve.trial.trial_id]) for curve in curves]
    return Outcome(ranked(rows)[0], seconds, tuple(stopped))
