"""What a run may take: which trials fit, in which order they are worth it, and how much is left while it runs.

    kept, dropped = choose(trials, price, left, scores)       # successive halving over backbones
    budget = Budget(run_uri, limit_seconds(config), reserve)
    budget.left()

Time is counted from the sweep's start, over all parts of an interrupted run, and not while nothing runs.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence

from tlray import storage
from tlray.activations.planned import ActivationSource
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.errors import StorageError
from tlray.estimate import Machines, TrialCost, conclusion_seconds, sweep_seconds

SAVED_EVERY = 5.0  # seconds at least, between two notes of the time that is spent


class Budget:
    """The clock of a run; `reserve` seconds of the limit are kept for its conclusion."""

    def __init__(self, run_uri: str, limit: float, reserve: float = 0.0) -> None:
        self._uri = storage.join(run_uri, "budget.json")
        self._limit, self._reserve = limit, reserve
        self._before, self.dropped = self._load()
        self._started = time.monotonic()
        self._saved = -math.inf

    @property
    def is_limited(self) -> bool:
        return math.isfinite(self._limit)

    def spent(self) -> float:
        """Seconds, those of earlier parts of the run included."""
        return self._before + time.monotonic() - self._started

    def left(self) -> float:
        """Seconds until the conclusion has to begin; infinite without a limit."""
        return self._limit - self._reserve - self.spent()

    def tick(self) -> None:
        """Note what is spent, so that a resume goes on counting; cheap enough to be called at every event."""
        if self.is_limited and time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def drop(self, trial_ids: Sequence[str]) -> None:
        """Trials that there was no room for; they have no row."""
        self.dropped = tuple(dict.fromkeys([*self.dropped, *trial_ids]))
        self.save()

    def save(self) -> None:
        """Write budget.json."""
        self._saved = time.monotonic()
        content = {"limit_seconds": self._limit, "spent_seconds": self.spent(), "dropped": self.dropped}
        storage.write_text(self._uri, json.dumps(content))

    def _load(self) -> tuple[float, tuple[str, ...]]:
        try:
            content = json.loads(storage.read_text(self._uri))
        except storage.NotFoundError:
            return 0.0, ()
        except json.JSONDecodeError as error:
            raise StorageError(f"{self._uri} is damaged: {error}") from None
        return content["spent_seconds"], tuple(content["dropped"])


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
    is proven without it.
    """
    candidates = [trial for trial in trials if not trial.is_baseline]
    baseline = [trial for trial in trials if trial.is_baseline]
    backbones = by_score(candidates, scores)
    while len(backbones) > 1 and seconds_of([*baseline, *candidates]) > left:
        backbones = backbones[: math.ceil(len(backbones) / 2)]
        candidates = [trial for trial in candidates if backbone_key(trial.backbone) in backbones]
    chosen: list[TrialConfig] = []
    for trial in by_worth(candidates, scores):
        if seconds_of([*baseline, *chosen, trial]) <= left:
            chosen.append(trial)
    kept = {trial.trial_id for trial in (*baseline, *chosen)}
    return (
        [trial for trial in trials if trial.trial_id in kept],
        [trial.trial_id for trial in trials if trial.trial_id not in kept],
    )


def beyond_budget(
    config: RunConfig,
    trials: Sequence[TrialConfig],
    costs: Sequence[TrialCost],
    sources: Sequence[ActivationSource],
    machines: Machines,
) -> tuple[str, ...]:
    """The trials that the budget has no room for, as far as that can be said before any has run."""
    kept, too_many = limit_trials(trials, config.budget.trials)
    left = limit_seconds(config) - conclusion_seconds(config.export)
    by_id = {cost.trial_id: cost for cost in costs}

    def seconds_of(some: Sequence[TrialConfig]) -> float:
        return sweep_seconds([by_id[trial.trial_id] for trial in some], sources, machines)

    _, too_long = choose(kept, seconds_of, left, {})
    return (*too_many, *too_long)


def by_worth(trials: Sequence[TrialConfig], scores: Mapping[str, float]) -> list[TrialConfig]:
    """Trials but the baseline: the first of every backbone, then the second of every one, better backbones first."""
    queues: dict[str, list[TrialConfig]] = {key: [] for key in by_score(trials, scores)}
    for trial in trials:
        if not trial.is_baseline:
            queues[backbone_key(trial.backbone)].append(trial)
    longest = max((len(queue) for queue in queues.values()), default=0)
    return [queue[place] for place in range(longest) for queue in queues.values() if place < len(queue)]


def by_score(trials: Sequence[TrialConfig], scores: Mapping[str, float]) -> list[str]:
    """The backbones' keys, the best first."""
    keys = list(dict.fromkeys(backbone_key(trial.backbone) for trial in trials if not trial.is_baseline))
    return sorted(keys, key=lambda key: -scores.get(key, -math.inf))


def backbone_key(backbone: BackboneConfig) -> str:
    """Equal for trials of one backbone, also for those that train it from scratch."""
    return backbone.model_copy(update={"weights": ""}).model_dump_json()
