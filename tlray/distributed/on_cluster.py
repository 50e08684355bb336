"""Planning in a worker process: the driver itself never imports torch.

planned = plan_on_cluster(config)
"""

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.config import RunConfig
from tlray.data.manifest import Manifest
from tlray.distributed.cluster import cluster_summary, how_many
from tlray.distributed.errors import answer
from tlray.distributed.resources import machines_of, trial_resources
from tlray.distributed.tasks import plan_ranking_task, plan_task, select_task
from tlray.ranking.result import Ranking
from tlray.runs.plan import PlannedRun
from tlray.runs.prepare import with_absolute_locations

RETRIES = 3  # of a task whose node was lost


def plan_on_cluster(
    config: RunConfig,
    manifest: Manifest | None = None,
    ranking: Ranking | None = None,
    *,
    seconds: float | None = None,
) -> PlannedRun:
    """`tlray.planning.planner.plan_run` where a trial could train, so that what it measures is what trials will see.

    TimeoutError where it takes longer than `seconds`.
    """
    config = with_absolute_locations(config)
    return _planned(config, plan_task, manifest, ranking, seconds=seconds)


def plan_ranking_on_cluster(config: RunConfig) -> tuple[PlannedRun, Manifest]:
    """`tlray.planning.planner.plan_ranking` likewise."""
    return _planned(with_absolute_locations(config), plan_ranking_task)


def select_on_cluster(config: RunConfig) -> RunConfig:
    """`tlray.catalogue.select.select_backbones` likewise; a list of ids is an answer already."""
    return config if isinstance(config.backbones, tuple) else _computed(select_task, _place(config), config)


def conclude_on_cluster(config: RunConfig, conclude: Callable[..., Any], *arguments: Any) -> Any:
    """`conclude(*arguments)` on a worker's CPUs, or None where the driver's own node is one that works."""
    place = _place(config)
    if "scheduling_strategy" in place:
        return None
    place["num_gpus"] = 0  # exports are made and compared on the CPU
    return _computed(ray.remote(conclude), place, *arguments)


def _planned(config: RunConfig, task: Any, *arguments: Any, seconds: float | None = None) -> Any:
    machines = machines_of(config, cluster_summary(config.cluster))
    return _computed(task, _place(config), config, machines, *arguments, seconds=seconds)


def _place(config: RunConfig) -> dict[str, Any]:
    """Beside the driver where its node could hold a trial, without reserving a CPU; else where a trial could run.

    With the GPU of a trial in both cases: the plan measures on it, and what Ray has not given is somebody else's.

    The first is a laptop or a head that works too: the process then goes on to the activation pass, with torch
    imported and the machine's caches warm. The second is a head without CPUs, or a trial that wants a GPU elsewhere.
    """
    cluster = cluster_summary(config.cluster)
    resources = trial_resources(config, cluster)
    own = ray.get_runtime_context().get_node_id()
    here = next(node for node in cluster.nodes if node.node_id == own)
    if how_many(here.resources, resources.worker()):
        return {
            "num_cpus": 0,
            "num_gpus": resources.gpus,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(own, soft=False),
        }
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "resources": dict(resources.custom)}


def _computed(task: Any, place: dict[str, Any], *arguments: Any, seconds: float | None = None) -> Any:
    """Elsewhere the node may be lost, and another one tries again; here the process dies for a reason.

    TimeoutError after `seconds`.
    """
    max_retries = 0 if "scheduling_strategy" in place else RETRIES
    computing = task.options(**place, max_retries=max_retries).remote(*arguments)
    if seconds is not None and not ray.wait([computing], timeout=seconds)[0]:
        ray.cancel(computing, force=True)
        raise TimeoutError
    return answer(computing, "planning or concluding")
