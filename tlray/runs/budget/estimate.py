"""How long a planned run takes, what it costs and keeps, from measured seconds an image. No torch here.

    estimate = estimate_run(config, sources, costs, machines)
    seconds = sweep_seconds(some_costs, sources, machines)

Every stage is the work divided by what works on it at once; trials are scheduled in their order, as the sweep does.
What ASHA will stop is counted with the epochs that it lets through on average: `tlray.runs.stopping`.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from tlray.activations.planned import ActivationSource
from tlray.config import ExportConfig, PricesConfig
from tlray.runs.budget.machines import Machines

TUNE_SECONDS = 6.0  # until Ray Tune is imported and asks for its first process
STARTED_TOGETHER = 1.5  # what processes that import torch at the same time take longer than one
EXPORT_SECONDS = 12.0  # of a bundle: three formats, and comparing them
ENSEMBLE_BUNDLES = 3  # ordinary bundles that one of several members takes as long as
SAFETY = 1.3  # what of a budget is kept for the end, over what the end is expected to take: a budget is a limit
START_SECONDS = 8.0  # until Ray has started and the plan is made, at the least
QUICK_PROCESS = 3.0  # until a new process has imported torch, at the least
REPORT_SECONDS = 3.0  # leaderboard, figures and page, once torch is imported
PROBE_SHARE = 0.02  # of the first probe's time that each further one of its batched head takes


class Stage(BaseModel):
    """One part of a run, by the clock."""

    model_config = ConfigDict(frozen=True)

    name: str
    seconds: float


class TrialCost(BaseModel):
    """One trial alone, without what starting its process takes."""

    model_config = ConfigDict(frozen=True)

    trial_id: str
    seconds: float  # as far as the scheduler lets it go on average
    overlapped_seconds: float | None = None  # where what reads its images has cores of its own
    group: str | None  # trials of equal groups train as one batched head
    score_seconds: float = 0.0  # of the test images, where the trial is stopped and scored later

    def on(self, machines: Machines) -> float:
        """Seconds of it there."""
        if machines.idle_cores and self.overlapped_seconds is not None:
            return self.overlapped_seconds
        return self.seconds


class Estimate(BaseModel):
    """What a run is expected to take from the end of planning on."""

    model_config = ConfigDict(frozen=True)

    machines: Machines
    costs: tuple[TrialCost, ...]  # of every trial, those that are dropped too
    stages: tuple[Stage, ...]  # of what fits the budget
    price: float | None  # in the currency of the price table; None without one
    bytes_to_store: int  # activations
    dropped: tuple[str, ...] = ()  # trials that the budget has no room for, before anything is known of them

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def estimate_run(
    sources: Sequence[ActivationSource],
    costs: Sequence[TrialCost],
    dropped: Sequence[str],
    machines: Machines,
    export: ExportConfig,
    prices: PricesConfig | None,
) -> Estimate:
    """The whole run without the trials in `dropped`."""
    kept = [cost for cost in costs if cost.trial_id not in dropped]
    conclusion = Stage(name="exports and report", seconds=conclusion_seconds(export, machines))
    stages = (*sweep_stages(kept, sources, machines), conclusion)
    return Estimate(
        machines=machines,
        costs=tuple(costs),
        stages=stages,
        price=None if prices is None else prices.cost_of(sum(stage.seconds for stage in stages)),
        bytes_to_store=sum(source.bytes_to_add for source in _read_by(kept, sources)),
        dropped=tuple(dropped),
    )


def sweep_seconds(costs: Sequence[TrialCost], sources: Sequence[ActivationSource], machines: Machines) -> float:
    """How long these trials take together; `sources`: the frozen work that is still to be done."""
    return sum(stage.seconds for stage in sweep_stages(costs, sources, machines))


def sweep_stages(
    costs: Sequence[TrialCost], sources: Sequence[ActivationSource], machines: Machines
) -> tuple[Stage, ...]:
    """The frozen work, the batched linear probes, and the other trials."""
    grouped = [cost for cost in costs if cost.group is not None]
    alone = [cost.on(machines) for cost in costs if cost.group is None]
    stages = []
    begun = machines.device_seconds  # by the first that uses it: the processes of both stages are the same
    if (frozen := frozen_seconds(_read_by(costs, sources), machines)) > 0:
        stages.append(Stage(name="frozen work", seconds=begun + frozen))
        begun = 0.0
    if grouped:
        seconds = makespan(list(group_seconds(grouped).values()), machines.pass_tasks)
        stages.append(Stage(name="linear probes", seconds=begun + seconds))
    if alone:
        seconds = start_seconds(machines) + makespan(alone, machines.concurrent_trials)
        stages.append(Stage(name="trials", seconds=seconds))
    return tuple(stages)


def start_seconds(machines: Machines) -> float:
    """Until the first trials under Ray Tune make their first step."""
    together = STARTED_TOGETHER if machines.concurrent_trials > 1 else 1.0
    return machines.load * TUNE_SECONDS + together * machines.start_seconds


def conclusion_seconds(export: ExportConfig, machines: Machines) -> float:
    """After the last trial; the driver is then the one to import torch. Half of the rest waits for no processor."""
    return machines.process_seconds + (1 + machines.load) / 2 * _bundles_and_report(export)


def _bundles_and_report(export: ExportConfig) -> float:
    """Seconds on an idle machine."""
    bundles = export.top_k + (ENSEMBLE_BUNDLES if export.ensemble else 0)
    return REPORT_SECONDS + EXPORT_SECONDS * bundles


def soonest_end(export: ExportConfig, load: float) -> float:
    """Seconds after its plan that any run takes, however little it trains; `load`: of the machine now."""
    return load * (TUNE_SECONDS + 2 * QUICK_PROCESS + _bundles_and_report(export))


def reserved_seconds(export: ExportConfig, machines: Machines) -> float:
    """What of a budget is kept for after the last epoch: scoring what is stopped, in a new process, and the end."""
    return SAFETY * (machines.process_seconds + conclusion_seconds(export, machines))


def _read_by(costs: Sequence[TrialCost], sources: Sequence[ActivationSource]) -> list[ActivationSource]:
    ids = {cost.trial_id for cost in costs}
    return [source for source in sources if source.materialise and not ids.isdisjoint(source.trials)]


def frozen_seconds(kept: Iterable[ActivationSource], machines: Machines) -> float:
    """All cuts of a backbone come out of one forward, of which the deepest counts; images are shared among tasks.

    A GPU computes while the CPUs decode: then the slower of the two counts.
    """
    deepest: dict[tuple[str, str], float] = {}
    for source in kept:
        place = source.backbone.model_dump_json(), source.augmentation
        decode, prefix = source.decode_seconds, source.prefix_seconds
        each = max(decode, prefix) if machines.on_gpus else decode + prefix
        seconds = (source.num_draws - source.num_stored) * each
        deepest[place] = max(seconds, deepest.get(place, 0.0))
    return sum(deepest.values()) / machines.pass_tasks


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
