"""A run's trials within its budget: which of them go on, decided again when more is known. Neither Ray nor torch here.

budget = open_budget(run)
trials = within_budget(run, trials, budget, frozen_work_done=True)
"""

from collections.abc import Sequence

from tlray.budget.choice import backbone_key, choose, limit_seconds, limit_trials
from tlray.budget.clock import Budget
from tlray.budget.estimate import reserved_seconds, sweep_seconds
from tlray.budget.machines import Machines
from tlray.config import TrialConfig
from tlray.prepare import Run
from tlray.results import load_results


def open_budget(run: Run) -> Budget:
    """The run's clock, which starts now, or goes on."""
    estimate, export = run.plan.estimate, run.config.export
    machines = estimate.machines if estimate is not None else Machines(concurrent_trials=1)
    return Budget(run.uri, limit_seconds(run.config), reserved_seconds(export, machines))


def within_budget(
    run: Run, trials: Sequence[TrialConfig], budget: Budget, *, frozen_work_done: bool
) -> list[TrialConfig]:
    """Those of `trials` that there is room for; the others are noted as dropped.

    Backbones are judged by the best validation accuracy that any of their trials has so far.
    """
    allowed, too_many = limit_trials(run.trials, run.config.budget.trials)
    ids = {trial.trial_id for trial in allowed}
    kept = [trial for trial in trials if trial.trial_id in ids]
    too_long: list[str] = []
    estimate = run.plan.estimate
    if budget.is_limited and estimate is not None:
        costs = {cost.trial_id: cost for cost in estimate.costs}
        sources = () if frozen_work_done else run.plan.activations

        def seconds_of(some: Sequence[TrialConfig]) -> float:
            return sweep_seconds([costs[trial.trial_id] for trial in some], sources, estimate.machines)

        kept, too_long = choose(kept, seconds_of, budget.left(), scores_so_far(run))
    dropped = {*too_many, *too_long} & {trial.trial_id for trial in trials}
    if dropped:
        budget.drop(sorted(dropped))
    return kept


def scores_so_far(run: Run) -> dict[str, float]:
    """Each backbone's best validation accuracy, by `backbone_key`."""
    keys = {trial.trial_id: backbone_key(trial.backbone) for trial in run.trials if not trial.is_baseline}
    best: dict[str, float] = {}
    for result in load_results(run.uri):
        if result.trial_id in keys and result.val_accuracy is not None:
            key = keys[result.trial_id]
            best[key] = max(best.get(key, 0.0), result.val_accuracy)
    return best
