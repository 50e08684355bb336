"""Ends trials under Ray Tune when the run's budget is spent."""

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper

from tlray.runs.budget.clock import Budget

OVERRUN = 0.05  # of the limit, that a baseline without an epoch may take beyond it: without one, no gain is known


class BudgetStopper(Stopper):
    """Stops a trial whose next epoch would not end in time, and all of them when the time is over."""

    def __init__(self, budget: Budget, has_baseline: Callable[[], bool]) -> None:
        """`has_baseline`: whether the baseline has an epoch, and so can be scored."""
        self._budget, self._has_baseline = budget, has_baseline

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._budget.tick()
        return self._budget.left() < result.get("seconds", 0.0)

    def stop_all(self) -> bool:
        return self._budget.left() <= 0 and (self._budget.is_overrun(OVERRUN) or self._has_baseline())
