"""In which order trials are worth their time.

order = by_worth(trials, scores, seconds)       # better backbones first, none before the first of every other
scores = score_backbones(trials, val_accuracy)  # by what their trials have come to
"""

import heapq
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tlray.config import BackboneConfig, TrialConfig
from tlray.runs.stopping import kind_of


def by_worth(
    trials: Sequence[TrialConfig], scores: Mapping[str, float], alone: Mapping[str, float] = MappingProxyType({})
) -> list[TrialConfig]:
    """Trials but the baseline: the first of every backbone, then the second of every one, better backbones first.

    A backbone's first trial, which may be the known recipe, stays its first. Then comes the strategy that has taken
    least time so far, each from the middle of its rates outwards: a few trials then say most about what the backbone
    can do, and one long trial does not stand before five short ones. `alone`: a trial's seconds by its id; without
    them all take the same.
    """
    of_backbone: dict[str, list[TrialConfig]] = {key: [] for key in by_score(trials, scores)}
    for trial in trials:
        if not trial.is_baseline:
            of_backbone[backbone_key(trial.backbone)].append(trial)
    return _in_turn([_telling_first(some, alone) for some in of_backbone.values()])


def _telling_first(trials: Sequence[TrialConfig], alone: Mapping[str, float]) -> list[TrialConfig]:
    """One backbone's trials in the order of `by_worth`."""
    of_strategy: dict[str, list[TrialConfig]] = defaultdict(list)
    for trial in trials:
        of_strategy[trial.strategy.model_dump_json()].append(trial)
    middle = {key: statistics.median(_log_rate(trial) for trial in some) for key, some in of_strategy.items()}
    for key, some in of_strategy.items():
        some.sort(key=lambda trial, key=key: abs(_log_rate(trial) - middle[key]))  # type: ignore[misc]
    order = _in_fair_turns(list(of_strategy.values()), alone)
    order.remove(trials[0])
    return [trials[0], *order]


def _in_fair_turns(queues: Sequence[Sequence[TrialConfig]], alone: Mapping[str, float]) -> list[TrialConfig]:
    """Always the next of the queue that has had least time, of equal ones the first."""
    waiting = [(0.0, place, list(queue)) for place, queue in enumerate(queues)]
    order = []
    while waiting:
        had, place, queue = heapq.heappop(waiting)
        trial = queue.pop(0)
        order.append(trial)
        if queue:
            heapq.heappush(waiting, (had + alone.get(trial.trial_id, 1.0), place, queue))
    return order


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


def score_backbones(trials: Sequence[TrialConfig], val_accuracy: Mapping[str, float | None]) -> dict[str, float]:
    """Scores by `backbone_key`, from validation accuracies by trial id: how far behind the best each backbone is, <= 0.

    Like is compared with like: within a kind of trial, each backbone by its best, and only where several backbones have
    one. A head of one says nothing against the fine-tuned network of another. The kind that speaks best for a backbone
    counts; without any it is 0, as nothing speaks against it.
    """
    of_kind: dict[str, dict[str, float]] = defaultdict(dict)
    for trial in trials:
        accuracy = val_accuracy.get(trial.trial_id)
        if accuracy is not None and not trial.is_baseline:
            best = of_kind[kind_of(trial)]
            key = backbone_key(trial.backbone)
            best[key] = max(best.get(key, 0.0), accuracy)
    scores: dict[str, float] = {}
    for best in of_kind.values():
        for key, accuracy in best.items():
            if len(best) > 1:
                scores[key] = max(scores.get(key, -math.inf), accuracy - max(best.values()))
    return {key: scores.get(key, 0.0) for best in of_kind.values() for key in best}
