"""What the cluster has, what a trial takes, and how many trials therefore run at once."""

import logging
import os
from dataclasses import dataclass

import ray

from tlray.config import RunConfig
from tlray.errors import ClusterError

# A nested trial's driver only waits for its workers. It must reserve something, and whole CPUs would starve them.
DRIVER_MEMORY_BYTES = 300 * 2**20
CPUS_FOR_A_GPU = 16.0  # of a task beside the trials; decoding is what a GPU waits for
CPUS_WITHOUT_A_GPU = 4.0


@dataclass(frozen=True, kw_only=True)
class ClusterSummary:
    """What Ray counts on all nodes together."""

    num_nodes: int
    cpus: float
    gpus: float
    memory_bytes: float
    object_store_bytes: float
    smallest_node_cpus: float  # of the nodes that have CPUs to give
    smallest_node_gpus: float  # of the nodes that have GPUs; 0 where none has


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """One trial: `num_workers` processes of `cpus` and `gpus` each; `concurrent` of them fit the cluster."""

    num_workers: int
    cpus: float
    gpus: float
    concurrent: int
    nested: bool  # the workers are Ray Train's, below a driver; else the trial trains in the Tune actor itself

    @property
    def threads(self) -> int:
        """Threads for PyTorch in each worker: what it reserved, so that trials do not fight for cores."""
        return max(1, int(self.cpus))


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """What a task beside the trials takes: a chunk of the activation pass, a group of linear probes."""

    cpus: float
    gpus: float
    concurrent: int  # of them fit the cluster

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine (localhost only)."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's GPU variable would otherwise be emptied in tasks that reserve none, with a warning each time.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def cluster_summary() -> ClusterSummary:
    """The resources of the nodes that are alive now."""
    connect()
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return ClusterSummary(
        num_nodes=len(nodes),
        smallest_node_cpus=min((node["CPU"] for node in nodes if node.get("CPU")), default=0.0),
        smallest_node_gpus=min((node["GPU"] for node in nodes if node.get("GPU")), default=0.0),
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        memory_bytes=total.get("memory", 0.0),
        object_store_bytes=total.get("object_store_memory", 0.0),
    )


def task_resources(cluster: ClusterSummary) -> TaskResources:
    """One task for each GPU, with its share of the node's CPUs to decode for it; else one for every few CPUs.

    Several threads in one process share one copy of the model and pay once for importing torch.
    """
    if cluster.gpus >= 1:
        cpus = max(1.0, min(CPUS_FOR_A_GPU, cluster.smallest_node_cpus // cluster.smallest_node_gpus))
        return TaskResources(cpus=cpus, gpus=1, concurrent=max(1, int(min(cluster.gpus, cluster.cpus // cpus))))
    cpus = max(1.0, min(CPUS_WITHOUT_A_GPU, cluster.smallest_node_cpus))
    return TaskResources(cpus=cpus, gpus=0, concurrent=max(1, int(cluster.cpus // cpus)))


def trial_resources(config: RunConfig, cluster: ClusterSummary) -> TrialResources:
    """What one trial takes and how many run at once; ClusterError when not even one fits.

    Where Ray Data decodes, CPUs are left free for its tasks: trials that took all of them would wait for ever.
    """
    sweep = config.sweep
    stream_cpus = config.data.stream_cpus if config.data.stream == "ray_data" else 0.0
    gpus = sweep.gpus_per_worker if sweep.gpus_per_worker is not None else float(cluster.gpus > 0)
    workers = sweep.workers_per_trial
    if workers > 1 and 0 < gpus < 1:
        raise ClusterError(
            f"sweep.gpus_per_worker is {gpus:g} with sweep.workers_per_trial {workers}: "
            "workers that train together need whole GPUs"
        )
    fits = []
    for name, field, each, beside, total in (
        ("CPUs", "cpus_per_worker", sweep.cpus_per_worker, stream_cpus, cluster.cpus),
        ("GPUs", "gpus_per_worker", gpus, 0.0, cluster.gpus),
    ):
        if each == 0:
            continue
        needed = workers * each + beside
        if needed > total:
            parts = f"sweep.workers_per_trial {workers} x sweep.{field} {each:g}"
            parts += f" + data.stream_cpus {beside:g}" if beside else ""
            raise ClusterError(
                f"a trial needs {needed:g} {name} ({parts}) and the cluster has {total:g}; "
                "lower one of them or add nodes"
            )
        fits.append(int(total // needed))
    concurrent = min(fits)
    if sweep.max_concurrent_trials is not None:
        concurrent = min(concurrent, sweep.max_concurrent_trials)
    return TrialResources(
        num_workers=workers,
        cpus=sweep.cpus_per_worker,
        gpus=gpus,
        concurrent=concurrent,
        nested=workers > 1 or sweep.trainer == "ray_train",
    )
