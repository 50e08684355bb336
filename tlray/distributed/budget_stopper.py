"""Ends trials under Ray Tune when the run's budget is spent."""

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper

from tlray.runs.budget.clock import Budget

OVERRUN = 0.05  # of the limit, that a run may take beyond it which has nothing to conclude with


class BudgetStopper(Stopper):
    """Stops a trial whose next epoch would not end in time, and all of them when the time is over."""

    def __init__(self, budget: Budget, can_conclude: Callable[[], bool]) -> None:
        """`can_conclude`: whether the baseline and another trial have an epoch each, and so can be scored."""
        self._budget, self._can_conclude = budget, can_conclude

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._budget.tick()
        return self._budget.left() < result.get("seconds", 0.0)

    def stop_all(self) -> bool:
        return self._budget.left() <= 0 and (self._budget.is_overrun(OVERRUN) or self._can_conclude())
