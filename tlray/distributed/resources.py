"""What a trial and the work beside the trials take, and how many of them the cluster can come to hold at once.

    resources = trial_resources(config, cluster_summary(config.cluster))

Counted by what the cluster can become, not by what it is now: work that waits is what an autoscaler acts on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tlray.config import RunConfig, SweepConfig
from tlray.distributed.cluster import ClusterSummary, Resources, describe, how_many
from tlray.errors import ClusterError
from tlray.runs.budget.machines import MOST_ON_A_GPU, Machines, cpus_of_a_pass_task

# A nested trial's driver only waits for its workers. It must reserve something, and whole CPUs would starve them.
DRIVER_MEMORY_BYTES = 300 * 2**20


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """One trial: `num_workers` processes of `cpus`, `gpus` and `custom` each; `concurrent` of them fit the cluster."""

    num_workers: int
    cpus: float
    gpus: float
    concurrent: int
    nested: bool  # the workers are Ray Train's, below a driver; else the trial trains in the Tune actor itself
    custom: Mapping[str, float] = field(default_factory=dict)  # by Ray's names
    data_cpus: float = 0.0  # beside a trial in the Tune actor, for the tasks of Ray Data that decode for it
    shares: Mapping[str, float] = field(default_factory=dict)  # of a GPU, by trial id, where `gpus` is not for all

    @property
    def threads(self) -> int:
        """Threads for PyTorch in each worker: what it reserved, so that trials do not fight for cores."""
        return max(1, int(self.cpus))

    def gpus_of(self, trial_id: str) -> float:
        return self.shares.get(trial_id, self.gpus)

    def worker(self, trial_id: str = "") -> dict[str, float]:
        """What Ray reserves for a worker, by its names."""
        return _worker(self.cpus, self.gpus_of(trial_id), self.custom)


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """What a task beside the trials takes: a chunk of the activation pass, a group of linear probes."""

    cpus: float
    gpus: float
    concurrent: int  # of them fit the cluster
    custom: Mapping[str, float] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    @property
    def options(self) -> dict[str, Any]:
        """For a remote function's `options`."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom)}


def model_tasks(sweep: SweepConfig, cluster: ClusterSummary) -> TaskResources:
    """For tasks that run models: one for each GPU, or for every few CPUs without GPUs or where trials take none.

    On nodes that have what `resources_per_worker` names, like the trials.
    """
    custom = sweep.resources_per_worker
    shapes = [shape for shape in cluster.shapes() if how_many(shape, {"CPU": 1, **custom})]
    with_gpus = [shape for shape in shapes if shape.get("GPU", 0) >= 1]
    if with_gpus and _gpus(sweep, cluster) > 0:
        nodes = [(shape["CPU"], shape["GPU"]) for shape in with_gpus]
        return _tasks(cpus_of_a_pass_task(nodes, on_gpus=True), 1.0, cluster, custom)
    return _tasks(_some_cpus(shapes), 0.0, cluster, custom)


def cpu_tasks(cluster: ClusterSummary) -> TaskResources:
    """For tasks that read and decode: as many as the nodes without GPUs hold, or all nodes where every one has some.

    Ray itself places what asks for no GPU on nodes without, as long as there is room, and starts such nodes for it.
    """
    shapes = [shape for shape in cluster.shapes() if shape.get("CPU", 0) >= 1]
    without_gpus = [shape for shape in shapes if not shape.get("GPU")]
    return _tasks(_some_cpus(without_gpus or shapes), 0.0, cluster, {})


def trial_resources(
    config: RunConfig, cluster: ClusterSummary, shares: Mapping[str, float] | None = None
) -> TrialResources:
    """What one trial takes and how many run at once; ClusterError when the cluster can never hold one.

    `shares` of a GPU for each trial, for `sweep.gpus_per_worker: auto`, once the plan knows them; until then it is one.
    Where Ray Data decodes, CPUs are left for its tasks: trials that took all of them would wait for ever.
    """
    sweep = config.sweep
    shares = shares if sweep.gpus_per_worker == "auto" and shares else {}
    gpus = min(shares.values(), default=_gpus(sweep, cluster))
    resources = TrialResources(
        num_workers=sweep.workers_per_trial,
        cpus=sweep.cpus_per_worker,
        gpus=gpus,
        concurrent=0,
        nested=sweep.workers_per_trial > 1 or sweep.trainer == "ray_train",
        custom=sweep.resources_per_worker,
        data_cpus=config.data.stream_cpus if config.data.stream == "ray_data" else 0.0,
        shares=shares,
    )
    concurrent = _room(resources, cluster)
    if concurrent < 1:
        raise ClusterError(_does_not_fit(resources, cluster))
    if sweep.max_concurrent_trials is not None:
        concurrent = min(concurrent, sweep.max_concurrent_trials)
    return replace(resources, concurrent=concurrent)


def machines_of(config: RunConfig, cluster: ClusterSummary) -> Machines:
    """What works on a run on this cluster, for the plan's estimate."""
    tasks, trials = model_tasks(config.sweep, cluster), trial_resources(config, cluster)
    return Machines(
        concurrent_trials=trials.concurrent,
        pass_tasks=tasks.concurrent,
        pass_threads=tasks.threads,
        on_gpus=tasks.gpus > 0,
        gpus=cluster.most("GPU"),
        most_trials=_most_trials(config, trials, cluster),
        idle_cores=cluster.most("CPU") >= 2 * trials.concurrent * trials.num_workers * trials.cpus,
    )


def _most_trials(config: RunConfig, trials: TrialResources, cluster: ClusterSummary) -> int:
    """At once, where each takes the smallest share of a GPU that there is."""
    room = _room(replace(trials, gpus=min(trials.gpus, 1 / MOST_ON_A_GPU)), cluster)
    limit = config.sweep.max_concurrent_trials
    return max(1, room if limit is None else min(room, limit))


def worker_resources(sweep: SweepConfig, cluster: ClusterSummary) -> dict[str, float]:
    """What one worker of a trial asks for, before it is known whether the cluster can have it."""
    return _worker(sweep.cpus_per_worker, _gpus(sweep, cluster), sweep.resources_per_worker)


def _worker(cpus: float, gpus: float, custom: Mapping[str, float]) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **custom}


def _gpus(sweep: SweepConfig, cluster: ClusterSummary) -> float:
    """For each worker, before the plan has said more."""
    if isinstance(sweep.gpus_per_worker, float):
        return sweep.gpus_per_worker
    return float(cluster.most("GPU") > 0)


def _room(trial: TrialResources, cluster: ClusterSummary) -> int:
    room = cluster.room(trial.worker()) // trial.num_workers
    if trial.data_cpus:
        room = min(room, int(cluster.most("CPU") // (trial.num_workers * trial.cpus + trial.data_cpus)))
    return room


def _does_not_fit(trial: TrialResources, cluster: ClusterSummary) -> str:
    """The sentence that names the fields to change."""
    workers = trial.num_workers
    for name, what, each in (
        ("CPU", "cpus_per_worker", trial.cpus),
        ("GPU", "gpus_per_worker", trial.gpus),
        *((name, f"resources_per_worker.{name}", each) for name, each in trial.custom.items()),
    ):
        beside = trial.data_cpus if name == "CPU" else 0.0
        needed, most = workers * each + beside, cluster.most(name)
        if needed <= most:
            continue
        parts = f"sweep.workers_per_trial {workers} x sweep.{what} {each:g}"
        parts += f" + data.stream_cpus {beside:g}" if beside else ""
        plural = f"{name}s" if name in ("CPU", "GPU") else name
        has = f"has {most:g}" if cluster.growth is None else f"can have {most:g}: {cluster.in_words()}"
        return f"a trial needs {needed:g} {plural} ({parts}) and the cluster {has}; {_remedy(cluster)}"
    return (
        f"a worker of a trial needs {describe(trial.worker())} on one node, {workers} of them, and the cluster's nodes "
        f"are {cluster.in_words()}; {_remedy(cluster)}"
    )


def _remedy(cluster: ClusterSummary) -> str:
    remedy = "lower one of them or add nodes"
    return remedy if cluster.growth is not None else f"{remedy}; cluster.node_types says what an autoscaler may add"


def _some_cpus(shapes: list[Resources]) -> float:
    return cpus_of_a_pass_task([(shape["CPU"], 0.0) for shape in shapes], on_gpus=False)


def _tasks(cpus: float, gpus: float, cluster: ClusterSummary, custom: Mapping[str, float]) -> TaskResources:
    room = cluster.room({"CPU": cpus, "GPU": gpus, **custom})
    return TaskResources(cpus=cpus, gpus=gpus, concurrent=max(1, room), custom=custom)
