"""How long a planned run takes, what it costs and keeps, from measured seconds an image. No torch here.

    estimate = estimate_run(config, sources, trials, machines)

Every stage is the work divided by what works on it at once; trials are scheduled in their order, as the sweep does.
What ASHA will stop is counted with the share of epochs that its rungs let through on average.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tlray.activations.planned import ActivationSource
from tlray.config import RunConfig, SweepConfig

EXPORT_SECONDS = 12.0  # of a bundle: three formats, and comparing them
REPORT_SECONDS = 3.0
PROBE_SHARE = 0.02  # of the first probe's time that each further one of its batched head takes


class Stage(BaseModel):
    """One part of a run, by the clock."""

    model_config = ConfigDict(frozen=True)

    name: str
    seconds: float


class Estimate(BaseModel):
    """What a run is expected to take from the end of planning on."""

    model_config = ConfigDict(frozen=True)

    stages: tuple[Stage, ...]
    cost: float | None  # in the currency of the price table; None without one
    bytes_to_store: int  # activations
    dropped: tuple[str, ...] = ()  # trials that the budget has no room for

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class Machines:
    """What works on a run."""

    concurrent_trials: int
    process_seconds: float  # until a new process has imported torch


@dataclass(frozen=True)
class TrialCost:
    """One trial alone, without what starting its process takes."""

    trial_id: str
    seconds: float  # as far as the scheduler lets it go on average
    group: str | None  # trials of equal groups train as one batched head


def estimate_run(
    config: RunConfig, sources: Sequence[ActivationSource], costs: Sequence[TrialCost], machines: Machines
) -> Estimate:
    """Stages by the clock: the frozen work, the batched probes, the trials, the conclusion."""
    kept = [source for source in sources if source.materialise]
    grouped = [cost for cost in costs if cost.group is not None]
    alone = [cost.seconds for cost in costs if cost.group is None]
    stages = [Stage(name="frozen work", seconds=frozen_seconds(kept))] if kept else []
    if grouped:
        seconds = machines.process_seconds + sum(group_seconds(grouped).values())
        stages.append(Stage(name="linear probes", seconds=seconds))
    if alone:
        seconds = machines.process_seconds + makespan(alone, machines.concurrent_trials)
        stages.append(Stage(name="trials", seconds=seconds))
    stages.append(Stage(name="exports and report", seconds=REPORT_SECONDS + EXPORT_SECONDS * config.export.top_k))
    total = sum(stage.seconds for stage in stages)
    return Estimate(
        stages=tuple(stages),
        cost=config.prices.cost_of(total) if config.prices is not None else None,
        bytes_to_store=sum(source.bytes_to_add for source in kept),
    )


def expected_epochs(epochs: int, sweep: SweepConfig) -> float:
    """Epochs of a trial under successive halving: of those at a rung, one in `reduction_factor` goes on to the next.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020). Asynchronous rungs let some more go
    on while they are empty.
    """
    if sweep.scheduler == "fifo":
        return epochs
    rung, share = float(min(sweep.grace_period, epochs)), 1.0
    total = rung
    while rung < epochs:
        share /= sweep.reduction_factor
        following = min(rung * sweep.reduction_factor, epochs)
        total += (following - rung) * share
        rung = following
    return total


def frozen_seconds(kept: Iterable[ActivationSource]) -> float:
    """All cuts of a backbone come out of one forward: the deepest of each counts, and what all of them write."""
    deepest: dict[tuple[str, str], float] = {}
    for source in kept:
        place = source.backbone.model_dump_json(), source.augmentation
        seconds = (source.num_draws - source.num_stored) * (source.decode_seconds + source.prefix_seconds)
        deepest[place] = max(seconds, deepest.get(place, 0.0))
    return sum(deepest.values())


def group_seconds(grouped: Iterable[TrialCost]) -> Mapping[str, float]:
    """Batched heads take little more than their slowest member alone."""
    members: dict[str, list[float]] = {}
    for cost in grouped:
        assert cost.group is not None
        members.setdefault(cost.group, []).append(cost.seconds)
    return {group: max(seconds) * (1 + PROBE_SHARE * (len(seconds) - 1)) for group, seconds in members.items()}


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of some jobs ends that are started in order, each on the slot that is free first."""
    free = [0.0] * max(1, min(slots, len(seconds)))
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
