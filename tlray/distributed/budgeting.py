"""A run's trials within its budget: which of them go on, decided again when more is known. Neither Ray nor torch here.

budget = open_budget(run)
trials = worth_their_frozen_work(run, trials, probes, sources, budget)      # before the frozen work
trials = within_budget(run, trials, budget)                                 # after it, as often as there is time left
"""

from collections.abc import Collection, Sequence

from tlray.activations.planned import ActivationSource
from tlray.config import TrialConfig
from tlray.process.began import load
from tlray.runs.budget.choice import choose, limit_seconds, limit_trials
from tlray.runs.budget.clock import Budget
from tlray.runs.budget.estimate import reserved_seconds, start_seconds, sweep_seconds
from tlray.runs.budget.machines import Machines
from tlray.runs.budget.worth import backbone_key, by_worth, score_backbones
from tlray.runs.prepare import Run
from tlray.runs.stopping import expected_epochs
from tlray.runs.trials import load_results


def open_budget(run: Run, began: float | None = None) -> Budget:
    """The run's clock, which goes on; `began`: the start of this command, by default now."""
    estimate, export = run.plan.estimate, run.config.export
    machines = estimate.machines if estimate is not None else Machines(concurrent_trials=1)
    budget = Budget(run.uri, limit_seconds(run.config), reserved_seconds(export, machines), began=began)
    budget.tick()
    return budget


def look_at_load(run: Run, budget: Budget) -> None:
    """Before a stage: what else the machine does may have changed since the plan."""
    if budget.is_limited and run.plan.estimate is not None:
        budget.look_at_load(load(), run.plan.estimate.machines.load)


class Accounts:
    """Tells the budget what trials really take, and what their scoring will."""

    def __init__(self, run: Run, budget: Budget) -> None:
        estimate = run.plan.estimate
        self._budget = budget
        self._epoch: dict[str, float] = {}  # expected seconds, by trial id
        self._score: dict[str, float] = {}
        if estimate is None or not budget.is_limited:
            return
        machines, trials = estimate.machines, {trial.trial_id: trial for trial in run.trials}
        for cost in (cost for cost in estimate.costs if cost.trial_id in trials):
            epochs = expected_epochs(trials[cost.trial_id], run.config.sweep)
            self._epoch[cost.trial_id] = cost.on(machines) / epochs
            self._score[cost.trial_id] = cost.score_seconds / machines.concurrent_trials

    def epoch_ended(self, trial_id: str, seconds: float) -> None:
        if trial_id in self._epoch:
            self._budget.measured(self._epoch[trial_id], seconds)

    def trial_stopped(self, trial_id: str) -> None:
        """It is scored after all trials."""
        self._budget.set_aside(self._score.get(trial_id, 0.0))


def baseline_seconds(run: Run, trials: Sequence[TrialConfig]) -> float:
    """What has to be left for the baseline, at the plan's pace, if it is among `trials`, which have not ended."""
    estimate = run.plan.estimate
    waiting = {trial.trial_id for trial in trials if trial.is_baseline}
    if estimate is None or not waiting:
        return 0.0
    return sweep_seconds([cost for cost in estimate.costs if cost.trial_id in waiting], (), estimate.machines)


def within_number(run: Run, trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Those of `trials` that are among the `budget.trials` which the run may have."""
    allowed, _ = limit_trials(run.trials, run.config.budget.trials)
    ids = {trial.trial_id for trial in allowed}
    return [trial for trial in trials if trial.trial_id in ids]


def worth_their_frozen_work(
    run: Run,
    trials: Sequence[TrialConfig],
    probes: Collection[str],
    sources: Sequence[ActivationSource],
    budget: Budget,
) -> list[TrialConfig]:
    """`trials` without those that read activations which there is no time to compute.

    A backbone's linear probes on kept features (`probes`, by id) come with its frozen work, as they are next to
    nothing beside it; where it has none, the first of its trials that reads activations does. `sources`: what is stored
    by now. The other trials wait for what the probes tell. Where no frozen work fits, a trial without any may.
    """
    reading = {trial_id for source in sources if source.materialise for trial_id in source.trials}
    candidates = [trial for trial in trials if not trial.is_baseline]
    probed = {backbone_key(trial.backbone) for trial in candidates if trial.trial_id in probes}
    first = {
        backbone_key(trial.backbone): trial.trial_id for trial in reversed(candidates) if trial.trial_id in reading
    }
    judged = {*probes, *(trial_id for key, trial_id in first.items() if key not in probed)}
    kept = within_budget(
        run, [trial for trial in trials if trial.is_baseline or trial.trial_id in judged], budget, sources
    )
    others = [trial for trial in candidates if trial.trial_id not in reading]
    if _is_beyond(run, kept, others, budget, sources):
        kept = [trial for trial in kept if trial.is_baseline]
    kept_ids = {trial.trial_id for trial in kept}
    computed = {backbone_key(trial.backbone) for trial in kept if not trial.is_baseline}

    def stays(trial: TrialConfig) -> bool:
        if trial.is_baseline or trial.trial_id in judged:
            return trial.trial_id in kept_ids
        return trial.trial_id not in reading or backbone_key(trial.backbone) in computed

    return [trial for trial in trials if stays(trial)]


def _is_beyond(
    run: Run,
    kept: Sequence[TrialConfig],
    others: Sequence[TrialConfig],
    budget: Budget,
    sources: Sequence[ActivationSource],
) -> bool:
    """Whether `kept` do not fit, and one of `others` takes less time than they."""
    estimate = run.plan.estimate
    if not budget.is_limited or estimate is None or not others:
        return False
    costs, machines = {cost.trial_id: cost for cost in estimate.costs}, estimate.machines
    baseline = [costs[trial.trial_id] for trial in kept if trial.is_baseline]
    seconds = sweep_seconds([costs[trial.trial_id] for trial in kept], sources, machines)
    shortest = min(sweep_seconds([*baseline, costs[other.trial_id]], sources, machines) for other in others)
    return seconds > budget.left() / budget.pace and shortest < seconds


def within_budget(
    run: Run, trials: Sequence[TrialConfig], budget: Budget, sources: Sequence[ActivationSource] = ()
) -> list[TrialConfig]:
    """Those of `trials` that there is time for, most worth first; `sources`: the frozen work that is not done yet.

    Backbones are judged by what their trials have come to so far: `scores_so_far`.
    """
    estimate = run.plan.estimate
    if not budget.is_limited or estimate is None or not trials:
        return list(trials)
    costs = {cost.trial_id: cost for cost in estimate.costs}

    def seconds_of(some: Sequence[TrialConfig]) -> float:
        return sweep_seconds([costs[trial.trial_id] for trial in some], sources, estimate.machines)

    alone = {cost.trial_id: cost.on(estimate.machines) for cost in estimate.costs}
    kept, _ = choose(trials, seconds_of, budget.left() / budget.pace, scores_so_far(run), alone)
    return kept


def spare_trials(
    run: Run, trials: Sequence[TrialConfig], chosen: Sequence[TrialConfig], budget: Budget
) -> list[TrialConfig]:
    """Others of `trials` with time for an epoch, most worth first, for when the `chosen` ones end before their time.

    Ray Tune would have to start again for them.
    """
    estimate = run.plan.estimate
    if not budget.is_limited or estimate is None:
        return []
    costs, machines, left = {cost.trial_id: cost for cost in estimate.costs}, estimate.machines, budget.left()
    taken = {trial.trial_id for trial in chosen}

    def has_room(trial: TrialConfig) -> bool:
        epoch = costs[trial.trial_id].on(machines) / expected_epochs(trial, run.config.sweep)
        return budget.pace * (start_seconds(machines) + epoch) < left

    others = [trial for trial in trials if trial.trial_id not in taken and has_room(trial)]
    return by_worth(others, scores_so_far(run))


def scores_so_far(run: Run) -> dict[str, float]:
    """A score of each backbone that has a row, by `backbone_key`: `score_backbones`."""
    return score_backbones(run.trials, {result.trial_id: result.val_accuracy for result in load_results(run.uri)})
