"""Which trials a budget has room for, and in which order they are worth it.

kept, dropped = choose(trials, seconds_of, left, scores)       # successive halving over backbones
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from tlray.activations.planned import ActivationSource
from tlray.budget.estimate import TrialCost, reserved_seconds, sweep_seconds
from tlray.budget.machines import Machines
from tlray.config import BackboneConfig, RunConfig, TrialConfig

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
) -> tuple[list[TrialConfig], list[str]]:
    """What fits into `left` seconds -> trials in their order, and the ids of those that do not fit.

    Successive halving (Karnin et al., ICML 2013) over backbones: while all together take too long, the worse half of
    the backbones goes, by `scores` (of `backbone_key`; those without one come last, in the order of the configuration).
    Of what is left, trials are taken in the order of `by_worth` as long as they fit. The baseline always stays: nothing
    is proven without it. Where nothing fits and nothing has a score yet, the first trial stays too, and goes as far as
    the time lets it: a run without a winner is no use at any price. With it stays what takes next to nothing beside it,
    as the other linear probes of its batched head do.
    """
    candidates = [trial for trial in trials if not trial.is_baseline]
    baseline = [trial for trial in trials if trial.is_baseline]
    backbones = by_score(candidates, scores)
    while len(backbones) > 1 and seconds_of([*baseline, *candidates]) > left:
        backbones = backbones[: math.ceil(len(backbones) / 2)]
        candidates = [trial for trial in candidates if backbone_key(trial.backbone) in backbones]
    order = by_worth(candidates, scores)
    chosen = _first_that_fit(order, baseline, seconds_of, left)
    if not chosen and not scores:
        chosen = _first_that_fit(order, baseline, seconds_of, BESIDE * seconds_of([*baseline, *order[:1]]))
    kept = {trial.trial_id for trial in (*baseline, *chosen)}
    return (
        [trial for trial in trials if trial.trial_id in kept],
        [trial.trial_id for trial in trials if trial.trial_id not in kept],
    )


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
) -> tuple[str, ...]:
    """The trials that the budget has no room for, as far as that can be said before any has run."""
    kept, too_many = limit_trials(trials, config.budget.trials)
    left = limit_seconds(config) - reserved_seconds(config.export, machines)
    by_id = {cost.trial_id: cost for cost in costs}

    def seconds_of(some: Sequence[TrialConfig]) -> float:
        return sweep_seconds([by_id[trial.trial_id] for trial in some], sources, machines)

    _, too_long = choose(kept, seconds_of, left, {})
    return (*too_many, *too_long)


def by_worth(trials: Sequence[TrialConfig], scores: Mapping[str, float]) -> list[TrialConfig]:
    """Trials but the baseline: the first of every backbone, then the second of every one, better backbones first.

    A backbone's first trial, which may be the known recipe, stays its first. Then its strategies take turns, each from
    the middle of its rates outwards: a few trials then say most about what the backbone can do.
    """
    of_backbone: dict[str, list[TrialConfig]] = {key: [] for key in by_score(trials, scores)}
    for trial in trials:
        if not trial.is_baseline:
            of_backbone[backbone_key(trial.backbone)].append(trial)
    return _in_turn([_telling_first(some) for some in of_backbone.values()])


def _telling_first(trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """One backbone's trials in the order of `by_worth`."""
    of_strategy: dict[str, list[TrialConfig]] = defaultdict(list)
    for trial in trials:
        of_strategy[trial.strategy.model_dump_json()].append(trial)
    middle = {key: statistics.median(_log_rate(trial) for trial in some) for key, some in of_strategy.items()}
    for key, some in of_strategy.items():
        some.sort(key=lambda trial, key=key: abs(_log_rate(trial) - middle[key]))  # type: ignore[misc]
    order = _in_turn(list(of_strategy.values()))
    order.remove(trials[0])
    return [trials[0], *order]


def _log_rate(trial: TrialConfig) -> float:
    return math.log(trial.recipe.lr)


def _in_turn(queues: Sequence[Sequence[TrialConfig]]) -> list[TrialConfig]:
    """The first of every queue, then the second of every one."""
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


def by_score(trials: Sequence[TrialConfig], scores: Mapping[str, float]) -> list[str]:
    """The backbones' keys, the best first."""
    keys = list(dict.fromkeys(backbone_key(trial.backbone) for trial in trials if not trial.is_baseline))
    return sorted(keys, key=lambda key: -scores.get(key, -math.inf))


def backbone_key(backbone: BackboneConfig) -> str:
    """Equal for trials of one backbone, also for those that train it from scratch."""
    return backbone.model_copy(update={"weights": ""}).model_dump_json()
