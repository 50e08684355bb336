"""Ends trials under Ray Tune when the run's budget is spent."""

from typing import Any

from ray.tune import Stopper

from tlray.runs.budget.clock import Budget


class BudgetStopper(Stopper):
    """Stops a trial whose next epoch would not end in time, and all of them when the time is over."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._budget.tick()
        return self._budget.left() < result.get("seconds", 0.0)

    def stop_all(self) -> bool:
        return self._budget.left() <= 0
