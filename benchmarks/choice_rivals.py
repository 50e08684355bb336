"""Random search and ASHA, replayed from the learning curves of a sweep that has tried everything.

    regret = best - random_search(curves, seconds, plain=True, replays=2000)

Each gives the test accuracy, in points, of the trial that it would choose by validation accuracy, the mean over many
orders of the trials. A trial that is under way when the time is up counts as far as it got.
"""

import heapq
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRACE_EPOCHS, REDUCTION = 1, 3  # the grace period is Ray Tune's default


@dataclass(frozen=True)
class Curve:
    """One trial of the sweep."""

    val: tuple[float, ...]  # accuracy after each epoch
    test: float  # points, of its best epoch
    seconds: float  # in the sweep, where frozen work was shared
    frozen_seconds: float  # what one epoch's frozen work takes when it is not

    def epoch_seconds(self, plain: bool) -> float:
        return self.seconds / len(self.val) + (self.frozen_seconds if plain else 0.0)


@dataclass
class _Best:
    """What is chosen so far."""

    val: float = -1.0
    test: float = 0.0  # a choice of nothing is right for no image

    def see(self, curve: Curve, epochs: int) -> None:
        reached = max(curve.val[:epochs], default=-1.0)
        if reached > self.val:
            self.val, self.test = reached, curve.test


def random_search(curves: Sequence[Curve], seconds: float, *, plain: bool, replays: int) -> float:
    """Trials in random order, each to its end, while `seconds` of work last."""
    outcomes = []
    for replay in range(replays):
        left, best = seconds, _Best()
        for curve in random.Random(replay).sample(curves, len(curves)):
            epochs = min(len(curve.val), int(left / curve.epoch_seconds(plain)))
            best.see(curve, epochs)
            left -= epochs * curve.epoch_seconds(plain)
            if epochs < len(curve.val):
                break
        outcomes.append(best.test)
    return statistics.mean(outcomes)


def asha(curves: Sequence[Curve], seconds: float, *, plain: bool, replays: int, workers: int = 2) -> float:
    """Asynchronous successive halving that stops trials (Li et al., MLSys 2020), on workers that share `seconds`."""
    return statistics.mean(
        _asha(random.Random(replay).sample(curves, len(curves)), seconds / workers, plain, workers)
        for replay in range(replays)
    )


def _asha(order: Sequence[Curve], seconds: float, plain: bool, workers: int) -> float:
    """The test accuracy of the choice, when trials start in this order and every worker has `seconds`."""
    best, rungs = _Best(), {}
    waiting = iter(order)
    running = [(0.0, place, None, 0) for place in range(workers)]  # (time, worker, its trial, epochs of it)
    while running:
        now, worker, curve, epochs = heapq.heappop(running)
        if curve is not None:
            best.see(curve, epochs)
            if epochs == len(curve.val) or not _goes_on(rungs, curve, epochs):
                curve = None
        if curve is None:
            curve, epochs = next(waiting, None), 0
        if curve is not None and now + curve.epoch_seconds(plain) <= seconds:
            heapq.heappush(running, (now + curve.epoch_seconds(plain), worker, curve, epochs + 1))
    return best.test


def _goes_on(rungs: dict[int, list[float]], curve: Curve, epochs: int) -> bool:
    """Whether a trial is as good as the best 1 / REDUCTION of those that were at this rung before; Ray Tune's rule."""
    rung = GRACE_EPOCHS
    while rung < epochs:
        rung *= REDUCTION
    if rung != epochs:
        return True
    seen = rungs.setdefault(rung, [])
    cutoff = np.percentile(seen, 100 * (1 - 1 / REDUCTION)) if seen else -1.0
    seen.append(curve.val[epochs - 1])
    return bool(curve.val[epochs - 1] >= cutoff)
