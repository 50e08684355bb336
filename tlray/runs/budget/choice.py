"""Which trials a budget has room for.

kept, dropped = choose(trials, seconds_of, left, scores)       # successive halving over backbones
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from tlray.activations.planned import ActivationSource
from tlray.config import RunConfig, TrialConfig
from tlray.runs.budget.estimate import TrialCost, reserved_seconds, sweep_seconds
from tlray.runs.budget.machines import Machines
from tlray.runs.budget.worth import backbone_key, by_score, by_worth

BESIDE = 1.05  # what a trial that has no room may grow by with others that it makes nearly free


def limit_seconds(config: RunConfig) -> float:
    """The tighter of budget.hours and budget.cost, in seconds; infinite without either."""
    limit = math.inf if config.budget.hours is None else config.budget.hours * 3600
    if config.budget.cost is not None:
        assert config.prices is not None, "the configuration checks that"
        limit = min(limit, config.budget.cost / config.prices.cost_of(1.0))
    return limit


def limit_trials(trials: Sequence[TrialConfig], most: int | None) -> tuple[list[TrialConfig], list[str]]:
    """The baseline and the `most` others that are worth most, in their order -> those, and the ids of the rest."""
    if most is None:
        return list(trials), []
    kept = {trial.trial_id for trial in by_worth(trials, {})[:most]}
    kept |= {trial.trial_id for trial in trials if trial.is_baseline}
    return (
        [trial for trial in trials if trial.trial_id in kept],
        [trial.trial_id for trial in trials if trial.trial_id not in kept],
    )


def choose(
    trials: Sequence[TrialConfig],
    seconds_of: Callable[[Sequence[TrialConfig]], float],
    left: float,
    scores: Mapping[str, float],
    alone: Mapping[str, float] = MappingProxyType({}),
) -> tuple[list[TrialConfig], list[str]]:
    """What fits into `left` seconds -> those trials, most worth first, and the ids of those that do not fit.

    Successive halving (Karnin et al., ICML 2013) over backbones: while all together take too long, the worse half of
    the backbones goes to the end, by `scores` (of `backbone_key`; those without one come last, in the order of the
    configuration). What is left comes first, in the order of `by_worth`; then the halves that went, the last one first;
    and everything is taken that still fits. The baseline always stays: nothing is proven without it. Where nothing fits
    and nothing has a score yet, the shortest trial stays too, and goes as far as the time lets it: a run without a
    winner is no use at any price. With it stays what takes next to nothing beside it, as the other linear probes of its
    batched head do. `alone`: the seconds of a trial by itself, by id.
    """
    candidates = [trial for trial in trials if not trial.is_baseline]
    baseline = [trial for trial in trials if trial.is_baseline]
    if seconds_of([*baseline, *candidates]) <= left:
        return list(trials), []
    halves = _halves(candidates, lambda some: seconds_of([*baseline, *some]) <= left, scores)
    order = [trial for half in halves for trial in by_worth(half, scores, alone)]
    chosen = _first_that_fit(order, baseline, seconds_of, left)
    if order and not chosen and not scores:
        least = BESIDE * min(seconds_of([*baseline, trial]) for trial in order)
        chosen = _first_that_fit(order, baseline, seconds_of, least)
    kept = [*baseline, *chosen]
    ids = {trial.trial_id for trial in kept}
    return kept, [trial.trial_id for trial in trials if trial.trial_id not in ids]


def _halves(
    trials: Sequence[TrialConfig], fit: Callable[[Sequence[TrialConfig]], bool], scores: Mapping[str, float]
) -> list[list[TrialConfig]]:
    """The trials of the backbones that stay, then of those that went last, and so on to those that went first."""
    backbones = by_score(trials, scores)
    gone: list[list[TrialConfig]] = []

    def trials_of(some: Sequence[str]) -> list[TrialConfig]:
        return [trial for trial in trials if backbone_key(trial.backbone) in some]

    while len(backbones) > 1 and not fit(trials_of(backbones)):
        half = math.ceil(len(backbones) / 2)
        gone.insert(0, trials_of(backbones[half:]))
        backbones = backbones[:half]
    return [trials_of(backbones), *gone]


def _first_that_fit(
    order: Sequence[TrialConfig],
    baseline: Sequence[TrialConfig],
    seconds_of: Callable[[Sequence[TrialConfig]], float],
    left: float,
) -> list[TrialConfig]:
    chosen: list[TrialConfig] = []
    for trial in order:
        if seconds_of([*baseline, *chosen, trial]) <= left:
            chosen.append(trial)
    return chosen


def beyond_budget(
    config: RunConfig,
    trials: Sequence[TrialConfig],
    costs: Sequence[TrialCost],
    sources: Sequence[ActivationSource],
    machines: Machines,
    spent: float = 0.0,
) -> tuple[str, ...]:
    """The trials that the budget has no room for, as far as that can be said before any has run.

    `spent`: seconds of the command so far.
    """
    kept, too_many = limit_trials(trials, config.budget.trials)
    left = limit_seconds(config) - reserved_seconds(config.export, machines) - spent
    by_id = {cost.trial_id: cost for cost in costs}

    def seconds_of(some: Sequence[TrialConfig]) -> float:
        return sweep_seconds([by_id[trial.trial_id] for trial in some], sources, machines)

    _, too_long = choose(kept, seconds_of, left, {}, {cost.trial_id: cost.on(machines) for cost in costs})
    return (*too_many, *too_long)


def least_seconds(
    trials: Sequence[TrialConfig], costs: Sequence[TrialCost], sources: Sequence[ActivationSource], machines: Machines
) -> float:
    """The baseline and the one other trial that takes least time with it, frozen work included."""
    baseline = {trial.trial_id for trial in trials if trial.is_baseline}
    always = [cost for cost in costs if cost.trial_id in baseline]
    others = [[cost] for cost in costs if cost.trial_id not in baseline] or [[]]
    return min(sweep_seconds([*always, *other], sources, machines) for other in others)
